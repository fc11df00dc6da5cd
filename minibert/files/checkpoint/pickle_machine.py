"""The pickle machine: it reads ``pytorch_model.bin`` files without unpickling.

A pickle is a program for a stack machine. It can import and call anything: :mod:`pickle` would run any code of its
author. Here it runs on :class:`Machine`, which has only the opcodes that a dict of tensors needs. It imports nothing: a
global stays a name, and must be in a short list. It calls nothing: a function that rebuilds a tensor only makes a
record.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minibert.files.checkpoint.stored import DTYPES

MAX_OPCODES = 500_000  # BERT-large has 15,160
MAX_DIMENSIONS = 64  # numpy's own limit
MAX_COUNT = 1 << 48  # of elements: the number of bytes still fits in 64 bits

#: The names of the storage classes in pickles, and the dtypes of their elements.
STORAGES = {
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
#: All allowed globals, as "module name". :meth:`Machine.call` implements the functions.
GLOBALS = {
    *STORAGES,
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
}


class UnsupportedError(Exception):
    """A file that minibert does not support, but torch may read. The message continues the path of the file."""


# The value of a pickle consists of dict, list, tuple, str, int, float, bool, None, and these three records. The records
# are not tuples; otherwise, a tuple in the pickle could imitate a record.


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class, as "module name"; never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Contiguous elements in the file. Tensors are views of a storage."""

    dtype: str
    key: str
    numel: int

    def __post_init__(self) -> None:
        # The key becomes part of the name of a zip entry.
        if not (self.key.isascii() and self.key.isdigit() and _are_counts((self.numel,))):
            raise ValueError(f"the key or size of storage {self.key!r:.40} is wrong")

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. The units of offset and strides are elements."""

    storage: Storage
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
        """The number of elements from the first to the last, including elements between them outside the tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def _are_counts(values: Any) -> bool:
    """Return whether ``values`` is a tuple of sizes. True and False are not sizes."""
    return (
        type(values) is tuple
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)
    )


class Machine:
    """The pickle machine: a stack, the saved stacks of open marks, and a memo of earlier values.

    Attributes:
        stream: The pickles. After :meth:`load`, its position is directly after the loaded pickle.
        storages: All storages in the pickles, by key.
    """

    def __init__(self, pickles: bytes) -> None:
        self.stream = io.BytesIO(pickles)
        self.storages: dict[str, Storage] = {}
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
        """Run one opcode. Its argument is next in the stream."""
        self.steps += 1
        if self.steps > MAX_OPCODES:
            raise UnsupportedError(f"must describe itself in {MAX_OPCODES:,} opcodes; it takes more")
        if code not in OPCODES:
            raise ValueError(f"its pickle breaks off, or goes on with {code!r}, which is no opcode")
        opcode = OPCODES[code]
        if opcode.name not in STEPS:
            raise UnsupportedError(f"has the pickle opcode {opcode.name}, which no dict of tensors needs")
        # GLOBAL reads its lines itself: pickletools would decode escapes in them, but pickle does not.
        argument = opcode.arg.reader(self.stream) if opcode.arg and opcode.name != "GLOBAL" else None
        STEPS[opcode.name](self, argument)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Remove the top ``count`` values and return them in the order in which they were pushed."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: None) -> None:
        """Save the stack and start a new one, until :meth:`pop_to_mark`."""
        self.aside.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        """Remove the last mark and the values above it, and return the values."""
        items, self.stack = self.stack, self.aside.pop()
        return items

    def top(self, kind: type) -> Any:
        """Return the top value without removing it. It must be a ``kind``."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle uses a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def put(self, index: int) -> None:
        """Store the top value in the memo at the next index, as all picklers do."""
        if index != len(self.memo):
            raise ValueError(f"its pickle puts a value at {index} in its memo of {len(self.memo)}")
        self.memo.append(self.stack[-1])

    def append(self, items: list[Any]) -> None:
        """Extend the list at the top of the stack."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Set the keys and values, which alternate in ``items``, in the dict at the top of the stack."""
        if len(items) % 2:
            raise ValueError("its pickle has a dict with a key and no value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # An attacker could choose large integers with equal hashes, which make a dict slow.
            if type(key) is not str and not (type(key) is int and 0 <= key < MAX_OPCODES):
                raise UnsupportedError("has a dict with keys other than texts and small numbers")
            target[key] = value

    def build(self, _: None) -> None:
        """Drop the attributes of an OrderedDict: a state_dict's ``_metadata``."""
        self.stack.pop()
        self.top(dict)

    def name(self, module: str, name: str) -> None:
        """Push the name of an allowed global."""
        if f"{module} {name}" not in GLOBALS:
            raise UnsupportedError(
                f"has a pickle that names {module!r:.50} {name!r:.50}, which no dict of tensors needs"
            )
        self.push(Global(f"{module} {name}"))

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
        """Push the storage for ("storage", class, key, device, numel). Legacy files add a None."""
        match self.stack.pop():
            case ("storage", Global(kind), str(key), _, numel, *view) if kind in STORAGES and not any(view):
                storage = Storage(STORAGES[kind], key, numel)
            case _:
                raise ValueError("its pickle refers to a storage otherwise than torch.save does")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"its pickle describes storage {key} twice, differently")
        self.push(storage)

    def call(self, _: None) -> None:
        """Push the result of a function. All functions are implemented here."""
        match self.pop(2):
            case [Global("collections OrderedDict"), ()]:
                self.push({})
            case [Global("torch Size"), (tuple(sizes),)]:
                self.push(sizes)
            case [Global("torch._utils _rebuild_parameter"), (Tensor() as tensor, _, _)]:
                self.push(tensor)
            case [
                Global("torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2"),
                # The last two are requires_grad and hooks. A third could say that the values are negated.
                (Storage() as storage, offset, shape, strides) | (Storage() as storage, offset, shape, strides, _, _),
            ]:
                self.push(Tensor(storage, offset, shape, strides))
            case [Global(name), _]:
                raise UnsupportedError(f"has a pickle that calls {name} otherwise than a plain tensor needs")
            case _:
                raise ValueError("its pickle calls what is no function")


#: The implementation of each opcode. It takes the machine and the opcode's argument.
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda _machine, _: None),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"], Machine.push),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE"], Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": Machine.mark,
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
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": Machine.name_from_stream,
    "STACK_GLOBAL": Machine.name_from_stack,
    "BINPERSID": Machine.refer,
    "REDUCE": Machine.call,
    "BUILD": Machine.build,
}
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
