"""Reading of ``pytorch_model.bin`` files without PyTorch and without unpickling.

``torch.save`` writes a pickle and the numbers of the tensors. :mod:`~minibert.files.checkpoint.pickle_machine` reads
the pickle. There are two formats. *Zip* (since torch 1.6) has the entries ``<root>/data.pkl`` and, for each storage,
``<root>/data/<key>``, uncompressed. *Legacy* has five pickles (a magic number, the format's version, the system, the
value, the storage keys) and then, for each key, a count (int64) and that many numbers.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import functools
import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from minibert.errors import WeightsError
from minibert.files.checkpoint.pickle_machine import Machine, Tensor, UnsupportedError
from minibert.files.checkpoint.stored import DTYPES, StoredTensor, widen_bfloat16
from minibert.safe.regular import open_regular
from minibert.typing import Array

MAX_INDEX_BYTES = 4 << 20  # of a pickle or a zip directory; BERT-large has 75,000 and 22,000
MAX_TENSORS = 10_000  # BERT-large has 391

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP_MAGIC, _ZIP_END_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_HEADER = struct.Struct("<4s5H3L2H")
_ZIP_SIZES_FOLLOW, _ZIP_UTF8 = 0x8, 0x800  # the flags that torch.save sets


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Return the unread tensors of a ``pytorch_model.bin``, by name.

    The file holds a state_dict, or a dict with a state_dict at the key ``"state_dict"``. Other keys are ignored.

    Raises:
        WeightsError: The file is malformed or ambiguous, holds anything but plain tensors, or has another format. No
            code in it was run.
    """
    with open_regular(path, WeightsError) as opened, _Reader(opened.fileno(), closefd=False) as file:
        head = file.read_at(0, 512)
        _refuse_other_formats(path, head)
        try:
            value, starts = _open_zip(file) if head.startswith(_ZIP_MAGIC) else _open_legacy(file)
            return {
                name: _stored_tensor(path, name, tensor, starts[tensor.storage.key])
                for name, tensor in _state_dict(value).items()
            }
        except UnsupportedError as error:
            raise WeightsError(
                f"{path} {error}. Nothing in it was run. If you trust it, re-save it where torch is: "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')."
            ) from error
        except (ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise WeightsError(
                f"{path} is damaged, or made to mislead: {error}. Download it again, from a source you trust."
            ) from error


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """If the first bytes are not those of torch.save, raise a WeightsError that says what the file is."""
    if not head:
        raise WeightsError(f"{path} is empty. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in the repo.")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights. Was the download refused? Download it again.")
    if head[8:10] == b'{"':
        raise WeightsError(f"{path} is a safetensors file by another name. Rename it to model.safetensors.")
    if head[257:262] == b"ustar":
        raise WeightsError(f"{path} is a tar file, as torch before 0.1.10 wrote. Re-save it with torch.")
    if not head.startswith((_ZIP_MAGIC, b"\x80")):
        raise WeightsError(f"{path} must be a file of torch.save; it is neither a zip file nor a pickle.")


class _Reader(io.FileIO):
    """A file with a limit for each read, for any size that the file states. Tensors are read elsewhere."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_INDEX_BYTES:
            raise UnsupportedError(f"must describe itself in {MAX_INDEX_BYTES:,} bytes; it takes {size:,}")
        return super().read(size) or b""

    def read_at(self, start: int, size: int) -> bytes:
        """Return up to ``size`` bytes, starting at ``start``."""
        self.seek(start)
        return self.read(size)


def _open_zip(file: _Reader) -> tuple[Any, dict[str, int]]:
    """Return the value of a zip file, and the offset of each storage in the file."""
    entries = _zip_entries(file)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise UnsupportedError(f"must be a zip file with one <folder>/data.pkl; it has {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = entries.get(f"{root}byteorder")
    if byteorder and file.read_at(*byteorder) != b"little":
        raise UnsupportedError("holds numbers that are not little-endian")

    machine = Machine(file.read_at(*entries[pickles[0]]))
    value = machine.load()
    if machine.stream.read(1):
        raise ValueError("its data.pkl goes on behind the pickle")
    starts = {}
    for key, storage in machine.storages.items():
        nbytes = storage.numel * storage.itemsize
        starts[key], found = entries.get(f"{root}data/{key}", (0, None))
        if found != nbytes:
            raise ValueError(f"the zip entry of storage {key} must have {nbytes:,} bytes; it has {found}")
    return value, starts


def _zip_entries(file: _Reader) -> dict[str, tuple[int, int]]:
    """Return start and size of each entry's content. Refuse files that two readers could understand differently."""
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    file_size = file.seek(0, io.SEEK_END)
    if not infos or infos[0].header_offset != 0 or file.read_at(file_size - 22, 4) != _ZIP_END_MAGIC:
        raise ValueError("something comes before the first or after the last part of the zip file")
    entries: dict[str, tuple[int, int]] = {}
    end = 0
    for info in infos:
        if not end <= info.header_offset <= file_size - _ZIP_HEADER.size or info.filename in entries:
            raise ValueError(f"its zip entry {info.filename!r:.100} comes twice, overlaps or is cut off")
        start = _content_start(file, info)
        end = start + info.file_size
        entries[info.filename] = (start, info.file_size)
    if end > file_size:
        raise ValueError("its last zip entry is cut off")
    return entries


def _content_start(file: _Reader, info: zipfile.ZipInfo) -> int:
    """Return the start of an entry's content, after its header. The header must agree with the zip's directory."""
    header = _ZIP_HEADER.unpack(file.read_at(info.header_offset, _ZIP_HEADER.size))
    magic, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = header
    entry = f"zip entry {info.filename!r:.100}"
    name = info.filename.encode("utf-8" if info.flag_bits & _ZIP_UTF8 else "cp437")
    found = (magic, flags, method, file.read(name_length))
    if found != (_ZIP_MAGIC, info.flag_bits, info.compress_type, name):
        raise ValueError(f"its {entry} has a header that disagrees with the zip's directory")
    if method != zipfile.ZIP_STORED or flags & ~(_ZIP_SIZES_FOLLOW | _ZIP_UTF8):
        raise UnsupportedError(f"has the {entry} compressed or encrypted")
    sizes = {info.compress_size, info.file_size, packed, unpacked}
    if flags & _ZIP_SIZES_FOLLOW and packed == unpacked == 0:
        sizes = {info.compress_size, info.file_size}
    if len(sizes) > 1:
        raise ValueError(f"its {entry} has {len(sizes)} sizes")
    return int(file.tell() + extra_length)


def _open_legacy(file: _Reader) -> tuple[Any, dict[str, int]]:
    """Return the value of a legacy file, and the offset of each storage in the file."""
    machine = Machine(file.read_at(0, MAX_INDEX_BYTES))
    if machine.load() != _LEGACY_MAGIC or machine.load() != _LEGACY_VERSION:
        raise UnsupportedError("is a pickle, but not one of torch.save")
    system, value, keys = machine.load(), machine.load(), machine.load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise UnsupportedError("holds numbers that are not little-endian")
    storages = machine.storages
    if type(keys) is not list or {*map(type, keys)} - {str} or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages must name each of them once")

    starts, position = {}, machine.stream.tell()
    for key in keys:
        numel = int.from_bytes(file.read_at(position, 8), "little")
        if numel != storages[key].numel:
            raise ValueError(f"storage {key} must have {storages[key].numel:,} elements; it has {numel:,}")
        starts[key] = position + 8
        position = starts[key] + numel * storages[key].itemsize
    file_size = file.seek(0, io.SEEK_END)
    if position != file_size:
        raise ValueError(f"its storages take {position:,} bytes, and the file has {file_size:,}")
    return value, starts


def _state_dict(value: Any) -> dict[str, Tensor]:
    """Return the tensors by name: ``value`` or its ``"state_dict"``."""
    match value:
        case {"state_dict": dict(inner)}:
            value = inner
    if type(value) is not dict or len(value) > MAX_TENSORS:
        raise UnsupportedError(f"must hold a dict of tensors, at most {MAX_TENSORS:,}")
    for name, tensor in value.items():
        if type(name) is not str or not name.isprintable():
            raise UnsupportedError(f"has a tensor with the name {name!r:.100}, which must be printable text")
        if type(tensor) is not Tensor:
            raise UnsupportedError(f"must hold tensors only; its {name!r:.100} is of type {type(tensor).__name__}")
    return value


def _stored_tensor(path: Path, name: str, tensor: Tensor, start: int) -> StoredTensor:
    """Return the tensor in the storage at ``start``. Raise an error if its elements are outside the storage."""
    storage, span, elements = tensor.storage, tensor.span, math.prod(tensor.shape)
    if tensor.offset + span > storage.numel:
        raise ValueError(f"{name!r:.100} ends at element {tensor.offset + span:,} of {storage.numel:,}")
    if elements > span:
        raise UnsupportedError(f"has {name!r:.100} expanded: {elements:,} elements in {span:,} places")
    read = functools.partial(_read_values, path, name, tensor, start + tensor.offset * storage.itemsize)
    return StoredTensor(path, name, storage.dtype, tensor.shape, read)


def _read_values(path: Path, name: str, tensor: Tensor, start: int) -> Array:
    """Read the values of one tensor. It uses no memory map: if a mapped file becomes shorter, the process dies."""
    dtype, itemsize = tensor.storage.dtype, tensor.storage.itemsize
    with open_regular(path, WeightsError) as file:
        values = np.fromfile(file, DTYPES[dtype], tensor.span, offset=start)
    if values.size != tensor.span:
        raise WeightsError(f"{path} became shorter while it was read, at {name}. Download it again.")
    strides = [stride * itemsize for stride in tensor.strides]
    values = np.asarray(np.lib.stride_tricks.as_strided(values, tensor.shape, strides), order="C")
    return widen_bfloat16(values) if dtype == "BF16" else values
