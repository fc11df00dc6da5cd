"""A tensor that lies in a file and has not been read yet: what every file format is opened as."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert.typing import Array

#: The tensor dtypes that are read, by their safetensors code, as little-endian numpy dtypes.
#: bfloat16 has no numpy dtype: its bits are read as uint16 and widened by :func:`widen_bfloat16`.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


class StoredTensor(NamedTuple):
    """One tensor of a weights file: what the file says of it, and how to read it.

    Attributes:
        path: The file, for messages.
        name: The tensor's name in the file.
        dtype: A key of :data:`DTYPES`.
        shape: Its dimensions.
        read: Reads the values from the file into memory of their own: a C-contiguous array of
            ``shape``, in the file's dtype (bfloat16 widened to float32).
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]


def widen_bfloat16(bits: Array) -> Array:
    """Return the float32 values of bfloat16 ``bits`` (uint16, any shape), exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
