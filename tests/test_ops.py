"""The arithmetic under the forward pass, on numpy arrays and, where there is a GPU, on CuPy's."""

import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from support import ROOT, assert_as_accurate, flushed

from minibert import ops
from minibert.arrays import array_namespace
from minibert.errors import ConfigError
from minibert.special import erf

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])

#: Ragged sizes, values up to 1e4 either way, denormals, and rows whose values are all equal.
VALUES = st.floats(-1e4, 1e4, width=32)
ROWS = st.one_of(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=VALUES),
    st.builds(lambda value, n: np.full((2, n), value, np.float32), VALUES, st.integers(1, 1024)),
)


def host(array):
    """Return ``array`` as a numpy array."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def normal(shape, dtype, seed=0):
    """Return normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---------------------------------------------------------------- the array library


def test_namespace_is_numpy():
    """An array of numpy belongs to numpy, and so does a scalar."""
    assert array_namespace(np.zeros(1)) is np
    assert array_namespace(np.float32(1)) is np


def test_namespace_is_cupy_for_its_arrays_only(monkeypatch):
    """Where CuPy has been imported, its own arrays belong to it, and numpy's still to numpy."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = type("ndarray", (), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    assert array_namespace(cupy.ndarray()) is cupy
    assert array_namespace(np.zeros(1)) is np


def test_namespace_never_imports_cupy(tmp_path):
    """CuPy is looked up and not imported, where it is installed too: numpy users do not pay for it."""
    (tmp_path / "cupy.py").write_text("raise SystemExit('cupy was imported')")
    script = "import numpy, minibert.ops; minibert.ops.gelu(numpy.ones(2))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


# ---------------------------------------------------------------- erf

ULPS = {np.float32: 1.5, np.float64: 2.0}  # math.erf, the float64 truth, is itself off by up to 1


def erf_points(dtype):
    """Return points dense around everything that ``erf`` treats specially, random ones, tiny and huge ones."""
    info = np.finfo(dtype)
    powers = np.geomspace(float(info.tiny), 10.0, 20_001)
    subnormal = np.arange(1, 2001) * float(info.smallest_subnormal)
    near = np.concatenate([split + np.linspace(-1e-3, 1e-3, 10_001) for split in (1.0, 3.925, 5.925)])
    random = np.random.default_rng(0).uniform(-7, 7, 50_000)
    positive = np.concatenate([powers, subnormal, near, np.linspace(0, 7, 50_001), [1e4, info.max]])
    return np.concatenate([positive, -positive, random]).astype(dtype)


def assert_erf(function, x):
    """Fail unless ``function`` is within ULPS of ``math.erf`` at every point."""
    exact = np.array([math.erf(value) for value in x.tolist()])
    unit = np.spacing(np.abs(exact).astype(x.dtype)).astype(np.float64)
    worst = (np.abs(function(x).astype(np.float64) - exact) / unit).max()
    assert worst <= ULPS[x.dtype.type], f"{worst:.2f} units in the last place"


def abramowitz_stegun(x):
    """Return erf by formula 7.1.26, whose error is up to 1.5e-7; computed in float64."""
    t = 1 / (1 + 0.3275911 * np.abs(x, dtype=np.float64))
    tail = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
    return np.copysign(1 - tail * t * np.exp(-np.square(x.clip(-20, 20), dtype=np.float64)), x).astype(x.dtype)


@DTYPES
def test_erf_is_within_the_last_place(xp, dtype):
    """``erf`` is within 1.5 units in the last place in float32 and 2 in float64, from denormals to the largest."""
    points = erf_points(dtype)
    if dtype == np.float32:
        points = points[np.abs(points) >= 100 * flushed(xp)]  # smaller ones have intermediate results that are flushed
    assert_erf(lambda x: host(erf(xp.asarray(x))), points)


def test_erf_bound_excludes_the_usual_formula():
    """The popular formula with an error of 1.5e-7 is outside the bound, in float32 already."""
    with pytest.raises(AssertionError, match="units in the last place"):
        assert_erf(abramowitz_stegun, erf_points(np.float32))


@DTYPES
def test_erf_of_special_values(xp, dtype):
    """``erf`` keeps the sign of zero and NaN, and is 1 at infinity."""
    values = host(erf(xp.asarray([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=dtype)))

    np.testing.assert_array_equal(values, [0.0, -0.0, 1.0, -1.0, np.nan])
    assert np.signbit(values[:4]).tolist() == [False, True, False, True]


@DTYPES
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (2, 3)])
def test_erf_keeps_shape_dtype_and_input(xp, dtype, shape):
    """``erf`` returns a new array of the input's shape and dtype."""
    x = xp.full(shape, 0.5, dtype=dtype)
    y = erf(x)

    assert (y.shape, y.dtype) == (shape, dtype)
    assert (host(x) == 0.5).all()


# ---------------------------------------------------------------- activations


def _sigmoid(x):
    return 0.5 * (1 + math.tanh(x / 2))


def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _gelu(x):
    return 0.5 * x * math.erfc(-x / math.sqrt(2))


def _gelu_tanh(x):
    return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


#: Each activation in Python floats, written otherwise than in minibert.ops where there is another way (F7).
FORMULAS = {
    **dict.fromkeys(["gelu", "gelu_python"], _gelu),
    **dict.fromkeys(["gelu_new", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"], _gelu_tanh),
    "gelu_fast": lambda x: x * _sigmoid(2 * 0.7978845608 * x * (1 + 0.044715 * x**2)),
    "gelu_10": lambda x: min(max(_gelu(x), -10.0), 10.0),
    "hardswish": lambda x: 0.0 if x <= -3 else x if x >= 3 else x * (x + 3) / 6,
    "laplace": lambda x: 0.5 * math.erfc((0.707107 - x) / 0.282095 / math.sqrt(2)),
    "leaky_relu": lambda x: max(x, x / 100),
    "linear": lambda x: x,
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "sigmoid": _sigmoid,
    **dict.fromkeys(["silu", "swish"], lambda x: x * _sigmoid(x)),
    "sqrtsoftplus": lambda x: math.sqrt(_softplus(x)),
    "tanh": math.tanh,
}
ACTIVATIONS = pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))


def activation_points(dtype):
    """Return points over the curved part, and beyond it as far as 1e4, where a bare ``exp`` overflows."""
    tiny = np.finfo(dtype).smallest_subnormal
    return np.concatenate(
        [np.linspace(-12, 12, 4001), [0.0, -0.0, tiny, -tiny, 1e-3, 100, -100, 1e4, -1e4]], dtype=dtype
    )


def test_every_activation_has_a_formula():
    """No activation is left out of the tests below."""
    assert set(ops.ACTIVATIONS) == set(FORMULAS)


@DTYPES
@ACTIVATIONS
def test_activation_equals_its_formula(xp, dtype, name):
    """Each activation is its formula to a few roundings, keeps dtype and input, and does not overflow at 1e4 (F7)."""
    x = activation_points(dtype)
    y = ops.activation(name)(xp.asarray(x))
    truth = np.array([FORMULAS[name](value) for value in x.tolist()])
    scale = np.maximum(np.abs(truth), np.abs(x).clip(1.0 if name == "laplace" else 0.0, 12))  # laplace adds 1 to erf

    assert y.dtype == dtype
    assert (np.abs(host(y) - truth) <= 4 * np.finfo(dtype).eps * scale + np.finfo(dtype).tiny).all()


@DTYPES
@pytest.mark.parametrize("name", ["mish", "quick_gelu", "sigmoid", "silu", "sqrtsoftplus"])
def test_activation_is_relatively_exact_in_its_tail(xp, dtype, name):
    """Far below zero, where these are nearly ``exp(x)``, the small result is still exact to its own digits."""
    exponent = {"quick_gelu": 1.702, "sqrtsoftplus": 0.5}.get(name, 1.0)
    factor = 1.0 if name in {"sigmoid", "sqrtsoftplus"} else -40.0
    y = host(ops.activation(name)(xp.asarray([-40.0], dtype=dtype)))

    np.testing.assert_allclose(y, factor * math.exp(-40 * exponent), rtol=100 * np.finfo(dtype).eps)


def test_unknown_activation_is_refused():
    """An unknown ``hidden_act`` is an error that lists the known ones."""
    with pytest.raises(ConfigError, match=r"hidden_act 'swiglu' is not implemented.*gelu_new.*relu"):
        ops.activation("swiglu")


@pytest.mark.reference
def test_activation_names_are_those_of_transformers():
    """The names are those of transformers, but for the two that hold parameters (F7)."""
    from transformers.activations import ACT2FN

    assert set(ops.ACTIVATIONS) == set(ACT2FN) - {"prelu", "xielu"}


@pytest.mark.reference
@ACTIVATIONS
def test_activation_is_as_accurate_as_torch(name):
    """Each activation is as near to torch's float64 values as torch's float32 is (F7)."""
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    peer, truth = (ACT2FN[name](torch.from_numpy(x.astype(dtype))).numpy() for dtype in (np.float32, np.float64))

    assert_as_accurate(ops.activation(name)(x), peer, truth)
    np.testing.assert_allclose(ops.activation(name)(x.astype(np.float64)), truth, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- linear and heads


@DTYPES
@pytest.mark.parametrize("rows", [(), (3,), (2, 3), (2, 0)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_its_definition(xp, dtype, rows, biased):
    """``linear`` is ``sum_k x[..., k] weight[n, k] + bias[n]``, for any number of leading axes."""
    x, weight, bias = normal((*rows, 5), dtype), normal((4, 5), dtype, 1), normal(4, dtype, 2) if biased else None
    y = ops.linear(xp.asarray(x), xp.asarray(weight), xp.asarray(bias) if biased else None)
    truth = np.einsum("...k,nk->...n", x.astype(np.float64), weight) + (bias if biased else 0)

    assert y.dtype == dtype
    np.testing.assert_allclose(host(y), truth, rtol=0, atol=30 * np.finfo(dtype).eps)


@DTYPES
def test_split_heads_gives_each_head_its_slice(xp, dtype):
    """Head h of h heads holds the h-th slice of the hidden dimension (F3)."""
    x = normal((2, 3, 12), dtype)
    split = ops.split_heads(xp.asarray(x), 4)

    assert split.dtype == dtype
    np.testing.assert_array_equal(host(split), np.stack([x[:, :, 3 * h : 3 * h + 3] for h in range(4)], axis=1))


@DTYPES
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_merge_heads_inverts_split_heads(xp, dtype, heads):
    """Heads that were split and merged are what they were (F3)."""
    x = normal((2, 5, 12), dtype)
    merged = ops.merge_heads(ops.split_heads(xp.asarray(x), heads))

    assert merged.dtype == dtype
    np.testing.assert_array_equal(host(merged), x)


# ---------------------------------------------------------------- layer normalization


def norm_truth(x, weight=1.0, bias=0.0, eps=1e-12):
    """Return layer normalization in float64, by its definition."""
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def plain_norm(x, eps=1e-12):
    """Return minibert's layer normalization with weight 1 and bias 0."""
    xp, width = array_namespace(x), x.shape[-1]
    return ops.layer_norm(x, xp.ones(width, x.dtype), xp.zeros(width, x.dtype), eps)


@DTYPES
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 10.0])
def test_layer_norm_is_its_definition(xp, dtype, eps):
    """Rows get mean 0 and population variance 1 (with eps), then weight and bias (F2)."""
    x, weight, bias = normal((2, 3, 20), dtype), normal(20, dtype, 1), normal(20, dtype, 2)
    y = ops.layer_norm(*map(xp.asarray, (x, weight, bias)), eps)

    assert y.dtype == dtype
    np.testing.assert_allclose(host(y), norm_truth(x, weight, bias, eps), rtol=0, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_layer_norm_keeps_its_digits_where_the_mean_is_large(xp, mean):
    """A mean far larger than the deviation costs no accuracy: its own rounding is subtracted too (F2)."""
    x = (mean + normal((50, 384), np.float64)).astype(np.float32)

    np.testing.assert_allclose(host(plain_norm(xp.asarray(x))), norm_truth(x), rtol=0, atol=2e-6)


@settings(deadline=None)
@given(x=ROWS)
def test_layer_norm_of_anything(xp, x):
    """Any row becomes finite with mean 0 and variance at most 1; a row of equal values becomes 0 (F2)."""
    y = host(plain_norm(xp.asarray(x))).astype(np.float64)

    assert np.abs(y.mean(-1)).max() <= 1e-4
    assert y.var(-1).max() <= 1 + 1e-4
    assert np.abs(y[x.max(-1) == x.min(-1)]).max(initial=0) <= 1e-3


# ---------------------------------------------------------------- softmax


@DTYPES
def test_softmax_is_its_definition(xp, dtype):
    """Weights are ``exp(score)`` over its sum, along the last axis (F3)."""
    scores = normal((2, 3, 4, 5), dtype)
    weights = ops.softmax(xp.asarray(scores))
    truth = np.exp(scores.astype(np.float64))

    assert weights.dtype == dtype
    np.testing.assert_allclose(host(weights), truth / truth.sum(-1, keepdims=True), rtol=10 * np.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize("masked_score", [0.0, 1e4, 1e30])
def test_masked_weight_is_exactly_zero(xp, dtype, masked_score):
    """A masked score has weight 0, however large it is; the rest share the 1 (F3)."""
    scores = xp.asarray([[1.0, masked_score, 1.0], [masked_score, 2.0, masked_score]], dtype=dtype)
    weights = ops.softmax(scores, xp.asarray([[True, False, True], [False, True, False]]))

    assert weights.dtype == dtype
    np.testing.assert_array_equal(host(weights), [[0.5, 0, 0.5], [0, 1, 0]])


@DTYPES
def test_fully_masked_row_gets_equal_weights(xp, dtype):
    """A row with nothing to attend to gets equal finite weights, not NaN (F10)."""
    weights = ops.softmax(xp.asarray([[3.0, -7.0, 1e4, 0.0]], dtype=dtype), xp.zeros((1, 4), bool))

    np.testing.assert_array_equal(host(weights), [[0.25, 0.25, 0.25, 0.25]])


def test_softmax_mask_broadcasts(xp):
    """A mask of keys, (B, 1, 1, S), holds for every head and query of its text (F3)."""
    scores, mask = normal((2, 3, 4, 5), np.float32), np.arange(5) < np.array([[2], [5]])
    weights = host(ops.softmax(xp.asarray(scores), xp.asarray(mask[:, None, None, :])))

    np.testing.assert_array_equal(weights > 0, np.broadcast_to(mask[:, None, None, :], scores.shape))


@settings(deadline=None)
@given(x=ROWS, data=st.data())
def test_softmax_of_anything(xp, x, data):
    """Any scores, under any mask, give weights in [0, 1] that sum to 1, in the order of the scores (F3)."""
    mask = data.draw(arrays(bool, x.shape))
    weights = host(ops.softmax(xp.asarray(x), xp.asarray(mask)))
    open_rows = mask.any(-1)

    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), 1, rtol=1e-5)
    assert (weights[open_rows][~mask[open_rows]] == 0).all()
    largest = np.where(mask, x, -np.inf).argmax(-1)
    assert (weights[np.arange(len(x)), largest] == weights.max(-1)).all()


# ---------------------------------------------------------------- l2_normalize


@DTYPES
def test_l2_normalize_gives_length_one(xp, dtype):
    """Rows keep their direction and get length 1 (M1)."""
    x = normal((2, 3, 7), dtype)
    y = ops.l2_normalize(xp.asarray(x))

    assert y.dtype == dtype
    truth = x / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(host(y), truth, rtol=2 * np.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (2e-13, 0.2), (2e-12, 1.0), (-1e-30, -1e-18), (1e30, 1.0)])
def test_l2_normalize_of_tiny_and_huge(xp, dtype, value, expected):
    """What is shorter than 1e-12 is divided by 1e-12, so that zero stays zero; the huge does not overflow (M1)."""
    y = host(ops.l2_normalize(xp.asarray([[value, 0.0]], dtype=dtype)))

    np.testing.assert_allclose(y, [[expected, 0.0]], rtol=4 * np.finfo(dtype).eps)


@settings(deadline=None)
@given(x=ROWS)
def test_l2_normalize_of_anything(xp, x):
    """Any row becomes finite, of length ``length / max(length, 1e-12)`` (M1)."""
    length = np.linalg.norm(x.astype(np.float64), axis=-1)
    got = np.linalg.norm(host(ops.l2_normalize(xp.asarray(x))).astype(np.float64), axis=-1)

    np.testing.assert_allclose(got, length / np.maximum(length, 1e-12), rtol=1e-6, atol=1e-30 + 1e12 * flushed(xp))
