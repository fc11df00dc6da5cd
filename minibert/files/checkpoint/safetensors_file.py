"""Safetensors files: the format's library writes them. Reading has more checks than the library.

The library checks offsets, sizes, overlaps and dtypes. But it cannot read bfloat16 into numpy, and it accepts a few
things that two readers could understand differently. So the library validates the file, and this module reads it.

Format: 8 bytes with the length N of the header, little-endian; N bytes of JSON,
``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}``; then the values.
https://github.com/huggingface/safetensors
"""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minibert.errors import WeightsError
from minibert.files.checkpoint.stored import DTYPES, StoredTensor, widen_bfloat16
from minibert.safe import jsonfile
from minibert.safe.regular import open_regular
from minibert.typing import Array

MAX_HEADER_BYTES = 16 << 20  # BERT-large's has 42,000; the format's own limit is 100,000,000
MAX_TENSORS = 10_000  # BERT-large has 391


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the unread tensors of the safetensors file ``path``, by name.

    Raises:
        WeightsError: The file is malformed, ambiguous, or has another format; or the dtype of a tensor is not a key of
            :data:`~minibert.files.checkpoint.stored.DTYPES`.
    """
    header, data_start = _read_header(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a valid safetensors file: {error}. Download it again.") from error

    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise WeightsError(
                f"{path}: {name} has dtype {entry['dtype']}; minibert reads {', '.join(DTYPES)}. "
                "Was the model quantized? Use the original weights."
            )
        shape = tuple(entry["shape"])
        begin = data_start + entry["data_offsets"][0]
        read = functools.partial(_read_values, path, name, entry["dtype"], shape, begin)
        tensors[name] = StoredTensor(path, name, entry["dtype"], shape, read)
    return tensors


def save_safetensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with the usual permissions. The library itself gives access only to the owner.

    Raises:
        OSError: The file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}.") from error
    path.chmod(mode)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensor entries of the header, and the offset of the values in the file."""
    with open_regular(path, WeightsError) as file:
        start = file.read(64)
        length, size = int.from_bytes(start[:8], "little"), os.fstat(file.fileno()).st_size
        if start[8:9] != b"{" or not 2 <= length <= size - 8:
            _refuse_other_formats(path, start, length, size)
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path} has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read.")
        file.seek(8)
        raw = file.read(length)
    try:
        header = jsonfile.parse(raw)
    except ValueError as error:
        raise WeightsError(f"{path} has an unusable safetensors header: {error}. Download it again.") from error
    if not isinstance(header, dict) or header.get("__metadata__", {}) is None:
        raise WeightsError(f"{path} has a safetensors header that is not an object with metadata of strings.")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise WeightsError(f"{path} lists {len(header):,} tensors; at most {MAX_TENSORS:,} are read.")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise WeightsError(f"{path}: the entry of {name!r} must have dtype, shape and data_offsets, only.")
    return header, 8 + length


def _refuse_other_formats(path: Path, start: bytes, length: int, size: int) -> NoReturn:
    """Raise a WeightsError that says what the file is. Its first bytes are not those of a safetensors file."""
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in the repo.")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights. Was the download refused? Download it again.")
    if start.startswith(b"PK\x03\x04"):
        raise WeightsError(f"{path} is a zip file, probably a pytorch_model.bin under another name. Rename it.")
    raise WeightsError(
        f"{path} is not a safetensors file, or is cut short: its header must begin with a brace and lie within "
        f"the {size:,} bytes; it begins with {start[8:9]!r} and has {length:,}. Download it again."
    )


def _read_values(path: Path, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> Array:
    """Read the values of one tensor. It uses no memory map: if a mapped file becomes shorter, the process dies."""
    count = math.prod(shape)
    with open_regular(path, WeightsError) as file:
        values = np.fromfile(file, DTYPES[dtype], count, offset=begin)
    if values.size != count:
        raise WeightsError(f"{path} became shorter while it was read, at {name}. Download it again.")
    if dtype == "BF16":
        values = widen_bfloat16(values)
    try:
        return values.reshape(shape)
    except ValueError as error:  # a shape that numpy does not have, such as (0, 2**62) or 101 dimensions
        raise WeightsError(f"{path}: {name} has shape {shape}, which cannot be read: {error}.") from error
