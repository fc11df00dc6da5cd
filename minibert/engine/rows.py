"""The row rule: the condition under which the bits of a row of a matrix product do not depend on the other rows.

A BLAS works on tiles of several rows. The position of a row in its tile can change the order of its sums. Incomplete
tiles and small matrices use other code in the BLAS. So the bits of a row can depend on its position and on the number
of rows. This differs between BLAS kernels, and no BLAS documents it. minibert finds it by experiment when it loads a
model, once for each shape of a product.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from minibert.engine.threads import blas_name, blas_threads, one_blas_thread
from minibert.typing import Array, DType

#: The periods to try: 1 (no period), the tile sizes of known kernels, and multiples of them.
_PERIODS = (1, 4, 8, 12, 16, 24, 48)
#: Numbers of rows of the trial products, rounded up to multiples of the period. One more product has three tiles.
_ROWS = (2, 3, 5, 8, 17, 30)
#: Rows of one more trial product with threads: enough that BLAS uses its threads, unless the weights are tiny.
_ROWS_FOR_THREADS = 256
#: For :func:`graded`: the smallest step, and log2 of twice the number of steps between two powers of two.
_SMALLEST_STEP, _STEPS_BITS = 16, 4


class RowRule(NamedTuple):
    """The condition under which the bits of a row in a matrix product depend only on the row itself.

    Attributes:
        classes: The class of each position in a tile. A row has the same bits at all positions of one class, in every
            tile and in every product whose number of rows is a multiple of ``len(classes)``. An empty tuple means that
            the experiment found no rule: each text needs its own product.
        threads: Whether the bits are also the same if BLAS uses several threads.
        graded: Whether :func:`graded` rounds up the number of rows, so that few different numbers occur.
    """

    classes: tuple[int, ...]
    threads: bool
    graded: bool = False

    @property
    def period(self) -> int:
        """Number of rows of a tile."""
        return len(self.classes)

    @property
    def needs_offsets(self) -> bool:
        """Whether the start position of a text in a tile matters."""
        return self.period > 1

    def rows_for(self, tokens: int) -> int:
        """Return the number of rows for a number of tokens, if the tokens are in order."""
        if self.graded:
            return graded(tokens)
        return tokens if tokens != 1 else 2  # BLAS uses other code for a single row


def graded(rows: int) -> int:
    """Round up a number of rows: to a multiple of 16 up to 256; above, to one of 8 steps between 2^n and 2^(n+1)."""
    step = max(_SMALLEST_STEP, 1 << max(0, rows - 1).bit_length() >> _STEPS_BITS)
    return -(-rows // step) * step


def rule_for(shapes: Iterable[tuple[int, int]], dtype: DType) -> RowRule:
    """Return one rule for the products with weights of all these shapes, ``(in, out)``."""
    rules = [_rule_of_shape(*shape, np.dtype(dtype).name) for shape in sorted(set(shapes))]
    if not all(rule.classes for rule in rules):
        return RowRule((), threads=False)
    period = int(np.lcm.reduce([rule.period for rule in rules]))
    together = [tuple(rule.classes[i % rule.period] for rule in rules) for i in range(period)]
    return RowRule(_numbered(together), all(rule.threads for rule in rules))


@functools.cache
def _rule_of_shape(inputs: int, outputs: int, dtype: str) -> RowRule:
    """Return the rule for one shape of weights: the rule with the shortest period that all trial products confirm."""
    weight = _numbers(inputs * outputs, dtype).reshape(inputs, outputs)
    row = _numbers(inputs, dtype)
    for period in _PERIODS:
        counts = sorted({-(-rows // period) * period for rows in (*_ROWS, 2 * period + 1)}, reverse=True)
        with one_blas_thread():
            tile = (_repeated(row, counts[0]) @ weight)[:period]
            periodic = all(_is_periodic(_repeated(row, count) @ weight, tile) for count in counts)
        if periodic:
            # Threads are not tried in three cases. If positions matter, the points where BLAS splits the rows for its
            # threads matter, too. If other code holds BLAS to one thread, there is nothing to try. And for a BLAS other
            # than OpenBLAS, the size from which it uses threads is not known: attention's small products must use one.
            threads = period == 1 and blas_threads() > 1 and blas_name().startswith("openblas")
            for count in (*counts, _ROWS_FOR_THREADS):
                threads = threads and _is_periodic(_repeated(row, count) @ weight, tile)
            return RowRule(_numbered([position.tobytes() for position in tile]), threads)
    return RowRule((), threads=False)


def _is_periodic(product: Array, tile: Array) -> bool:
    return bool((product.reshape(-1, *tile.shape) == tile).all())


def _repeated(row: Array, count: int) -> Array:
    """Return a matrix with ``count`` copies of a row."""
    return np.repeat(row[None], count, axis=0)


def _numbered(labels: Sequence[object]) -> tuple[int, ...]:
    """Return a number for each label. Equal labels have equal numbers."""
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


def _numbers(count: int, dtype: str) -> Array:
    """Return ``count`` numbers of mixed sizes and signs, always the same. They repeat, because a copy is faster.

    ``numpy.random`` is not used: its import alone takes longer than the whole experiment.
    """
    period = 8191  # a prime, so that no two rows or columns of a matrix are equal
    return np.resize(np.sin(np.square(np.arange(1.0, period + 1))).astype(dtype), count)
