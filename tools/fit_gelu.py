"""Print the coefficients of the GELU in ``minibert.engine.fused_numpy`` and the error of the function.

    python tools/fit_gelu.py

It needs mpmath (the ``dev`` extra). The lower tail of the normal distribution is approximated by
``Phi(-a) = exp(pull / ((a + far)^2 + width) - curve (a + near)^2 - level)``, ``a >= 0``. log Phi is close to a parabola
for large ``a``; the first term is a bump for the rest. For fixed ``far`` and ``width``, the exponent is linear in four
unknowns, and Lawson's reweighted least squares finds their minimax values. The fit minimizes the error of
``a Phi(-a)``. Near the maximum of ``a Phi(-a)``, the fit has a smaller error, because the rounding error of the
arithmetic is largest there.

Rounding the six coefficients changes the result by as much as the error of the fit. So the tool tries many pairs of
``far`` and ``width`` near the optimum. It rounds each coefficient to float32 before it fits the rest. It prints the set
with the smallest measured error.
"""

import math
from collections.abc import Iterator
from unittest import mock

import mpmath
import numpy as np
import numpy.typing as npt

from minibert import ops
from minibert.engine import fused_numpy as cpu
from minibert.engine.fused_numpy import _gelu, _TailFit

Floats = npt.NDArray[np.floating]

END = 7.5  # beyond this, a Phi(-a) is below 3e-13
TRIES = 3000
FAR, WIDTH = (3.462, 3.474), (4.318, 4.327)  # around the optimum of the unrounded fit

SIZE = (1 - np.cos(np.linspace(0, np.pi, 601))) * END / 2
LOG_TAIL = np.array([float(mpmath.log(mpmath.ncdf(-a))) for a in SIZE.tolist()])
BUMP = SIZE * np.exp(LOG_TAIL)
SENSITIVITY = BUMP / (1 - 0.85 * BUMP / BUMP.max())


def solve(columns: list[Floats], target: Floats, weights: Floats) -> Floats:
    """Return the weighted least squares solution."""
    return np.linalg.lstsq(np.stack(columns, axis=1) * weights[:, None], target * weights, rcond=None)[0]


def minimax_weights(columns: list[Floats], target: Floats, steps: int = 25) -> Floats:
    """Return weights that make the least squares solution nearly minimax (Lawson's iteration)."""
    factor = np.ones_like(target)
    for _ in range(steps):
        weights = SENSITIVITY * np.sqrt(factor)
        error = np.abs(np.stack(columns, axis=1) @ solve(columns, target, weights) - target) * SENSITIVITY
        factor *= error / error.max() + 1e-3
        factor /= factor.mean()
    return SENSITIVITY * np.sqrt(factor)


def rounded(value: float) -> float:
    """Return the nearest float32."""
    return float(np.float32(value))


def fit(far: float, width: float) -> _TailFit:
    """Return the coefficients for given ``far`` and ``width``. Each one is rounded before the next one is fitted."""
    bump, square, line, one = 1 / ((SIZE + far) ** 2 + width), -(SIZE**2), -SIZE, -np.ones_like(SIZE)
    weights = minimax_weights([bump, square, line, one], LOG_TAIL)
    pull = rounded(solve([bump, square, line, one], LOG_TAIL, weights)[0])
    rest = LOG_TAIL - pull * bump
    curve = rounded(solve([square, line, one], rest, weights)[0])
    near = rounded(solve([line, one], rest - curve * square, weights)[0] / (2 * curve))
    level = rounded(solve([one], rest + curve * (SIZE + near) ** 2, weights)[0])
    return _TailFit(far, width, pull, near, curve, level)


def gelu(x: Floats, tail: _TailFit) -> Floats:
    """Return the float32 GELU with these coefficients."""
    y = x.copy()
    with mock.patch.object(cpu, "_TAIL", tail):
        _gelu(y, np.empty((2, *x.shape), np.float32))
    return y


def exact(x: Floats) -> Floats:
    """Return the GELU in float64. Its error is negligible compared with the measured errors."""
    return ops.gelu(x.astype(np.float64))


def root_mean_square(x: Floats) -> float:
    """Return the root mean square."""
    return math.sqrt(np.square(x).mean())


def search() -> _TailFit:
    """Return the rounded coefficients with the smallest measured error: a sum of the largest and the RMS error."""
    random = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-6.5, 3, 95_001), random.standard_normal(60_000)]).astype(np.float32)
    truth = exact(x)
    allowed = np.maximum(np.abs(truth), 0.5)

    def badness(tail: _TailFit) -> float:
        error = gelu(x, tail) - truth
        return float(np.abs(error / allowed).max()) + 2 * root_mean_square(error[-60_000:])

    pairs = zip(random.uniform(*FAR, TRIES), random.uniform(*WIDTH, TRIES), strict=True)
    return min((fit(rounded(far), rounded(width)) for far, width in pairs), key=badness)


def every_float32(smallest: float, largest: float) -> Iterator[Floats]:
    """Yield all float32 numbers from ``smallest`` (positive) to below ``largest``, and their negatives, in pieces."""
    start, stop = np.array([smallest, largest], np.float32).view(np.int32).tolist()
    for first in range(start, stop, 1 << 19):
        positive = np.arange(first, min(first + (1 << 19), stop), dtype=np.int32).view(np.float32)
        yield positive
        yield -positive


def main() -> None:
    """Print the coefficients and the measured errors of this fit and of ``ops.gelu`` in float32."""
    best = search()
    print(", ".join(f"{name}={np.float32(value)!s}" for name, value in best._asdict().items()))
    functions = {"this fit": lambda x: gelu(x, best), "ops.gelu in float32": ops.gelu}
    relative, negative = dict.fromkeys(functions, 0.0), dict.fromkeys(functions, 0.0)
    for x in every_float32(2**-10, 16):  # below, the error falls with x; above, it is 0
        truth = exact(x)
        for name, function in functions.items():
            error = np.abs(function(x) - truth)
            relative[name] = max(relative[name], float((error / np.maximum(np.abs(truth), 0.5)).max()))
            negative[name] = max(negative[name], float(error.max()) if x[0] < 0 else 0.0)
    random = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float32)
    for name, function in functions.items():
        print(f"{name}: at most {relative[name]:.3g} x max(|gelu|, 0.5), and {negative[name]:.3g} for negative x;")
        print(f"  root mean square for standard normal x {root_mean_square(function(random) - exact(random)):.3g}")


if __name__ == "__main__":
    main()
