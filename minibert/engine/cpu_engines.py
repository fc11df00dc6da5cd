"""The engines of a CPU: Python threads that compute with numpy, or with the native kernels."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from minibert.arrays import pieces_of
from minibert.config import BertConfig
from minibert.engine import native, native_params, packed
from minibert.engine.arithmetic import Arithmetic, ArrayArithmetic
from minibert.engine.batches import Batch
from minibert.engine.fused import Fused
from minibert.engine.fused_native import ROW_RULE, FusedNative
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.native_arithmetic import NativeArithmetic
from minibert.engine.packed import PackedParams, Weights
from minibert.engine.precisions import compute_dtype
from minibert.engine.rows import RowRule
from minibert.engine.threads import blas_threads, one_blas_thread, usable_cores
from minibert.typing import Array, Bool, DType, Int

#: The default batch of a thread: this many numbers of a hidden state, and at most this many tokens. It is enough for
#: efficient matrix products, and a thread needs only about 25 MB.
_BATCH_NUMBERS, _BATCH_TOKENS = 327_680, 1024
#: Matrix products of fewer rows are inefficient.
_EFFICIENT_TOKENS = 192
#: Up to this number of tokens, the products in attention are too small for OpenBLAS to use threads. So a single short
#: text uses BLAS threads only in the products with the weights. Tests showed that their bits stay the same.
_SHORT_TEXT = 40
#: The same for the native kernels. On two cores with AVX-512, all-MiniLM-L6-v2 is equally fast with 256 to 512 tokens,
#: BERT-base from 256 on. The built-in model is faster with 1536 than with 1024, because Python does less.
#: With more, the speed is the same.
_NATIVE_BATCH_NUMBERS, _NATIVE_LEAST_TOKENS, _NATIVE_MOST_TOKENS = 262_144, 256, 1536
#: Products of so many rows read their weights once.
_NATIVE_EFFICIENT_TOKENS = 112


class CpuEngine:
    """The CPU: numpy on Python threads. BLAS uses one thread in each of them."""

    name = "cpu"
    kernels = native.NUMPY
    efficient_tokens = _EFFICIENT_TOKENS

    def __init__(self, dtype: DType) -> None:
        """Make the engine. It raises the errors of :func:`compute_dtype`."""
        self.dtype = compute_dtype(dtype)
        self.precision = self.dtype.name
        self.threads = usable_cores()
        self.arithmetic: Arithmetic = ArrayArithmetic()

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel, and the row rule for packing."""
        return self.adopt(packed.load(weights, config), config)

    def portable(self, params: PackedParams, config: BertConfig) -> PackedParams:  # noqa: ARG002
        """Return ``params``."""
        return params

    def adopt(self, params: PackedParams, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return ``params``, and the row rule, found by experiment with this machine's BLAS."""
        return params, packed.row_rule(config, self.dtype)

    def empty(self, texts: int, width: int) -> Array:
        """Return an array for vectors."""
        return np.empty((texts, width), self.dtype)

    def spread(self, vectors: Array, rows: Int[Array, "n"]) -> Array:
        """Return the rows of an array with these numbers. A number may occur several times."""
        return vectors[rows]

    def finite_rows(self, vectors: Array) -> Bool[Array, "n"]:
        """Return which rows of an array have neither NaN nor infinity."""
        return np.concatenate([np.isfinite(piece).all(axis=1) for piece in pieces_of(vectors)])

    def batch_tokens(self, config: BertConfig) -> int:
        """Return the number of tokens that a thread computes at a time."""
        return min(_BATCH_TOKENS, max(1, _BATCH_NUMBERS // config.hidden_size))

    def threads_for(self, batch: Batch, rule: RowRule, most: int) -> int:
        """Return the threads for a single text: those of BLAS if the bits stay the same and there are not too many."""
        short = len(batch.rows) == 1 and batch.tokens <= _SHORT_TEXT and rule.threads and blas_threads() <= most
        return most if short else 1

    @contextlib.contextmanager
    def worker(self, cancelled: Callable[[], bool] = lambda: False, *, threads: int = 1) -> Iterator[Fused]:
        """Provide the operations and the memory for one thread. With more ``threads``, BLAS uses its own."""
        with one_blas_thread() if threads == 1 else contextlib.nullcontext():
            yield FusedCpu(self.dtype, cancelled=cancelled)

    @property
    def host_arithmetic(self) -> Arithmetic:
        """:attr:`arithmetic`."""
        return self.arithmetic

    def close(self) -> None:
        """Do nothing: this engine keeps nothing between calls."""


class NativeEngine(CpuEngine):
    """The CPU: native kernels on Python threads. A single text uses a team of threads inside the library."""

    efficient_tokens = _NATIVE_EFFICIENT_TOKENS

    def __init__(self, library: native.Library) -> None:
        """Make the engine for float32, the only precision of the kernels."""
        super().__init__(np.float32)
        self.kernels = library.name
        self.arithmetic = NativeArithmetic(library)
        self._library = library
        self._idle: deque[FusedNative] = deque(maxlen=self.threads)

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel, packed, and the row rule."""
        return native_params.load(self._library, weights, config), ROW_RULE

    def portable(self, params: PackedParams, config: BertConfig) -> PackedParams:
        """Return the parameters in the arrangement of numpy."""
        return native_params.release(self._library, params, config)

    def adopt(self, params: PackedParams, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters packed, and the row rule."""
        return native_params.adopt(self._library, params, config), ROW_RULE

    def batch_tokens(self, config: BertConfig) -> int:
        """Return the number of tokens that a thread computes at a time: their hidden states stay in the cache."""
        return min(_NATIVE_MOST_TOKENS, max(_NATIVE_LEAST_TOKENS, _NATIVE_BATCH_NUMBERS // config.hidden_size))

    def threads_for(self, batch: Batch, rule: RowRule, most: int) -> int:  # noqa: ARG002
        """Return the size of the team, or ``most`` if that is less: any number of threads gives the same bits."""
        return min(most, self.threads, native.LARGEST_TEAM)

    @contextlib.contextmanager
    def worker(self, cancelled: Callable[[], bool] = lambda: False, *, threads: int = 1) -> Iterator[Fused]:
        """Provide the operations for one thread. Later calls reuse them, with their memory.

        With more ``threads``, a team helps with each operation.
        """
        try:
            fused = self._idle.pop()
        except IndexError:
            fused = FusedNative(self._library)
        fused.begin(threads, cancelled)
        yield fused
        fused.end()  # after an error, it is dropped instead: it may be in the middle of a change
        self._idle.append(fused)

    def close(self) -> None:
        """Release the memory that is kept between calls."""
        self._idle.clear()
