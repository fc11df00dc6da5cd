"""Print the coefficients of the 16-bit GELU in ``kernels/cuda/activations.cuh``, and the error of the function.

    python tools/fit_gelu_logit.py

It needs mpmath (the ``dev`` extra). ``x Phi(x) = x / (1 + exp(-L(x)))`` with ``L(x) = log(Phi(x) / Phi(-x))``. ``L`` is
odd and smooth, so it is approximated by ``x`` times a polynomial in ``x^2``. Lawson's reweighted least squares finds
the coefficients that are minimax for the error of ``x Phi(x)``. Beyond ``|x| = 6``, the kernel clips ``x^2``.
"""

import mpmath
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

END, TERMS, STEPS = 6.0, 3, 300


def fit(x: Floats) -> Floats:
    """Return the coefficients of ``x``, ``x^3``, ``x^5``."""
    upper = np.array([float(mpmath.ncdf(value)) for value in x.tolist()])
    lower = np.array([float(mpmath.ncdf(-value)) for value in x.tolist()])
    logit = np.log(upper) - np.log(lower)
    sensitivity = x * upper * lower  # derivative of x Phi(x) with respect to the logit
    columns = np.stack([x ** (2 * power + 1) for power in range(TERMS)], axis=1)
    factor = np.ones_like(x)
    best: tuple[float, Floats] = (np.inf, np.zeros(TERMS))
    for _ in range(STEPS):
        weights = np.sqrt(factor) * sensitivity
        found = np.linalg.lstsq(columns * weights[:, None], logit * weights, rcond=None)[0]
        error = np.abs(x / (1 + np.exp(-columns @ found)) - x * upper)
        best = min(best, (float(error.max()), found), key=lambda pair: pair[0])
        factor *= error / error.max() + 1e-6
        factor /= factor.sum()
    return best[1]


def approximate(x: Floats, coefficients: Floats) -> Floats:
    """Return the kernel's GELU, in the precision of ``x``."""
    first, third, fifth = coefficients.astype(x.dtype)
    square = np.minimum(x * x, x.dtype.type(END**2))
    logit = x * ((fifth * square + third) * square + first)
    return x / (1 + np.exp2(x.dtype.type(-1.44269504) * logit))


def main() -> None:
    """Print the coefficients and the error."""
    coefficients = fit(np.linspace(1e-3, END, 3001))
    x = np.linspace(-12, 12, 200_001).astype(np.float32)
    with np.errstate(over="ignore"):
        found = approximate(x, coefficients)
    exact = np.array([float(value * mpmath.ncdf(value)) for value in x.tolist()])
    error = np.abs(found - exact)
    print("coefficients:", ", ".join(f"{value:.8g}" for value in coefficients))
    print(f"max error of the float32 arithmetic: {error.max():.2e}, at {x[error.argmax()]:.3f}")


if __name__ == "__main__":
    main()
