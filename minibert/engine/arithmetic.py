"""The arithmetic of the modules after the transformer, for each kind of engine."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from minibert import ops, pooling
from minibert.arrays import array_namespace
from minibert.engine.threads import one_blas_thread
from minibert.typing import Array, Bool, Float

_ACTIVATIONS = {**ops.ACTIVATIONS, "softplus": ops.softplus}


class Arithmetic(Protocol):
    """The operations of modules. The bits of a row depend only on the row."""

    def matrix(self, weight: Float[Array, "out in"]) -> Any:
        """Return the weights of a linear layer for :meth:`linear`."""
        ...

    def vector(self, weight: Float[Array, "n"]) -> Any:
        """Return a bias, or the scale or shift of a norm, for the other operations."""
        ...

    def linear(self, x: Float[Array, "*rows in"], weight: Any, bias: Any, activation: str) -> Float[Array, "*rows out"]:
        """Return ``act(x @ weight.T + bias)``. ``bias`` may be None. ``activation`` is as in :mod:`minibert.ops`."""
        ...

    def layer_norm(self, x: Float[Array, "*rows n"], weight: Any, bias: Any, eps: float) -> Float[Array, "*rows n"]:
        """Return :func:`minibert.ops.layer_norm`."""
        ...

    def l2_normalize(self, x: Float[Array, "*rows n"]) -> Float[Array, "*rows n"]:
        """Return :func:`minibert.ops.l2_normalize`."""
        ...

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "B S H"],
        mask: Bool[Array, "B S"],
        *,
        exclude: int = 0,
        weight_sum: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Return :func:`minibert.pooling.pool`."""
        ...


def _unchanged(weights: Array) -> Array:
    """Return ``weights``. A lambda could not be pickled."""
    return weights


class ArrayArithmetic:
    """The arithmetic of numpy, or of CuPy if the weights are placed on a GPU."""

    def __init__(self, place: Callable[[Array], Any] = _unchanged) -> None:
        """Make the arithmetic. ``place`` copies weights to the device."""
        self.matrix = self.vector = place
        self.layer_norm = ops.layer_norm
        self.l2_normalize = ops.l2_normalize
        self.pool = pooling.pool

    def linear(self, x: Array, weight: Array, bias: Array | None, activation: str) -> Array:
        """Return ``act(x @ weight.T + bias)``. A CPU uses one product per row, so its bits depend on no other row."""
        if array_namespace(x) is np:
            with one_blas_thread():
                y = (weight @ x[..., None])[..., 0]
            y = y if bias is None else y + bias
        else:
            y = ops.linear(x, weight, bias)
        return _ACTIVATIONS[activation](y)
