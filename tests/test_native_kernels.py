"""The native kernels of a CPU: each computes what minibert.ops and minibert.pooling define, as accurately."""

import ctypes

import numpy as np
import pytest
from packed_cases import SCORES, assert_is, attention, cast, exact_gelu, normal, random_model, random_norm, scored
from support import assert_as_accurate, assert_as_accurate_on_average

from minibert import ops, pooling
from minibert.config import BertConfig
from minibert.engine import fused_native, native, native_params, packed
from minibert.engine.arithmetic import ArrayArithmetic
from minibert.engine.fused_native import ROW_RULE, FusedNative
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.native_arithmetic import NativeArithmetic
from minibert.engine.packing import Packing
from minibert.engine.threads import one_blas_thread
from minibert.params import Embeddings, LayerNorm

EPS = 1e-12
ACTIVATIONS = {**ops.ACTIVATIONS, "softplus": ops.softplus}

#: The sizes of products, about those of panels, tiles, blocks of sums and groups of blocks.
INPUTS = (1, 2, 127, 128, 129, 1024, 1025, 2000)
OUTPUTS = (1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 200)
ROWS = (0, 1, 2, 13, 14, 15, 111, 112, 113, 300)

#: Numbers about which a kernel could go wrong: beyond the range of exp, at its ends, and the smallest ones.
EXTREMES = np.array(
    [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e19, -1e19, 1e4, -1e4, 104, -104, 89, -89, 88, -88, 20, -20, 9, -9, 1,
     -1, 1e-30, -1e-30, 1e-45, -1e-45, 0.0, -0.0],
    np.float32,
)  # fmt: skip


def packed_weights(library, weight):
    """Return an ``(in, out)`` matrix as the library takes it."""
    memory = library.empty(*weight.shape)
    library.pack(memory, weight.shape[1], [(weight, 1.0)])
    return memory


def multiply(library, x, weight, bias=None, activation="linear"):
    """Return a product by the library."""
    return library.linear(x, packed_weights(library, weight), weight.shape[1], bias, activation)


def starts_of(lengths):
    """Return the row of each text's first token, and the end."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def same_bits(a, b):
    """Return whether two float32 arrays have the same bits."""
    return np.array_equal(a.view(np.int32), b.view(np.int32))


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("inputs", INPUTS)
def test_product(library, inputs):
    """A product is as accurate as that of BLAS, with one input or with many."""
    x, weight = normal(300, inputs), normal(inputs, 200, seed=1)

    assert_is(multiply(library, x, weight), lambda x, weight: ops.linear(x, weight.T), "float32", x, weight)


@pytest.mark.parametrize("inputs", INPUTS)
def test_products_of_every_size(library, inputs):
    """However many rows and columns there are, an element of a product has the same bits."""
    x, weight = normal(300, inputs), normal(inputs, 200, seed=1)
    whole = multiply(library, x, weight)
    for outputs in OUTPUTS:
        matrix = packed_weights(library, weight[:, :outputs])
        for rows in ROWS:
            y = library.linear(x[300 - rows :], matrix, outputs)

            assert same_bits(y, whole[300 - rows :, :outputs].copy()), (outputs, rows)


def test_product_of_strided_rows(library):
    """The rows of a product may be apart."""
    x, weight = normal(40, 50), normal(20, 30, seed=1)

    assert same_bits(multiply(library, x[::2, 7:27], weight), multiply(library, x[::2, 7:27].copy(), weight))


@pytest.mark.parametrize("inputs", INPUTS)
def test_bias_of_a_sum_of_any_length(library, inputs):
    """The bias is added once, to the whole sum, even if that has several parts."""
    x, weight, bias = normal(20, inputs), normal(inputs, 50, seed=1), normal(50, seed=2)

    assert same_bits(multiply(library, x, weight, bias), multiply(library, x, weight) + bias)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("outputs", [1, 37, 600])
def test_bias_and_activation(library, name, outputs):
    """The bias is added to a product, and then comes the activation; so in the last columns, too."""
    x, weight, bias = normal(114, 64), normal(64, outputs, seed=1, size=0.5), normal(outputs, seed=2)

    def definition(x, weight, bias):
        return ACTIVATIONS[name](ops.linear(x, weight.T) + bias)

    y = multiply(library, x, weight, bias, name)

    assert_is(y, definition, "float32", x, weight, bias)


@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_activation_without_bias(library, name):
    """A product without a bias gets its activation, too."""
    x, weight = normal(20, 64), normal(64, 37, seed=1, size=0.2)
    y = multiply(library, x, weight, None, name)

    assert_is(y, lambda x, weight: ACTIVATIONS[name](ops.linear(x, weight.T)), "float32", x, weight)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_product_with_a_number_that_is_not_finite(library, value):
    """A number that is not finite shows in the elements that it belongs to, and in no others."""
    x, weight = normal(20, 150), normal(150, 40, seed=1)
    expected = multiply(library, x, weight)
    x[3, 140] = value
    y = multiply(library, x, weight)
    y_of_column = multiply(library, weight.T[:20].copy(), x.T.copy())  # the same number among the weights

    assert not np.isfinite(y[3]).any()
    assert same_bits(np.delete(y, 3, axis=0), np.delete(expected, 3, axis=0))
    assert np.isfinite(y_of_column).all(axis=0).tolist() == [column != 3 for column in range(20)]


def test_product_that_overflows(library):
    """A sum that is too large becomes infinite."""
    assert multiply(library, np.full((1, 4), 1e38, np.float32), np.ones((4, 1), np.float32)).item() == np.inf


# ---------------------------------------------------------------- packed matrices


@pytest.mark.parametrize("view", ["rows", "columns", "reversed", "every other one", "a part"])
def test_pack_of_any_strides(library, view):
    """A matrix is packed as it is seen, whatever its strides are."""
    matrix = {
        "rows": normal(131, 37),
        "columns": normal(37, 131).T,
        "reversed": normal(131, 37)[::-1, ::-1],
        "every other one": normal(262, 74)[::2, ::2],
        "a part": normal(140, 40)[4:135, 2:39],
    }[view]

    assert same_bits(library.unpack(packed_weights(library, matrix), 131, 37), matrix.copy())


@pytest.mark.parametrize("widths", [(16, 16, 16), (1, 40, 7), (33,), (5, 0, 60), (100, 100, 100)])
@pytest.mark.parametrize("inputs", [1, 100, 1500])
def test_pack_of_parts(library, inputs, widths):
    """Matrices side by side are those that were packed, each times its factor in float32."""
    parts = [(normal(width, inputs, seed=i).T, 0.1 * (i + 1)) for i, width in enumerate(widths)]
    memory = library.empty(inputs, sum(widths))
    memory[:] = np.nan
    library.pack(memory, sum(widths), parts)
    expected = np.hstack([part * np.float32(factor) for part, factor in parts])

    assert np.isfinite(memory).all()
    assert same_bits(library.unpack(memory, inputs, sum(widths)), expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 7), (8, 5), (100, 30), (768, 20)])
def test_fold(library, inputs, outputs):
    """A bias that passes a matrix has the error of its last rounding alone."""
    weight, x, bias, y = normal(outputs, inputs), normal(inputs), normal(outputs, seed=1), np.empty(outputs, np.float32)
    library.c.mb_fold(*map(native.address, (weight, x, bias)), inputs, outputs, native.address(y))
    truth = weight.astype(np.float64) @ x + bias

    assert (np.abs(y - truth) <= 0.5001 * np.spacing(np.abs(truth), dtype=np.float32)).all()


# ---------------------------------------------------------------- attention


def attend(library, q, k, v, bias, heads, lengths, queries=None):
    """Return the library's attention of texts; ``queries`` is the number of each text's queries."""
    out = np.full_like(q, np.nan)
    keys = starts_of(lengths)
    asked = keys if queries is None else starts_of(queries)
    size = q.shape[1] // heads
    scratch = np.full(library.c.mb_attention_scratch(library.kernels, max(lengths), size), np.nan, np.float32)
    pointers = native.AttentionPointers(
        *map(native.address, (q, k, v, bias, out)), *(x.strides[0] // 4 for x in (q, k, out)), heads, size,
        len(lengths), native.address(asked), native.address(keys),
    )  # fmt: skip
    library.require(
        library.c.mb_attention(library.kernels, None, ctypes.byref(pointers), native.address(scratch), scratch.size)
    )
    return out


@pytest.mark.parametrize("size", [1, 3, 8, 16, 32, 50, 64, 100])
@pytest.mark.parametrize(
    "lengths", [[1], [2], [13, 14, 15], [63, 64, 65], [127, 128, 129], [1, 0, 33, 0, 7], [300]], ids=str
)
def test_attention(library, size, lengths):
    """Each token attends to all tokens of its text in each head, whatever the sizes are."""
    width = 3 * size
    q, k, v = (normal(sum(lengths), width, seed=i, size=scale) for i, scale in enumerate([size**-0.5, 1, 1]))
    bias = normal(width, seed=3, size=0.1)
    y = attend(library, q, k, v, bias, 3, lengths)

    assert_is(y, lambda q, k, v, bias: attention(q + bias, k, v, 3, lengths), "float32", q, k, v, bias)


@pytest.mark.parametrize("size", [3, 32])
def test_attention_of_some_queries(library, size):
    """The first tokens of each text, or the first few, have the bits that they have among all."""
    lengths, queries, width = [40, 1, 0, 15, 130], [3, 1, 0, 1, 1], 2 * size
    q, k, v = (normal(sum(lengths), width, seed=i) for i in range(3))
    bias, starts = normal(width, seed=3), starts_of(lengths)
    chosen = np.concatenate([start + np.arange(count) for start, count in zip(starts, queries, strict=False)])
    every = attend(library, q, k, v, bias, 2, lengths)

    assert same_bits(attend(library, q[chosen], k, v, bias, 2, lengths, queries), every[chosen])


@pytest.mark.parametrize("size", [3, 32])
def test_attention_of_other_texts(library, size):
    """What other texts there are changes no bit of a text's."""
    lengths = [30, 1, 70, 129]
    q, k, v = (normal(sum(lengths), 2 * size, seed=i) for i in range(3))
    bias = normal(2 * size, seed=3)
    together = attend(library, q, k, v, bias, 2, lengths)
    for i, (start, end) in enumerate(zip(starts_of(lengths), starts_of(lengths)[1:], strict=False)):
        assert same_bits(attend(library, q[start:end], k[start:end], v[start:end], bias, 2, [lengths[i]]),
                         together[start:end])  # fmt: skip


@SCORES
def test_extreme_scores(library, low, high):
    """Scores of any size give the softmax's result: no overflow and no division by zero."""
    inputs = scored(low, high)
    y = attend(library, *inputs, np.zeros(8, np.float32), 2, [20])

    assert_is(y, lambda q, k, v: attention(q, k, v, 2, [20]), "float32", *inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_to_a_key_that_is_not_finite(library, value):
    """A key that is not finite shows in its head's vectors of its text, and nowhere else."""
    q, k, v = (np.abs(normal(40, 8, seed=i)) for i in range(3))
    bias = np.zeros(8, np.float32)
    expected = attend(library, q, k, v, bias, 2, [20, 20])
    k[5, 6] = value
    y = attend(library, q, k, v, bias, 2, [20, 20])

    assert not np.isfinite(y[:20, 4:]).any()
    assert same_bits(y[20:], expected[20:])
    assert same_bits(y[:20, :4].copy(), expected[:20, :4].copy())


# ---------------------------------------------------------------- layer norm and embeddings


def add_layer_norm(library, x, y, bias, norm, eps=EPS):
    """Return the library's ``LayerNorm(x + y + bias)``; ``y`` and ``bias`` may be None."""
    out = np.full_like(x, np.nan)
    width = x.shape[1]
    pointers = native.NormPointers(
        *map(native.address, (x, y, bias, norm.weight, norm.bias, out)), len(x), width, width, width, width, eps
    )
    library.c.mb_layer_norm(library.kernels, ctypes.byref(pointers))
    return out


WIDTHS = pytest.mark.parametrize("width", [2, 3, 15, 16, 17, 30, 100, 312, 384, 1000])


@WIDTHS
def test_add_layer_norm(library, width):
    """The sum of two arrays and a bias is normalized, with any number of columns."""
    inputs = normal(50, width), normal(50, width, seed=1), normal(width, seed=2), random_norm(width)

    assert_is(
        add_layer_norm(library, *inputs),
        lambda x, y, bias, norm: ops.layer_norm(x + y + bias, *norm, EPS),
        "float32",
        *inputs,
    )


@WIDTHS
def test_layer_norm(library, width):
    """So are rows without another array to add."""
    x, norm = normal(50, width), random_norm(width)

    assert_is(
        add_layer_norm(library, x, None, None, norm), lambda x, norm: ops.layer_norm(x, *norm, EPS), "float32", x, norm
    )


@pytest.mark.parametrize("mean", [0, 1e2, -1e4])
@pytest.mark.parametrize("deviation", [1, 1e-3, 1e3])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 10.0])
def test_layer_norm_of_large_means_and_any_deviation(library, mean, deviation, eps):
    """A mean far larger than the deviation, and any deviation against eps, cost no more accuracy than in ops."""
    x = (mean + normal(50, 384, size=deviation)).astype(np.float32)
    inputs = x, normal(50, 384, seed=1, size=deviation / 8), normal(384, seed=2, size=deviation / 8), random_norm(384)

    assert_is(
        add_layer_norm(library, *inputs, eps),
        lambda x, y, bias, norm: ops.layer_norm(x + y + bias, *norm, eps),
        "float32",
        *inputs,
    )


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1e4, -1e20])
@WIDTHS
def test_layer_norm_of_equal_values(library, value, width):
    """A row of equal values becomes the bias, to the bit, but for what eps hides of the rounding of a mean."""
    norm = LayerNorm(np.ones(width, np.float32), normal(width))
    y = add_layer_norm(library, np.full((3, width), value, np.float32), None, None, norm)

    np.testing.assert_allclose(y, np.tile(norm.bias, (3, 1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30])
def test_layer_norm_of_one_number(library, value):
    """A row of one number becomes the bias."""
    norm = LayerNorm(np.full(1, 2.0, np.float32), np.full(1, 0.5, np.float32))

    assert add_layer_norm(library, np.full((1, 1), value, np.float32), None, None, norm).item() == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_layer_norm_of_a_number_that_is_too_large(library, value):
    """A number that is not finite, or whose square is not, makes all of its row NaN, and no other row."""
    x, norm = normal(3, 40), random_norm(40)
    expected = add_layer_norm(library, x, None, None, norm)
    x[1, 39] = value
    y = add_layer_norm(library, x, None, None, norm)

    assert np.isnan(y[1]).all()
    assert same_bits(y[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("width", [1, 16, 30, 100, 312])
@pytest.mark.parametrize("lengths", [[1], [5, 0, 17, 1], [512]], ids=str)
def test_embed_layer_norm(library, width, lengths):
    """Word, position and type embedding of each token are added and normalized; positions count in each text."""
    packing = Packing.of(lengths, None, ROW_RULE)
    tables = Embeddings(normal(50, width), normal(512, width), normal(2, width), random_norm(width))
    ids = np.random.default_rng(0).integers(0, 50, packing.tokens)
    positions = np.concatenate([np.arange(length) for length in lengths])
    y = FusedNative(library).embed_layer_norm(tables, ids, packing, BertConfig(layer_norm_eps=EPS))

    def definition(tables):
        x = tables.word[ids] + tables.token_type[0] + tables.position[positions]
        return ops.layer_norm(x, *tables.norm, EPS)

    assert_is(y, definition, "float32", tables)


# ---------------------------------------------------------------- pooling


def pool_each(modes, hidden, lengths, **options):
    """Return what the definition of pooling gives for each text alone; an empty one has one masked token of zeros."""
    vectors, sums = [], options.pop("weight_sums", [None] * len(lengths))
    for start, length, weight_sum in zip(starts_of(lengths), lengths, sums, strict=False):
        tokens = hidden[start : start + length] if length else np.zeros((1, hidden.shape[1]), hidden.dtype)
        mask = np.full((1, len(tokens)), length > 0)
        sums_of_one = None if weight_sum is None else np.array([weight_sum])
        vectors.append(pooling.pool(modes, tokens[None], mask, weight_sum=sums_of_one, **options)[0])
    return np.stack(vectors)


@pytest.mark.parametrize("exclude", [0, 1, 3, 100])
@pytest.mark.parametrize("modes", [*([mode] for mode in sorted(pooling.MODES)), ["max", "mean", "cls"]], ids="+".join)
def test_pool(library, modes, exclude):
    """Each text's tokens are pooled to the bits of the definition, less a prompt's, and without any token, too."""
    lengths = [5, 12, 0, 1, 3, 0, 300, 2]
    hidden = normal(sum(lengths), 30)
    vectors = fused_native.pool(library, modes, hidden, starts_of(lengths), exclude)

    np.testing.assert_array_equal(vectors, pool_each(modes, hidden, lengths, exclude=exclude))


@pytest.mark.parametrize("mode", sorted(pooling.MODES))
def test_pool_of_strided_rows(library, mode):
    """The rows of token vectors may be apart, as hidden states are."""
    hidden = normal(9, 40)[:, 5:35]

    np.testing.assert_array_equal(
        fused_native.pool(library, [mode], hidden, starts_of([4, 5])), pool_each([mode], hidden, [4, 5])
    )


@pytest.mark.parametrize("mode", ["mean", "mean_sqrt_len_tokens", "weightedmean"])
def test_pool_with_sums_of_weights(library, mode):
    """A given sum of weights takes the place of the number of tokens; one of 0 or less counts as 1e-9."""
    lengths, sums = [5, 12, 0, 3, 2], np.array([2.5, 0.1, 0.0, 0.0, -1.0])
    hidden = normal(sum(lengths), 30)

    np.testing.assert_array_equal(
        fused_native.pool(library, [mode], hidden, starts_of(lengths), 0, sums),
        pool_each([mode], hidden, lengths, weight_sums=sums),
    )


def test_max_of_nan(library):
    """NaN is the largest number, as in numpy: first, last, or alone. So it is seen."""
    hidden = normal(6, 3)
    hidden[0, 0] = hidden[3, 1] = hidden[5, 2] = np.nan
    lengths = [4, 1, 1]

    np.testing.assert_array_equal(
        fused_native.pool(library, ["max"], hidden, starts_of(lengths)), pool_each(["max"], hidden, lengths)
    )


def test_mean_of_large_numbers(library):
    """The sum of numbers may be larger than any float32."""
    assert (fused_native.pool(library, ["mean"], np.full((9, 2), 3e38, np.float32), starts_of([9])) == 3e38).all()


@pytest.mark.parametrize("modes", [["mean"], ["cls", "max"]], ids="+".join)
def test_pool_and_normalize(library, modes):
    """A pooled vector of all modes together is scaled to length 1; the vector of an empty text stays zeros."""
    hidden = normal(9, 30)
    lengths = [4, 5] if "max" in modes else [4, 0, 5]
    vectors = fused_native.pool(library, modes, hidden, starts_of(lengths), normalize=True)

    assert_is(vectors, lambda x: ops.l2_normalize(pool_each(modes, x, lengths)), "float32", hidden)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 30, 1024])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e30])
def test_normalize(library, width, size):
    """Rows are scaled to length 1, even if their squares are no float32; one below 1e-12 is divided by that."""
    x = normal(20, width, size=size)
    x[3] = 0
    y = x.copy()
    library.normalize(y)

    assert_is(y, ops.l2_normalize, "float32", x)
    assert not y[3].any()


# ---------------------------------------------------------------- exp and activations


def exp(library, x):
    """Return the library's exp."""
    y = x.copy()
    library.c.mb_exp(library.kernels, native.address(y), y.size)
    return y


def activated(library, name, x):
    """Return an activation by the library."""
    y = x.copy()
    library.activate(name, y)
    return y


def test_exp(library):
    """The error of exp is at most 0.9 units in the last place. numpy's float32 error is up to 2.5."""
    x = np.append(np.linspace(-87.3, 88, 600_001), np.random.default_rng(0).uniform(-1, 1, 200_000)).astype(np.float32)
    truth = np.exp(x.astype(np.float64))

    assert (np.abs(exp(library, x) - truth) / np.spacing(truth, dtype=np.float32)).max() <= 0.9


@pytest.mark.parametrize(("x", "expected"), [(-87.4, 0), (-1e4, 0), (-1e38, 0), (-np.inf, 0), (np.nan, np.nan), (0, 1)])
def test_exp_at_the_ends(library, x, expected):
    """What is below the smallest normal number is 0, and NaN stays NaN. The softmax needs both."""
    np.testing.assert_array_equal(exp(library, np.full(1, x, np.float32)), np.float32([expected]))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 33])
def test_activation_of_any_number_of_numbers(library, count):
    """However many numbers there are, each gets its activation, and the one behind them does not."""
    x = normal(count + 1)
    y = x.copy()
    library.activate("gelu", y[:count])

    assert y[count] == x[count]
    assert same_bits(y[:count], np.array([activated(library, "gelu", x[i : i + 1])[0] for i in range(count)], "f4"))


def sweep():
    """Return numbers over the range in which activations are no straight lines, mostly small ones."""
    small = np.geomspace(1e-38, 1, 2001)
    random = np.random.default_rng(0)
    numbers = [np.linspace(-30, 30, 100_001), small, -small, random.uniform(-8, 8, 50_000)]
    return np.concatenate([*numbers, random.standard_normal(50_000)]).astype(np.float32)


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "gelu_10"])
def test_gelu(library, name):
    """The error is at most 1.9e-7 of the result, or of 0.5; below zero, at most 8.3e-8 (tools/fit_gelu.py)."""
    x = sweep()
    truth = exact_gelu(x) if name != "gelu_10" else exact_gelu(x).clip(-10, 10)
    error = np.abs(activated(library, name, x) - truth)

    assert (error / np.maximum(np.abs(truth), 0.5)).max() <= 1.9e-7
    assert error[x < 0].max() <= 8.3e-8


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS} - {"laplace"}))
def test_activation(library, name):
    """The error of an activation is at most 1.4 times numpy's float32 error, and 1.15 times on average."""
    x = sweep()
    with np.errstate(all="ignore"):
        peer, truth = (ACTIVATIONS[name](x.astype(dtype)) for dtype in ("float32", "float64"))
    y = activated(library, name, x)
    each = slice(-50_000, None)  # normally distributed

    assert_as_accurate(y, peer, truth, factor=1.4)
    assert_as_accurate_on_average(y[each], peer[each], truth[each], factor=1.15)


def test_laplace_is_less_accurate(library):
    """Laplace alone is less accurate than in numpy: its error is up to 1.8e-7, that of numpy 7.5e-8."""
    x = sweep()

    assert np.abs(activated(library, "laplace", x) - ops.laplace(x.astype(np.float64))).max() <= 1.8e-7


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_of_extreme_numbers(library, name):
    """Numbers as large and as small as there are give what they should. exp is 0 below the smallest normal number."""
    x = EXTREMES[np.isfinite(EXTREMES)]
    with np.errstate(all="ignore"):
        single, truth = (ACTIVATIONS[name](x.astype(dtype)) for dtype in ("float32", "float64"))
    y = activated(library, name, x)
    same = np.isfinite(single)  # else a step overflows
    near_zero = 1.8e-7 if name == "laplace" else 1.1e-18 if "gelu" in name or "sqrt" in name else 6e-37

    np.testing.assert_allclose(y[same], truth[same], rtol=2e-6, atol=near_zero)
    assert np.isfinite(y).all() or not same.all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_of_numbers_that_are_not_finite(library, name):
    """NaN stays NaN, so that it is seen. Infinity gives its limit, or NaN."""
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    y = activated(library, name, x)
    with np.errstate(all="ignore"):
        expected = ACTIVATIONS[name](x)

    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:][~np.isnan(y[1:])], expected[1:][~np.isnan(y[1:])])


def test_names():
    """The library has the activations of a config and of Dense, and all pooling modes."""
    assert native.ACTIVATIONS.keys() == ACTIVATIONS.keys()
    assert native.POOLING_MODES.keys() == pooling.MODES.keys()


# ---------------------------------------------------------------- whole layers


def config_of(hidden, heads, **changes):
    """Return a small model's config."""
    sizes = {"vocab_size": 50, "num_hidden_layers": 3, "intermediate_size": 2 * hidden + 7}
    return BertConfig(hidden_size=hidden, num_attention_heads=heads, max_position_embeddings=140, **sizes | changes)


class Parameters:
    """Random parameters, read like those of a checkpoint."""

    def __init__(self, config, dtype="float32"):
        self.model = cast(random_model(config), dtype)

    def embeddings(self):
        """Return the embeddings."""
        return self.model.embeddings

    def layer(self, number):
        """Return a layer."""
        return self.model.layers[number]

    def relative_bias(self):
        """Return the biases by distance, or None."""
        return self.model.relative_bias


LENGTHS = [1, 40, 0, 13, 130, 2, 1]


def states_of(params, config, fused, *, first_tokens=False, lengths=LENGTHS):
    """Return the hidden states of texts after each layer; with ``first_tokens``, the last ones are of these."""
    packing = Packing.of(lengths, None, ROW_RULE)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, packing.tokens)
    states, first = [], packing.first_tokens(None, ROW_RULE) if first_tokens else None
    packed.bert(params, config, ids, packing, fused, first, lambda x: states.append(x.copy()))
    return states if first_tokens else np.stack(states)


@pytest.fixture(autouse=True)
def one_thread():
    """Hold BLAS to one thread, as it is where batches are computed."""
    with one_blas_thread():
        yield


SIZES = [(4, 4), (30, 3), (32, 1), (100, 1), (128, 2), (312, 12), (384, 12)]
#: MPNet has a bias by distance, and positions that begin after the padding id.
MPNET = {"model_type": "mpnet", "relative_attention_num_buckets": 32, "type_vocab_size": 1}
MODELS = pytest.mark.parametrize(
    ("hidden", "heads", "family"),
    [*((*sizes, {}) for sizes in SIZES), *((*sizes, MPNET) for sizes in SIZES[1::2])],
    ids=lambda value: value.get("model_type", "bert") if isinstance(value, dict) else str(value),
)


@MODELS
def test_hidden_states(library, hidden, heads, family):
    """Hidden states are as accurate as those of numpy: at the worst within 3 times, on average nearer or the same."""
    config = config_of(hidden, heads, **family)
    truth, peer = (
        states_of(packed.load(Parameters(config, dtype), config), config, FusedCpu(dtype))
        for dtype in ("float64", "float32")
    )
    states = states_of(native_params.load(library, Parameters(config), config), config, FusedNative(library))

    assert_as_accurate(states, peer, truth)
    assert_as_accurate_on_average(states[-1], peer[-1], truth[-1], factor=1.0 if hidden >= 30 else 1.2)


@pytest.mark.parametrize("hidden_act", sorted(ops.ACTIVATIONS))
def test_hidden_states_by_each_activation(library, hidden_act):
    """So they are with each activation that a config may name."""
    config = config_of(30, 3, hidden_act=hidden_act)
    truth, peer = (
        states_of(packed.load(Parameters(config, dtype), config), config, FusedCpu(dtype))
        for dtype in ("float64", "float32")
    )
    states = states_of(native_params.load(library, Parameters(config), config), config, FusedNative(library))

    assert_as_accurate(states, peer, truth)


@MODELS
def test_first_tokens(library, hidden, heads, family):
    """Where only first tokens are asked for, theirs are the same vectors, to the bit."""
    config = config_of(hidden, heads, **family)
    params = native_params.load(library, Parameters(config), config)
    every = states_of(params, config, FusedNative(library))
    first = states_of(params, config, FusedNative(library), first_tokens=True)
    at = [start for start, length in zip(starts_of(LENGTHS), LENGTHS, strict=False) if length]

    assert same_bits(np.stack(first[:-1]), every[:-1])
    assert same_bits(first[-1], every[-1, at])


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_threads(library, threads):
    """Any number of threads gives the same bits."""
    config = config_of(128, 2)
    params = native_params.load(library, Parameters(config), config)

    assert same_bits(
        states_of(params, config, FusedNative(library, threads)), states_of(params, config, FusedNative(library))
    )


@MODELS
def test_every_instruction_set_has_the_same_bits(library, hidden, heads, family):
    """Every instruction set gives the same bits as the first."""
    config, other = config_of(hidden, heads, **family), native.open_library(native.available()[0])

    def states(library):
        return states_of(native_params.load(library, Parameters(config), config), config, FusedNative(library))

    assert same_bits(states(library), states(other))


def test_memory_that_was_used_before(library):
    """Operations that have computed larger and smaller batches give what new ones do, to the bit."""
    config, used = config_of(30, 3), FusedNative(library)
    params = native_params.load(library, Parameters(config), config)
    for lengths in ([40, 40, 13], [2], [1] * 20, [100]):
        assert same_bits(
            states_of(params, config, used, lengths=lengths),
            states_of(params, config, FusedNative(library), lengths=lengths),
        )


def test_no_tokens(library):
    """Texts without any token have no hidden states."""
    config = config_of(30, 3)
    params = native_params.load(library, Parameters(config), config)

    assert states_of(params, config, FusedNative(library), lengths=[0, 0]).shape == (4, 0, 30)


def test_adopt_and_release(library):
    """Parameters for numpy become those for the library, and the opposite, with the same bits."""
    config = config_of(30, 3)
    plain = packed.load(Parameters(config), config)
    there = native_params.adopt(library, plain, config)
    back = native_params.release(library, there, config)

    for before, after in zip(plain.layers, back.layers, strict=True):
        for name in ("qkv", "query_bias", "output", "output_bias"):
            assert same_bits(getattr(before.attention, name), getattr(after.attention, name)), name
        for name in ("up", "up_bias", "down", "down_bias"):
            assert same_bits(getattr(before.feed_forward, name), getattr(after.feed_forward, name)), name


def test_load_is_adopt(library):
    """A checkpoint has the same hidden states as the parameters that a pickle brings, but for a folded bias."""
    config = config_of(30, 3)
    loaded = native_params.load(library, Parameters(config), config)
    adopted = native_params.adopt(library, native_params.release(library, loaded, config), config)

    assert same_bits(states_of(loaded, config, FusedNative(library)), states_of(adopted, config, FusedNative(library)))


# ---------------------------------------------------------------- the arithmetic of modules


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_arithmetic_linear(library, shape, bias):
    """``linear`` takes vectors, rows and tokens of texts."""
    x, weight, shift = normal(*shape), normal(20, 40, seed=1), normal(20, seed=2) if bias else None
    mine = NativeArithmetic(library)
    y = mine.linear(x, mine.matrix(weight), shift, "tanh")

    assert_is(y, lambda x: ops.tanh(ops.linear(x, weight, shift)), "float32", x)


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (0, 40)], ids=str)
def test_arithmetic_of_rows(library, shape):
    """``layer_norm`` and ``l2_normalize`` give new rows of the same shape as their definitions, and change none."""
    x, norm = normal(*shape), random_norm(40)
    before, mine = x.copy(), NativeArithmetic(library)

    for actual, peer in [
        (mine.layer_norm(x, *norm, 1e-5), lambda x: ops.layer_norm(x, *norm, 1e-5)),
        (mine.l2_normalize(x), ops.l2_normalize),
    ]:
        assert actual.shape == shape
        np.testing.assert_allclose(actual, peer(x.astype(np.float64)), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("mode", sorted(pooling.MODES))
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("mask", ["all", "none", "some"])
def test_arithmetic_pool(library, mode, mask, exclude):
    """``pool`` is that of numpy, for texts of equal length, for texts without tokens, and for padded ones."""
    hidden = np.zeros((3, 1, 8), np.float32) if mask == "none" else normal(3, 5, 8)
    kept = {"all": np.ones((3, 5), bool), "none": np.zeros((3, 1), bool), "some": np.arange(5) < [[2], [5], [3]]}[mask]

    np.testing.assert_array_equal(
        NativeArithmetic(library).pool([mode], hidden, kept, exclude=exclude),
        ArrayArithmetic().pool([mode], hidden, kept, exclude=exclude),
    )


# ---------------------------------------------------------------- what is refused


def refused(part):
    """Expect the refusal of arguments, before any memory is read."""
    return pytest.raises(ValueError, match=part)


def read_only(x):
    """Return an array that may not be changed."""
    x.flags.writeable = False
    return x


ROW = np.zeros(9, np.float32)
#: Arrays that are no matrix of 4 rows and 6 columns, as the kernels need it.
NO_MATRIX = {
    "shape": np.zeros((4, 5), np.float32),
    "dimensions": np.zeros(24, np.float32),
    "float64": np.zeros((4, 6)),
    "integers": np.zeros((4, 6), np.int32),
    "byte order": np.zeros((4, 6), np.dtype(np.float32).newbyteorder()),
    "columns apart": np.zeros((4, 12), np.float32)[:, ::2],
    "columns side by side": np.zeros((6, 4), np.float32).T,
    "rows reversed": np.zeros((4, 6), np.float32)[::-1],
    "columns reversed": np.zeros((4, 6), np.float32)[:, ::-1],
    "the same row": np.broadcast_to(ROW[:6], (4, 6)),
    "rows overlap": np.lib.stride_tricks.as_strided(ROW, (4, 6), (4, 4)),
    "rows at odd bytes": np.lib.stride_tricks.as_strided(np.zeros(100, np.float32), (4, 6), (26, 4)),
}


@pytest.mark.parametrize("array", NO_MATRIX.values(), ids=NO_MATRIX)
def test_what_is_no_matrix_is_refused(array):
    """An array of another shape, type or layout is refused, since the library would read other memory."""
    with refused("must have shape"):
        native.checked(array, 4, 6)


@pytest.mark.parametrize(
    "array",
    [normal(4, 6), np.zeros((4, 9), "f4")[:, 2:8], np.zeros((8, 6), "f4")[::2], np.ones((9, 9), "f4")[5:, 3:]],
    ids=["whole", "some columns", "every other row", "a part"],
)  # fmt: skip
def test_what_is_a_matrix(array):
    """Rows of contiguous numbers may be apart."""
    assert native.checked(array, 4, 6) is native.checked(array, -1, -1) is array


@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (0, 0), (1, 1)], ids=str)
def test_a_matrix_without_numbers(shape):
    """So may a matrix have no numbers, or one."""
    assert native.checked(np.zeros(shape, np.float32)[:, :], *shape).shape == shape


def linear(library, x=(5, 6), packed=(6, 7), outputs=7, bias=None, kind=np.float32):
    """Call ``Library.linear`` with arrays of these shapes."""
    size = library.packed_size(*packed) if isinstance(packed, tuple) else packed
    return library.linear(
        np.zeros(x, kind), np.zeros(size, np.float32), outputs, None if bias is None else np.zeros(bias, np.float32)
    )


@pytest.mark.parametrize(
    "arguments",
    [{"x": (5, 5)}, {"x": (6,)}, {"x": (5, 0)}, {"packed": 10}, {"outputs": 100}, {"bias": 6}, {"bias": (1, 7)},
     {"kind": np.float64}],
    ids=str,
)  # fmt: skip
def test_linear_refuses(library, arguments):
    """The rows, the packed weights and the bias of a product must fit together."""
    assert linear(library, bias=7).shape == (5, 7)
    with refused("must have"):
        linear(library, **arguments)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (10, [np.zeros((6, 7), "f4")], "memory of a packed matrix is too small"),
        (1000, [np.zeros((6, 5), "f4")], "must have 7 columns together; they have 5"),
        (1000, [np.zeros((6, 5), "f4")] * 2, "columns must be inside"),
        (1000, [np.zeros((6, 7))], "must be float32 with two dimensions"),
        (1000, [np.zeros(7, "f4")], "must be float32 with two dimensions"),
        (1000, [np.lib.stride_tricks.as_strided(ROW, (1, 7), (3, 3))], "must be float32 with two"),
    ],
    ids=["memory", "too few columns", "too many columns", "float64", "one dimension", "strides"],
)
def test_pack_refuses(library, size, parts, message):
    """The memory and the parts of a packed matrix must fit together."""
    with refused(message):
        library.pack(np.zeros(size, np.float32), 7, [(part, 1.0) for part in parts])


def test_read_only_arrays_are_refused(library):
    """What may not be changed is not changed."""
    for call in (
        lambda: library.pack(read_only(np.zeros(1000, np.float32)), 7, [(np.zeros((6, 7), np.float32), 1.0)]),
        lambda: library.activate("gelu", read_only(np.zeros(7, np.float32))),
        lambda: library.normalize(read_only(np.zeros((2, 7), np.float32))),
    ):
        with refused("read-only"):
            call()


@pytest.mark.parametrize("x", [np.zeros((2, 8), "f4")[:, :7], np.zeros(8, "f4")[::2], np.zeros(8)], ids=str)
def test_activate_refuses(library, x):
    """An activation in place needs contiguous float32 numbers."""
    with refused("must"):
        library.activate("gelu", x)


@pytest.mark.parametrize("x", [np.zeros(8, "f4"), np.zeros((2, 8), "f4")[:, ::2], np.zeros((2, 8))], ids=str)
def test_normalize_refuses(library, x):
    """Vectors to normalize are rows of float32 numbers."""
    with refused("must have shape"):
        library.normalize(x)


POOLS = {
    "texts beyond the rows": ([0, 4, 6], {}, "inside the rows"),
    "texts that fall": ([0, 4, 3], {}, "inside the rows"),
    "texts from 1 on": ([1, 4], {}, "inside the rows"),
    "negative": ([0, -1], {}, "inside the rows"),
    "bounds of another type": (np.array([0, 5], np.int32), {}, "type int64"),
    "bounds apart": (np.zeros(4, np.int64)[::2], {}, "contiguous"),
    "sums of another type": ([0, 5], {"weight_sums": np.zeros(1, np.float32)}, "type float64"),
    "too few sums": ([0, 2, 5], {"weight_sums": np.zeros(1)}, "shape"),
    "tokens of another type": ([0, 5], {"hidden": np.zeros((5, 6))}, "type float32"),
    "tokens that overlap": ([0, 5], {"hidden": np.broadcast_to(ROW[:6], (5, 6))}, "shape"),
}


@pytest.mark.parametrize(("bounds", "changes", "message"), POOLS.values(), ids=POOLS)
def test_pool_refuses(library, bounds, changes, message):
    """The bounds of texts, their sums and their tokens must fit together."""
    bounds = np.array(bounds, np.int64) if isinstance(bounds, list) else bounds
    with refused(message):
        fused_native.pool(library, ["mean"], **{"hidden": np.zeros((5, 6), np.float32), "bounds": bounds} | changes)


TABLES = Embeddings(normal(9, 6), normal(5, 6), normal(2, 6), random_norm(6))
EMBEDDINGS = {
    "a large id": (TABLES, [9], [1], "token ids must be from 0 to 8"),
    "a negative id": (TABLES, [0, -1], [2], "there is an id -1"),
    "a large position": (TABLES, [0] * 6, [6], "at most 5 tokens"),
    "too few ids": (TABLES, [0] * 3, [4], "one id for each of 4 tokens"),
    "float64": (TABLES._replace(word=normal(9, 6).astype(float)), [0], [1], "float32"),
    "other width": (TABLES._replace(position=normal(5, 7)), [0], [1], "must have shape"),
    "rows apart": (TABLES._replace(word=normal(9, 8)[:, :6]), [0], [1], "must be contiguous"),
    "rows reversed": (TABLES._replace(position=normal(5, 6)[::-1]), [0], [1], "must be contiguous"),
    "other norm": (TABLES._replace(norm=random_norm(5)), [0], [1], "must have shape"),
}


@pytest.mark.parametrize(("tables", "ids", "lengths", "message"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embed_layer_norm_refuses(library, tables, ids, lengths, message):
    """Ids and positions must be inside tables, which must fit together. The error names the id."""
    with refused(message):
        FusedNative(library).embed_layer_norm(tables, np.array(ids), Packing.of(lengths, None, ROW_RULE), BertConfig())


@pytest.fixture
def layer(library):
    """Return a layer of a model with 30 hidden numbers."""
    config = config_of(30, 3)
    return native_params.load(library, Parameters(config), config).layers[0]


def test_layer_refuses_other_hidden_states(library, layer):
    """A layer takes only the hidden states of the last ``embed_layer_norm``, with their packing."""
    fused, packing = FusedNative(library), Packing.of([5], None, ROW_RULE)
    tables = cast(random_model(config_of(30, 3)).embeddings, np.float32)
    x = fused.embed_layer_norm(tables, np.arange(5), packing, BertConfig())
    for wrong, rows in ((x.copy(), packing), (x[:], packing), (x, Packing.of([5], None, ROW_RULE))):
        with refused("of the last embed_layer_norm"):
            fused.layer(layer, None, wrong, rows)
    with refused("of the last embed_layer_norm"):
        FusedNative(library).layer(layer, None, x, packing)
    fused.layer(layer, None, x, packing)


def test_layer_refuses_a_model_of_another_width(library, layer):
    """The embeddings and the layers must have one width."""
    fused, packing = FusedNative(library), Packing.of([5], None, ROW_RULE)
    tables = cast(random_model(config_of(24, 3)).embeddings, np.float32)
    x = fused.embed_layer_norm(tables, np.arange(5), packing, BertConfig())
    with refused("of the last embed_layer_norm"):
        fused.layer(layer, None, x, packing)


def test_each_layer_has_its_own_bias(library):
    """A layer without a bias by distance does not get that of the layer before it, and another bias is checked."""
    config = config_of(30, 3, **MPNET)
    plain = packed.load(Parameters(config), config)
    packing, ids, results = Packing.of([9, 4], None, ROW_RULE), np.arange(13), []
    for fused, model in (
        (FusedCpu("float32"), plain),
        (FusedNative(library), native_params.adopt(library, plain, config)),
    ):
        x = fused.embed_layer_norm(model.embeddings, ids, packing, config)
        x = fused.layer(model.layers[0], config, x, packing, None, model.distance_bias)
        x = fused.layer(model.layers[1], config, x, packing)
        results.append(fused.unpack(x, packing).copy())
        with pytest.raises(ValueError, match=r"must (have|be float32 of) shape"):
            fused.layer(model.layers[2], config, x, packing, None, model.distance_bias[:2].copy())

    np.testing.assert_allclose(*results, atol=1e-5)


def test_padding_ids_do_not_make_room(library):
    """A text has at most so many tokens as there are positions, also if most of them are padding and take one row."""
    config = config_of(30, 3, model_type="roberta", pad_token_id=1)
    tables = cast(random_model(config).embeddings, np.float32)
    ids = np.full(config.max_tokens + 1, 1)
    with refused(f"at most {config.max_tokens} tokens"):
        FusedNative(library).embed_layer_norm(tables, ids, Packing.of([len(ids)], None, ROW_RULE), config)


@pytest.mark.parametrize(
    ("lengths", "first", "message"),
    [
        ([2, 3], [1], "must have shape"),
        ([2, 3], [1, 2], "one query for each text"),
        ([2, 3], [1, 0], "one query for each text"),
        ([5, 0], [1, 1], "one query for each text"),
    ],
    ids=["of fewer texts", "two of a text", "none of a text", "of an empty text"],
)
def test_layer_refuses_other_first_tokens(library, layer, lengths, first, message):
    """First tokens must be those of the texts."""
    fused, packing = FusedNative(library), Packing.of(lengths, None, ROW_RULE)
    tables = cast(random_model(config_of(30, 3)).embeddings, np.float32)
    x = fused.embed_layer_norm(tables, np.arange(5), packing, BertConfig())
    with refused(message):
        fused.layer(layer, None, x, packing, Packing.of(first, None, ROW_RULE))


def test_parameters_of_another_shape_are_refused(library):
    """A layer whose parameters do not have the sizes of the config is refused when it is packed."""
    config = config_of(30, 3)
    plain = packed.load(Parameters(config), config)
    with refused("must have shape"):
        native_params.adopt(library, plain, config_of(30, 3, intermediate_size=66))


# The library checks sizes again. No array is given to it here: it would crash if it read one.

PRODUCT = {"ldx": 6, "ldy": 40, "rows": 5, "inputs": 6, "outputs": 40, "panels": 10, "first_panel": 0, "end_panel": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panels": 0}, "panels must be those"),
        ({"end_panel": 9}, "panels must be those"),
        ({"first_panel": 2}, "panels must be those"),
        ({"outputs": 1000}, "panels must be those"),
        ({"ldx": 5}, "rows must not overlap"),
        ({"ldy": 39}, "rows must not overlap"),
        ({"activation": 18}, "no such activation"),
        ({"activation": -1}, "no such activation"),
    ],
    ids=str,
)
def test_library_refuses_product(library, changes, message):
    """The panels, rows and activation of a product are checked."""
    pointers = native.ProductPointers(**PRODUCT | changes)
    with refused(message):
        library.require(library.c.mb_product(library.kernels, None, 1, ctypes.byref(pointers)))


def test_number_of_activations(library):
    """The library knows the activations from 0 to 17, and no others: see above."""
    assert sorted(set(native.ACTIVATIONS.values())) == list(range(18))


#: The bias of three heads for the distances of five tokens.
DISTANCES = np.zeros((3, 9), np.float32)
LAYER = {
    "hidden": 30, "inner": 67, "heads": 3, "activation": 1, "keys": [0, 5], "queries": None, "distances": 9,
    "workspace": 10**9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads must divide"),
        ({"heads": 4}, "heads must divide"),
        ({"hidden": 0}, "must be positive"),
        ({"inner": 0}, "must be positive"),
        ({"hidden": 3 * 2**30}, "numbers of 31 bits"),
        ({"inner": 2**31}, "numbers of 31 bits"),
        ({"activation": 18}, "no such activation"),
        ({"keys": [1, 5]}, "must begin with 0"),
        ({"distances": 8}, "more tokens than the bias has distances"),
        ({"distances": 7}, "more tokens than the bias has distances"),
        ({"distances": 0}, "more tokens than the bias has distances"),
        ({"keys": [0, 5, 4]}, "not fall"),
        ({"keys": [0, -5]}, "not fall"),
        ({"queries": [1, 2]}, "must begin with 0"),
        ({"queries": [0, 2]}, "one query for each text"),
        ({"queries": [0, 0]}, "one query for each text"),
        ({"workspace": 0}, "workspace is too small"),
        ({"workspace": -1}, "workspace is too small"),
    ],
    ids=str,
)
def test_library_refuses_layer(library, changes, message):
    """The sizes, texts and workspace of a layer are checked; a workspace may not lack a single number."""
    given = LAYER | changes
    shape = native.Shape(given["hidden"], given["inner"], given["heads"], EPS, given["activation"])
    keys = np.array(given["keys"], np.int64)
    queries = keys if given["queries"] is None else np.array(given["queries"], np.int64)
    batch = native.BatchPointers(
        native.address(keys), native.address(queries), native.address(DISTANCES), len(keys) - 1, given["distances"]
    )
    size = given["workspace"]
    if size < 0:
        size += library.c.mb_workspace(library.kernels, ctypes.byref(shape), 5, 5, 1)
    nothing, no_layer = None, ctypes.byref(native.LayerPointers())
    with refused(message):
        library.require(
            library.c.mb_layer(
                library.kernels, nothing, 1, ctypes.byref(shape), no_layer, nothing, ctypes.byref(batch), nothing,
                nothing, size,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "queries", "lacks", "message"),
    [
        ([1, 2], [0, 1], 0, "must begin with 0"),
        ([0, 2, 1], [0, 1, 2], 0, "not fall"),
        ([0, 2], [0, -1], 0, "not fall"),
        ([0, 2], [0, 2], 1, "scratch memory is too small"),
    ],
    ids=str,
)
def test_library_refuses_attention(library, keys, queries, lacks, message):
    """The texts and the scratch memory of attention are checked."""
    bounds = [np.array(each, np.int64) for each in (keys, queries)]
    pointers = native.AttentionPointers(
        ldq=8, ldk=8, ldout=8, heads=2, head_size=4, texts=len(keys) - 1, keys=native.address(bounds[0]),
        queries=native.address(bounds[1]),
    )  # fmt: skip
    scratch = library.c.mb_attention_scratch(library.kernels, 2, 4) - lacks
    with refused(message):
        library.require(library.c.mb_attention(library.kernels, None, ctypes.byref(pointers), None, scratch))


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({"ldx": 5}, 3, "rows must not overlap"),
        ({"ldout": 5}, 3, "rows must not overlap"),
        ({"number_of_modes": 2}, 3, "rows must not overlap"),
        ({}, 6, "no such pooling mode"),
        ({}, -1, "no such pooling mode"),
    ],
    ids=str,
)
def test_library_refuses_pool(library, changes, mode, message):
    """The rows and modes of pooling are checked."""
    starts, modes = np.array([0, 5], np.int64), np.array([mode, 0], np.intc)
    sizes = {"texts": 1, "hidden": 6, "ldx": 6, "ldout": 6, "number_of_modes": 1}
    pointers = native.PoolPointers(starts=native.address(starts), modes=native.address(modes), **sizes | changes)
    with refused(message):
        library.require(library.c.mb_pool(library.kernels, ctypes.byref(pointers), 5))
