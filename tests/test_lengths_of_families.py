"""The longest texts of each family: the rows of the position table from the first position on (R4, Z1-Z3)."""

import logging

import numpy as np
import pytest
from support import FAMILIES, copy_twin, edit_json, edit_weights

from minibert import BertModel, SentenceEncoder
from minibert.engine import native
from minibert.errors import ConfigError, TruncationWarning

#: Rows of the position tables of these tests. The tokens of the longest text are 2 fewer where positions begin at 2.
ROWS = 66
FILE = "sentence_bert_config.json"
#: No limit: the value that transformers writes.
SENTINEL = 1000000000000000019884624838656


def longest(card):
    """Return the largest number of tokens of a text."""
    return ROWS if FAMILIES[card]["model_type"] == "distilbert" else ROWS - 2


@pytest.fixture
def small(tmp_path):
    """Return a function that makes a repo of a family with a small position table."""

    def make(card, stated=..., by_tokenizer=...):
        repo = copy_twin(tmp_path / card, card)
        table = "embeddings.position_embeddings.weight"
        edit_json(repo / "config.json", max_position_embeddings=ROWS)
        edit_weights(repo / "model.safetensors", lambda arrays: arrays | {table: arrays[table][:ROWS]})
        edit_json(repo / FILE, max_seq_length=stated)
        edit_json(repo / "tokenizer_config.json", model_max_length=by_tokenizer)
        return repo

    return make


@pytest.mark.parametrize(
    ("stated", "by_tokenizer", "limit"),
    [
        (..., ..., 0),
        (..., SENTINEL, 0),
        (..., ROWS, 0),
        (..., 512, 0),
        (None, ROWS, 0),
        (..., 40, 40),
        (40, ROWS, 40),
        (40, 20, 40),
        (-1, ROWS, -1),
        (0, ROWS, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("card", FAMILIES)
def test_limit(small, caplog, card, stated, by_tokenizer, limit):
    """Nothing stated, or more by the tokenizer, gives the longest text; a smaller limit holds (Z2).

    0 and -1 stand for the longest text and one token less.
    """
    most = longest(card)
    stated, limit = (value + most if value in (0, -1) else value for value in (stated, limit))

    assert SentenceEncoder(small(card, stated, by_tokenizer)).max_seq_length == limit
    assert caplog.text == ""


@pytest.mark.parametrize("card", [card for card in FAMILIES if longest(card) < ROWS])
@pytest.mark.parametrize("stated", [ROWS - 1, ROWS])
def test_limit_of_the_rows(small, caplog, card, stated):
    """A stated limit between the longest text and the rows is cut, with one warning (Z3)."""
    with caplog.at_level(logging.WARNING, "minibert"):
        encoder = SentenceEncoder(small(card, stated))

    assert encoder.max_seq_length == ROWS - 2
    (record,) = caplog.records
    assert record.message.endswith(
        f"{card}: max_seq_length is {stated}, but positions begin after the padding id: "
        f"texts are cut to {ROWS - 2} tokens"
    )


@pytest.mark.parametrize("card", FAMILIES)
def test_limit_beyond_the_rows(small, card):
    """A stated limit beyond the table is refused, with both numbers (Z3, L10)."""
    with pytest.raises(ConfigError, match=rf"at most max_position_embeddings = {ROWS}; it is {ROWS + 1}"):
        SentenceEncoder(small(card, ROWS + 1))


@pytest.mark.parametrize("card", FAMILIES)
def test_limit_of_the_user(small, card):
    """A user can raise the limit to the longest text, and no further (Z2)."""
    encoder = SentenceEncoder(small(card, 40))
    encoder.max_seq_length = longest(card)

    with pytest.raises(
        ValueError, match=rf"from 2, the special tokens, to {longest(card)}, .*; it is {longest(card) + 1}"
    ):
        encoder.max_seq_length = longest(card) + 1


@pytest.mark.parametrize("engine", ["numpy", *native.available()[:1]])
@pytest.mark.parametrize("card", FAMILIES)
def test_texts_around_the_limit(small, card, engine):
    """Texts just below the limit, at it and over it have the vectors of the tokens that are kept (Z1)."""
    repo, most = small(card), longest(card)
    encoder = SentenceEncoder(repo, kernels=engine, on_truncate="ignore")
    lengths = (most - 1, most, most + 1, ROWS + 1, 3 * ROWS)
    texts = [" ".join(["a"] * (length - 2)) for length in lengths]
    assert encoder.tokenize(["a a"])["input_ids"].shape == (1, 4)
    features = encoder.encode(texts, output_value=None)
    model = BertModel.from_pretrained(repo)

    assert [len(each["input_ids"]) for each in features] == [min(length, most) for length in lengths]
    for each in features:
        expected = model(each["input_ids"][None]).last_hidden_state[0]
        np.testing.assert_allclose(each["token_embeddings"], expected, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=rf"from 1 to .*{most}.*input_ids has {most + 1}"):
        model(np.full((1, most + 1), 7))


@pytest.mark.parametrize("card", FAMILIES)
def test_cut_is_reported(small, card):
    """A repo without a stated limit cuts, and says so (Z2)."""
    encoder = SentenceEncoder(small(card))

    with pytest.warns(TruncationWarning, match=rf"1 of 2 texts were cut to max_seq_length = {longest(card)} tokens"):
        encoder.encode(["a", "a " * ROWS])


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stated", [..., ROWS, ROWS - 2, ROWS - 3])
@pytest.mark.parametrize("card", FAMILIES)
def test_limits_of_sentence_transformers(small, card, stated):
    """Up to the longest text, the vectors are the same; sentence-transformers fails on longer ones (Z1)."""
    import sentence_transformers

    repo, most = small(card, stated, 512), longest(card)
    peer = sentence_transformers.SentenceTransformer(str(repo), device="cpu")
    encoder = SentenceEncoder(repo, on_truncate="ignore")
    texts = [" ".join(["a"] * (length - 2)) for length in (most - 1, most)]

    assert encoder.max_seq_length == min(peer.max_seq_length, most)
    np.testing.assert_allclose(encoder.encode(texts), peer.encode(texts), rtol=0, atol=2e-5)
    longer = " ".join(["a"] * (ROWS + 4))
    if peer.max_seq_length > most:
        with pytest.raises((IndexError, RuntimeError)):
            peer.encode(longer)
        encoder.encode(longer)
    else:
        np.testing.assert_allclose(encoder.encode(longer), peer.encode(longer), rtol=0, atol=2e-5)
