"""On which conditions a row of a matrix product has the same bits whatever the other rows are.

A BLAS works on tiles of several rows. Where a row lies in its tile can decide in which order its sums are taken, and
rows that fill no tile, or a matrix that is small, take other code again. So the bits of a row can depend on its
position and on how many rows there are, in a way that differs from one BLAS kernel to the next and that no BLAS
documents. It is found out by experiment, once for each shape of a product, when a model is loaded.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from minibert.engine.threads import blas_name, blas_threads, one_blas_thread
from minibert.typing import Array, DType

#: The periods that are tried: none, the tiles of known kernels, and multiples of them.
_PERIODS = (1, 4, 8, 12, 16, 24, 48)
#: The products that are tried have so many rows, or the next multiples of the period; and one has three tiles.
_ROWS = (2, 3, 5, 8, 17, 30)
#: Rows of one more product that is tried on threads: so many that BLAS has use for them, unless the weights are tiny.
_ROWS_FOR_THREADS = 256
#: Of graded numbers of rows: the smallest step, and the binary logarithm of 2 times the steps between powers of two.
_SMALLEST_STEP, _STEPS_BITS = 16, 4


class RowRule(NamedTuple):
    """How rows must lie in a matrix product for the bits of each to depend on nothing but itself.

    Attributes:
        classes: The class of each position in a tile. Rows of one class have the same bits in all its positions, in
            every tile of every product whose number of rows is a multiple of ``len(classes)``. No class at all means
            that nothing was found: every text needs a product of its own.
        threads: Whether the bits are the same, too, when BLAS uses several threads.
        graded: Whether the number of rows is rounded up by :func:`graded`, so that few numbers occur.
    """

    classes: tuple[int, ...]
    threads: bool
    graded: bool = False

    @property
    def period(self) -> int:
        """How many rows a tile has."""
        return len(self.classes)

    @property
    def needs_offsets(self) -> bool:
        """Whether it matters where in a tile a text starts."""
        return self.period > 1

    def rows_for(self, tokens: int) -> int:
        """Return how many rows so many tokens get, where they are in order."""
        if self.graded:
            return graded(tokens)
        return tokens if tokens != 1 else 2  # a single row would be a product of a vector, which takes other code


def graded(rows: int) -> int:
    """Return a number of rows, rounded up: to a multiple of 16 up to 256; then 8 numbers lie from 2^n to 2^(n+1)."""
    step = max(_SMALLEST_STEP, 1 << max(0, rows - 1).bit_length() >> _STEPS_BITS)
    return -(-rows // step) * step


def rule_for(shapes: Iterable[tuple[int, int]], dtype: DType) -> RowRule:
    """Return the rule that holds for the products with weights of all these shapes, ``(in, out)``."""
    rules = [_rule_of_shape(*shape, np.dtype(dtype).name) for shape in sorted(set(shapes))]
    if not all(rule.classes for rule in rules):
        return RowRule((), threads=False)
    period = int(np.lcm.reduce([rule.period for rule in rules]))
    together = [tuple(rule.classes[i % rule.period] for rule in rules) for i in range(period)]
    return RowRule(_numbered(together), all(rule.threads for rule in rules))


@functools.cache
def _rule_of_shape(inputs: int, outputs: int, dtype: str) -> RowRule:
    """Return the rule for one shape of weights: that of the shortest period which explains what is seen."""
    weight = _numbers(inputs * outputs, dtype).reshape(inputs, outputs)
    row = _numbers(inputs, dtype)
    for period in _PERIODS:
        counts = sorted({-(-rows // period) * period for rows in (*_ROWS, 2 * period + 1)}, reverse=True)
        with one_blas_thread():
            tile = (_repeated(row, counts[0]) @ weight)[:period]
            periodic = all(_is_periodic(_repeated(row, count) @ weight, tile) for count in counts)
        if periodic:
            # Where a position matters, so does where BLAS cuts the rows for its threads: that is not even tried.
            # Nor with one thread, held by somebody else; nor in a BLAS of which it is not known from which size on it
            # uses threads, as it must not in the small products of attention.
            threads = period == 1 and blas_threads() > 1 and blas_name().startswith("openblas")
            for count in (*counts, _ROWS_FOR_THREADS):
                threads = threads and _is_periodic(_repeated(row, count) @ weight, tile)
            return RowRule(_numbered([position.tobytes() for position in tile]), threads)
    return RowRule((), threads=False)


def _is_periodic(product: Array, tile: Array) -> bool:
    return bool((product.reshape(-1, *tile.shape) == tile).all())


def _repeated(row: Array, count: int) -> Array:
    """Return a matrix of ``count`` times the same row."""
    return np.repeat(row[None], count, axis=0)


def _numbered(labels: Sequence[object]) -> tuple[int, ...]:
    """Return a number for each label, the same for equal ones."""
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


def _numbers(count: int, dtype: str) -> Array:
    """Return ``count`` numbers of mixed sizes and signs, always the same; repeated, since making them takes longer.

    Not from ``numpy.random``, whose import alone takes longer than all the rest here.
    """
    period = 8191  # a prime, so that no row or column of a matrix is another one's copy
    return np.resize(np.sin(np.square(np.arange(1.0, period + 1))).astype(dtype), count)
