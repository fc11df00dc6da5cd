"""The fused operations on a CPU: each computes what a composition of minibert.ops defines, as accurately."""

import numpy as np
import pytest
from packed_cases import (
    EACH_RULE,
    RULES,
    SCORES,
    assert_is,
    attention,
    cast,
    exact_gelu,
    normal,
    random_norm,
    scored,
)

from minibert import ops, pooling
from minibert.config import BertConfig
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule
from minibert.engine.threads import one_blas_thread
from minibert.params import Embeddings, LayerNorm

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
#: Lengths of the texts of a batch, about the sizes of tiles and blocks; hidden size, and the heads in it.
BATCHES = pytest.mark.parametrize(
    ("lengths", "width", "heads"),
    [
        ([1], 16, 2),
        ([1], 384, 12),
        ([2], 128, 2),
        ([12], 384, 12),
        ([13], 16, 2),
        ([63, 64, 65], 128, 2),
        ([127, 128, 129], 384, 12),
        ([512], 128, 2),
        ([1] * 30 + [12] * 5 + [2, 0, 13, 2, 33, 33, 0, 0, 1], 16, 2),
        ([40] * 9, 384, 12),
    ],
    ids=["1-16", "1-384", "2", "12", "13", "63-65", "127-129", "512", "many", "many equal"],
)
EPS = 1e-12
ANY_ROW = RULES["any row"]


@pytest.fixture(autouse=True)
def one_thread():
    """Hold BLAS to one thread, as it is where batches are computed."""
    with one_blas_thread():
        yield


def no_bias(width, dtype="float32"):
    """Return a bias of zeros."""
    return np.zeros(width, dtype)


def packing_of(lengths, rule=ANY_ROW):
    """Return the packing of texts, with offsets such that all classes begin one."""
    return Packing.of(lengths, [7 * i for i in range(len(lengths))], rule)


def packed(x, packing):
    """Return the rows of a packed array, from those of its tokens in order."""
    return x[np.resize(np.arange(packing.tokens), packing.rows) if packing.token_at is None else packing.token_at]


def unpacked(x, packing):
    """Return the rows of the tokens in order, from those of a packed array."""
    assert np.isfinite(x).all(), "non-finite values, perhaps in rows that only fill up"
    return x[: packing.tokens] if packing.row_of is None else x[packing.row_of]


# ---------------------------------------------------------------- definitions


def embed_layer_norm(tables, ids, positions):
    """Return what ``embed_layer_norm`` is to return."""
    return ops.layer_norm(tables.word[ids] + tables.position[positions] + tables.token_type[0], *tables.norm, EPS)


def add_layer_norm(x, y, bias, norm, eps=EPS):
    """Return what ``add_layer_norm`` is to return."""
    return ops.layer_norm(x + y + bias, *norm, eps)


def linear(x, weight):
    """Return what ``linear`` is to return."""
    return ops.linear(x, weight.T)


# ---------------------------------------------------------------- the operations


@DTYPES
@EACH_RULE
@BATCHES
def test_embed_layer_norm(dtype, rule, lengths, width, heads):
    """Word, position and type embedding of each token are added and normalized; positions count in each text."""
    packing = packing_of(lengths, rule)
    tables = Embeddings(normal(50, width), normal(512, width), normal(2, width), random_norm(width))
    ids = np.random.default_rng(0).integers(0, 50, packing.tokens)
    positions = np.concatenate([np.arange(length) for length in lengths])
    x = FusedCpu(dtype).embed_layer_norm(cast(tables, dtype), ids, packing, BertConfig(layer_norm_eps=EPS))

    assert len(x) == packing.rows
    assert_is(unpacked(x, packing), lambda tables: embed_layer_norm(tables, ids, positions), dtype, tables)


@DTYPES
@EACH_RULE
@BATCHES
def test_linear(dtype, rule, lengths, width, heads):
    """``linear`` is a matrix product, however its sums are cut."""
    packing = packing_of(lengths, rule)
    x, weight = normal(packing.tokens, width), normal(width, 48, seed=1, size=width**-0.5)
    y = FusedCpu(dtype).linear("y", packed(cast(x, dtype), packing), cast(weight, dtype), packing, 100)

    assert len(y) == packing.rows
    assert_is(unpacked(y, packing), linear, dtype, x, weight)


@DTYPES
@EACH_RULE
@BATCHES
def test_attention(dtype, rule, lengths, width, heads):
    """Each token attends to all tokens of its text, in each head."""
    packing = packing_of(lengths, rule)
    inputs = [
        normal(packing.tokens, width, seed=i, size=size) for i, size in enumerate([(width / heads) ** -0.5, 1, 1])
    ]
    q, k, v = (packed(cast(x, dtype), packing) for x in inputs)
    bias = normal(width, seed=3, size=0.1)
    y = FusedCpu(dtype).attention(q, k, v, cast(bias, dtype), heads, packing, packing)

    assert len(y) == packing.rows
    assert_is(
        unpacked(y, packing), lambda q, k, v, bias: attention(q + bias, k, v, heads, lengths), dtype, *inputs, bias
    )


@pytest.mark.parametrize("shape", [(2, 77), (1, 79), (3, 79), (2, 78), (79,)], ids=str)
def test_attention_refuses_a_bias(shape):
    """A bias by distance must have all heads, and all distances of the longest text: it is read without a copy."""
    x, packing = np.zeros((40, 8), np.float32), packing_of([40])
    with pytest.raises(ValueError, match="distance_bias must"):
        FusedCpu("float32").attention(x, x, x, no_bias(8), 2, packing, packing, np.zeros(shape, np.float32))


@pytest.mark.parametrize("lengths", [[40] * 100, [700]], ids=["many texts", "a long one"])
def test_attention_in_blocks(lengths):
    """Where there are more scores than are held at a time, by many texts or many heads, none is left out."""
    packing = packing_of(lengths)
    inputs = [normal(packing.tokens, 48, seed=seed, size=size) for seed, size in enumerate([0.5, 1, 1])]
    y = FusedCpu("float32").attention(*inputs, no_bias(48), 12, packing, packing)

    assert_is(y, lambda q, k, v: attention(q, k, v, 12, lengths), "float32", *inputs)


@DTYPES
@EACH_RULE
@BATCHES
def test_attention_of_first_tokens(dtype, rule, lengths, width, heads):
    """With one query a text, its result is that of the first token."""
    packing = packing_of(lengths, rule)
    first = packing.first_tokens([7 * i for i in range(len(lengths))], rule)
    inputs = [
        normal(packing.tokens, width, seed=i, size=size) for i, size in enumerate([(width / heads) ** -0.5, 1, 1])
    ]
    q, k, v = (packed(cast(x, dtype), packing) for x in inputs)
    y = FusedCpu(dtype).attention(q[packing.rows_of_first(first)], k, v, no_bias(width, dtype), heads, first, packing)

    assert len(y) == first.rows
    assert_is(unpacked(y, first), lambda q, k, v: attention(q, k, v, heads, lengths, queries=1), dtype, *inputs)


@DTYPES
@EACH_RULE
@BATCHES
def test_linear_activation(dtype, rule, lengths, width, heads):
    """The bias is added to the product, and then comes the activation."""
    packing = packing_of(lengths, rule)
    x, weight, bias = normal(packing.tokens, width), normal(width, 96, seed=1, size=width**-0.5), normal(96, seed=2)
    rows = packed(cast(x, dtype), packing)
    y = FusedCpu(dtype).linear_activation(rows, *cast((weight, bias), dtype), "gelu", packing, 100)

    assert len(y) == packing.rows
    assert_is(unpacked(y, packing), lambda x, weight, bias: ops.gelu(linear(x, weight) + bias), dtype, x, weight, bias)


@DTYPES
@pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))
def test_every_activation(dtype, name):
    """Each activation that a config may name is applied."""
    packing = packing_of([64, 50])
    x, weight, bias = normal(114, 64), normal(64, 600, seed=1, size=0.5), normal(600, seed=2)
    y = FusedCpu(dtype).linear_activation(*cast((x, weight, bias), dtype), name, packing, 100)

    def definition(x, weight, bias):
        return ops.activation(name)(linear(x, weight) + bias)

    assert_is(y, definition, dtype, x, weight, bias)


@DTYPES
@BATCHES
def test_add_layer_norm(dtype, lengths, width, heads):
    """The sum of two arrays and a bias is normalized, in the memory of the first."""
    inputs = normal(sum(lengths), width), normal(sum(lengths), width, seed=1), normal(width, seed=2), random_norm(width)
    x, *others = cast(inputs, dtype)
    y = FusedCpu(dtype).add_layer_norm(x, *others, EPS)

    assert y is x
    assert_is(y, add_layer_norm, dtype, *inputs)


@DTYPES
@EACH_RULE
@BATCHES
def test_in_order(dtype, rule, lengths, width, heads):
    """The tokens' rows come in the tokens' order."""
    packing = packing_of(lengths, rule)
    x = cast(normal(packing.tokens, width), dtype)

    np.testing.assert_array_equal(FusedCpu(dtype).in_order(packed(x, packing), packing), x)


def test_in_order_already():
    """Where the rows are in the tokens' order, nothing is copied."""
    x = normal(2, 3)

    assert np.shares_memory(FusedCpu("float32").in_order(x, packing_of([1])), x)


@DTYPES
def test_take_first(dtype):
    """The rows of the texts' first tokens, of some columns too; a text without tokens has none."""
    x, packing = cast(normal(40, 8), dtype)[:, 2:5], packing_of([20, 0, 1, 19])
    taken = FusedCpu(dtype).take_first(x, packing, packing.first_tokens(None, RowRule((0,), threads=False)))

    assert taken.dtype == dtype
    np.testing.assert_array_equal(taken, x[[0, 20, 21]])


@DTYPES
@EACH_RULE
@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("exclude", [0, 2])
@pytest.mark.parametrize("modes", [("cls",), ("mean", "max"), ("lasttoken", "weightedmean")], ids="+".join)
def test_pool(dtype, rule, modes, exclude, normalize):
    """Each text's tokens are pooled, less a prompt's; one without tokens as if it had a masked one."""
    lengths = [5, 12, 12, 3, 0, 0, 3]
    packing = packing_of(lengths, rule)
    hidden = cast(normal(packing.tokens, 16), dtype)
    with np.errstate(invalid="ignore"):  # the maximum over no token is infinite, and so is the vector's length
        vectors = FusedCpu(dtype).pool(modes, packed(hidden, packing), packing, exclude, normalize=normalize)
    starts = np.cumsum([0, *lengths[:-1]])
    expected = []
    for start, length in zip(starts, lengths, strict=True):
        tokens = hidden[start : start + length] if length else np.zeros((1, 16), dtype)
        expected.append(pooling.pool(modes, tokens[None], np.full((1, len(tokens)), length > 0), exclude=exclude)[0])
    with np.errstate(invalid="ignore"):
        expected = ops.l2_normalize(np.stack(expected)) if normalize else np.stack(expected)

    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, expected)


# ---------------------------------------------------------------- memory


def test_results_of_other_names_are_kept():
    """A result is there until the next one of its name, whatever else is computed."""
    fused, packing, x, weight = FusedCpu("float32"), packing_of([30]), normal(30, 8), normal(8, 8, seed=1)
    first = fused.linear("first", x, weight, packing, 3)
    before = first.copy()
    fused.linear("second", 2 * x, weight, packing, 3)
    fused.linear_activation(x, weight, weight[0], "gelu", packing, 3)
    fused.attention(x.copy(), x, x, no_bias(8), 2, packing, packing)
    fused.take_first(x, packing, packing.first_tokens(None, RowRule((0,), threads=False)))
    fused.add_layer_norm(x.copy(), x.copy(), weight[0], random_norm(8), EPS)

    np.testing.assert_array_equal(first, before)


@EACH_RULE
def test_what_was_computed_before_does_not_matter(rule):
    """Operations that have computed larger and smaller batches give what new ones do, to the bit."""
    used = FusedCpu("float32")
    weight, norm = normal(16, 16, seed=1), random_norm(16)

    def compute(fused, lengths):
        packing = packing_of(lengths, rule)
        x = packed(normal(packing.tokens, 16), packing)
        heads = fused.attention(x.copy(), x, fused.linear("v", x, weight, packing, 5), no_bias(16), 2, packing, packing)
        y = fused.linear_activation(heads, weight, weight[0], "gelu", packing, 16)
        return fused.in_order(fused.add_layer_norm(x, y, weight[0], norm, EPS), packing).copy()

    for lengths in ([40, 40, 13], [2], [12, 12, 12, 5], [1], [100]):
        np.testing.assert_array_equal(compute(used, lengths), compute(FusedCpu("float32"), lengths))


# ---------------------------------------------------------------- sums


def errors_of_sums(products, longest):
    """Return the root mean square error of sums of so many products, taken in parts of at most ``longest``."""
    x, weight = normal(200, products), normal(products, 100, seed=1)
    y = FusedCpu("float32").linear("y", x, weight, packing_of([200]), longest)
    return np.sqrt(np.square(y - x.astype(np.float64) @ weight).mean())


@pytest.mark.parametrize(("longest", "share"), [(1536, 1.02), (384, 1.02), (64, 0.95)])
def test_partial_sums_are_no_less_accurate(longest, share):
    """Partial sums make the error of long sums no larger, and short ones make it smaller, whatever BLAS does itself."""
    assert errors_of_sums(3072, longest) <= share * errors_of_sums(3072, 3072)


@DTYPES
@pytest.mark.parametrize("longest", [1, 2, 7, 99, 100, 101])
def test_any_partial_sums(dtype, longest):
    """However short the partial sums, and where they do not divide the whole evenly, nothing is left out."""
    x, weight = normal(30, 100), normal(100, 20, seed=1)

    assert_is(
        FusedCpu(dtype).linear("y", *cast((x, weight), dtype), packing_of([30]), longest), linear, dtype, x, weight
    )


# ---------------------------------------------------------------- extreme scores


@DTYPES
@SCORES
def test_extreme_scores(dtype, low, high):
    """Scores of any size give the softmax's result: no overflow, no division by zero, no warning."""
    inputs = scored(low, high)
    packing = packing_of([20])
    y = FusedCpu(dtype).attention(*cast(inputs, dtype), no_bias(8, dtype), 2, packing, packing)

    assert_is(y, lambda q, k, v: attention(q, k, v, 2, [20]), dtype, *inputs)


@DTYPES
@SCORES
@pytest.mark.parametrize("place", [0, 1, 3])
def test_extreme_scores_of_another_text(dtype, low, high, place):
    """Whatever the scores of one text in a group, the bits of the others are what they are without it."""
    texts = [cast(scored(-i - 1, i + 2), dtype) for i in range(4)]
    without = texts[:place] + texts[place + 1 :]
    texts[place] = cast(scored(low, high), dtype)

    def attend(texts):
        packing = packing_of([20] * len(texts))
        q, k, v = (np.concatenate(parts) for parts in zip(*texts, strict=True))
        return np.split(FusedCpu(dtype).attention(q, k, v, no_bias(8, dtype), 2, packing, packing), len(texts))

    np.testing.assert_array_equal(np.delete(attend(texts), place, axis=0), attend(without))


@DTYPES
def test_extreme_scores_in_one_head(dtype):
    """Scores that overflow in one head leave the other one's bits as they are."""
    plain, extreme = cast(scored(-2, 2), dtype), cast(scored(-2, 900), dtype)
    mixed = [np.hstack([x[:, :4], y[:, 4:]]) for x, y in zip(plain, extreme, strict=True)]
    packing = packing_of([20])
    expected = FusedCpu(dtype).attention(*plain, no_bias(8, dtype), 2, packing, packing)

    actual = FusedCpu(dtype).attention(*mixed, no_bias(8, dtype), 2, packing, packing)

    np.testing.assert_array_equal(actual[:, :4], expected[:, :4])


# ---------------------------------------------------------------- extreme rows


@DTYPES
@pytest.mark.parametrize("mean", [0, 1e2, -1e4])
@pytest.mark.parametrize("deviation", [1, 1e-3, 1e3])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 10.0])
def test_layer_norm_of_large_means_and_any_deviation(dtype, mean, deviation, eps):
    """A mean far larger than the deviation, and any deviation against eps, cost no more accuracy than in ops."""
    x = (mean + normal(50, 384, size=deviation)).astype(np.float32)
    inputs = x, normal(50, 384, seed=1, size=deviation / 8), normal(384, seed=2, size=deviation / 8), random_norm(384)
    y = FusedCpu(dtype).add_layer_norm(*cast(inputs, dtype), eps)

    assert_is(y, lambda *arrays: add_layer_norm(*arrays, eps=eps), dtype, *inputs)


@DTYPES
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1e4])
def test_layer_norm_of_equal_values(dtype, value):
    """A row of equal values becomes the bias, but for what eps hides."""
    norm = LayerNorm(np.ones(384, dtype), cast(normal(384), dtype))
    x, zeros = np.full((3, 384), value, dtype), np.zeros((3, 384), dtype)
    y = FusedCpu(dtype).add_layer_norm(x, zeros, np.zeros(384, dtype), norm, EPS)

    np.testing.assert_allclose(y, np.tile(norm.bias, (3, 1)), rtol=0, atol=1e-3)


# ---------------------------------------------------------------- gelu


def gelu(x, name="gelu"):
    """Return the activation of float32 numbers as ``linear_activation`` computes it."""
    packing = packing_of([len(x)])
    one, zero = np.ones((1, 1), x.dtype), np.zeros(1, x.dtype)
    return FusedCpu(x.dtype).linear_activation(packed(x[:, None], packing), one, zero, name, packing, 1)[: len(x), 0]


@pytest.mark.parametrize("name", ["gelu", "gelu_python"])
def test_gelu_is_accurate(name):
    """The float32 error is at most 1.9e-7 of the result, or of 0.5; below zero, at most 8.3e-8 (tools/fit_gelu.py)."""
    x = np.concatenate([np.linspace(-30, 30, 300_001), np.geomspace(1e-38, 1, 2001), -np.geomspace(1e-38, 1, 2001)])
    x = np.append(x, np.random.default_rng(0).uniform(-8, 8, 300_000)).astype(np.float32)
    truth = exact_gelu(x)
    error = np.abs(gelu(x, name) - truth)

    assert (error / np.maximum(np.abs(truth), 0.5)).max() <= 1.9e-7
    assert error[x < 0].max() <= 8.3e-8


def test_gelu_is_as_accurate_as_its_definition():
    """Over normally distributed numbers its root mean square error is about that of ops.gelu in float32."""
    x = normal(200_000)
    truth = exact_gelu(x)
    own, peer = (np.sqrt(np.square(y - truth).mean()) for y in (gelu(x), ops.gelu(x)))

    assert own <= 1.15 * peer


@pytest.mark.parametrize("x", [0.0, -0.0, 1e-45, -1e-45])
def test_gelu_about_zero(x):
    """Zero stays zero, and the smallest numbers do not become larger."""
    assert abs(gelu(np.array([x], np.float32))[0]) <= abs(x)


@pytest.mark.parametrize("x", [8.0, 15.0, 30.0, 1e4, 1e19, 1e30, 3e38])
def test_gelu_of_large_numbers(x):
    """Large positive numbers stay what they are, and large negative ones become zero, without a warning."""
    x = np.float32(x)
    y = gelu(np.array([x, -x]))

    assert y[0] == x
    assert abs(y[1]) <= 1e-14


@DTYPES
def test_gelu_keeps_nan(dtype):
    """NaN stays NaN, so that it is seen, and the numbers beside it stay what they are."""
    y = gelu(np.array([1.0, np.nan, -1.0], dtype))

    np.testing.assert_allclose(y, [0.8413447460685429, np.nan, -0.15865525393145707], rtol=1e-6)


# ---------------------------------------------------------------- cancellation


def test_cancelled():
    """A product is not begun when the caller has given up."""
    fused, x = FusedCpu("float32", cancelled=lambda: True), normal(4, 4)

    with pytest.raises(InterruptedError):
        fused.linear("y", x, x, packing_of([4]), 4)


@pytest.mark.parametrize("rule", ["any row", "one product a text"])
def test_cancelled_between_products(rule):
    """Giving up is noticed between the products of one operation: of the parts of a sum, and of texts."""
    answers = iter([False, False, True])
    fused, x = FusedCpu("float32", cancelled=lambda: next(answers)), normal(8, 8)
    longest = 8 if rule == "one product a text" else 2

    with pytest.raises(InterruptedError):
        fused.linear_activation(x, x, x[0], "gelu", packing_of([2] * 4, RULES[rule]), longest)
    assert next(answers, None) is None
