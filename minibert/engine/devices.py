"""What computes: a CPU's threads, or the streams of a GPU."""

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

#: By default a thread computes so many numbers of a hidden state at a time, and at most so many tokens: enough for
#: efficient matrix products, and few enough that a thread needs some 25 MB.
_BATCH_NUMBERS, _BATCH_TOKENS = 327_680, 1024
#: Matrix products of fewer rows are inefficient.
_EFFICIENT_TOKENS = 192
#: The same for a GPU. Not measured on one yet: design estimates.
_GPU_BATCH_TOKENS, _GPU_EFFICIENT_TOKENS = 16_384, 4096
#: Numbers of vectors that are looked at at a time.
_PIECE = 1 << 22
#: While one stream computes, the texts of the other are packed and copied.
_STREAMS = 2
#: With this variable at 1, small batches are recorded as CUDA graphs. Not by default, until that was measured on a GPU.
_GRAPHS = "MINIBERT_CUDA_GRAPHS"


class Engine(Protocol):
    """What computes the vectors of an encoder.

    Attributes:
        name: The device, as a user calls it.
        dtype: The precision of results.
        precision: The name of the precision of weights and hidden states.
        threads: How many threads compute, by default.
        efficient_tokens: Tokens of an efficient batch.
    """

    name: str
    dtype: np.dtype[Any]
    precision: str
    threads: int
    efficient_tokens: int

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel, where and as they are computed with, and how to pack.

        Raises:
            ModelFileError: They cannot be used.
        """
        ...

    def row_rule(self, config: BertConfig) -> RowRule:
        """Return how to pack texts of such a model on this machine: rules that come from experiment are found anew."""
        ...

    def place(self, weights: Array) -> Any:
        """Return weights of a module where, and in the precision in which, vectors are computed."""
        ...

    def empty(self, texts: int, width: int) -> Any:
        """Return an array for vectors, where they are computed."""
        ...

    def spread(self, vectors: Any, rows: Int[Array, "n"]) -> Any:
        """Return some rows of an array of :meth:`empty`, each as often as it is named."""
        ...

    def finite_rows(self, vectors: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array of :meth:`empty` have neither NaN nor infinity."""
        ...

    def batch_tokens(self, config: BertConfig) -> int:
        """Return how many tokens a thread computes at a time, by default."""
        ...

    def worker(
        self, cancelled: Callable[[], bool] = lambda: False, *, blas_threads: bool = False
    ) -> contextlib.AbstractContextManager[Fused]:
        """Give a thread what it computes with.

        Args:
            cancelled: Computing raises InterruptedError once it returns true.
            blas_threads: Whether BLAS may use threads of its own.
        """
        ...

    def close(self) -> None:
        """Give back what is kept from call to call. The next call makes it anew."""
        ...


class CpuEngine:
    """The CPU: numpy, on Python threads, each with one thread of BLAS."""

    name = "cpu"
    efficient_tokens = _EFFICIENT_TOKENS

    def __init__(self, dtype: DType) -> None:
        """Make it; raises as :func:`compute_dtype`."""
        self.dtype = compute_dtype(dtype)
        self.precision = self.dtype.name
        self.threads = usable_cores()

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel, and how to pack texts for equal bits."""
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
        """Return some rows of an array, each as often as it is named."""
        return vectors[rows]

    def finite_rows(self, vectors: Array) -> Bool[Array, "n"]:
        """Return which rows of an array have neither NaN nor infinity."""
        return np.concatenate([np.isfinite(piece).all(axis=1) for piece in _pieces(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:
        """Return how many tokens a thread computes at a time."""
        return min(_BATCH_TOKENS, max(1, _BATCH_NUMBERS // config.hidden_size))

    @contextlib.contextmanager
    def worker(
        self, cancelled: Callable[[], bool] = lambda: False, *, blas_threads: bool = False
    ) -> Iterator[FusedCpu]:
        """Give a thread what it computes with."""
        with contextlib.nullcontext() if blas_threads else one_blas_thread():
            yield FusedCpu(self.dtype, cancelled=cancelled)

    def close(self) -> None:
        """Do nothing: nothing is kept."""


class CudaEngine:
    """An NVIDIA GPU, through CuPy: on two streams, so that the host's work goes on beside the GPU's."""

    dtype = np.dtype(np.float32)
    threads = _STREAMS
    efficient_tokens = _GPU_EFFICIENT_TOKENS

    def __init__(self, number: int, dtype: DType | str) -> None:
        """Open the GPU.

        Raises:
            DeviceError: It cannot be used.
            ValueError: It cannot compute in ``dtype``.
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
        """Return the parameters of a BertModel: matrices as they are stored, vectors in float32."""
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
        """Return weights of a module on the GPU, in float32."""
        placed = self.device.place(weights)
        self.device.settle()
        return placed

    def empty(self, texts: int, width: int) -> Any:
        """Return an array for vectors, on the GPU."""
        vectors = self.device.empty((texts, width), self.dtype)
        self.device.settle()  # whoever had this memory before is done with it
        return vectors

    def spread(self, vectors: Any, rows: Int[Array, "n"]) -> Any:
        """Return some rows of an array on the GPU, each as often as it is named."""
        return self.device.spread(vectors, rows)

    def finite_rows(self, vectors: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array on the GPU have neither NaN nor infinity."""
        return np.concatenate([self.device.finite_rows(piece) for piece in _pieces(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:  # noqa: ARG002
        """Return how many tokens a stream computes at a time."""
        return _GPU_BATCH_TOKENS

    @contextlib.contextmanager
    def worker(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        blas_threads: bool = False,  # noqa: ARG002
    ) -> Iterator[Fused]:
        """Give a thread a stream, and what it computes with: both are kept for later calls, with their memory."""
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
        """Give back the streams that no thread uses, and their memory."""
        with self._lock:
            self._idle.clear()
        self.device.free()


def _pieces(vectors: Any) -> Iterator[Any]:
    """Yield an array in runs of rows, at least one, whose intermediate results are small."""
    rows = max(1, _PIECE // max(1, vectors.shape[1]))
    for start in range(0, max(1, len(vectors)), rows):
        yield vectors[start : start + rows]


def open_engine(device: object, dtype: DType | str) -> Engine:
    """Return what computes on ``device``: ``"cpu"`` or None, ``"cuda"``, or ``"cuda:1"``.

    None is the CPU, GPU or not: so what a program computes does not depend on whether a GPU is there, and reduced
    precision, which a GPU has by default, is had only by who asks for it.

    Raises:
        DeviceError: The device is unknown, or cannot be used.
        ValueError: It cannot compute in ``dtype``.
    """
    if device is None or device == "cpu":
        return CpuEngine(dtype)
    number = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if number is None:
        raise DeviceError(f'device must be "cpu", "cuda", "cuda:" and a number, or None; it is {device!r}.')
    return CudaEngine(int(number[1] or 0), dtype)


def compute_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the precision to compute in on a CPU: float32 unless float64 is asked for.

    Raises:
        ValueError: Another one is asked for.
    """
    remedy = "Leave it out for float32; float16 and bfloat16 are for a SentenceEncoder on a GPU."
    return np.dtype(_choose_precision(dtype, ["float32", "float64"], "a CPU", remedy))


def _choose_precision(dtype: DType | str, known: Sequence[str], device: str, remedy: str) -> str:
    """Return the name of the precision that ``dtype`` asks for; None asks for the first that is known.

    Raises:
        ValueError: It is not known, or no precision at all; the message ends with ``remedy``.
    """
    if dtype is None:
        return known[0]
    try:
        name = "bfloat16" if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):  # numpy's, of what it cannot read
        name = repr(dtype)
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)} on {device}; it is {name}. {remedy}")
    return name
