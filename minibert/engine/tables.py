"""The tables of whole numbers that the kernels read on a GPU: ids, positions, and where texts and their tiles begin."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from minibert.engine.packing import Packing
from minibert.typing import Array, Int


class Batch(NamedTuple):
    """What the tables of a batch are made of.

    Attributes:
        ids: The ids of all tokens; None where no table of ids is asked for.
        packing: Where the tokens lie.
        first_tokens: Where each text's first token lies, if the last layer computes that one alone.
    """

    ids: Int[Array, "tokens"] | None
    packing: Packing
    first_tokens: Packing | None = None


class Table(NamedTuple):
    """How a table is made.

    Attributes:
        make: Makes it.
        grow: Makes it longer without a change of meaning, up to one of few lengths, so that batches meet at the same.
    """

    make: Callable[[Batch], Int[Array, "n ..."]]
    grow: Callable[[Int[Array, "n ..."]], Int[Array, "m ..."]] = lambda table: table


class Tables:
    """The tables of one batch on a device, made when they are first asked for.

    Attributes:
        asked_for: How each of them is made, by name.
    """

    def __init__(self, upload: Callable[[Array], Any]) -> None:
        """Make the tables; ``upload`` copies an array to the device."""
        self._upload = upload
        self.begin(None)

    def begin(self, batch: Batch | None, there: dict[Hashable, Any] | None = None) -> None:
        """Begin a batch. Its tables may be ``there`` already, by name."""
        self._batch = batch
        self._there = dict(there or {})
        self.asked_for: dict[Hashable, Table] = {}

    def of(self, packing: Packing, *, first_tokens: Packing | None = None, ids: Array | None = None) -> None:
        """Begin a batch of these facts, unless one that has them is under way."""
        now = self._batch
        known = now is not None and now.packing is packing
        for fact in (first_tokens, ids):
            known = known and (fact is None or any(fact is each for each in now or ()))
        if not known:
            self.begin(Batch(ids, packing, first_tokens))

    def of_pooled(self, packing: Packing) -> None:
        """Begin a batch, unless one is under way whose tokens, or whose first tokens alone, are packed like this."""
        now = self._batch
        if now is None or (now.packing if now.first_tokens is None else now.first_tokens) is not packing:
            self.begin(Batch(None, packing))

    def get(self, name: Hashable, table: Table) -> Any:
        """Return a table on the device, as int32."""
        self.asked_for[name] = table
        if name not in self._there:
            assert self._batch is not None  # noqa: S101 - the type says that it may be; no caller lets it
            self._there[name] = self._upload(np.ascontiguousarray(table.make(self._batch), np.int32))
        return self._there[name]


def tokens(batch: Batch) -> Int[Array, "2 T"]:
    """Return the id of each row's token, and its position in its text; rows beyond the tokens repeat them."""
    ids, packing = batch.ids, batch.packing
    if ids is None:
        raise ValueError("a batch must have ids for a table of them.")
    return np.stack([np.resize(each, packing.rows) for each in (ids, packing.positions())])


def cu_seqlens(batch: Batch) -> Int[Array, "n+1"]:
    """Return where each text begins, and where the last one ends; of the first tokens alone if there are such."""
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
    """Return the tiles of attention.cu: first key, number of keys, first query, number of queries, at most ``size``.

    They are of the texts whose number of keys is within the bounds; the queries are all tokens, or the ``first`` ones.

    Raises:
        ValueError: The tokens are not in order: another row rule than the device's was used.
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
    """Return tiles, and some without queries, up to a power of two."""
    return np.concatenate([tiles, np.zeros((_power_of_two(len(tiles)) - len(tiles), 4), tiles.dtype)])


def with_empty_texts(cu_seqlens: Int[Array, "n+1"]) -> Int[Array, "m+1"]:
    """Return the bounds of texts, and of some without tokens, up to a power of two."""
    texts = len(cu_seqlens) - 1
    return np.concatenate([cu_seqlens, np.repeat(cu_seqlens[-1:], _power_of_two(texts) - texts)])


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less; of 0, 0."""
    return 1 << (number - 1).bit_length() if number else 0
