"""The array library of an array. With it, the same code runs on numpy and CuPy arrays."""

import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_namespace(array: Any) -> ModuleType:
    """Return the module with the functions for ``array``: ``cupy`` for a CuPy array, else ``numpy``.

    This never imports CuPy. If no other code has imported it, no CuPy array can exist.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np
