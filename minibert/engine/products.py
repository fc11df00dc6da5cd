"""Matrix products on a GPU whose rows have the same bits whatever other rows are computed with them.

cuBLASLt has many algorithms for a product. They differ in speed, and in the order in which some of them sum. Which one
is the fastest depends on the number of rows; so does the library's own choice, and with it the last bit of a vector.
Here an algorithm is used for a number of rows only after a trial: on numbers whose sums cancel, so that every other
order of summation gives other bits, all its rows must have the bits that a first algorithm gave for 4,096 rows. Of
those that pass, the fastest one is taken.

An algorithm may treat some parts of an output in another way than others. So each number of rows needs a trial of its
own; :func:`minibert.engine.rows.graded` keeps them few.
"""

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert.engine.cublaslt import Algorithm, CublasLt, Product
from minibert.engine.fused_cuda import Device, Kernel, Storage
from minibert.errors import DeviceError
from minibert.typing import Array, Float

logger = logging.getLogger("minibert")

#: Algorithms that are tried for a product.
_CANDIDATES = 8
#: Rows of the product that the others are compared with.
_REFERENCE_ROWS = 4096
#: Different rows in a trial. It is prime, so that equal rows lie at different places of every tile.
_PERIOD = 127
#: From so many rows on, the fastest algorithm is looked for: products of fewer rows take little more than a launch.
_WORTH_TIMING = 1024
#: How often an algorithm is timed; the least time counts. And how many products are timed together.
_TIMES, _AT_ONCE = 3, 10


class Gpu(Device, Protocol):
    """What trials need of a GPU and the stream that this thread works on."""

    def seconds(self, call: Callable[[], None]) -> float:
        """Return how long the GPU takes for what a call asks of it."""
        ...


class _Reference(NamedTuple):
    """The product that others of the same weights' shape are compared with.

    Attributes:
        algorithm: What computed it.
        x: The different rows of B.
        weight: A.
        y: The different rows of C.
    """

    algorithm: Algorithm
    x: Any
    weight: Any
    y: Any


class Products:
    """The algorithms that were chosen so far, for a GPU. Threads may share it."""

    def __init__(self, library: CublasLt, gpu: Gpu) -> None:
        """Choose among the algorithms of ``library`` by trials on a GPU."""
        self._library = library
        self._gpu = gpu
        self._lock = threading.Lock()
        self._chosen: dict[Product, Algorithm] = {}
        self._references: dict[Product, _Reference] = {}

    def multiply(
        self, product: Product, storage: Storage, pointers: tuple[int, int, int], stream: int, workspace: int
    ) -> None:
        """Ask a stream for a product of matrices of ``storage``; see :meth:`CublasLt.multiply`.

        The first product of its shape is tried out before: the stream is waited for.
        """
        key = product._replace(add=False)
        algorithm = self._chosen.get(key)
        if algorithm is None:
            with self._lock:  # one at a time: another trial would disturb the timing
                algorithm = self._chosen.get(key) or self._choose(key, storage, stream, workspace)
                self._chosen[key] = algorithm
        self._library.multiply(product, algorithm, pointers, stream, workspace)

    def _choose(self, product: Product, storage: Storage, stream: int, workspace: int) -> Algorithm:
        """Return the fastest algorithm for a product that gives the reference's bits."""
        reference = self._reference(product, storage, stream, workspace)
        trial = _Trial(self._library, self._gpu, product, storage, reference.weight, stream, workspace)
        x = trial.repeated(reference.x)
        best, least = None, math.inf
        for algorithm in (*self._library.algorithms(product, _CANDIDATES), reference.algorithm):
            if not trial.repeats(algorithm, x, reference.y):
                continue
            if product.n < _WORTH_TIMING:
                return algorithm
            seconds = trial.seconds(algorithm, x)
            if seconds < least:
                best, least = algorithm, seconds
        if best is None:
            logger.warning("%s: no algorithm gives the bits of other numbers of rows; they may differ", product)
            return reference.algorithm
        return best

    def _reference(self, product: Product, storage: Storage, stream: int, workspace: int) -> _Reference:
        """Return the reference for all products with weights of this shape."""
        key = product._replace(n=_REFERENCE_ROWS)
        known = self._references.get(key)
        if known is not None:
            return known
        x, weight = (self._gpu.upload(storage.narrow(each)) for each in cancelling(_PERIOD, key.k, key.ldb, key.lda))
        trial = _Trial(self._library, self._gpu, key, storage, weight, stream, workspace)
        many = trial.repeated(x)
        candidates = self._library.algorithms(key, _CANDIDATES)
        for algorithm in candidates:
            y = trial.product(algorithm, many)[:_PERIOD]
            if trial.repeats(algorithm, many, y):
                break
        else:
            algorithm = candidates[0]
        found = self._references[key] = _Reference(algorithm, x, weight, y)
        return found


class _Trial(NamedTuple):
    """Products of some shape, on made-up numbers."""

    library: CublasLt
    gpu: Gpu
    shape: Product
    storage: Storage
    weight: Any
    stream: int
    workspace: int

    def repeated(self, rows: Any) -> Any:
        """Return as many rows as the product has: those of ``rows``, again and again."""
        x = self.gpu.empty((self.shape.n, rows.shape[1]), self.storage.dtype)
        self._launch("repeat_rows", x, (x, rows))
        return x

    def product(self, algorithm: Algorithm, x: Any) -> Any:
        """Return the product of ``x`` with the weights."""
        y = self.gpu.empty((self.shape.n, self.shape.ldc), self.storage.dtype)
        self._multiply(algorithm, x, y)
        return y

    def repeats(self, algorithm: Algorithm, x: Any, rows: Any) -> bool:
        """Return whether the product of ``x`` has the bits of ``rows``, again and again."""
        try:
            y = self.product(algorithm, x)
        except DeviceError:  # the reference's algorithm need not be one for so few rows
            return False
        different = self.gpu.upload(np.zeros(1, np.int32))
        self._launch("compare_rows", y, (different, y, rows))
        return not self.gpu.download(different)[0]

    def seconds(self, algorithm: Algorithm, x: Any) -> float:
        """Return how long the product of ``x`` takes.

        Several are recorded and asked for at once: one alone may take less time on the GPU than its launch on the host.
        """
        y = self.gpu.empty((self.shape.n, self.shape.ldc), self.storage.dtype)

        def multiply() -> None:
            for _ in range(_AT_ONCE):
                self._multiply(algorithm, x, y)

        play = self.gpu.record(multiply)
        return min(self.gpu.seconds(play) for _ in range(_TIMES)) / _AT_ONCE

    def _multiply(self, algorithm: Algorithm, x: Any, y: Any) -> None:
        pointers = self.weight.data.ptr, x.data.ptr, y.data.ptr
        self.library.multiply(self.shape, algorithm, pointers, self.stream, self.workspace)

    def _launch(self, kernel: str, array: Any, arguments: tuple[Any, ...]) -> None:
        count, width = array.shape
        numbers = np.int32(_PERIOD), np.int32(count), np.int32(width)
        grid = (-(-count * width // 256), 1)
        self.gpu.launch(Kernel("trial", f"{kernel}<{self.storage.cuda}>"), grid, 256, (*arguments, *numbers), 0)


def cancelling(rows: int, k: int, ldb: int, lda: int) -> tuple[Float[Array, "rows ldb"], Float[Array, "k lda"]]:
    """Return matrices whose product is 0 but for rounding: what it is then shows the order of summation.

    The products of the second half of a sum are those of the first half with the other sign, in another order. Numbers
    have 6 bits and many sizes: every kind of storage holds them exactly.
    """
    rng = np.random.default_rng(0)
    half = k // 2

    def numbers(*shape: int) -> Array:
        return rng.integers(-31, 32, shape) * 2.0 ** rng.integers(-8, 8, shape)

    x, weight = np.zeros((rows, ldb), np.float32), np.zeros((k, lda), np.float32)
    order = rng.permutation(half)
    x[:, :half], weight[:half] = numbers(rows, half), numbers(half, lda)
    x[:, half : 2 * half], weight[half : 2 * half] = -x[:, order], weight[order]
    return x, weight
