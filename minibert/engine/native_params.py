"""The parameters of a model for the native kernels: packed matrices, and the addresses of everything."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minibert import params
from minibert.config import BertConfig
from minibert.engine.native import ACTIVATIONS, LayerPointers, Library, Shape, address, aligned, checked
from minibert.engine.packed import FeedForward, Layer, PackedParams, SelfAttention, Weights, distance_bias, query_scale
from minibert.params import Embeddings
from minibert.typing import Array


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
    return PackedParams(_contiguous(weights.embeddings()), layers, distance_bias(weights, config))


def adopt(library: Library, plain: PackedParams, config: BertConfig) -> PackedParams:
    """Return parameters for the library that are now arranged for numpy."""
    layers = _pack_layers(library, lambda number: _of_layer(plain.layers[number]), config)
    return PackedParams(_contiguous(plain.embeddings), layers, plain.distance_bias)


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

    return PackedParams(native.embeddings, tuple(map(plain, native.layers)), native.distance_bias)


def _contiguous(tables: Embeddings) -> Embeddings:
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
