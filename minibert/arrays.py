"""Which array library an array belongs to: the same code runs on numpy and CuPy arrays."""

import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_namespace(array: Any) -> ModuleType:
    """Return the module whose functions work on ``array``: ``cupy`` for a CuPy array, else ``numpy``.

    CuPy is looked up, never imported: where nobody has imported it, no array can be one of its own.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np
