"""CUDA graphs of small batches: the kernel launches of a batch are recorded once, and replayed for later batches.

For a batch of a few hundred tokens, the host needs more time to launch the kernels one by one than the GPU needs to run
them. A recording has fixed memory and fixed numbers of rows, texts and tiles. The tables contain everything that
differs between batches. They are written before each replay.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert.engine.tables import Batch, Table, Tables
from minibert.typing import Array

logger = logging.getLogger("minibert")

#: Batches with more rows are not recorded: the host launches their kernels faster than the GPU runs them.
MOST_ROWS = 1024
#: The largest number of recordings. Beyond it, the oldest one is deleted.
_MOST = 128
#: Alignment of tables, in int32 numbers: 16 bytes, because a kernel reads a whole tile at once.
_ALIGNMENT = 4


class Recorder(Protocol):
    """The operations of a device that recordings need."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a new array on the device."""
        ...

    def write(self, array: Any, host: Array) -> None:
        """Copy a host array to an array on the device."""
        ...

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record ``call``, and return a function that repeats its launches and products."""
        ...


class _Recording(NamedTuple):
    """A recording.

    Attributes:
        tables: The memory of all its tables.
        play: Replays the recording.
        vectors: The array with its result.
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
        """Start without recordings. Later recordings use ``device`` and ``tables``."""
        self.enabled = enabled
        self._device = device
        self._tables = tables
        self._made: dict[Hashable, dict[Hashable, Table]] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._memory: dict[Hashable, Any] = {}
        self._fixed = False

    def run(self, key: Hashable, batch: Batch, compute: Callable[[], Any]) -> Any:
        """Return the result of ``compute()``. It may have extra rows at the end. The next call overwrites it.

        Args:
            key: It identifies this computation among others with the same tables.
            batch: The data for the tables.
            compute: Launches kernels, with tables of the batch and arrays from :meth:`array`.
        """
        self._tables.begin(batch)
        if not self.enabled or not 0 < batch.packing.rows <= MOST_ROWS or len(batch.packing.lengths) > MOST_ROWS:
            return compute()
        made = self._made.get(key)
        if made is None:  # it is not known yet which tables it needs
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
        """While a batch is recorded, return an array in the fixed memory; at other times, return None."""
        if not self._fixed:
            return None
        memory = self._memory.get((name, shape[1]))
        if memory is None:  # never replaced by a larger one: recordings have its address
            memory = self._memory[name, shape[1]] = self._device.empty((MOST_ROWS, shape[1]), dtype)
        return memory[: shape[0]]

    def clear(self) -> None:
        """Release all memory."""
        self._recordings.clear()
        self._memory.clear()

    def _record(self, shape: Hashable, batch: Batch, host: dict[Hashable, Array], compute: Callable[[], Any]) -> Any:
        """Return the result of ``compute()``, and save a recording of it."""
        joined = _joined(host)
        memory = self._device.empty(joined.shape, joined.dtype)
        self._device.write(memory, joined)
        self._tables.begin(batch, _split(memory, host))
        self._fixed = True
        try:
            vectors = compute()  # this run allocates memory, loads kernels and chooses algorithms
            play = self._device.record(lambda: _ignore(compute()))
        finally:
            self._fixed = False
        self._recordings[shape] = _Recording(memory, play, vectors)
        return vectors


def _ignore(_: Any) -> None:
    """Do nothing."""


def _joined(tables: dict[Hashable, Array]) -> Array:
    """Concatenate all tables. Each table is aligned."""
    parts = []
    for table in tables.values():
        parts += [table.ravel(), np.zeros(-table.size % _ALIGNMENT, np.int32)]
    return np.concatenate(parts)


def _split(joined: Any, tables: dict[Hashable, Array]) -> dict[Hashable, Any]:
    """Return views of the tables in the result of :func:`_joined`."""
    views, start = {}, 0
    for name, table in tables.items():
        views[name] = joined[start : start + table.size].reshape(table.shape)
        start += table.size + -table.size % _ALIGNMENT
    return views
