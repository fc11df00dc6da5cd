"""The precisions that a device can compute in."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minibert.typing import DType


def compute_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the precision for a CPU: float32 by default, or float64.

    Raises:
        ValueError: ``dtype`` is neither of them.
    """
    remedy = "Leave it out for float32; float16 and bfloat16 are for a SentenceEncoder on a GPU."
    return np.dtype(choose_precision(dtype, ["float32", "float64"], "a CPU", remedy))


def choose_precision(dtype: DType | str, known: Sequence[str], device: str, remedy: str) -> str:
    """Return the name of the precision ``dtype``. None means the first of ``known``.

    Raises:
        ValueError: ``dtype`` is not in ``known``, or it is not a dtype. The message ends with ``remedy``.
    """
    if dtype is None:
        return known[0]
    try:
        name = "bfloat16" if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):  # numpy's errors for an unknown dtype
        name = repr(dtype)
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)} on {device}; it is {name}. {remedy}")
    return name
