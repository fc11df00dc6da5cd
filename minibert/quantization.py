"""Quantization of vectors to one byte or one bit per dimension, as sentence-transformers defines it."""

import logging
from collections.abc import Sequence
from typing import get_args

import numpy as np

from minibert.typing import Array, Float, Num, Precision

logger = logging.getLogger("minibert")

PRECISIONS: tuple[str, ...] = get_args(Precision)


def quantize_embeddings(
    embeddings: Float[Array, "*n D"] | Sequence[Float[Array, "D"]],
    precision: Precision,
    ranges: Float[Array, "2 D"] | None = None,
    calibration_embeddings: Float[Array, "m D"] | Sequence[Float[Array, "D"]] | None = None,
) -> Num[Array, "*n E"]:
    """Return ``embeddings`` in a lower precision.

    Args:
        embeddings: Vectors of floats: an array of rows, a list of vectors, or a single vector.
        precision: ``"float32"``; ``"int8"`` or ``"uint8"``, one of 256 steps between the smallest and the largest
            value of the dimension; ``"binary"`` (int8) or ``"ubinary"`` (uint8), the sign of each dimension, eight
            per byte, so that ``E = ceil(D / 8)``.
        ranges: Smallest and largest value of each dimension, for ``int8`` and ``uint8``.
        calibration_embeddings: Vectors that define the ranges. The default is ``embeddings``.

    Raises:
        ValueError: The precision is unknown, the vectors are already integers, the ranges have a wrong shape, or a
            single vector would define them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; it is {precision!r}.")
    embeddings = np.asarray(embeddings)
    if embeddings.dtype.kind != "f":
        raise ValueError(f"embeddings to quantize must be floating-point numbers; they are {embeddings.dtype}.")
    if precision == "float32":
        return embeddings.astype(np.float32, copy=False)
    if precision in {"binary", "ubinary"}:
        packed = np.packbits(embeddings > 0, axis=-1)
        return packed if precision == "ubinary" else (packed ^ 0x80).view(np.int8)

    if embeddings.shape[0] == 0 and embeddings.ndim == 2:
        return np.zeros(embeddings.shape, np.dtype(precision))
    if ranges is None:
        ranges = _ranges(
            embeddings if calibration_embeddings is None else np.asarray(calibration_embeddings), precision
        )
    ranges = np.asarray(ranges, np.float32)
    if ranges.shape != (2, embeddings.shape[-1]):
        raise ValueError(
            f"ranges must have shape (2, {embeddings.shape[-1]}), smallest and largest; got {ranges.shape}."
        )
    # In float32 and in this order, as in sentence-transformers: rounding decides if the largest value is 254 or 255.
    low, high = ranges
    step = (high - low) / 255
    step = np.where(step == 0, 1, step)
    steps = np.clip(np.floor((embeddings - low) / step), 0, 255)
    return steps.astype(np.uint8) if precision == "uint8" else (steps - 128).astype(np.int8)


def quantize_tokens(vectors: Sequence[Float[Array, "tokens H"]], precision: Precision) -> list[Num[Array, "tokens E"]]:
    """Return the token vectors of each text in a lower precision. The ranges come from all tokens together.

    Raises:
        ValueError: As in :func:`quantize_embeddings`.
    """
    if not vectors:
        return []
    together = quantize_embeddings(np.concatenate(vectors), precision)
    return np.split(together, np.cumsum([len(each) for each in vectors])[:-1])


class Ranges:
    """Smallest and largest value of each dimension, for vectors that arrive in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._low: Array = np.array(np.inf, np.float32)
        self._high: Array = np.array(-np.inf, np.float32)

    def add(self, vectors: Float[Array, "n D"]) -> None:
        """Include more vectors."""
        if len(vectors):
            self._count += len(vectors)
            self._low = np.minimum(self._low, vectors.min(axis=0))
            self._high = np.maximum(self._high, vectors.max(axis=0))

    def result(self, precision: str) -> Float[Array, "2 D"]:
        """Return the ranges for ``precision``. Fewer than 100 vectors log a warning; fewer than 2 raise ValueError."""
        if self._count < 2:
            raise ValueError(
                f"{precision} ranges cannot come from a single vector. Pass ranges= or calibration_embeddings= to "
                "minibert.quantize_embeddings."
            )
        if self._count < 100:
            logger.warning("%s ranges come from %d vectors only; use 100 or more", precision, self._count)
        return np.stack([self._low, self._high])


def _ranges(calibration: Array, precision: str) -> Array:
    ranges = Ranges()
    ranges.add(np.atleast_2d(calibration))
    return ranges.result(precision)
