"""The arithmetic of the modules after the transformer by the native kernels: the same bits on every processor."""

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibert import pooling
from minibert.engine import fused_native
from minibert.engine.native import Library, NormPointers, address, checked
from minibert.typing import Array, Bool, Float


class PackedMatrix(NamedTuple):
    """A packed ``(in, out)`` matrix, and its number of columns."""

    packed: Float[Array, "packed"]
    outputs: int


class NativeArithmetic:
    """The operations of :class:`minibert.engine.arithmetic.Arithmetic` in float32."""

    def __init__(self, library: Library) -> None:
        """Use this library."""
        self._library = library

    def matrix(self, weight: Float[Array, "out in"]) -> PackedMatrix:
        """Return packed weights."""
        outputs, inputs = weight.shape
        packed = self._library.empty(inputs, outputs)
        self._library.pack(packed, outputs, [(weight.T, 1.0)])
        return PackedMatrix(packed, outputs)

    def vector(self, weight: Float[Array, "n"]) -> Float[Array, "n"]:
        """Return contiguous numbers."""
        return np.ascontiguousarray(weight)

    def linear(
        self, x: Float[Array, "*rows in"], weight: PackedMatrix, bias: Float[Array, "out"] | None, activation: str
    ) -> Float[Array, "*rows out"]:
        """Return ``act(x @ weight.T + bias)``."""
        y = self._library.linear(_rows(x), weight.packed, weight.outputs, bias, activation)
        return y.reshape(*x.shape[:-1], weight.outputs)

    def layer_norm(
        self, x: Float[Array, "*rows n"], weight: Float[Array, "n"], bias: Float[Array, "n"], eps: float
    ) -> Float[Array, "*rows n"]:
        """Return :func:`minibert.ops.layer_norm`."""
        rows = _rows(x)
        count, width = rows.shape
        y = np.empty_like(rows)
        norm = NormPointers(
            address(rows), None, None, address(checked(weight, width)), address(checked(bias, width)), address(y),
            count, width, width, width, width, eps,
        )  # fmt: skip
        self._library.c.mb_layer_norm(self._library.kernels, ctypes.byref(norm))
        return y.reshape(x.shape)

    def l2_normalize(self, x: Float[Array, "*rows n"]) -> Float[Array, "*rows n"]:
        """Return :func:`minibert.ops.l2_normalize`."""
        y = np.array(_rows(x))
        self._library.normalize(y)
        return y.reshape(x.shape)

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "B S H"],
        mask: Bool[Array, "B S"],
        *,
        exclude: int = 0,
        weight_sum: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Return :func:`minibert.pooling.pool`, for texts of equal length without padding, or without tokens."""
        texts, tokens = mask.shape
        whole = bool(mask.all())
        if not whole and mask.any():
            return pooling.pool(modes, hidden, mask, exclude=exclude, weight_sum=weight_sum)
        bounds = np.arange(texts + 1, dtype=np.int64) * (tokens if whole else 0)
        sums = None if weight_sum is None else weight_sum.astype(np.float64)
        return fused_native.pool(self._library, modes, _rows(hidden), bounds, exclude, sums)


def _rows(x: Float[Array, "*rows n"]) -> Float[Array, "m n"]:
    """Return the rows of an array as one contiguous float32 matrix."""
    return np.ascontiguousarray(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), np.float32)
