"""The fused operations on a CPU by the native kernels: one call of the library for a layer.

The bits of a result depend on nothing but the text and the weights: not on the batch, the threads, the instruction set
or the compiler (kernels/README.md tells how). Rows need no order, so the row rule is the simplest one.
"""

import ctypes
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np

from minibert import params
from minibert.config import BertConfig
from minibert.engine.native import (
    ACTIVATIONS,
    POOLING_MODES,
    BatchPointers,
    EmbeddingPointers,
    LayerPointers,
    Library,
    PoolPointers,
    Shape,
    address,
    aligned,
    checked,
    checked_whole,
    leading,
)
from minibert.engine.packed import (
    FeedForward,
    Layer,
    PackedParams,
    SelfAttention,
    Weights,
    query_scale,
    require_in_tables,
)
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule
from minibert.params import Embeddings
from minibert.typing import Array, Float, Int

#: Any rows in any order have the same bits.
ROW_RULE: Final = RowRule((0,), threads=True)


class NativeLayer(NamedTuple):
    """The parameters of a layer for the library.

    Attributes:
        pointers: Their addresses.
        next: The addresses of the next layer's parameters, or None. Its first weights are fetched ahead.
        shape: The sizes of the model.
        arrays: The parameters, packed where they are matrices, by the names in ``pointers``.
    """

    pointers: LayerPointers
    next: LayerPointers | None
    shape: Shape
    arrays: dict[str, Array]


class _Matrix(NamedTuple):
    """A matrix that will be packed: its parts side by side, each with a factor."""

    inputs: int
    outputs: int
    parts: tuple[tuple[Array, float], ...]


class _Source(NamedTuple):
    """The parameters of a layer before they are packed."""

    matrices: dict[str, _Matrix]
    vectors: dict[str, Array]


def load(library: Library, weights: Weights, config: BertConfig) -> PackedParams:
    """Return the parameters of a BertModel for the library. Each layer is packed as it is read.

    Raises:
        WeightsError: A parameter cannot be used.
        MemoryError: There is not enough memory. It is raised before any layer is read.
    """

    def source(number: int) -> _Source:
        return _of_checkpoint(library, weights.layer(number), config.num_attention_heads)

    layers = _pack_layers(library, source, config)
    return PackedParams(_map_tables(weights.embeddings()), layers)


def adopt(library: Library, plain: PackedParams, config: BertConfig) -> PackedParams:
    """Return parameters for the library that are now arranged for numpy."""
    layers = _pack_layers(library, lambda number: _of_layer(plain.layers[number]), config)
    return PackedParams(_map_tables(plain.embeddings), layers)


def release(library: Library, native: PackedParams, config: BertConfig) -> PackedParams:
    """Return the opposite of :func:`adopt`: parameters that can be pickled."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741, N806

    def plain(layer: NativeLayer) -> Layer:
        a = layer.arrays
        return Layer(
            SelfAttention(
                qkv=library.unpack(a["qkv"], H, 3 * H),
                query_bias=a["query_bias"],
                output=library.unpack(a["output"], H, H),
                output_bias=a["output_bias"],
                norm=params.LayerNorm(a["norm1"], a["shift1"]),
            ),
            FeedForward(
                up=library.unpack(a["up"], H, I),
                up_bias=a["up_bias"],
                down=library.unpack(a["down"], I, H),
                down_bias=a["down_bias"],
                norm=params.LayerNorm(a["norm2"], a["shift2"]),
            ),
        )

    return PackedParams(native.embeddings, tuple(map(plain, native.layers)))


def _map_tables(tables: Embeddings) -> Embeddings:
    """Return the embeddings with contiguous tables."""
    word, position, token_type = (np.ascontiguousarray(table) for table in tables[:3])
    return Embeddings(word, position, token_type, params.LayerNorm(*map(np.ascontiguousarray, tables.norm)))


def _of_checkpoint(library: Library, layer: params.Layer, heads: int) -> _Source:
    """Return the parameters of a layer of a checkpoint, rearranged as by :func:`minibert.engine.packed.pack_layer`.

    The bits of the folded bias are the same on every processor. In numpy, BLAS computes it.
    """
    a, f = layer.attention, layer.feed_forward
    hidden = a.query.weight.shape[1]
    scale = query_scale(hidden, heads)
    output_bias = np.empty(hidden, np.float32)
    output, value_bias, bias = (np.ascontiguousarray(x) for x in (a.output.weight, a.value.bias, a.output.bias))
    library.c.mb_fold(
        address(checked(output, hidden, hidden)), address(checked(value_bias, hidden)),
        address(checked(bias, hidden)), hidden, hidden, address(output_bias),
    )  # fmt: skip
    return _source(
        ((a.query.weight.T, scale), (a.key.weight.T, 1.0), (a.value.weight.T, 1.0)),
        output.T, f.intermediate.weight.T, f.output.weight.T,
        query_bias=a.query.bias * np.float32(scale), output_bias=output_bias, norm1=a.norm.weight, shift1=a.norm.bias,
        up_bias=f.intermediate.bias, down_bias=f.output.bias, norm2=f.norm.weight, shift2=f.norm.bias,
    )  # fmt: skip


def _of_layer(layer: Layer) -> _Source:
    """Return the parameters of a layer that is arranged for numpy."""
    a, f = layer
    return _source(
        ((a.qkv, 1.0),), a.output, f.up, f.down,
        query_bias=a.query_bias, output_bias=a.output_bias, norm1=a.norm.weight, shift1=a.norm.bias,
        up_bias=f.up_bias, down_bias=f.down_bias, norm2=f.norm.weight, shift2=f.norm.bias,
    )  # fmt: skip


def _source(qkv: tuple[tuple[Array, float], ...], output: Array, up: Array, down: Array, **vectors: Array) -> _Source:
    """Return the parameters of a layer; the matrices are ``(in, out)``."""
    parts = {"qkv": qkv, "output": ((output, 1.0),), "up": ((up, 1.0),), "down": ((down, 1.0),)}
    matrices = {
        name: _Matrix(part[0][0].shape[0], sum(each.shape[1] for each, _ in part), part) for name, part in parts.items()
    }
    return _Source(matrices, vectors)


def _pack_layers(library: Library, source: Callable[[int], _Source], config: BertConfig) -> tuple[NativeLayer, ...]:
    """Return all layers, with their matrices in one block of memory, in the order of their use."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741, N806
    size = sum(library.packed_size(*shape) for shape in ((H, 3 * H), (H, H), (H, I), (I, H)))
    memory = aligned(size * config.num_hidden_layers)
    shape = Shape(H, I, config.num_attention_heads, config.layer_norm_eps, ACTIVATIONS[config.hidden_act])
    widths = {name: I if name == "up_bias" else H for name, _ in LayerPointers._fields_}
    layers: list[NativeLayer] = []
    for number in range(config.num_hidden_layers):
        layer, arrays = source(number), {}
        for name, matrix in layer.matrices.items():
            packed = library.packed_size(matrix.inputs, matrix.outputs)
            arrays[name], memory = memory[:packed], memory[packed:]
            library.pack(arrays[name], matrix.outputs, matrix.parts)
        for name, vector in layer.vectors.items():
            arrays[name] = checked(np.ascontiguousarray(vector), widths[name])
        pointers = LayerPointers(**{name: address(array) for name, array in arrays.items()})
        layers.append(NativeLayer(pointers, None, shape, arrays))
    following = [layer.pointers for layer in layers[1:]]
    return (*(layer._replace(next=after) for layer, after in zip(layers, following, strict=False)), layers[-1])


class _Batch:
    """What all operations on a batch need.

    Attributes:
        packing: The rows of the tokens.
        bounds: The index of each text's first token, and the number of tokens.
        at: The addresses of the tokens' ids, of their positions, and of ``bounds``.
        pointers: The texts, with all tokens as queries.
        x: The hidden states.
        shape: The sizes for which the workspace is large enough, or None.
    """

    def __init__(self, packing: Packing, ids: Int[Array, "tokens"], x: Float[Array, "T H"]) -> None:
        """Put ids, positions and bounds into one array: it takes a microsecond to find the address of an array."""
        tokens, texts = packing.tokens, len(packing.lengths)
        if ids.shape != (tokens,):
            raise ValueError(f"there must be one id for each of {tokens} tokens; ids have shape {ids.shape}.")
        numbers = np.empty(2 * tokens + texts + 1, np.int64)
        numbers[:tokens] = ids
        numbers[tokens : 2 * tokens] = packing.positions()
        self.bounds = _fill_bounds(packing, numbers[2 * tokens :])
        start = address(numbers) or 0
        self.at = (start, start + 8 * tokens, start + 16 * tokens)
        self.pointers = BatchPointers(self.at[2], self.at[2], texts)
        self.packing = packing
        self.x = x
        self.shape: Shape | None = None


class FusedNative:
    """The operations of :class:`minibert.engine.fused.Fused`, and the memory of one thread."""

    def __init__(self, library: Library, threads: int = 1, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make the operations. They raise InterruptedError when ``cancelled()`` is true.

        Args:
            library: The library.
            threads: The largest number of threads for one operation.
            cancelled: Whether to stop. It is asked before each layer.
        """
        self._library = library
        self.use(threads, cancelled)
        self.free()

    def use(self, threads: int, cancelled: Callable[[], bool]) -> None:
        """Set the arguments of the constructor anew, and keep the memory."""
        self._team = self._library.team() if threads > 1 else None
        self._threads = threads if self._team else 1
        self._cancelled = cancelled

    def free(self) -> None:
        """Release all memory."""
        self._hidden = self._workspace = aligned(0)
        self._hidden_at = self._workspace_at = address(self._hidden)
        self._tables: Embeddings | None = None
        self._embedding = EmbeddingPointers()
        self._batch: _Batch | None = None

    def embed_layer_norm(
        self, tables: Embeddings, ids: Int[Array, "tokens"], packing: Packing, eps: float
    ) -> Float[Array, "T H"]:
        """Return the layer-normalized sum of each token's word, position and type embedding. All types are 0."""
        library, rows, width = self._library, packing.tokens, tables.word.shape[1]
        if self._tables is not tables:
            self._embedding, self._tables = _table_pointers(tables), tables
        embedding, ld = self._embedding, library.leading(width)
        if self._hidden.size < rows * ld:
            self._hidden = aligned(rows * ld)
            self._hidden_at = address(self._hidden)
        x = self._hidden[: rows * ld].reshape(rows, ld)[:, :width]
        self._batch = batch = _Batch(packing, ids, x)
        embedding.ids, embedding.positions, _ = batch.at
        embedding.out, embedding.rows, embedding.ldout, embedding.eps = self._hidden_at, rows, ld, eps
        wrong = library.c.mb_embed(
            library.kernels,
            self._team,
            self._threads,
            ctypes.byref(embedding),
            len(tables.word),
            len(tables.position),
        )
        if wrong is not None:
            require_in_tables(tables, ids, packing)  # it names the id
        library.require(wrong)
        return x

    def layer(
        self,
        layer: NativeLayer,
        config: BertConfig,  # noqa: ARG002 - the layer has its sizes
        x: Float[Array, "T H"],
        packing: Packing,
        first_tokens: Packing | None = None,
    ) -> Float[Array, "R H"]:
        """Return the hidden states after a layer, in the memory of ``x``."""
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
        if first_tokens is not None:
            queries = checked(_bounds(first_tokens), len(batch.bounds), dtype=np.int64)
            texts = BatchPointers(texts.keys, address(queries), texts.texts)
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
            self._workspace = aligned(size)
            self._workspace_at = address(self._workspace)
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
            ldx=self._library.leading(hidden.shape[1]),
            starts=batch.at[2],
            texts=len(packing.lengths),
            exclude=exclude,
            normalize=normalize,
        )
        return _pool(self._library, modes, pointers, *hidden.shape)

    def recorded(
        self,
        key: Hashable,  # noqa: ARG002
        ids: Int[Array, "tokens"],  # noqa: ARG002
        packing: Packing,  # noqa: ARG002
        first_tokens: Packing | None,  # noqa: ARG002
        compute: Callable[[], Float[Array, "n D"]],
    ) -> Float[Array, "n D"]:
        """Return ``compute()``."""
        return compute()

    def unpack(self, x: Float[Array, "T H"], packing: Packing) -> Float[Array, "tokens H"]:
        """Return the tokens' rows of ``x``, in the order of the tokens."""
        return x[: packing.tokens]

    def to_host(self, vectors: Float[Array, "n D"]) -> Float[Array, "n D"]:
        """Return ``vectors``."""
        return vectors


def _table_pointers(tables: Embeddings) -> EmbeddingPointers:
    """Return the addresses of the tables."""
    width = tables.word.shape[1]
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
    """
    if weight_sums is not None:
        checked_whole(weight_sums, len(bounds) - 1, dtype=np.float64)
    pointers = PoolPointers(
        x=address(checked(hidden, -1, -1)),
        ldx=leading(hidden),
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
