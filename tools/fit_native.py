"""Print the polynomials in kernels/cpu/activations.h, and their largest errors.

    python tools/fit_native.py

Each fit is close to the best possible one. It comes from repeated weighted least squares, where a point's weight grows
with its error (Lawson's method). The coefficients are rounded to float32 one by one, from the lowest power: each fit
after that has the earlier coefficients fixed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minibert.typing import Array


class Fit(NamedTuple):
    """A polynomial that is fitted.

    Attributes:
        name: What is approximated.
        low: Start of the interval of the variable.
        high: End of the interval.
        powers: The powers of the variable.
        target: What the polynomial must give, in float64.
        weight: By what an error is multiplied.
    """

    name: str
    low: float
    high: float
    powers: range
    target: Callable[[Array], Array]
    weight: Callable[[Array], Array]


def tanh_tail(square: Array) -> Array:
    """Return ``(tanh(x) / x - 1) / x^2`` for ``square = x^2``."""
    x = np.sqrt(square)
    return (np.tanh(x) / x - 1) / square


def log_tail(f: Array) -> Array:
    """Return ``(log(1 + f) - f + f^2 / 2) / f^3``."""
    return (np.log1p(f) - f + f * f / 2) / f**3


_HALF = np.log(2) / 2 * 1.0005
FITS = (
    # e^r = 1 + r + r^2 q(r) for |r| <= ln(2) / 2; the error relative to e^r
    Fit("exp: q", -_HALF, _HALF, range(5), lambda r: (np.expm1(r) - r) / r**2, lambda r: r**2 * np.exp(-r)),
    # log(1 + f) = f - f^2 / 2 + f^3 q(f); the error relative to f
    Fit("log1p: q", 0.5**0.5 - 1, 2**0.5 - 1, range(9), log_tail, lambda f: f**2),
    # tanh(x) = x + x^3 q(x^2) for |x| <= 0.625; the error relative to x
    Fit("tanh: q", 1e-6, 0.625**2, range(5), tanh_tail, lambda square: square),
)


def fit(problem: Fit) -> tuple[list[np.float32], float]:
    """Return the coefficients, and the largest weighted error with them."""
    angles = np.linspace(0, np.pi, 4001)
    x = (problem.low + problem.high) / 2 + (problem.high - problem.low) / 2 * np.cos(angles)
    x = x[x != 0]
    importance, target = problem.weight(x), problem.target(x)
    fixed: list[np.float32] = []
    for power in problem.powers:
        rest = target - sum(np.float64(c) * x**p for c, p in zip(fixed, problem.powers, strict=False))
        columns = np.stack([x**p for p in problem.powers if p >= power], axis=1) * importance[:, None]
        weights = np.ones_like(x)
        for _ in range(100):
            root = np.sqrt(weights)
            found = np.linalg.lstsq(columns * root[:, None], rest * importance * root, rcond=None)[0]
            errors = np.abs(columns @ found - rest * importance)
            weights *= errors / errors.max() + 1e-3
            weights /= weights.sum()
        fixed.append(np.float32(found[0]))
    error = np.abs(sum(np.float64(c) * x**p for c, p in zip(fixed, problem.powers, strict=True)) - target) * importance
    return fixed, float(error.max())


def main() -> None:
    """Print all fits."""
    for problem in FITS:
        coefficients, error = fit(problem)
        print(f"{problem.name:10} error {error:.2e}   {'  '.join(f'{c:.9g}' for c in coefficients)}")


if __name__ == "__main__":
    main()
