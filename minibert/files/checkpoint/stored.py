"""An unread tensor in a file. Readers of all file formats return this type."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert.typing import Array

#: The supported dtypes: safetensors code to little-endian numpy dtype. numpy has no bfloat16: its bits are read as
#: uint16 and widened by :func:`widen_bfloat16`.
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
    """One tensor of a weights file: its description in the file, and a function that reads it.

    Attributes:
        path: The file, for messages.
        name: The tensor's name in the file.
        dtype: A key of :data:`DTYPES`.
        shape: Its shape.
        read: Reads the values from the file into a new C-contiguous array of ``shape``, in the file's dtype (bfloat16
            becomes float32).
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]


def widen_bfloat16(bits: Array) -> Array:
    """Return the exact float32 values of bfloat16 ``bits`` (uint16, any shape)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
