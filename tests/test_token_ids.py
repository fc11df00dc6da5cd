"""Token ids in one array: what is computed on all of them is what each text would give by itself."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.engine.token_ids import TokenIds, starts_of

#: The ids of some texts; without special tokens, a text may have none.
TEXTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=12)


def as_lists(ids):
    """Return a list of ids for each text."""
    return [text.tolist() for text in ids]


@given(texts=TEXTS)
def test_texts_come_back(texts):
    """There are as many texts as were given, with their ids and lengths, in int32."""
    ids = TokenIds.of(texts)

    assert as_lists(ids) == texts
    assert len(ids) == len(texts)
    assert ids.lengths.tolist() == [len(text) for text in texts]
    assert ids.flat.dtype == np.int32


@given(texts=TEXTS)
def test_starts(texts):
    """A text starts where the texts before it end."""
    assert starts_of(TokenIds.of(texts).lengths).tolist() == [sum(map(len, texts[:i])) for i in range(len(texts))]


@given(texts=TEXTS)
def test_sums(texts):
    """The sum of a text's ids is exact, beyond 32 bits too, and 0 for a text without any."""
    assert TokenIds.of(texts).sums().tolist() == [sum(text) for text in texts]


@given(data=st.data(), texts=TEXTS)
def test_take(data, texts):
    """Texts can be taken in any order, and more than once."""
    which = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=12)) if texts else []
    taken = TokenIds.of(texts).take(which)

    assert as_lists(taken) == [texts[i] for i in which]
    assert taken.flat.dtype == np.int32


@settings(deadline=None)
@given(pieces=st.lists(TEXTS, max_size=5))
def test_joined(pieces):
    """Pieces that are joined have all texts in order."""
    joined = TokenIds.joined(map(TokenIds.of, pieces))

    assert as_lists(joined) == [text for piece in pieces for text in piece]
    assert (joined.flat.dtype, joined.lengths.dtype) == (np.int32, np.intp)


def test_pieces_are_joined_in_little_memory():
    """While a million tokens are joined, they take little more than their 4 bytes each."""
    piece = TokenIds(np.arange(10_000, dtype=np.int32), np.array([10_000]))
    tracemalloc.start()
    try:
        joined = TokenIds.joined(TokenIds(piece.flat.copy(), piece.lengths) for _ in range(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(joined.flat) == 1_000_000
    assert peak < 5_500_000
