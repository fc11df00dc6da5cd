"""Quantization of vectors to a byte or a bit a dimension."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibert import quantize_embeddings

E = np.array([[-1, 0, 2, 0.5], [1, 0, 4, -0.5], [0.25, 0, 3, 0]], np.float32)
#: What each precision makes of E. The largest value of a dimension lands on 254 by float32 rounding.
STEPS = [[0, 0, 0, 254], [254, 0, 254, 0], [159, 0, 127, 127]]
BITS = [[0b0011_0000], [0b1010_0000], [0b1010_0000]]

BYTES = pytest.mark.parametrize("precision", ["int8", "uint8"])
SIGNS = pytest.mark.parametrize("precision", ["binary", "ubinary"])
ALL = pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
DTYPES = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


def normal(*shape, seed=0, dtype=np.float32):
    """Return normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", E),
        ("uint8", STEPS),
        ("int8", np.subtract(STEPS, 128)),
        ("ubinary", BITS),
        ("binary", np.subtract(BITS, 128)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_table(precision, expected, dtype, caplog):
    """Each precision gives sentence-transformers' values, whatever the floating-point type (Q1, Q2)."""
    quantized = quantize_embeddings(E.astype(dtype), precision)

    assert quantized.dtype == DTYPES[precision]
    np.testing.assert_array_equal(quantized, expected)


@ALL
def test_input_is_left_as_it_was(precision):
    """The vectors are not written to."""
    vectors = normal(128, 12)
    quantize_embeddings(vectors, precision)

    np.testing.assert_array_equal(vectors, normal(128, 12))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 12, 16])
def test_bits_are_padded_to_whole_bytes(width):
    """Dimensions fill bytes from the highest bit, and zero bits the last one (Q2)."""
    vectors = normal(5, width)
    packed = quantize_embeddings(vectors, "ubinary")

    assert packed.shape == (5, -(-width // 8))
    bits = np.unpackbits(packed, axis=1)
    np.testing.assert_array_equal(bits[:, :width], vectors > 0)
    assert not bits[:, width:].any()


def test_zero_has_the_bit_zero():
    """Neither zero is positive (Q2)."""
    assert quantize_embeddings(np.array([[0.0, -0.0, 1e-45]], np.float32), "ubinary").tolist() == [[0b0010_0000]]


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-1e4, 1e4, width=32)))
def test_binary_is_ubinary_less_128(vectors):
    """The signed bytes are the unsigned ones less 128 (Q2)."""
    signed, unsigned = (quantize_embeddings(vectors, name).astype(int) for name in ("binary", "ubinary"))

    np.testing.assert_array_equal(signed, unsigned - 128)


# ---------------------------------------------------------------- ranges


@BYTES
def test_given_ranges_are_used(precision, caplog):
    """Ranges that are given are used, and what lies outside is clipped (Q1)."""
    vectors, ranges = np.array([[-9, 0.0, 9], [0.5, 127.5, 300]], np.float32), np.array([[0.0] * 3, [255.0] * 3])
    steps = np.array([[0, 0, 9], [0, 127, 255]]) - (128 if precision == "int8" else 0)

    np.testing.assert_array_equal(quantize_embeddings(vectors, precision, ranges), steps)
    assert not caplog.records


@BYTES
def test_calibration_vectors_give_the_ranges(precision, caplog):
    """Ranges come from the calibration vectors where there are any, without a warning from 100 on (Q1)."""
    calibration = normal(100, 4, seed=1)
    ranges = np.stack([calibration.min(axis=0), calibration.max(axis=0)])

    np.testing.assert_array_equal(
        quantize_embeddings(E, precision, calibration_embeddings=calibration), quantize_embeddings(E, precision, ranges)
    )
    assert not caplog.records


@BYTES
def test_calibration_vectors_may_be_a_list(precision):
    """A list of vectors, or of lists of numbers, calibrates as the array that it makes."""
    calibration = normal(100, 4, seed=1)
    expected = quantize_embeddings(E, precision, calibration_embeddings=calibration)

    for given_as in (list(calibration), calibration.tolist()):
        np.testing.assert_array_equal(quantize_embeddings(E, precision, calibration_embeddings=given_as), expected)


@BYTES
def test_ranges_take_precedence_over_calibration(precision):
    """Where both are given, the ranges count (Q1)."""
    ranges = np.array([[-2.0] * 4, [2.0] * 4])

    np.testing.assert_array_equal(
        quantize_embeddings(E, precision, ranges, 100 * normal(100, 4)), quantize_embeddings(E, precision, ranges)
    )


@BYTES
def test_single_vector_needs_ranges(precision):
    """With ranges, a single vector gives the row that it would give in a matrix (Q1)."""
    ranges = np.array([[-2.0] * 4, [2.0] * 4])

    np.testing.assert_array_equal(
        quantize_embeddings(E[1], precision, ranges), quantize_embeddings(E, precision, ranges)[1]
    )


@BYTES
@pytest.mark.parametrize("vectors", [E[0], E[:1]], ids=["vector", "one row"])
def test_single_vector_gives_no_ranges(precision, vectors):
    """Ranges cannot come from a single vector; the error says what to pass (E7, Q1)."""
    with pytest.raises(
        ValueError, match=f"{precision} ranges cannot come from a single vector.*calibration_embeddings"
    ):
        quantize_embeddings(vectors, precision)
    with pytest.raises(ValueError, match="single vector"):
        quantize_embeddings(E, precision, calibration_embeddings=vectors)


@BYTES
@pytest.mark.parametrize(("rows", "warned"), [(2, True), (99, True), (100, False)])
def test_few_vectors_are_warned_of(precision, rows, warned, caplog):
    """Ranges from fewer than 100 vectors are a warning of the logger "minibert" (Q1)."""
    quantize_embeddings(normal(rows, 4), precision)

    records = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    message = f"{precision} ranges come from {rows} vectors only; use 100 or more"
    assert records == ([("minibert", logging.WARNING, message)] if warned else [])


def test_equal_values_are_step_zero():
    """A dimension whose values are all equal is divided by 1, not by 0 (Q1)."""
    assert quantize_embeddings(np.full((100, 2), 7.5, np.float32), "uint8").max() == 0


# ---------------------------------------------------------------- nothing, and errors


@ALL
@pytest.mark.parametrize("width", [8, 12])
def test_no_vectors(precision, width, caplog):
    """No vectors give no rows of the right width, without ranges and without a warning (Q3)."""
    quantized = quantize_embeddings(np.zeros((0, width), np.float32), precision)

    assert quantized.shape == (0, -(-width // 8) if precision.endswith("binary") else width)
    assert quantized.dtype == DTYPES[precision]
    assert not caplog.records


@ALL
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
def test_integers_are_refused(precision, dtype):
    """Vectors that are whole numbers, so perhaps quantized already, are refused with their type (Q3)."""
    with pytest.raises((ValueError, TypeError), match=np.dtype(dtype).name):
        quantize_embeddings(np.ones((3, 4), dtype), precision)


@pytest.mark.parametrize("precision", ["int4", "float16", "", None])
def test_unknown_precision_is_refused(precision):
    """An unknown precision is an error that lists the known ones (E7)."""
    with pytest.raises(ValueError, match="must be one of float32, int8, uint8, binary, ubinary; it is "):
        quantize_embeddings(E, precision)


# ---------------------------------------------------------------- sentence-transformers


@pytest.mark.reference
@ALL
@pytest.mark.parametrize("ranges_from", ["vectors", "calibration", "ranges"])
@pytest.mark.parametrize("width", [384, 20])
def test_equals_sentence_transformers(precision, ranges_from, width):
    """Every value of every precision equals sentence-transformers' (Q1, Q2)."""
    from sentence_transformers.util import quantize_embeddings as reference

    vectors, calibration = normal(500, width), normal(200, width, seed=1)
    vectors[:, 3] = calibration[:, 3] = 0.25
    options = {
        "vectors": {},
        "calibration": {"calibration_embeddings": calibration},
        "ranges": {"ranges": np.array([[-1.0] * width, [1.0] * width])},
    }[ranges_from]
    expected = reference(vectors, precision, **options)
    quantized = quantize_embeddings(vectors, precision, **options)

    assert quantized.dtype == expected.dtype
    np.testing.assert_array_equal(quantized, expected)


@pytest.mark.reference
@ALL
def test_no_vectors_are_as_in_sentence_transformers(precision):
    """No vectors give sentence-transformers' shape and dtype (Q3)."""
    from sentence_transformers.util import quantize_embeddings as reference

    vectors = np.zeros((0, 12), np.float32)
    quantized, expected = quantize_embeddings(vectors, precision), reference(vectors, precision)

    assert (quantized.shape, quantized.dtype) == (expected.shape, expected.dtype)
