"""Print the polynomial coefficients of ``minibert.special.erf`` and the error of the function.

    python tools/fit_erf.py

It needs mpmath (the ``dev`` extra). Each precision has two near-minimax polynomials, from interpolation at Chebyshev
nodes in 60 digits:

* near zero, ``erf(x) = x + x p(x^2)`` for ``|x| < 1``;
* further out, ``erf(x) = 1 - exp(-g(|x| - 1))`` with ``g(t) = -log(erfc(1 + t))``, for ``|x|`` up to ``end``,
  where ``erfc`` is below half a unit in the last place of 1. ``g`` is a polynomial in the distance from 1,
  because an error in it has the largest effect there.

The degrees are the lowest ones with an error below the rounding error of the arithmetic.
"""

from collections.abc import Callable

import mpmath
import numpy as np
from mpmath import mp

from minibert import special

mp.dps = 60
SPLIT = 1


def interpolate(function: Callable[[mpmath.mpf], mpmath.mpf], degree: int) -> list[mpmath.mpf]:
    """Return the monomial coefficients of the interpolant of ``function`` on [-1, 1], lowest first."""
    count = degree + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    matrix = mp.matrix(count, count)
    for row, node in enumerate(nodes):
        for column in range(count):
            matrix[row, column] = node**column
    return list(mp.lu_solve(matrix, mp.matrix([function(node) for node in nodes])))


def substitute(coefficients: list[mpmath.mpf], scale: mpmath.mpf, offset: mpmath.mpf) -> list[mpmath.mpf]:
    """Return the coefficients in ``t`` of a polynomial in ``scale * t + offset``."""
    result = [mp.mpf(0)] * len(coefficients)
    for power, coefficient in enumerate(coefficients):
        for k in range(power + 1):
            result[k] += coefficient * mp.binomial(power, k) * scale**k * offset ** (power - k)
    return result


def near(u: mpmath.mpf) -> mpmath.mpf:
    """Return ``erf(x) / x - 1`` at ``x = sqrt(u)``."""
    return mp.erf(mp.sqrt(u)) / mp.sqrt(u) - 1 if u > 0 else 2 / mp.sqrt(mp.pi) - 1


def fit(near_degree: int, far_degree: int, end: mpmath.mpf) -> tuple[list[float], list[float]]:
    """Return the coefficients of ``p`` (in ``x^2``) and of ``g`` (in ``|x| - 1``), lowest first."""
    half, middle = (end - SPLIT) / 2, (end + SPLIT) / 2
    p = interpolate(lambda s: near((s + 1) / 2), near_degree)
    g = interpolate(lambda s: -mp.log(mp.erfc(middle + half * s)), far_degree)
    return (
        [float(c) for c in substitute(p, mp.mpf(2), mp.mpf(-1))],
        [float(c) for c in substitute(g, 1 / half, mp.mpf(-1))],
    )


def worst_ulp(dtype: type[np.floating]) -> float:
    """Return the largest error of ``special.erf`` on a dense grid, in units in the last place."""
    grid = np.concatenate([np.linspace(-6.5, 6.5, 40_001), np.geomspace(1e-30, 1, 4001)]).astype(dtype)
    got = special.erf(grid)
    exact = [mp.erf(mp.mpf(float(x))) for x in grid]
    errors = [
        abs(mp.mpf(float(y)) - e) / mp.mpf(float(np.spacing(np.abs(dtype(float(e))))))
        for y, e in zip(got, exact, strict=True)
    ]
    return float(max(errors))


def main() -> None:
    """Print the coefficients and the measured error for float32 and float64."""
    for dtype, near_degree, far_degree, end in (
        (np.float32, 6, 8, mp.mpf("3.925")),
        (np.float64, 13, 24, mp.mpf("5.925")),
    ):
        p, g = fit(near_degree, far_degree, end)
        print(f"{dtype.__name__}: [{SPLIT}, {end}]\n  near = {p}\n  far = {g}")
        print(f"  worst error of special.erf: {worst_ulp(dtype):.2f} ulp")


if __name__ == "__main__":
    main()
