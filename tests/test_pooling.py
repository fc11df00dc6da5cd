"""Pooling: what each mode makes of the tokens of a text, and what it must ignore."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import MODES, assert_as_accurate, flushed

from minibert import pooling
from minibert.pooling import pool

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EACH_MODE = pytest.mark.parametrize("mode", MODES)
MEANS = pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean"])


def pooled(xp, modes, hidden, mask, **options):
    """Return ``pool`` of numpy arrays as a numpy array, computed by ``xp``."""
    options = {name: xp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    vectors = pool(modes, xp.asarray(hidden), xp.asarray(mask, dtype=bool), **options)
    return vectors.get() if hasattr(vectors, "get") else vectors


# ---------------------------------------------------------------- the table of the rules

#: Mask, tokens of an excluded prompt, and what each mode makes of the four tokens 1 2 3, 4 5 6, 7 8 9, 10 11 12:
#: its first dimension, or its three where they do not rise by 1.
TABLE = {
    "padded right": ([1, 1, 1, 0], 0, 1, 7, 4, [6.9282, 8.6603, 10.3923], 5, 7),
    "no padding": ([1, 1, 1, 1], 0, 1, 10, 5.5, [11, 13, 15], 7, 10),
    "padded left": ([0, 1, 1, 1], 0, 4, 10, 7, [12.1244, 13.8564, 15.5885], 8, 10),
    "hole": ([1, 0, 1, 1], 0, 1, 10, 6, [10.3923, 12.1244, 13.8564], 7.75, 10),
    "no token": ([0, 0, 0, 0], 0, 1, [-math.inf] * 3, [0] * 3, [0] * 3, [0] * 3, [0] * 3),
    "prompt": ([1, 1, 1, 0], 1, 4, 7, 5.5, [7.7782, 9.1924, 10.6066], 5.8, 7),
    "prompt after padding": ([0, 1, 1, 1], 1, 7, 10, 8.5, [12.0208, 13.4350, 14.8492], 8.8, 10),
    "nothing but prompt": ([1, 1, 1, 0], 3, 1, [-math.inf] * 3, [0] * 3, [0] * 3, [0] * 3, [0] * 3),
}
ROWS = pytest.mark.parametrize(
    ("mask", "exclude", "mode", "expected"),
    [
        pytest.param(mask, exclude, mode, value, id=f"{name}-{mode}")
        for name, (mask, exclude, *values) in TABLE.items()
        for mode, value in zip(MODES, values, strict=True)
    ],
)


@DTYPES
@ROWS
def test_table(xp, dtype, mask, exclude, mode, expected):
    """Each mode gives the vector that sentence-transformers gives, and keeps the dtype (P2 to P7, P9)."""
    hidden = np.arange(1, 13, dtype=dtype).reshape(1, 4, 3)
    vectors = pooled(xp, [mode], hidden, [mask], exclude=exclude)

    assert vectors.dtype == dtype
    expected = expected if isinstance(expected, list) else [expected, expected + 1, expected + 2]
    np.testing.assert_allclose(vectors, [expected], rtol=0, atol=5.1e-5)


def test_table_has_every_mode():
    """No mode is left out of the tests."""
    assert set(pooling.MODES) == set(MODES)


@EACH_MODE
def test_texts_of_a_batch_do_not_mix(xp, mode):
    """All rows of the table in one batch give what each gives alone."""
    hidden = np.random.default_rng(0).normal(size=(8, 4, 3))
    masks = [row[0] for row in TABLE.values()]
    alone = [pooled(xp, [mode], hidden[i : i + 1], masks[i : i + 1]) for i in range(8)]

    np.testing.assert_array_equal(pooled(xp, [mode], hidden, masks), np.concatenate(alone))


@pytest.mark.parametrize("modes", [("max", "cls"), ("cls", "max"), ("mean", "mean"), MODES])
def test_modes_are_put_side_by_side_in_their_order(xp, modes):
    """Several modes give the vectors of each, in the order in which they are named (P1)."""
    hidden = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    mask = [[1, 1, 1, 0], [1, 1, 1, 1]]
    vectors = pooled(xp, modes, hidden, mask)

    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.hstack([pooled(xp, [mode], hidden, mask) for mode in modes]))


def test_pool_leaves_its_inputs(xp):
    """Neither the token vectors nor the mask are written to."""
    hidden, mask = np.ones((1, 4, 3), np.float32), np.array([[True, True, True, False]])
    pooled(xp, MODES, hidden, mask, exclude=2)

    assert (hidden == 1).all()
    assert mask.tolist() == [[True, True, True, False]]


# ---------------------------------------------------------------- word weights


@DTYPES
@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", 12 / 2.25), ("mean_sqrt_len_tokens", 12 / 1.5), ("weightedmean", 30 / 2.25), ("cls", 1), ("max", 7)],
)
def test_weight_sum_replaces_the_count(xp, dtype, mode, expected):
    """The sum of word weights stands in for the number of tokens, or of weighted positions, in every mean (P8)."""
    hidden = np.arange(1, 13, dtype=dtype).reshape(1, 4, 3)
    vectors = pooled(xp, [mode], hidden, [[1, 1, 1, 0]], weight_sum=np.array([2.25], dtype))

    assert vectors.dtype == dtype
    assert vectors[0, 0] == pytest.approx(expected, rel=1e-6)


@MEANS
@pytest.mark.parametrize("weight_sum", [0.0, -1.0])
def test_weight_sum_is_at_least_a_billionth(xp, mode, weight_sum):
    """A text whose words all weigh nothing gives zeros, not NaN (P8)."""
    vectors = pooled(xp, [mode], np.zeros((1, 4, 3)), [[1, 1, 1, 0]], weight_sum=np.array([weight_sum]))

    np.testing.assert_array_equal(vectors, np.zeros((1, 3)))


# ---------------------------------------------------------------- accuracy


@MEANS
@pytest.mark.parametrize("offset", [0, 10, 1e4])
def test_mean_of_a_long_text_is_correctly_rounded(xp, mode, offset):
    """Over 512 float32 tokens, far from zero too, the result is the exact one, rounded once (P4 to P6)."""
    hidden = (offset + np.random.default_rng(0).normal(size=(1, 512, 20))).astype(np.float32)
    weights = range(1, 513) if mode == "weightedmean" else [1] * 512
    divisor = math.sqrt(512) if mode == "mean_sqrt_len_tokens" else sum(weights)
    columns = hidden[0].T.astype(np.float64)
    exact = np.array([math.fsum(column * weights) / divisor for column in columns])
    vector = pooled(xp, [mode], hidden, np.ones((1, 512)))[0]

    assert (np.abs(vector - exact) <= 0.5001 * np.spacing(np.abs(vector))).all()


# ---------------------------------------------------------------- properties

VALUES = st.floats(-1e4, 1e4, width=32)
CLOSE = {"rtol": 3e-7, "atol": 1e-9}  # one rounding of the result, and those of float64 sums that cancel


@st.composite
def texts(draw):
    """Draw the token vectors of one text, ``(1, S, H)`` float32: denormal, huge and equal values among them."""
    shape = (1, draw(st.integers(1, 12)), draw(st.integers(1, 4)))
    return draw(arrays(np.float32, shape, elements=VALUES, fill=VALUES))


@settings(deadline=None)
@given(row=arrays(np.float32, st.integers(1, 4), elements=VALUES), length=st.integers(1, 600))
def test_equal_tokens_pool_to_themselves(xp, row, length):
    """A text of equal tokens has exactly that vector, however long: but for mean_sqrt, times its root (P2 to P7)."""
    hidden = np.tile(row, (1, length, 1))
    for mode in set(MODES) - {"mean_sqrt_len_tokens"}:
        np.testing.assert_array_equal(pooled(xp, [mode], hidden, np.ones((1, length))), [row])
    vector = pooled(xp, ["mean_sqrt_len_tokens"], hidden, np.ones((1, length)))
    np.testing.assert_allclose(vector, [row.astype(np.float64) * math.sqrt(length)], rtol=1e-7, atol=1e-44)


@settings(deadline=None)
@given(hidden=texts(), random=st.randoms(use_true_random=False))
@pytest.mark.parametrize("mode", ["max", "mean", "mean_sqrt_len_tokens"])
def test_order_of_tokens_does_not_matter(xp, hidden, random, mode):
    """The largest and the mean of the tokens do not depend on their order (P3 to P5)."""
    order = random.sample(range(hidden.shape[1]), hidden.shape[1])
    mask = np.ones(hidden.shape[:2])

    np.testing.assert_allclose(pooled(xp, [mode], hidden[:, order], mask), pooled(xp, [mode], hidden, mask), **CLOSE)


@settings(deadline=None)
@given(hidden=texts())
@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
def test_mean_lies_between_the_tokens(xp, hidden, mode):
    """A mean is nowhere below the smallest token value, nor above the largest (P4, P6)."""
    vector = pooled(xp, [mode], hidden, np.ones(hidden.shape[:2]))

    assert (vector >= hidden.min(axis=1) - flushed(xp)).all()
    assert (vector <= hidden.max(axis=1) + flushed(xp)).all()


@settings(deadline=None)
@given(hidden=texts(), left=st.integers(0, 3), right=st.integers(0, 3), exclude=st.integers(0, 3), junk=VALUES)
@EACH_MODE
def test_padding_does_not_matter(xp, hidden, left, right, exclude, junk, mode):
    """Padding on either side, whatever its vectors, changes no text that has a token to pool (P2 to P9)."""
    assume(exclude < hidden.shape[1])
    padded = np.pad(hidden, ((0, 0), (left, right), (0, 0)), constant_values=junk)
    mask = np.pad(np.ones(hidden.shape[:2]), ((0, 0), (left, right)))
    plain = pooled(xp, [mode], hidden, np.ones(hidden.shape[:2]), exclude=exclude)

    np.testing.assert_allclose(pooled(xp, [mode], padded, mask, exclude=exclude), plain, **CLOSE)


@settings(deadline=None)
@given(hidden=texts(), data=st.data())
def test_modes_agree_with_their_definitions(xp, hidden, data):
    """Under any mask with a token, each mode is the plain Python of its rule (P2 to P7)."""
    mask = data.draw(arrays(bool, hidden.shape[:2]).filter(np.any))
    kept = np.flatnonzero(mask[0])
    tokens, positions = hidden[0, kept].astype(np.float64), (kept - kept[0] + 1)[:, None]
    expected = {
        "cls": tokens[0],
        "max": tokens.max(axis=0),
        "mean": tokens.sum(axis=0) / len(kept),
        "mean_sqrt_len_tokens": tokens.sum(axis=0) / math.sqrt(len(kept)),
        "weightedmean": (tokens * positions).sum(axis=0) / positions.sum(),
        "lasttoken": tokens[-1],
    }

    np.testing.assert_allclose(pooled(xp, MODES, hidden, mask), [np.concatenate([expected[m] for m in MODES])], **CLOSE)


# ---------------------------------------------------------------- sentence-transformers


def reference_pool(mode, hidden, mask, *, prompt_length=0, weight_sum=None):
    """Return what sentence-transformers' Pooling returns."""
    import torch
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    features = {"token_embeddings": torch.from_numpy(hidden), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    if prompt_length:
        features["prompt_length"] = prompt_length
    if weight_sum is not None:
        features["token_weights_sum"] = torch.from_numpy(weight_sum)
    module = Pooling(hidden.shape[-1], mode, include_prompt=False)
    return module(features)["sentence_embedding"].numpy()


def random_masks(texts, tokens):
    """Return masks padded left and right, half of them with holes, all with at least five tokens."""
    rng = np.random.default_rng(0)
    mask = np.zeros((texts, tokens), bool)
    for row in range(texts):
        start, stop = rng.integers(0, tokens // 4), rng.integers(3 * tokens // 4, tokens + 1)
        mask[row, start:stop] = rng.random(stop - start) < (0.7 if row % 2 else 1.1)
        mask[row, tokens // 2 : tokens // 2 + 5] = True
    return mask


@pytest.mark.reference
@pytest.mark.parametrize("weighted", [False, True], ids=["", "word weights"])
@pytest.mark.parametrize("prompt_length", [0, 1, 3])
@pytest.mark.parametrize("mode", [*MODES, list(MODES)], ids=str)
def test_as_accurate_as_sentence_transformers(mode, prompt_length, weighted):
    """Padding, holes and prompts are pooled as in sentence-transformers, to its own rounding error (P2 to P9)."""
    hidden = np.random.default_rng(1).normal(size=(40, 64, 16)).astype(np.float32)
    mask = random_masks(40, 64)
    weights = np.random.default_rng(2).uniform(0.5, 20, 40).astype(np.float32) if weighted else None
    peer = reference_pool(mode, hidden, mask, prompt_length=prompt_length, weight_sum=weights)
    truth = reference_pool(
        mode,
        hidden.astype(np.float64),
        mask,
        prompt_length=prompt_length,
        weight_sum=None if weights is None else weights.astype(np.float64),
    )
    modes = [mode] if isinstance(mode, str) else mode

    assert_as_accurate(pool(modes, hidden, mask, exclude=prompt_length, weight_sum=weights), peer, truth, factor=1.0)


@pytest.mark.reference
@EACH_MODE
def test_text_without_tokens_is_as_in_sentence_transformers(mode):
    """A text of which nothing is left gives what sentence-transformers gives (P2 to P7)."""
    hidden = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.array([[False] * 4, [False, True, True, False]])

    np.testing.assert_array_equal(
        pool([mode], hidden, mask, exclude=2), reference_pool(mode, hidden, mask, prompt_length=2)
    )
