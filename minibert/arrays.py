"""The array library of an array. With it, the same code runs on numpy and CuPy arrays."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

#: Numbers of an array that are looked at at a time.
_PIECE = 1 << 22


def array_namespace(array: Any) -> ModuleType:
    """Return the module with the functions for ``array``: ``cupy`` for a CuPy array, else ``numpy``.

    This never imports CuPy. If no other code has imported it, no CuPy array can exist.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def pieces_of(vectors: Any) -> Iterator[Any]:
    """Yield an array in runs of rows, at least one, whose intermediate results are small."""
    rows = max(1, _PIECE // max(1, vectors.shape[1]))
    for start in range(0, max(1, len(vectors)), rows):
        yield vectors[start : start + rows]
