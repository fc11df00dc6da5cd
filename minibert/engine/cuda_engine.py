"""The engine of an NVIDIA GPU: two streams."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minibert.arrays import pieces_of
from minibert.config import BertConfig
from minibert.engine import packed
from minibert.engine.arithmetic import ArrayArithmetic
from minibert.engine.batches import Batch
from minibert.engine.fused import Fused
from minibert.engine.packed import PackedParams, Weights
from minibert.engine.precisions import choose_precision
from minibert.engine.rows import RowRule
from minibert.typing import Array, Bool, DType, Int

#: The default batch of a stream, and an efficient batch. Not measured on a GPU yet: design estimates.
_BATCH_TOKENS, _EFFICIENT_TOKENS = 16_384, 4096
#: Two streams: while one computes, the host packs and copies the texts of the other.
_STREAMS = 2
#: If this environment variable is 1, small batches are recorded as CUDA graphs. It is off until measured on a GPU.
_GRAPHS = "MINIBERT_CUDA_GRAPHS"


class CudaEngine:
    """An NVIDIA GPU through CuPy. It uses two streams, so that the host and the GPU work at the same time."""

    dtype = np.dtype(np.float32)
    kernels = "cuda"
    threads = _STREAMS
    efficient_tokens = _EFFICIENT_TOKENS

    def __init__(self, number: int, dtype: DType | str) -> None:
        """Open the GPU.

        Raises:
            DeviceError: The GPU cannot be used.
            ValueError: A GPU cannot compute in ``dtype``.
        """
        from minibert.engine.cuda_device import CudaDevice
        from minibert.engine.fused_cuda import STORAGES

        remedy = "Leave it out for float16; float64 is for the CPU."
        precision = choose_precision(dtype, list(STORAGES), "a GPU", remedy)
        self.name = f"cuda:{number}"
        self.storage = STORAGES[precision]
        self.precision = self.storage.name
        self.device = CudaDevice(number, self.storage)
        self.arithmetic = ArrayArithmetic(self._place)
        self.host_arithmetic = ArrayArithmetic()
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, Any]] = []

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters (matrices in the storage type, the rest in float32), and the row rule."""
        from minibert.engine.fused_cuda import require_supported

        require_supported(config.hidden_size, config.num_attention_heads)

        def place(array: Array) -> Any:
            return self.device.place(self.storage.narrow(array) if array.ndim == 2 else array)

        params = packed.load(weights, config, place, self.device.place)
        self.device.settle()
        return params, RowRule((0,), threads=False, graded=True)  # so that few numbers of rows occur

    def portable(self, params: PackedParams, config: BertConfig) -> PackedParams:  # noqa: ARG002
        """Raise TypeError."""
        raise TypeError(
            f"an encoder on {self.name} cannot be pickled: its weights are in the GPU's memory. Load the model in each "
            'process, or pickle an encoder with device="cpu".'
        )

    def adopt(self, params: PackedParams, config: BertConfig) -> tuple[PackedParams, RowRule]:  # noqa: ARG002
        """Raise TypeError: there are no such parameters."""
        raise TypeError(f"an encoder on {self.name} cannot be pickled.")

    def _place(self, weights: Array) -> Any:
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
        return np.concatenate([self.device.finite_rows(piece) for piece in pieces_of(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:  # noqa: ARG002
        """Return the number of tokens that a stream computes at a time."""
        return _BATCH_TOKENS

    def threads_for(self, batch: Batch, rule: RowRule, most: int) -> int:  # noqa: ARG002
        """Return 1: a stream uses the whole GPU."""
        return 1

    @contextlib.contextmanager
    def worker(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        threads: int = 1,  # noqa: ARG002
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
