"""``pytorch_model.bin`` files, read without PyTorch and without unpickling.

``torch.save`` writes a pickle and, beside it, the numbers of the tensors. A pickle is a program for a stack
machine, and imports and calls what it likes: :mod:`pickle` would run any code that its author chose. Here it
runs on :class:`_Machine`, which has only the opcodes that a dict of tensors needs, imports nothing (a global
stays a name, and must be in a short list), and calls nothing (what rebuilds a tensor makes a record of it).

There are two formats. *Zip* (since torch 1.6) has the entries ``<root>/data.pkl`` and, for each storage,
``<root>/data/<key>``, uncompressed. *Legacy* has five pickles (a magic number, the format's version, the
system, the value, the storage keys) and then, for each key, a count (int64) and that many numbers.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import functools
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.checkpoint.stored import DTYPES, StoredTensor, widen_bfloat16
from minibert.errors import WeightsError
from minibert.typing import Array

MAX_INDEX_BYTES = 4 << 20  # of a pickle or a zip directory; BERT-large's have 75,000 and 22,000
MAX_OPCODES = 500_000  # BERT-large takes 15,160
MAX_TENSORS = 10_000  # BERT-large has 391
MAX_DIMENSIONS = 64  # numpy's own limit
MAX_COUNT = 1 << 48  # of elements: their bytes still fit 64 bits

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP_MAGIC, _ZIP_END_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_HEADER = struct.Struct("<4s5H3L2H")
_ZIP_SIZES_FOLLOW, _ZIP_UTF8 = 0x8, 0x800  # the flags that torch.save sets

#: The storage classes, as pickles name them, and the dtypes of their elements.
_STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
#: Every global that a pickle may name, as "module name"; :meth:`_Machine.call` knows what the functions do.
_GLOBALS = {
    *_STORAGES,
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
}


class _UnsupportedError(Exception):
    """A file that torch may well read, and minibert does not. The message continues the path of the file."""


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a ``pytorch_model.bin`` by name, unread.

    The file holds a state_dict, or a dict with one as its ``"state_dict"``, of which the rest is ignored.

    Raises:
        WeightsError: The file is malformed or ambiguous, holds anything but plain tensors, or is something
            else altogether. Nothing in it has been run.
    """
    with _Reader(path) as file:
        head = file.read_at(0, 512)
        _refuse_other_formats(path, head)
        try:
            value, starts = _open_zip(file) if head.startswith(_ZIP_MAGIC) else _open_legacy(file)
            return {
                name: _stored_tensor(path, name, tensor, starts[tensor.storage.key])
                for name, tensor in _state_dict(value).items()
            }
        except _UnsupportedError as error:
            raise WeightsError(
                f"{path} {error}. Nothing in it was run. If you trust it, re-save it where torch is: "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')."
            ) from error
        except (ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise WeightsError(
                f"{path} is damaged, or made to mislead: {error}. Download it again, from a source you trust."
            ) from error


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Raise WeightsError, saying what the file is, where its first bytes cannot be those of torch.save."""
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
    """A file that is read in small pieces only, whatever sizes it states: tensors are read elsewhere."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_INDEX_BYTES:
            raise _UnsupportedError(f"must describe itself in {MAX_INDEX_BYTES:,} bytes; it takes {size:,}")
        return super().read(size) or b""

    def read_at(self, start: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``start`` on."""
        self.seek(start)
        return self.read(size)


# What a pickle can become: dict, list, tuple, str, int, float, bool, None, and these three records. They are
# not tuples themselves, or a tuple in the pickle could pass for one.


@dataclass(frozen=True, slots=True)
class _Global:
    """A function or class, as "module name"; never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Elements that lie together in the file, of which tensors are views."""

    dtype: str
    key: str
    numel: int

    def __post_init__(self) -> None:
        # A key becomes part of the name of a zip entry.
        if not (self.key.isascii() and self.key.isdigit() and _are_counts((self.numel,))):
            raise ValueError(f"the key or size of storage {self.key!r:.40} is wrong")

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage; offset and strides are counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (
            all(map(_are_counts, ((self.offset,), self.shape, self.strides)))
            and len(self.shape) == len(self.strides)
            and math.prod(filter(None, self.shape)) < MAX_COUNT  # numpy's rule, also for shapes with a zero
        ):
            raise ValueError(f"the shape, strides or offset of a tensor in storage {self.storage.key} is wrong")

    @property
    def span(self) -> int:
        """The number of elements from the first to the last, with those between that are not the tensor's."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def _are_counts(values: Any) -> bool:
    """Return whether ``values`` is a tuple of sizes; True and False are none."""
    return (
        type(values) is tuple
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)
    )


class _Machine:
    """The pickle machine: a stack, the stacks put aside at open marks, and a memo of earlier values.

    Attributes:
        stream: The pickles; after :meth:`load`, just behind the one that was loaded.
        storages: All storages that they refer to, by key.
    """

    def __init__(self, pickles: bytes) -> None:
        self.stream = io.BytesIO(pickles)
        self.storages: dict[str, _Storage] = {}
        self.steps = 0
        self.stack: list[Any] = []
        self.aside: list[list[Any]] = []
        self.memo: list[Any] = []

    def load(self) -> Any:
        """Return the value of the next pickle in the stream."""
        self.memo.clear()
        try:
            while (code := self.stream.read(1)) != b".":
                self.step(code)
            value = self.stack.pop()
        except IndexError as error:
            raise ValueError("its pickle uses a value that is not there") from error
        if self.stack or self.aside:
            raise ValueError("its pickle leaves values unused")
        return value

    def step(self, code: bytes) -> None:
        """Run one opcode, whose argument follows in the stream."""
        self.steps += 1
        if self.steps > MAX_OPCODES:
            raise _UnsupportedError(f"must describe itself in {MAX_OPCODES:,} opcodes; it takes more")
        if code not in _OPCODES:
            raise ValueError(f"its pickle breaks off, or goes on with {code!r}, which is no opcode")
        opcode = _OPCODES[code]
        if opcode.name not in _STEPS:
            raise _UnsupportedError(f"has the pickle opcode {opcode.name}, which no dict of tensors needs")
        # A GLOBAL reads its lines itself: pickletools would undo escapes in them, which pickle leaves alone.
        argument = opcode.arg.reader(self.stream) if opcode.arg and opcode.name != "GLOBAL" else None
        _STEPS[opcode.name](self, argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Return the ``count`` values above, in the order they were pushed."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: None) -> None:
        """Put the stack aside and start another, until :meth:`pop_to_mark`."""
        self.aside.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        """Return the values above the last mark, and remove the mark."""
        items, self.stack = self.stack, self.aside.pop()
        return items

    def top(self, kind: type) -> Any:
        """Return the uppermost value, which must be a ``kind`` and stays there."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle uses a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def put(self, index: int) -> None:
        """Remember the uppermost value under the next number, as all picklers do."""
        if index != len(self.memo):
            raise ValueError(f"its pickle puts a value at {index} in its memo of {len(self.memo)}")
        self.memo.append(self.stack[-1])

    def append(self, items: list[Any]) -> None:
        """Extend the list below."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Set the keys and values, which alternate in ``items``, in the dict below."""
        if len(items) % 2:
            raise ValueError("its pickle has a dict with a key and no value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Any integers could be chosen to have equal hashes, which makes a dict slow.
            if type(key) is not str and not (type(key) is int and 0 <= key < MAX_OPCODES):
                raise _UnsupportedError("has a dict with keys other than texts and small numbers")
            target[key] = value

    def build(self, _: None) -> None:
        """Drop the attributes of an OrderedDict: a state_dict's ``_metadata``."""
        self.stack.pop()
        self.top(dict)

    def name(self, module: str, name: str) -> None:
        """Push a global of the list, as its name."""
        if f"{module} {name}" not in _GLOBALS:
            raise _UnsupportedError(
                f"has a pickle that names {module!r:.50} {name!r:.50}, which no dict of tensors needs"
            )
        self.push(_Global(f"{module} {name}"))

    def name_from_stream(self, _: None) -> None:
        """Push the global whose module and name are the next two lines."""
        module, name = self.stream.readline(), self.stream.readline()
        self.name(module.decode().removesuffix("\n"), name.decode().removesuffix("\n"))

    def name_from_stack(self, _: None) -> None:
        """Push the global whose module and name are on the stack."""
        match self.pop(2):
            case [str(module), str(name)]:
                self.name(module, name)
            case _:
                raise ValueError("its pickle names a global by something else than text")

    def refer(self, _: None) -> None:
        """Push the storage that ("storage", class, key, device, numel) refers to. Legacy files add a None."""
        match self.stack.pop():
            case ("storage", _Global(kind), str(key), _, numel, *view) if kind in _STORAGES and not any(view):
                storage = _Storage(_STORAGES[kind], key, numel)
            case _:
                raise ValueError("its pickle refers to a storage otherwise than torch.save does")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"its pickle describes storage {key} twice, differently")
        self.push(storage)

    def call(self, _: None) -> None:
        """Push what a function returns for its arguments; each is done here."""
        match self.pop(2):
            case [_Global("collections OrderedDict"), ()]:
                self.push({})
            case [_Global("torch Size"), (tuple(sizes),)]:
                self.push(sizes)
            case [_Global("torch._utils _rebuild_parameter"), (_Tensor() as tensor, _, _)]:
                self.push(tensor)
            case [
                _Global("torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2"),
                # The last two are requires_grad and hooks. A third could say that the values are negated.
                (_Storage() as storage, offset, shape, strides) | (_Storage() as storage, offset, shape, strides, _, _),
            ]:
                self.push(_Tensor(storage, offset, shape, strides))
            case [_Global(name), _]:
                raise _UnsupportedError(f"has a pickle that calls {name} otherwise than a plain tensor needs")
            case _:
                raise ValueError("its pickle calls what is no function")


#: What each opcode does, given the machine and the opcode's argument.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda _machine, _: None),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"], _Machine.push),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE"], _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": _Machine.name_from_stream,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "BINPERSID": _Machine.refer,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def _open_zip(file: _Reader) -> tuple[Any, dict[str, int]]:
    """Return the value of a zip file, and where in the file each storage starts."""
    entries = _zip_entries(file)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _UnsupportedError(f"must be a zip file with one <folder>/data.pkl; it has {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = entries.get(f"{root}byteorder")
    if byteorder and file.read_at(*byteorder) != b"little":
        raise _UnsupportedError("holds numbers that are not little-endian")

    machine = _Machine(file.read_at(*entries[pickles[0]]))
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
    """Return the start and size of each entry's content, refusing what two readers could see differently."""
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
    """Return where an entry's content starts: behind a header that must agree with the zip's directory."""
    header = _ZIP_HEADER.unpack(file.read_at(info.header_offset, _ZIP_HEADER.size))
    magic, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = header
    entry = f"zip entry {info.filename!r:.100}"
    name = info.filename.encode("utf-8" if info.flag_bits & _ZIP_UTF8 else "cp437")
    found = (magic, flags, method, file.read(name_length))
    if found != (_ZIP_MAGIC, info.flag_bits, info.compress_type, name):
        raise ValueError(f"its {entry} has a header that disagrees with the zip's directory")
    if method != zipfile.ZIP_STORED or flags & ~(_ZIP_SIZES_FOLLOW | _ZIP_UTF8):
        raise _UnsupportedError(f"has the {entry} compressed or encrypted")
    sizes = {info.compress_size, info.file_size, packed, unpacked}
    if flags & _ZIP_SIZES_FOLLOW and packed == unpacked == 0:
        sizes = {info.compress_size, info.file_size}
    if len(sizes) > 1:
        raise ValueError(f"its {entry} has {len(sizes)} sizes")
    return int(file.tell() + extra_length)


def _open_legacy(file: _Reader) -> tuple[Any, dict[str, int]]:
    """Return the value of a legacy file, and where in the file each storage starts."""
    machine = _Machine(file.read_at(0, MAX_INDEX_BYTES))
    if machine.load() != _LEGACY_MAGIC or machine.load() != _LEGACY_VERSION:
        raise _UnsupportedError("is a pickle, but not one of torch.save")
    system, value, keys = machine.load(), machine.load(), machine.load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise _UnsupportedError("holds numbers that are not little-endian")
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


def _state_dict(value: Any) -> dict[str, _Tensor]:
    """Return the tensors by name: ``value`` itself, or its ``"state_dict"``."""
    match value:
        case {"state_dict": dict(inner)}:
            value = inner
    if type(value) is not dict or len(value) > MAX_TENSORS:
        raise _UnsupportedError(f"must hold a dict of tensors, at most {MAX_TENSORS:,}")
    for name, tensor in value.items():
        if type(name) is not str or not name.isprintable():
            raise _UnsupportedError(f"has a tensor with the name {name!r:.100}, which must be printable text")
        if type(tensor) is not _Tensor:
            raise _UnsupportedError(f"must hold tensors only; its {name!r:.100} is of type {type(tensor).__name__}")
    return value


def _stored_tensor(path: Path, name: str, tensor: _Tensor, start: int) -> StoredTensor:
    """Return the tensor, whose storage starts at ``start``, if its elements lie there."""
    storage, span, elements = tensor.storage, tensor.span, math.prod(tensor.shape)
    if tensor.offset + span > storage.numel:
        raise ValueError(f"{name!r:.100} ends at element {tensor.offset + span:,} of {storage.numel:,}")
    if elements > span:
        raise _UnsupportedError(f"has {name!r:.100} expanded: {elements:,} elements in {span:,} places")
    read = functools.partial(_read_values, path, name, tensor, start + tensor.offset * storage.itemsize)
    return StoredTensor(path, name, storage.dtype, tensor.shape, read)


def _read_values(path: Path, name: str, tensor: _Tensor, start: int) -> Array:
    """Return the values of one tensor, read (not mapped: a file cut short under a map kills the process)."""
    dtype, itemsize = tensor.storage.dtype, tensor.storage.itemsize
    values = np.fromfile(path, DTYPES[dtype], tensor.span, offset=start)
    if values.size != tensor.span:
        raise WeightsError(f"{path} became shorter while it was read, at {name}. Download it again.")
    strides = [stride * itemsize for stride in tensor.strides]
    values = np.asarray(np.lib.stride_tricks.as_strided(values, tensor.shape, strides), order="C")
    return widen_bfloat16(values) if dtype == "BF16" else values
