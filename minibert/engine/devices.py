"""The engines: the threads of a CPU, or the streams of a GPU."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from minibert.config import BertConfig
from minibert.engine import packed
from minibert.engine.fused import Fused
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.packed import PackedParams, Weights
from minibert.engine.rows import RowRule
from minibert.engine.threads import one_blas_thread, usable_cores
from minibert.errors import DeviceError
from minibert.typing import Array, Bool, DType, Int

#: The default batch of a thread: this many numbers of a hidden state, and at most this many tokens. It is enough for
#: efficient matrix products, and a thread needs only about 25 MB.
_BATCH_NUMBERS, _BATCH_TOKENS = 327_680, 1024
#: Matrix products of fewer rows are inefficient.
_EFFICIENT_TOKENS = 192
#: The same for a GPU. Not measured on one yet: design estimates.
_GPU_BATCH_TOKENS, _GPU_EFFICIENT_TOKENS = 16_384, 4096
#: Numbers of vectors that are looked at at a time.
_PIECE = 1 << 22
#: Two streams: while one computes, the host packs and copies the texts of the other.
_STREAMS = 2
#: If this environment variable is 1, small batches are recorded as CUDA graphs. It is off until measured on a GPU.
_GRAPHS = "MINIBERT_CUDA_GRAPHS"


class Engine(Protocol):
    """An engine computes the vectors of an encoder.

    Attributes:
        name: The user's name of the device.
        dtype: The precision of results.
        precision: The name of the precision of weights and hidden states.
        threads: The default number of threads.
        efficient_tokens: Number of tokens of an efficient batch.
    """

    name: str
    dtype: np.dtype[Any]
    precision: str
    threads: int
    efficient_tokens: int

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel on the device, in its storage types, and the row rule for packing.

        Raises:
            ModelFileError: The parameters cannot be used.
        """
        ...

    def row_rule(self, config: BertConfig) -> RowRule:
        """Return how to pack texts of such a model on this machine: rules that come from experiment are found anew."""
        ...

    def place(self, weights: Array) -> Any:
        """Return the weights of a module on the device, in the precision of the vectors."""
        ...

    def empty(self, texts: int, width: int) -> Any:
        """Return an array for vectors on the device."""
        ...

    def spread(self, vectors: Any, rows: Int[Array, "n"]) -> Any:
        """Return the rows of an array with these numbers. A number may occur several times."""
        ...

    def finite_rows(self, vectors: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array of :meth:`empty` have neither NaN nor infinity."""
        ...

    def batch_tokens(self, config: BertConfig) -> int:
        """Return the default number of tokens that a thread computes at a time."""
        ...

    def worker(
        self, cancelled: Callable[[], bool] = lambda: False, *, blas_threads: bool = False
    ) -> contextlib.AbstractContextManager[Fused]:
        """Provide the operations and the memory for one thread.

        Args:
            cancelled: When it returns true, the operations raise InterruptedError.
            blas_threads: Whether BLAS may use its own threads.
        """
        ...

    def close(self) -> None:
        """Release the resources that are kept between calls. The next call creates them again."""
        ...


class CpuEngine:
    """The CPU: numpy on Python threads. BLAS uses one thread in each of them."""

    name = "cpu"
    efficient_tokens = _EFFICIENT_TOKENS

    def __init__(self, dtype: DType) -> None:
        """Make the engine. It raises the errors of :func:`compute_dtype`."""
        self.dtype = compute_dtype(dtype)
        self.precision = self.dtype.name
        self.threads = usable_cores()

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel, and the row rule for packing."""
        return packed.load(weights, config), self.row_rule(config)

    def row_rule(self, config: BertConfig) -> RowRule:
        """Return how to pack texts for equal bits, found by experiment with this machine's BLAS."""
        return packed.row_rule(config, self.dtype)

    def place(self, weights: Array) -> Array:
        """Return ``weights``."""
        return weights

    def empty(self, texts: int, width: int) -> Array:
        """Return an array for vectors."""
        return np.empty((texts, width), self.dtype)

    def spread(self, vectors: Array, rows: Int[Array, "n"]) -> Array:
        """Return the rows of an array with these numbers. A number may occur several times."""
        return vectors[rows]

    def finite_rows(self, vectors: Array) -> Bool[Array, "n"]:
        """Return which rows of an array have neither NaN nor infinity."""
        return np.concatenate([np.isfinite(piece).all(axis=1) for piece in _pieces(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:
        """Return the number of tokens that a thread computes at a time."""
        return min(_BATCH_TOKENS, max(1, _BATCH_NUMBERS // config.hidden_size))

    @contextlib.contextmanager
    def worker(
        self, cancelled: Callable[[], bool] = lambda: False, *, blas_threads: bool = False
    ) -> Iterator[FusedCpu]:
        """Provide the operations and the memory for one thread."""
        with contextlib.nullcontext() if blas_threads else one_blas_thread():
            yield FusedCpu(self.dtype, cancelled=cancelled)

    def close(self) -> None:
        """Do nothing: this engine keeps nothing between calls."""


class CudaEngine:
    """An NVIDIA GPU through CuPy. It uses two streams, so that the host and the GPU work at the same time."""

    dtype = np.dtype(np.float32)
    threads = _STREAMS
    efficient_tokens = _GPU_EFFICIENT_TOKENS

    def __init__(self, number: int, dtype: DType | str) -> None:
        """Open the GPU.

        Raises:
            DeviceError: The GPU cannot be used.
            ValueError: A GPU cannot compute in ``dtype``.
        """
        from minibert.engine.cuda_device import CudaDevice
        from minibert.engine.fused_cuda import STORAGES

        remedy = "Leave it out for float16; float64 is for the CPU."
        precision = _choose_precision(dtype, list(STORAGES), "a GPU", remedy)
        self.name = f"cuda:{number}"
        self.storage = STORAGES[precision]
        self.precision = self.storage.name
        self.device = CudaDevice(number, self.storage)
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, Any]] = []

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters (matrices in the storage type, vectors in float32), and the row rule."""
        from minibert.engine.fused_cuda import require_supported

        require_supported(config.hidden_size, config.num_attention_heads)

        def place(array: Array) -> Any:
            return self.device.place(self.storage.narrow(array) if array.ndim == 2 else array)

        params = packed.load(weights, config, place)
        self.device.settle()
        return params, self.row_rule(config)

    def row_rule(self, config: BertConfig) -> RowRule:  # noqa: ARG002
        """Return how to pack texts for equal bits: so that few numbers of rows occur."""
        return RowRule((0,), threads=False, graded=True)

    def place(self, weights: Array) -> Any:
        """Return the weights of a module on the GPU, in float32."""
        placed = self.device.place(weights)
        self.device.settle()
        return placed

    def empty(self, texts: int, width: int) -> Any:
        """Return an array for vectors on the GPU."""
        vectors = self.device.empty((texts, width), self.dtype)
        self.device.settle()  # earlier work on this memory must be done
        return vectors

    def spread(self, vectors: Any, rows: Int[Array, "n"]) -> Any:
        """Return the rows of an array on the GPU with these numbers. A number may occur several times."""
        return self.device.spread(vectors, rows)

    def finite_rows(self, vectors: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array on the GPU have neither NaN nor infinity."""
        return np.concatenate([self.device.finite_rows(piece) for piece in _pieces(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:  # noqa: ARG002
        """Return the number of tokens that a stream computes at a time."""
        return _GPU_BATCH_TOKENS

    @contextlib.contextmanager
    def worker(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        blas_threads: bool = False,  # noqa: ARG002
    ) -> Iterator[Fused]:
        """Provide a stream and the operations for one thread. Later calls reuse both, with their memory."""
        from minibert.engine.fused_cuda import FusedCuda

        with self._lock:
            idle = self._idle.pop() if self._idle else None
        if idle is None:
            record = os.environ.get(_GRAPHS) == "1"
            idle = self.device.new_stream(), FusedCuda(self.device, self.storage, record=record)
        stream, fused = idle
        fused.cancelled = cancelled
        try:
            with self.device.on(stream):
                yield fused
        finally:
            with self._lock:
                self._idle.append((stream, fused))

    def close(self) -> None:
        """Release the streams that no thread uses, and their memory."""
        with self._lock:
            self._idle.clear()
        self.device.free()


def _pieces(vectors: Any) -> Iterator[Any]:
    """Yield an array in runs of rows, at least one, whose intermediate results are small."""
    rows = max(1, _PIECE // max(1, vectors.shape[1]))
    for start in range(0, max(1, len(vectors)), rows):
        yield vectors[start : start + rows]


def open_engine(device: object, dtype: DType | str) -> Engine:
    """Return the engine for ``device``: ``"cpu"`` or None, ``"cuda"``, or ``"cuda:1"``.

    None means the CPU, with or without a GPU. So the results of a program do not depend on whether there is a GPU.
    Reduced precision is a GPU's default, so a program has it only if it asks for the GPU.

    Raises:
        DeviceError: The device is unknown or cannot be used.
        ValueError: The device cannot compute in ``dtype``.
    """
    if device is None or device == "cpu":
        return CpuEngine(dtype)
    number = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if number is None:
        raise DeviceError(f'device must be "cpu", "cuda", "cuda:" and a number, or None; it is {device!r}.')
    return CudaEngine(int(number[1] or 0), dtype)


def compute_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the precision for a CPU: float32 by default, or float64.

    Raises:
        ValueError: ``dtype`` is neither of them.
    """
    remedy = "Leave it out for float32; float16 and bfloat16 are for a SentenceEncoder on a GPU."
    return np.dtype(_choose_precision(dtype, ["float32", "float64"], "a CPU", remedy))


def _choose_precision(dtype: DType | str, known: Sequence[str], device: str, remedy: str) -> str:
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
