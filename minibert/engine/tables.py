"""The integer tables that the GPU kernels read: token ids, positions, and the starts of texts and tiles."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from minibert.engine.packing import Packing
from minibert.typing import Array, Int


class Batch(NamedTuple):
    """The data for the tables of a batch.

    Attributes:
        ids: The ids of all tokens; None if no table needs them.
        packing: The rows of the tokens.
        first_tokens: The rows of the first tokens, if the last layer computes only these; else None.
    """

    ids: Int[Array, "tokens"] | None
    packing: Packing
    first_tokens: Packing | None = None


class Table(NamedTuple):
    """The functions that make a table.

    Attributes:
        make: Makes the table of a batch.
        grow: Adds entries without effect, up to one of a few lengths. So different batches get the same length.
    """

    make: Callable[[Batch], Int[Array, "n ..."]]
    grow: Callable[[Int[Array, "n ..."]], Int[Array, "m ..."]] = lambda table: table


class Tables:
    """The tables of one batch on a device. Each is made at its first use.

    Attributes:
        asked_for: The tables that were used in this batch, by name.
    """

    def __init__(self, upload: Callable[[Array], Any]) -> None:
        """Start without a batch. ``upload`` copies an array to the device."""
        self._upload = upload
        self.begin(None)

    def begin(self, batch: Batch | None, there: dict[Hashable, Any] | None = None) -> None:
        """Begin a batch. ``there`` has the tables that are already on the device, by name."""
        self._batch = batch
        self._there = dict(there or {})
        self.asked_for: dict[Hashable, Table] = {}

    def of(self, packing: Packing, *, first_tokens: Packing | None = None, ids: Array | None = None) -> None:
        """Begin a batch with these data, unless the current batch has them."""
        now = self._batch
        known = now is not None and now.packing is packing
        for fact in (first_tokens, ids):
            known = known and (fact is None or any(fact is each for each in now or ()))
        if not known:
            self.begin(Batch(ids, packing, first_tokens))

    def of_pooled(self, packing: Packing) -> None:
        """Begin a batch, unless ``packing`` is that of the current batch, or of its first tokens if it has these."""
        now = self._batch
        if now is None or (now.packing if now.first_tokens is None else now.first_tokens) is not packing:
            self.begin(Batch(None, packing))

    def get(self, name: Hashable, table: Table) -> Any:
        """Return a table on the device, as int32."""
        self.asked_for[name] = table
        if name not in self._there:
            assert self._batch is not None  # noqa: S101 - for the type checker: all callers begin a batch first
            self._there[name] = self._upload(np.ascontiguousarray(table.make(self._batch), np.int32))
        return self._there[name]


def tokens(batch: Batch, padding_id: int | None) -> Int[Array, "2 T"]:
    """Return the token id and the row of the position table for each row. Extra rows at the end repeat tokens.

    ``padding_id`` is that of :meth:`Packing.positions`.
    """
    ids, packing = batch.ids, batch.packing
    if ids is None:
        raise ValueError("a batch must have ids for a table of them.")
    return np.stack([np.resize(each, packing.rows) for each in (ids, packing.positions(ids, padding_id))])


def cu_seqlens(batch: Batch) -> Int[Array, "n+1"]:
    """Return the start of each text, and the end of the last one; of the first tokens, if the batch has these."""
    lengths = (batch.packing if batch.first_tokens is None else batch.first_tokens).lengths
    return np.concatenate([[0], np.cumsum(lengths)])


def rows_of_first(batch: Batch) -> Int[Array, "R"]:
    """Return the row of each text's first token."""
    if batch.first_tokens is None:
        raise ValueError("a batch must have a packing of the first tokens for a table of their rows.")
    return batch.packing.rows_of_first(batch.first_tokens)


def attention_tiles(
    batch: Batch, size: int, *, least_keys: int = 1, most_keys: int | None = None, first: bool = False
) -> Int[Array, "n 4"]:
    """Return the tiles of attention.cu: first key, number of keys, first query, number of queries (at most ``size``).

    Only texts from ``least_keys`` to ``most_keys`` keys have tiles. With ``first``, only first tokens are queries.

    Raises:
        ValueError: The tokens are not in order. The packing has a row rule that is not for a GPU.
    """
    keys = batch.packing
    queries = batch.first_tokens if first else keys
    if queries is None or queries.row_of is not None or keys.row_of is not None:
        raise ValueError("on a GPU, texts must be packed in order, without a row rule; the rows are permuted.")
    wanted = keys.lengths >= least_keys
    if most_keys is not None:
        wanted &= keys.lengths <= most_keys
    tiles_of_text = np.where(wanted, -(-queries.lengths // size), 0)
    text = np.repeat(np.arange(len(keys.lengths)), tiles_of_text)
    number = np.arange(len(text)) - np.repeat(np.cumsum(tiles_of_text) - tiles_of_text, tiles_of_text)
    first_query, left = queries.starts[text] + size * number, queries.lengths[text] - size * number
    return np.stack([keys.starts[text], keys.lengths[text], first_query, np.minimum(left, size)], axis=1)


def with_empty_tiles(tiles: Int[Array, "n 4"]) -> Int[Array, "m 4"]:
    """Add tiles without queries until the number of tiles is a power of two."""
    return np.concatenate([tiles, np.zeros((_power_of_two(len(tiles)) - len(tiles), 4), tiles.dtype)])


def with_empty_texts(cu_seqlens: Int[Array, "n+1"]) -> Int[Array, "m+1"]:
    """Add texts without tokens until the number of texts is a power of two."""
    texts = len(cu_seqlens) - 1
    return np.concatenate([cu_seqlens, np.repeat(cu_seqlens[-1:], _power_of_two(texts) - texts)])


def _power_of_two(number: int) -> int:
    """Round up to a power of two. 0 stays 0."""
    return 1 << (number - 1).bit_length() if number else 0
