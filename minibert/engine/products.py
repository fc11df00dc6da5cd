"""Matrix products on a GPU, where the bits of a row do not depend on the other rows.

cuBLASLt has many algorithms for a product. They differ in speed, and some differ in the order of summation. The fastest
algorithm depends on the number of rows. The library's own choice also depends on it, so the last bit of a vector would,
too. So minibert tries an algorithm for a number of rows before it uses it. The trial uses numbers whose sums cancel:
then a different order of summation gives different bits. All rows must have the same bits as with a reference algorithm
for 4,096 rows. minibert uses the fastest algorithm that passes.

An algorithm may compute some parts of its output differently from others. So each number of rows needs its own trial.
:func:`minibert.engine.rows.graded` keeps these numbers few.
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

#: Number of algorithms to try for a product.
_CANDIDATES = 8
#: Number of rows of the reference product.
_REFERENCE_ROWS = 4096
#: Number of different rows in a trial. It is prime, so that equal rows have different positions in tiles.
_PERIOD = 127
#: Algorithms are timed from this number of rows on. Smaller products take little more time than a launch.
_WORTH_TIMING = 1024
#: Number of runs that time an algorithm, of which the fastest counts; and number of products in a run.
_TIMES, _AT_ONCE = 3, 10


class Gpu(Device, Protocol):
    """The operations of a GPU that trials need, on the stream of this thread."""

    def seconds(self, call: Callable[[], None]) -> float:
        """Return the time in seconds that the GPU needs for the work of ``call``."""
        ...


class _Reference(NamedTuple):
    """The reference product for all products with weights of one shape.

    Attributes:
        algorithm: The algorithm that computed it.
        x: The different rows of B.
        weight: The matrix A.
        y: The different rows of C.
    """

    algorithm: Algorithm
    x: Any
    weight: Any
    y: Any


class Products:
    """The chosen algorithms for a GPU. Threads may share this object."""

    def __init__(self, library: CublasLt, gpu: Gpu) -> None:
        """Start without any chosen algorithm. Later trials use the algorithms of ``library`` on ``gpu``."""
        self._library = library
        self._gpu = gpu
        self._lock = threading.Lock()
        self._chosen: dict[Product, Algorithm] = {}
        self._references: dict[Product, _Reference] = {}

    def multiply(
        self, product: Product, storage: Storage, pointers: tuple[int, int, int], stream: int, workspace: int
    ) -> None:
        """Launch a product of matrices of ``storage`` on a stream; see :meth:`CublasLt.multiply`.

        The first product of a shape runs trials before, and waits for the stream.
        """
        key = product._replace(add=False)
        algorithm = self._chosen.get(key)
        if algorithm is None:
            with self._lock:  # one at a time: another trial would disturb the timing
                algorithm = self._chosen.get(key) or self._choose(key, storage, stream, workspace)
                self._chosen[key] = algorithm
        self._library.multiply(product, algorithm, pointers, stream, workspace)

    def _choose(self, product: Product, storage: Storage, stream: int, workspace: int) -> Algorithm:
        """Return the fastest algorithm for a product, of those that give the bits of the reference."""
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
    """Trial products of one shape, on generated numbers."""

    library: CublasLt
    gpu: Gpu
    shape: Product
    storage: Storage
    weight: Any
    stream: int
    workspace: int

    def repeated(self, rows: Any) -> Any:
        """Return a matrix with the rows of ``rows``, repeated up to the number of rows of the product."""
        x = self.gpu.empty((self.shape.n, rows.shape[1]), self.storage.dtype)
        self._launch("repeat_rows", x, (x, rows))
        return x

    def product(self, algorithm: Algorithm, x: Any) -> Any:
        """Return the product of ``x`` with the weights."""
        y = self.gpu.empty((self.shape.n, self.shape.ldc), self.storage.dtype)
        self._multiply(algorithm, x, y)
        return y

    def repeats(self, algorithm: Algorithm, x: Any, rows: Any) -> bool:
        """Return whether the product of ``x`` has the same bits as ``rows``, repeated."""
        try:
            y = self.product(algorithm, x)
        except DeviceError:  # the reference algorithm may not work for so few rows
            return False
        different = self.gpu.upload(np.zeros(1, np.int32))
        self._launch("compare_rows", y, (different, y, rows))
        return not self.gpu.download(different)[0]

    def seconds(self, algorithm: Algorithm, x: Any) -> float:
        """Return the time of the product of ``x``: the least of some runs, in seconds.

        A run has several products in one launch, because a small product takes less time than its launch.
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
    """Return matrices whose product is 0 except for rounding errors. The errors show the order of summation.

    The second half of each sum has the products of the first half with the opposite sign, in another order. Numbers
    have 6 bits and many sizes, so every storage type represents them exactly.
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
