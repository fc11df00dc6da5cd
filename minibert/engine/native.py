"""The native kernels of a CPU: the library of ``kernels/cpu``, loaded with ctypes.

The library is optional. A wheel without it, or a processor without its instructions, leaves the work to numpy. This
module checks types, shapes and strides of all arrays before it passes their addresses. The library checks sizes again.
"""

import ctypes
import functools
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from minibert.engine.threads import usable_cores
from minibert.errors import DeviceError
from minibert.typing import Array, Float

logger = logging.getLogger("minibert")

#: The instruction sets that kernels exist for, the best first.
NAMES: Final = ("avx512", "avx2", "neon")
#: The name of the choice that is no library.
NUMPY: Final = "numpy"
#: The library's file.
_FILE = {"win32": "minibert_cpu.dll", "darwin": "minibert_cpu.dylib"}.get(sys.platform, "minibert_cpu.so")
#: Where it is: in the wheel, and in a checkout.
_FOLDERS = (Path(__file__).parents[1] / "_kernels" / "cpu", Path(__file__).parents[2] / "kernels" / "cpu")
#: A team of more threads was not measured.
LARGEST_TEAM = 16

#: The numbers of the activations in ``kernels/cpu/kernels.h``, by the names of ``hidden_act``, and softplus for Dense.
ACTIVATIONS: Final = {
    "linear": 0,
    "gelu": 1,
    "gelu_python": 1,
    "gelu_10": 2,
    "gelu_accurate": 3,
    "gelu_new": 3,
    "gelu_python_tanh": 3,
    "gelu_pytorch_tanh": 3,
    "gelu_fast": 4,
    "hardswish": 5,
    "laplace": 6,
    "leaky_relu": 7,
    "mish": 8,
    "quick_gelu": 9,
    "relu": 10,
    "relu2": 11,
    "relu6": 12,
    "sigmoid": 13,
    "silu": 14,
    "swish": 14,
    "softplus": 15,
    "sqrtsoftplus": 16,
    "tanh": 17,
}
#: The numbers of the pooling modes there.
POOLING_MODES: Final = {
    "cls": 0,
    "lasttoken": 1,
    "max": 2,
    "mean": 3,
    "mean_sqrt_len_tokens": 4,
    "weightedmean": 5,
}

# ---------------------------------------------------------------- structures

_POINTER, _SIZE, _INT, _FLOAT, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_float, ctypes.c_char_p


def _fields(pointers: str, sizes: str = "") -> list[tuple[str, Any]]:
    """Return the fields of a structure that begins with pointers, followed by sizes."""
    return [*((name, _POINTER) for name in pointers.split()), *((name, _SIZE) for name in sizes.split())]


class Shape(ctypes.Structure):
    """``struct shape``: the sizes of a model."""

    _fields_: ClassVar = [*_fields("", "hidden inner heads"), ("eps", _FLOAT), ("activation", _INT)]


class LayerPointers(ctypes.Structure):
    """``struct layer``: the addresses of a layer's parameters."""

    _fields_: ClassVar = _fields(
        "qkv query_bias output output_bias norm1 shift1 up up_bias down down_bias norm2 shift2"
    )


class BatchPointers(ctypes.Structure):
    """``struct batch``: the rows of the texts."""

    _fields_: ClassVar = _fields("keys queries distance_bias", "texts distances")


class EmbeddingPointers(ctypes.Structure):
    """``struct embedding``."""

    _fields_: ClassVar = [
        *_fields("word position type weight shift ids positions out", "rows hidden ldout"),
        ("eps", _FLOAT),
    ]


class NormPointers(ctypes.Structure):
    """``struct norm``."""

    _fields_: ClassVar = [*_fields("x y bias weight shift out", "rows hidden ldx ldy ldout"), ("eps", _FLOAT)]


class PoolPointers(ctypes.Structure):
    """``struct pool``."""

    _fields_: ClassVar = [
        *_fields("x out totals starts weight_sums", "texts hidden ldx ldout exclude"),
        ("modes", _POINTER),
        ("number_of_modes", _SIZE),
        ("normalize", _INT),
    ]


class ProductPointers(ctypes.Structure):
    """``struct product``."""

    _fields_: ClassVar = [
        *_fields("x w bias y", "ldx ldy rows inputs outputs panels first_panel end_panel"),
        ("activation", _INT),
    ]


class AttentionPointers(ctypes.Structure):
    """``struct attention``."""

    _fields_: ClassVar = [
        *_fields("q k v query_bias out", "ldq ldk ldout heads head_size texts"),
        *_fields("queries keys distance_bias", "distances"),
    ]


#: Name, type of result, types of arguments. A function that returns text returns NULL if all is well.
_FUNCTIONS: tuple[tuple[str, Any, list[Any]], ...] = (
    ("mb_source", _TEXT, []),
    ("mb_kernels", _POINTER, [_TEXT]),
    ("mb_team", _POINTER, [_INT]),
    ("mb_team_free", None, [_POINTER]),
    ("mb_packed_size", _SIZE, [_POINTER, _SIZE, _SIZE]),
    (
        "mb_pack",
        _TEXT,
        [_POINTER, _POINTER, ctypes.c_ssize_t, ctypes.c_ssize_t, *[_SIZE] * 2, _FLOAT, *[_SIZE] * 2, _POINTER, _SIZE],
    ),
    ("mb_unpack", _TEXT, [_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER]),
    ("mb_fold", None, [_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _POINTER]),
    ("mb_leading", _SIZE, [_SIZE]),
    ("mb_workspace", _SIZE, [_POINTER, _POINTER, _SIZE, _SIZE, _INT]),
    ("mb_embed", _TEXT, [_POINTER, _POINTER, _INT, _POINTER, _SIZE, _SIZE]),
    ("mb_layer", _TEXT, [_POINTER, _POINTER, _INT, *[_POINTER] * 6, _SIZE]),
    ("mb_pool", _TEXT, [_POINTER, _POINTER, _SIZE]),
    ("mb_normalize", None, [_POINTER, _POINTER, _SIZE, _SIZE, _SIZE]),
    ("mb_layer_norm", None, [_POINTER, _POINTER]),
    ("mb_product", _TEXT, [_POINTER, _POINTER, _INT, _POINTER]),
    ("mb_activate", None, [_POINTER, _INT, _POINTER, _SIZE]),
    ("mb_attention_scratch", _SIZE, [_POINTER, _SIZE, _SIZE]),
    ("mb_attention", _TEXT, [_POINTER, _POINTER, _POINTER, _POINTER, _SIZE]),
    ("mb_exp", None, [_POINTER, _POINTER, _SIZE]),
    ("mb_peak", ctypes.c_double, [_POINTER, _SIZE]),
)


def address(array: Array | None) -> int | None:
    """Return the address of an array's first number; None for None."""
    return None if array is None else array.__array_interface__["data"][0]


def aligned(count: int) -> Float[Array, "count"]:
    """Return new float32 memory that begins at a cache line. numpy asks for huge pages if it is large.

    Raises:
        MemoryError: There is not enough memory.
    """
    memory = np.empty(count + 16, np.float32)
    start = -(address(memory) or 0) % 64 // 4
    return memory[start : start + count]


def checked(array: Array, *shape: int, dtype: type = np.float32) -> Array:
    """Return ``array`` if it has this shape and type, and contiguous rows that do not overlap; -1 means any size.

    Raises:
        ValueError: It has not. The library would read other memory.
    """
    have = array.shape
    right = have == shape or (len(have) == len(shape) and all(x in {-1, y} for x, y in zip(shape, have, strict=True)))
    if (
        not right
        or array.dtype != dtype
        or not array.flags.aligned
        or not (array.flags.c_contiguous or _has_rows(array))
    ):
        raise ValueError(
            f"an array for the native kernels must have shape {shape} (-1: any size), type {np.dtype(dtype)} and "
            f"contiguous rows; it has shape {array.shape}, type {array.dtype} and strides {array.strides}."
        )
    return array


def _has_rows(array: Array) -> bool:
    """Return whether an array is a matrix of contiguous rows, one after the other, whole numbers apart."""
    if array.ndim != 2:
        return False
    (row, number), width, size = array.strides, array.shape[1], array.itemsize
    return (number == size or width == 1) and row >= width * size and row % size == 0


def checked_whole(array: Array, *shape: int, dtype: type = np.float32) -> Array:
    """Return :func:`checked` ``array`` if there is also nothing between its rows.

    Raises:
        ValueError: It is another array.
    """
    if not array.flags.c_contiguous:
        raise ValueError(f"an array for the native kernels must be contiguous; its strides are {array.strides}.")
    return checked(array, *shape, dtype=dtype)


def checked_result(array: Array, *shape: int) -> Array:
    """Return :func:`checked` ``array`` if it may be changed.

    Raises:
        ValueError: It is another array.
    """
    if not array.flags.writeable:
        raise ValueError("an array that the native kernels change must be writeable; it is read-only.")
    return checked(array, *shape)


def row_stride(array: Float[Array, "rows columns"]) -> int:
    """Return the number of floats from one row to the next."""
    if array.shape[0] < 2:
        return array.shape[1]
    return array.strides[0] // array.itemsize


# ---------------------------------------------------------------- the library


class Library:
    """The library, with the kernels of one instruction set.

    Attributes:
        name: The instruction set.
        c: The functions of ``kernels/cpu/library.h``.
        kernels: The first argument of most of them.
    """

    def __init__(self, c: ctypes.CDLL, name: str, kernels: int) -> None:
        self.c = c
        self.name = name
        self.kernels = kernels
        self._widths: dict[int, int] = {}

    def padded_width(self, columns: int) -> int:
        """Return the number of floats from one row of hidden states to the next."""
        width = self._widths.get(columns)
        if width is None:
            width = self._widths[columns] = int(self.c.mb_leading(columns))
        return width

    def team(self) -> int | None:
        """Return the process's team of threads for single calls. It is made at the first call; None if it cannot be."""
        return _team(self.c)

    def empty(self, inputs: int, outputs: int) -> Float[Array, "packed"]:
        """Return memory for a packed matrix."""
        return aligned(self.packed_size(inputs, outputs))

    def packed_size(self, inputs: int, outputs: int) -> int:
        """Return the number of floats of a packed matrix."""
        return int(self.c.mb_packed_size(self.kernels, inputs, outputs))

    def pack(
        self,
        packed: Float[Array, "packed"],
        outputs: int,
        parts: Sequence[tuple[Float[Array, "inputs columns"], float]],
    ) -> None:
        """Put matrices side by side into a packed matrix of ``outputs`` columns, each multiplied by its factor.

        The matrices may have any strides, so a transposed view needs no copy.

        Raises:
            ValueError: The matrices and the packed matrix do not fit together.
        """
        first = 0
        for part, factor in parts:
            if part.ndim != 2 or part.dtype != np.float32 or part.strides[0] % 4 or part.strides[1] % 4:
                raise ValueError(
                    f"a matrix must be float32 with two dimensions and whole strides; it is {part.dtype} of shape "
                    f"{part.shape} and strides {part.strides}."
                )
            strides = (stride // 4 for stride in part.strides)
            self.require(
                self.c.mb_pack(
                    self.kernels,
                    address(part),
                    *strides,
                    *part.shape,
                    factor,
                    first,
                    outputs,
                    address(checked_result(packed, -1)),
                    packed.size,
                )
            )
            first += part.shape[1]
        if first != outputs:
            raise ValueError(f"the matrices must have {outputs} columns together; they have {first}.")

    def unpack(self, packed: Float[Array, "packed"], inputs: int, outputs: int) -> Float[Array, "inputs outputs"]:
        """Return the matrix that was packed."""
        w = np.empty((inputs, outputs), np.float32)
        checked_whole(packed, -1)
        self.require(self.c.mb_unpack(self.kernels, address(packed), packed.size, inputs, outputs, address(w)))
        return w

    def linear(
        self,
        x: Float[Array, "rows inputs"],
        packed: Float[Array, "packed"],
        outputs: int,
        bias: Float[Array, "outputs"] | None = None,
        activation: str = "linear",
    ) -> Float[Array, "rows outputs"]:
        """Return ``act(x @ w + bias)`` in new memory. ``packed`` has the weights ``w``, ``(inputs, outputs)``.

        Raises:
            ValueError: The arrays do not fit together, or there are no inputs.
        """
        inputs = checked(x, -1, -1).shape[1]
        if not inputs:
            raise ValueError("a product must have at least one input; it has none.")
        checked(packed, self.packed_size(inputs, outputs))
        panels = self.packed_size(1, outputs) // self.packed_size(1, 1)
        y = np.empty((len(x), outputs), np.float32)
        if bias is not None:
            checked(bias, outputs)
        product = ProductPointers(
            address(x), address(packed), address(bias), address(y), row_stride(x), outputs, len(x), inputs, outputs,
            panels, 0, panels, ACTIVATIONS[activation] if bias is not None else 0,
        )  # fmt: skip
        self.require(self.c.mb_product(self.kernels, None, 1, ctypes.byref(product)))
        if bias is None and activation != "linear":
            self.activate(activation, y)
        return y

    def activate(self, activation: str, x: Float[Array, "*shape"]) -> None:
        """Apply an activation of :data:`ACTIVATIONS` in place. Raise ValueError unless ``x`` is contiguous float32."""
        checked_result(checked_whole(x, *x.shape), *x.shape)
        self.c.mb_activate(self.kernels, ACTIVATIONS[activation], address(x), x.size)

    def normalize(self, x: Float[Array, "rows width"]) -> None:
        """Scale each row to length 1, in place, as :func:`minibert.ops.l2_normalize`."""
        checked_result(x, -1, -1)
        self.c.mb_normalize(self.kernels, address(x), *x.shape, row_stride(x))

    def peak(self, seconds: float) -> float:
        """Return the GFLOP/s of this thread in a loop of fused multiply-adds, run for about this time."""
        from time import perf_counter

        rounds, operations = 1 << 16, 0.0
        start = perf_counter()
        while (took := perf_counter() - start) < seconds:
            operations += self.c.mb_peak(self.kernels, rounds)
        return operations / took / 1e9

    @staticmethod
    def require(wrong: bytes | None) -> None:
        """Raise ValueError if a function of the library has refused its arguments."""
        if wrong is not None:
            raise ValueError(f"the native kernels refused a call: {wrong.decode()}.")


def available() -> tuple[str, ...]:
    """Return the instruction sets that this machine can use, the best first. There are none without the library."""
    found = _load(library_path())
    return () if found is None else tuple(name for name in NAMES if found.mb_kernels(name.encode()))


def open_library(name: str | None = None) -> Library | None:
    """Return the library with the kernels called ``name``. None is the best choice, or None if there is none.

    Raises:
        DeviceError: This machine cannot use these kernels.
    """
    names = available()
    if name is None:
        name = names[0] if names else None
    if name is None:
        return None
    if name not in names:
        usable = ", ".join((*names, NUMPY))
        raise DeviceError(
            f'the kernels must be one of {usable} on this machine; they are "{name}". {_why_not(name)} Leave out '
            "kernels and MINIBERT_KERNELS for the best choice."
        )
    c = _load(library_path())
    assert c is not None  # noqa: S101 - for the type checker: it has names
    return Library(c, name, c.mb_kernels(name.encode()))


def _why_not(name: str) -> str:
    """Return the reason why there are no kernels called ``name``, and the remedy."""
    if name not in NAMES:
        return f"Kernels exist for {', '.join(NAMES)}."
    if library_path() is None:
        return (
            "This installation has no native library. Install a C compiler, and then minibert again, or install a "
            "wheel for this platform."
        )
    if _load(library_path()) is None:
        return "The native library of this installation cannot be used; the log says why."
    return "This processor or its operating system does not have these instructions."


@functools.cache
def library_path() -> Path | None:
    """Return the file of the library, or None."""
    return next((folder / _FILE for folder in _FOLDERS if (folder / _FILE).is_file()), None)


@functools.cache
def _load(path: Path | None) -> ctypes.CDLL | None:
    """Return the library's functions, or None if there is no library that fits."""
    if path is None:
        logger.debug("there is no native library: numpy computes")
        return None
    try:
        c = ctypes.CDLL(os.fspath(path))
        for name, result, arguments in _FUNCTIONS:
            function = getattr(c, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        logger.warning("%s cannot be loaded, so numpy computes: %s", path, error)
        return None
    # A wheel has no sources. The structures of other sources may differ, so such a library could read wrong memory.
    if (path.parent / "library.c").is_file() and c.mb_source().decode() != source_hash(path.parent):
        logger.warning("%s is older than its sources, so numpy computes. Run: python tools/build_kernels.py", path)
        return None
    return c


def source_hash(folder: Path) -> str:
    """Return the hash of the sources in ``folder``, as ``tools/build_kernels.py`` gives it to the library."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]"), key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- the team


class _Team:
    """The team of threads of this process: sleeping threads that help with a single call.

    All encoders share it. It lives as long as the process: only one call uses it at a time, and others do not wait.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.address: int | None = None
        self.made = False

    def of(self, c: ctypes.CDLL) -> int | None:
        if not self.made:
            with self.lock:
                if not self.made:
                    self.address = c.mb_team(min(usable_cores(), LARGEST_TEAM))
                    self.made = True
        return self.address

    def forget(self) -> None:
        """Start over in a forked child, which has none of the threads. The memory of the old team is lost."""
        self.__init__()  # type: ignore[misc]


_the_team = _Team()
_team: Callable[[ctypes.CDLL], int | None] = _the_team.of
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_the_team.forget)
