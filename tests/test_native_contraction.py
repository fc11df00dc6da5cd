"""A compiler may not make a fused multiply-add of ``a * b + c`` on its own: it would round once, and not twice.

The kernels are compiled with -ffp-contract=off. These tests see by the bits if a library is not.
"""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from native_support import build_library, compiler, require_library

from minibert.engine.native import open_library
from minibert.engine.native_arithmetic import NativeArithmetic

HERE = Path(__file__).parent
F = np.float32
WIDTH, EPS = 15, 1e-12
#: Rows whose variance is hardly larger than the rounding error of their mean: then its last bits matter.
ROWS = (1000 + np.random.default_rng(3).integers(0, 3, (200, WIDTH)) * 2.0**-14).astype(np.float32)


def fma(a, b, c):
    """Return ``a * b + c``, rounded once."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = F(float(exact))
    around = (np.nextafter(near, F(-np.inf)), near, np.nextafter(near, F(np.inf)))
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1))


def sum_of(lanes):
    """Return the sum of 15 numbers over 16 lanes, in the order of the kernels."""
    a = np.append(lanes, F(0)).reshape(4, 4)
    b = (a[0] + a[2]) + (a[1] + a[3])
    return (b[0] + b[2]) + (b[1] + b[3])


def layer_norm(row, variance_of):
    """Return the layer norm of a row as kernels/cpu/norm.h computes it, with this function for its variance."""
    share = F(1) / F(WIDTH)
    mean = sum_of(row) * share
    centred = row - mean
    second = sum_of(centred) * share
    variance = max(variance_of(sum_of(centred * centred), share, second), F(0))
    return (centred - second) * (F(1) / np.sqrt(variance + F(EPS)))


#: The variance in two roundings of products, and in the two ways that a compiler may fuse one of them.
TWICE = lambda squares, share, second: squares * share - second * second  # noqa: E731
FUSED = {
    "first product": lambda squares, share, second: fma(squares, share, -(second * second)),
    "second product": lambda squares, share, second: fma(-second, second, squares * share),
}


@pytest.mark.parametrize("way", FUSED)
def test_contraction_would_be_seen(way):
    """On these rows, a fused multiply-add gives other bits than two roundings."""
    twice, fused = (np.array([layer_norm(row, of) for row in ROWS]) for of in (TWICE, FUSED[way]))

    assert (twice != fused).any()


def test_two_roundings(kernels):
    """The library's layer norm rounds the products of the variance: it has these bits."""
    arithmetic = NativeArithmetic(open_library(kernels))
    one, zero = np.ones(WIDTH, F), np.zeros(WIDTH, F)
    expected = np.array([layer_norm(row, TWICE) for row in ROWS])

    assert arithmetic.layer_norm(ROWS, one, zero, EPS).tobytes() == expected.tobytes()


# ---------------------------------------------------------------- whole libraries


def failures(library, file):
    """Return how many tests of a file fail with a library, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "--tb=no", str(HERE / file)]
    environment = {**os.environ, "MINIBERT_TEST_LIBRARY": str(library)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout[-2000:]
    return done.stdout.count("\nFAILED")


def library_with(folder, name, *extra):
    """Return a library that a compiler built with these flags after the others."""
    require_library()
    of = compiler(name)
    return build_library(folder, extra=extra, of=of._replace(target=None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_build_without_contraction(tmp_path, name):
    """A library as each compiler builds it passes."""
    library = library_with(tmp_path, name)

    assert [failures(library, file) for file in ("test_native_contraction.py", "test_native_hashes.py")] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-ffp-contract=fast", "-ffast-math"])
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_build_with_contraction(tmp_path, name, flag):
    """A library whose compiler may fuse has other hashes, and the rows above tell why."""
    library = library_with(tmp_path, name, flag)

    assert failures(library, "test_native_contraction.py") > 0
    assert failures(library, "test_native_hashes.py") > 0
