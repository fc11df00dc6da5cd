"""BERT's fast forward pass: one array has all tokens of a batch, one row for each token, without padding.

It computes the same as :mod:`minibert.model`, with the fused operations of :mod:`minibert.engine.fused`. It uses
parameters that :func:`load` rearranged once. The bits of a text's vectors do not depend on the other texts.

    T  rows, one per token    H  hidden size            h  attention heads
    n  texts                  I  intermediate size      d  head size, H / h
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert import params
from minibert.config import BertConfig
from minibert.engine.fused import Fused, Operations, partial_sums
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule, rule_for
from minibert.engine.threads import one_blas_thread
from minibert.errors import TokenizerError
from minibert.positions import bias_by_distance
from minibert.typing import Array, DType, Float, Int

#: The largest number of products in one partial sum, in the output projection and in the two feed-forward layers. With
#: twice as many, the error of BERT-base against float64 is larger than that of transformers (tools/accuracy.py measures
#: it). For queries, keys and values, it makes almost no difference.
_LONGEST_SUM = 384
_NO_LIMIT = 2**31


class SelfAttention(NamedTuple):
    """The projections of multi-head self-attention. Weights are ``(in, out)``.

    The query weights and bias include the scale 1 / sqrt(d). Keys have no bias: it would add the same number to all
    scores of a query, so the softmax would not change. Values have no bias either: the weights of a query sum to 1, so
    the output bias can include the value bias, multiplied by the output projection.
    """

    qkv: Float[Array, "H 3H"]
    query_bias: Float[Array, "H"]
    output: Float[Array, "H H"]
    output_bias: Float[Array, "H"]
    norm: params.LayerNorm


class FeedForward(NamedTuple):
    """The two linear layers. Weights are ``(in, out)``."""

    up: Float[Array, "H I"]
    up_bias: Float[Array, "I"]
    down: Float[Array, "I H"]
    down_bias: Float[Array, "H"]
    norm: params.LayerNorm


class Layer(NamedTuple):
    """One encoder layer."""

    attention: SelfAttention
    feed_forward: FeedForward


class PackedParams(NamedTuple):
    """The parameters of BERT for :func:`bert`.

    Attributes:
        embeddings: The embeddings.
        layers: The layers, as :meth:`minibert.engine.fused.Fused.layer` takes them: :class:`Layer`, or what a native
            library needs.
        distance_bias: What MPNet adds to a score, by the distance from the query to the key; None in other families.
            See :func:`minibert.positions.bias_by_distance`.
    """

    embeddings: params.Embeddings
    layers: tuple[Any, ...]
    distance_bias: Float[Array, "h 2P-1"] | None = None


class Weights(Protocol):
    """The parameters of a BertModel. Each method call reads some of them."""

    def embeddings(self) -> params.Embeddings:
        """Return the embeddings."""
        ...

    def layer(self, number: int) -> params.Layer:
        """Return one layer. The first has the number 0."""
        ...

    def relative_bias(self) -> Float[Array, "buckets h"] | None:
        """Return MPNet's biases by distance; None in other families."""
        ...


def load(
    weights: Weights,
    config: BertConfig,
    place: Callable[[Array], Any] = lambda array: array,
    place_bias: Callable[[Array], Any] = lambda array: array,
) -> PackedParams:
    """Return the rearranged parameters of a BertModel. It processes one layer at a time.

    Args:
        weights: The source of the parameters.
        config: The sizes and settings of the model.
        place: Returns the array for the fused operations, such as a copy on their device.
        place_bias: The same for the biases by distance.

    Raises:
        WeightsError: A parameter cannot be used.
    """
    with one_blas_thread():  # the folded biases are matrix products; they must always have the same bits
        layers = (weights.layer(number) for number in range(config.num_hidden_layers))
        packed = tuple(_map(place, pack_layer(layer, config.num_attention_heads)) for layer in layers)
    bias = distance_bias(weights, config)
    return PackedParams(_map(place, weights.embeddings()), packed, None if bias is None else place_bias(bias))


def distance_bias(weights: Weights, config: BertConfig) -> Float[Array, "h 2P-1"] | None:
    """Return the biases for all distances in the longest text."""
    table = weights.relative_bias()
    return None if table is None else bias_by_distance(table, config.max_tokens)


def _map(place: Callable[[Array], Any], parameters: Any) -> Any:
    """Return parameters with ``place`` applied to each array."""
    if isinstance(parameters, np.ndarray):
        return place(parameters)
    return type(parameters)(*(_map(place, each) for each in parameters))


def row_rule(config: BertConfig, dtype: DType) -> RowRule:
    """Return the row rule for all matrix products of a model with this config."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741
    products = [(H, 3 * H, _NO_LIMIT), (H, 2 * H, _NO_LIMIT), (H, H, _NO_LIMIT), (H, H, _LONGEST_SUM)]
    products += [(H, I, _LONGEST_SUM), (I, H, _LONGEST_SUM)]
    return rule_for(
        ((k.stop - k.start, outputs) for inputs, outputs, longest in products for k in partial_sums(inputs, longest)),
        dtype,
    )


def query_scale(hidden: int, heads: int) -> float:
    """Return 1 / sqrt(d), the factor of the query weights and bias."""
    return 1.0 / math.sqrt(hidden // heads)  # both operations are exact to the last bit; a power is not


def pack_layer(layer: params.Layer, heads: int) -> Layer:
    """Return a layer's parameters, rearranged for the fused operations."""
    attention, feed_forward = layer.attention, layer.feed_forward
    hidden = attention.query.weight.shape[1]
    scale = query_scale(hidden, heads)
    qkv = np.empty((hidden, 3 * hidden), attention.query.weight.dtype)
    np.multiply(attention.query.weight.T, scale, out=qkv[:, :hidden])
    qkv[:, hidden : 2 * hidden] = attention.key.weight.T
    qkv[:, 2 * hidden :] = attention.value.weight.T
    value_bias = attention.output.weight.astype(np.float64) @ attention.value.bias
    return Layer(
        SelfAttention(
            qkv=qkv,
            query_bias=attention.query.bias * qkv.dtype.type(scale),
            output=np.ascontiguousarray(attention.output.weight.T),
            output_bias=(value_bias + attention.output.bias).astype(qkv.dtype),
            norm=attention.norm,
        ),
        FeedForward(
            up=np.ascontiguousarray(feed_forward.intermediate.weight.T),
            up_bias=feed_forward.intermediate.bias,
            down=np.ascontiguousarray(feed_forward.output.weight.T),
            down_bias=feed_forward.output.bias,
            norm=feed_forward.norm,
        ),
    )


def bert(
    model: PackedParams,
    config: BertConfig,
    ids: Int[Array, "tokens"],
    packing: Packing,
    fused: Fused,
    first_tokens: Packing | None = None,
    output_hidden_states: Callable[[Float[Array, "T H"]], None] = lambda _: None,
) -> Float[Array, "T H"]:
    """Return the hidden states after the last layer. Their memory belongs to ``fused``.

    Args:
        model: The parameters.
        config: The sizes and settings.
        ids: The ids of all tokens, one text after the other.
        packing: The rows of the tokens.
        fused: The operations.
        first_tokens: The rows of the first tokens, if the last layer must compute only these; else None.
        output_hidden_states: This function is called with the embeddings, and with the hidden states after each layer.

    Raises:
        TokenizerError: An id, or a position in a text, is outside the embedding tables.
    """
    x = fused.embed_layer_norm(model.embeddings, ids, packing, config)
    output_hidden_states(x)
    *layers, last = model.layers
    for layer in layers:
        x = fused.layer(layer, config, x, packing, None, model.distance_bias)
        output_hidden_states(x)
    x = fused.layer(last, config, x, packing, first_tokens, model.distance_bias)
    output_hidden_states(x)
    return x


def require_in_tables(
    tables: params.Embeddings, ids: Int[Array, "tokens"], packing: Packing, config: BertConfig
) -> None:
    """Raise TokenizerError unless each token has embeddings.

    All implementations of ``embed_layer_norm`` call it. Without this check, kernels would read beyond the tables.
    """
    least, most = int(ids.min(initial=0)), int(ids.max(initial=0))
    words, longest = len(tables.word), int(packing.lengths.max(initial=0))
    positions = len(tables.position) - (config.max_position_embeddings - config.max_tokens)
    if least < 0 or most >= words:
        raise TokenizerError(
            f"token ids must be from 0 to {words - 1}, the rows of the word embeddings; there is an id "
            f"{least if least < 0 else most}. Does the tokenizer belong to this model?"
        )
    if longest > positions:
        raise TokenizerError(
            f"a text must have at most {positions} tokens, the rows of the position embeddings; there is one of "
            f"{longest}. Lower max_seq_length."
        )


class ByOperations:
    """A layer made of the operations of :class:`minibert.engine.fused.Operations`."""

    def layer(
        self: Operations,
        layer: Layer,
        config: BertConfig,
        x: Float[Array, "T H"],
        packing: Packing,
        first_tokens: Packing | None = None,
        distance_bias: Float[Array, "h 2P-1"] | None = None,
    ) -> Float[Array, "R H"]:
        """Return the hidden states after a layer, of all tokens or of first tokens."""
        if first_tokens is None:
            x = attend(layer.attention, config, x, packing, distance_bias, self)
        else:
            x = attend_first(layer.attention, config, x, packing, first_tokens, distance_bias, self)
            packing = first_tokens
        return feed_forward(layer.feed_forward, config, x, packing, self)


def attend(
    layer: SelfAttention,
    config: BertConfig,
    x: Float[Array, "T H"],
    packing: Packing,
    distance_bias: Float[Array, "h 2P-1"] | None,
    fused: Operations,
) -> Float[Array, "T H"]:
    """Return LayerNorm(x + MultiHead(x))."""
    qkv = fused.linear("qkv", x, layer.qkv, packing, _NO_LIMIT)
    Q, K, V = np.split(qkv, 3, axis=1)  # (T, H) each
    heads = fused.attention(Q, K, V, layer.query_bias, config.num_attention_heads, packing, packing, distance_bias)
    y = fused.linear("output", heads, layer.output, packing, _LONGEST_SUM)
    return fused.add_layer_norm(x, y, layer.output_bias, layer.norm, config.layer_norm_eps)


def attend_first(
    layer: SelfAttention,
    config: BertConfig,
    x: Float[Array, "T H"],
    packing: Packing,
    first_tokens: Packing,
    distance_bias: Float[Array, "h 2P-1"] | None,
    fused: Operations,
) -> Float[Array, "R H"]:
    """Return :func:`attend` for the first token of each text: one query per text, keys and values of all tokens."""
    hidden = x.shape[1]
    K, V = np.split(fused.linear("qkv", x, layer.qkv[:, hidden:], packing, _NO_LIMIT), 2, axis=1)
    x = fused.take_first(x, packing, first_tokens)
    Q = fused.linear("query", x, layer.qkv[:, :hidden], first_tokens, _NO_LIMIT)
    heads = fused.attention(Q, K, V, layer.query_bias, config.num_attention_heads, first_tokens, packing, distance_bias)
    y = fused.linear("output", heads, layer.output, first_tokens, _LONGEST_SUM)
    return fused.add_layer_norm(x, y, layer.output_bias, layer.norm, config.layer_norm_eps)


def feed_forward(
    layer: FeedForward, config: BertConfig, x: Float[Array, "T H"], packing: Packing, fused: Operations
) -> Float[Array, "T H"]:
    """Return LayerNorm(x + W_2 act(W_1 x + b_1) + b_2), for each token separately."""
    inner = fused.linear_activation(x, layer.up, layer.up_bias, config.hidden_act, packing, _LONGEST_SUM)
    y = fused.linear("output", inner, layer.down, packing, _LONGEST_SUM)
    return fused.add_layer_norm(x, y, layer.down_bias, layer.norm, config.layer_norm_eps)
