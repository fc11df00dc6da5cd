"""CUDA graphs of small batches: what the host asks of a GPU for one batch, recorded once and asked for again at once.

A batch of a few hundred tokens keeps a GPU busy for less time than the host needs to launch its kernels one by one. A
recording has fixed memory and fixed numbers of rows, texts and tiles. What is different from batch to batch stands in
the tables, which are written before it is played.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert.engine.tables import Batch, Table, Tables
from minibert.typing import Array

logger = logging.getLogger("minibert")

#: Batches of more rows are not recorded: the host has launched their kernels long before they have run.
MOST_ROWS = 1024
#: Recordings that are kept; then the oldest goes.
_MOST = 128
#: Whole numbers to whose multiples tables are aligned: 16 bytes, as a kernel reads a tile at once.
_ALIGNMENT = 4


class Recorder(Protocol):
    """What recordings need of a device."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a new array there."""
        ...

    def write(self, array: Any, host: Array) -> None:
        """Copy an array of the host to one there."""
        ...

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the launches and products of ``call`` again."""
        ...


class _Recording(NamedTuple):
    """A recording.

    Attributes:
        tables: The memory of all its tables.
        play: Does what was recorded.
        vectors: Where its result is.
    """

    tables: Any
    play: Callable[[], None]
    vectors: Any


class Recordings:
    """The recordings of one stream.

    Attributes:
        enabled: Whether batches are recorded at all.
    """

    def __init__(self, device: Recorder, tables: Tables, *, enabled: bool = True) -> None:
        """Record what is computed with ``tables`` on a device."""
        self.enabled = enabled
        self._device = device
        self._tables = tables
        self._made: dict[Hashable, dict[Hashable, Table]] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._memory: dict[Hashable, Any] = {}
        self._fixed = False

    def run(self, key: Hashable, batch: Batch, compute: Callable[[], Any]) -> Any:
        """Return the result of ``compute()``, or more rows than it has; it is overwritten by the next call.

        Args:
            key: What tells the work from other work on the same tables.
            batch: What the tables are made of.
            compute: Launches kernels, with tables of the batch and arrays of :meth:`array`.
        """
        self._tables.begin(batch)
        if not self.enabled or not 0 < batch.packing.rows <= MOST_ROWS:
            return compute()
        made = self._made.get(key)
        if made is None:  # which tables it takes is not known yet
            result = compute()
            self._made[key] = dict(self._tables.asked_for)
            return result
        host = {name: np.ascontiguousarray(table.grow(table.make(batch)), np.int32) for name, table in made.items()}
        rows = batch.packing.rows, batch.first_tokens and batch.first_tokens.rows
        shape = key, rows, tuple(table.shape for table in host.values())
        known = self._recordings.get(shape)
        if known is not None:
            self._device.write(known.tables, _joined(host))
            known.play()
            return known.vectors
        while len(self._recordings) >= _MOST:
            del self._recordings[next(iter(self._recordings))]
        try:
            return self._record(shape, batch, host, compute)
        except MemoryError as error:
            logger.warning("there is not enough memory to record batches: %s", error)
            self.clear()
            self.enabled = False
            self._tables.begin(batch)
            return compute()

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return an array of the fixed memory while a batch is recorded; None at other times."""
        if not self._fixed:
            return None
        memory = self._memory.get((name, shape[1]))
        if memory is None:  # never a larger one later: recordings know where it is
            memory = self._memory[name, shape[1]] = self._device.empty((MOST_ROWS, shape[1]), dtype)
        return memory[: shape[0]]

    def clear(self) -> None:
        """Give all memory back."""
        self._recordings.clear()
        self._memory.clear()

    def _record(self, shape: Hashable, batch: Batch, host: dict[Hashable, Array], compute: Callable[[], Any]) -> Any:
        """Return the result of ``compute()``, and keep a recording of it."""
        joined = _joined(host)
        memory = self._device.empty(joined.shape, joined.dtype)
        self._device.write(memory, joined)
        self._tables.begin(batch, _split(memory, host))
        self._fixed = True
        try:
            vectors = compute()  # it makes all that is made only once: memory, kernels, the choice of algorithms
            play = self._device.record(lambda: _ignore(compute()))
        finally:
            self._fixed = False
        self._recordings[shape] = _Recording(memory, play, vectors)
        return vectors


def _ignore(_: Any) -> None:
    """Do nothing."""


def _joined(tables: dict[Hashable, Array]) -> Array:
    """Return all tables, one behind the other, each aligned."""
    parts = []
    for table in tables.values():
        parts += [table.ravel(), np.zeros(-table.size % _ALIGNMENT, np.int32)]
    return np.concatenate(parts)


def _split(joined: Any, tables: dict[Hashable, Array]) -> dict[Hashable, Any]:
    """Return views of the tables in :func:`_joined`."""
    views, start = {}, 0
    for name, table in tables.items():
        views[name] = joined[start : start + table.size].reshape(table.shape)
        start += table.size + -table.size % _ALIGNMENT
    return views
