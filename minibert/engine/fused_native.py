"""The fused operations on a CPU by the native kernels: one call of the library for a layer.

The bits of a result depend on nothing but the text and the weights: not on the batch, the threads, the instruction set
or the compiler (kernels/README.md tells how). Rows need no order, so the row rule is the simplest one.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from minibert.config import BertConfig
from minibert.engine.fused import OnHost
from minibert.engine.native import (
    POOLING_MODES,
    BatchPointers,
    EmbeddingPointers,
    Library,
    PoolPointers,
    Shape,
    address,
    aligned,
    checked,
    checked_whole,
    row_stride,
)
from minibert.engine.native_params import NativeLayer
from minibert.engine.packed import require_in_tables
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule
from minibert.params import Embeddings
from minibert.typing import Array, Float, Int

#: Any rows in any order have the same bits.
ROW_RULE: Final = RowRule((0,), threads=True)
#: The largest number of floats that is kept between calls for each thread: 64 MB.
_MOST_KEPT = 1 << 24


class _Batch:
    """What all operations on a batch need.

    Attributes:
        packing: The rows of the tokens.
        numbers: The tokens' ids, their positions, and the bounds of the texts: the index of each text's first token,
            and the number of tokens.
        at: The addresses of these three.
        pointers: The texts, with all tokens as queries.
        x: The hidden states.
        shape: The sizes for which the workspace is large enough, or None.
        bias: The bias by distance whose address is in ``pointers``, or None.
    """

    def __init__(
        self, packing: Packing, ids: Int[Array, "tokens"], x: Float[Array, "T H"], padding_id: int | None
    ) -> None:
        """Put ids, positions and bounds into one array: it takes a microsecond to find the address of an array."""
        tokens, texts = packing.tokens, len(packing.lengths)
        if ids.shape != (tokens,):
            raise ValueError(f"there must be one id for each of {tokens} tokens; ids have shape {ids.shape}.")
        self.numbers = numbers = np.empty(2 * tokens + texts + 1, np.int64)  # kept: `at` has addresses in it
        numbers[:tokens] = ids
        numbers[tokens : 2 * tokens] = packing.positions(ids, padding_id)
        _fill_bounds(packing, numbers[2 * tokens :])
        start = address(numbers) or 0
        self.at = (start, start + 8 * tokens, start + 16 * tokens)
        self.pointers = BatchPointers(self.at[2], self.at[2], None, texts, 0)
        self.packing = packing
        self.x = x
        self.shape: Shape | None = None
        self.bias: Array | None = None


class FusedNative(OnHost):
    """The operations of :class:`minibert.engine.fused.Fused`, and the memory of one thread."""

    def __init__(self, library: Library, threads: int = 1, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make the operations. They raise InterruptedError when ``cancelled()`` is true.

        Args:
            library: The library.
            threads: The largest number of threads for one operation.
            cancelled: Whether to stop. It is asked before each layer.
        """
        self._library = library
        self._tables: Embeddings | None = None
        self._embedding = EmbeddingPointers()
        self._batch: _Batch | None = None
        self.begin(threads, cancelled)
        self.free()

    def begin(self, threads: int, cancelled: Callable[[], bool]) -> None:
        """Set the arguments of the constructor anew, and keep the memory."""
        self._team = self._library.team() if threads > 1 else None
        self._threads = threads if self._team else 1
        self._cancelled = cancelled

    def end(self) -> None:
        """Forget the last batch. Memory is kept for the next one, unless it is large."""
        self._batch = None
        self._cancelled = _never
        if self._hidden.size + self._workspace.size > _MOST_KEPT:
            self.free()

    def free(self) -> None:
        """Release all memory."""
        nothing = aligned(0)
        self._hidden = self._workspace = nothing
        self._hidden_at = self._workspace_at = address(nothing)
        self._batch = None

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, config: BertConfig
    ) -> Float[Array, "T H"]:
        """Return the layer-normalized sum of each token's word, position and type embedding. All types are 0."""
        library, rows, width = self._library, packing.tokens, tables.word.shape[1]
        if self._tables is not tables:
            self._embedding, self._tables = _table_pointers(tables), tables
        embedding, ld = self._embedding, library.padded_width(width)
        if self._hidden.size < rows * ld:
            hidden = aligned(rows * ld)
            self._hidden, self._hidden_at = hidden, address(hidden)
        x = self._hidden[: rows * ld].reshape(rows, ld)[:, :width]
        self._batch = batch = _Batch(packing, ids, x, config.position_padding_id)
        embedding.ids, embedding.positions, _ = batch.at
        embedding.out, embedding.rows, embedding.ldout, embedding.eps = self._hidden_at, rows, ld, config.layer_norm_eps
        wrong = library.c.mb_embed(
            library.kernels,
            self._team,
            self._threads,
            ctypes.byref(embedding),
            len(tables.word),
            len(tables.position),
        )
        if wrong is not None or packing.lengths.max(initial=0) > config.max_tokens:
            require_in_tables(tables, ids, packing, config)  # it names the id
        library.require(wrong)
        return x

    def layer(
        self,
        layer: NativeLayer,
        config: BertConfig,  # noqa: ARG002 - the layer has its sizes
        x: Float[Array, "T H"],
        packing: Packing,
        first_tokens: Packing | None = None,
        distance_bias: Float[Array, "h 2P-1"] | None = None,
    ) -> Float[Array, "R H"]:
        """Return the hidden states after a layer, in the memory of ``x``.

        Raises:
            InterruptedError: The call is cancelled.
            ValueError: ``x`` or ``packing`` is not that of the last :meth:`embed_layer_norm`.
        """
        if self._cancelled():
            raise InterruptedError
        batch = self._batch
        if batch is None or batch.x is not x or batch.packing is not packing or x.shape[1] != layer.shape.hidden:
            raise ValueError("a layer must get the hidden states and the packing of the last embed_layer_norm.")
        if not packing.tokens:
            return x
        if batch.shape is not layer.shape:
            self._make_room(batch, layer.shape)
        texts = batch.pointers
        if distance_bias is not batch.bias:
            bias = None if distance_bias is None else checked_whole(distance_bias, layer.shape.heads, -1)
            texts.distance_bias, texts.distances = address(bias), 0 if bias is None else bias.shape[1]
            batch.bias = distance_bias
        if first_tokens is not None:
            queries = checked(_bounds(first_tokens), len(packing.lengths) + 1, dtype=np.int64)
            texts = BatchPointers(texts.keys, address(queries), texts.distance_bias, texts.texts, texts.distances)
        library = self._library
        library.require(
            library.c.mb_layer(
                library.kernels,
                self._team,
                self._threads,
                ctypes.byref(layer.shape),
                ctypes.byref(layer.pointers),
                None if layer.next is None else ctypes.byref(layer.next),
                ctypes.byref(texts),
                self._hidden_at,
                self._workspace_at,
                self._workspace.size,
            )
        )
        return x if first_tokens is None else x[: first_tokens.tokens]

    def _make_room(self, batch: _Batch, shape: Shape) -> None:
        """Make the workspace large enough for the layers of a model of this shape."""
        longest = int(batch.packing.lengths.max(initial=0))
        library = self._library
        size = library.c.mb_workspace(
            library.kernels, ctypes.byref(shape), batch.packing.tokens, longest, self._threads
        )
        if self._workspace.size < size:
            workspace = aligned(size)
            self._workspace, self._workspace_at = workspace, address(workspace)
        batch.shape = shape

    def pool(
        self,
        modes: Sequence[str],
        hidden: Float[Array, "T H"],
        packing: Packing,
        exclude: int = 0,
        *,
        normalize: bool = False,
    ) -> Float[Array, "n D"]:
        """Return one vector per text, as :func:`minibert.pooling.pool`, in new memory; of length 1 if ``normalize``."""
        batch = self._batch
        if batch is None or batch.x is not hidden or batch.packing is not packing:
            return pool(self._library, modes, hidden, _bounds(packing), exclude, normalize=normalize)
        pointers = PoolPointers(
            x=self._hidden_at,
            ldx=self._library.padded_width(hidden.shape[1]),
            starts=batch.at[2],
            texts=len(packing.lengths),
            exclude=exclude,
            normalize=normalize,
        )
        return _pool(self._library, modes, pointers, *hidden.shape)

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x``, in the order of the tokens."""
        return x[: packing.tokens]


def _never() -> bool:
    return False


def _table_pointers(tables: Embeddings) -> EmbeddingPointers:
    """Return the addresses of the tables."""
    width = tables.word.shape[1]
    if not len(tables.token_type):
        raise ValueError("there must be an embedding of the first type; the table has no rows.")
    return EmbeddingPointers(
        word=address(checked_whole(tables.word, -1, width)),
        position=address(checked_whole(tables.position, -1, width)),
        type=address(checked_whole(tables.token_type, -1, width)),
        weight=address(checked_whole(tables.norm.weight, width)),
        shift=address(checked_whole(tables.norm.bias, width)),
        hidden=width,
    )


def pool(
    library: Library,
    modes: Sequence[str],
    hidden: Float[Array, "T H"],
    bounds: Int[Array, "n+1"],
    exclude: int = 0,
    weight_sums: Float[Array, "n"] | None = None,
    *,
    normalize: bool = False,
) -> Float[Array, "n D"]:
    """Return one vector per text, as :func:`minibert.pooling.pool`.

    Args:
        library: The library.
        modes: The pooling modes.
        hidden: The token vectors.
        bounds: The row of each text's first token, and the end of the last text, as int64.
        exclude: Number of tokens at the start of each text that are left out.
        weight_sums: The sum of each text's weights in float64, in place of its number of tokens.
        normalize: Whether vectors are scaled to length 1.

    Raises:
        ValueError: The arrays do not fit together.
    """
    if weight_sums is not None:
        checked_whole(weight_sums, len(bounds) - 1, dtype=np.float64)
    pointers = PoolPointers(
        x=address(checked(hidden, -1, -1)),
        ldx=row_stride(hidden),
        starts=address(checked_whole(bounds, -1, dtype=np.int64)),
        texts=len(bounds) - 1,
        weight_sums=address(weight_sums),
        exclude=exclude,
        normalize=normalize,
    )
    return _pool(library, modes, pointers, *hidden.shape)


def _pool(library: Library, modes: Sequence[str], pointers: PoolPointers, rows: int, width: int) -> Float[Array, "n D"]:
    """Return :func:`pool` of token vectors whose addresses are known."""
    numbers, numbers_at = _numbers_of(tuple(modes))
    vectors = np.empty((pointers.texts, len(numbers) * width), np.float32)
    totals = np.empty(width, np.float64)
    pointers.out, pointers.ldout, pointers.totals = address(vectors), vectors.shape[1], address(totals)
    pointers.hidden, pointers.modes, pointers.number_of_modes = width, numbers_at, len(numbers)
    library.require(library.c.mb_pool(library.kernels, ctypes.byref(pointers), rows))
    return vectors


@functools.cache
def _numbers_of(modes: tuple[str, ...]) -> tuple[Int[Array, "m"], int | None]:
    """Return the library's numbers of pooling modes, and their address."""
    numbers = np.array([POOLING_MODES[mode] for mode in modes], np.intc)
    return numbers, address(numbers)


def _bounds(packing: Packing) -> Int[Array, "n+1"]:
    """Return the index of each text's first token, and the number of tokens."""
    return _fill_bounds(packing, np.empty(len(packing.lengths) + 1, np.int64))


def _fill_bounds(packing: Packing, bounds: Int[Array, "n+1"]) -> Int[Array, "n+1"]:
    """Write :func:`_bounds` to ``bounds``, and return it."""
    bounds[0] = 0
    packing.lengths.cumsum(out=bounds[1:])
    return bounds
