"""The parameters of BERT: plain tuples of arrays, in the shapes of checkpoints.

V vocabulary, P positions, T token types, H hidden size, I intermediate size. A linear layer's weight is
``(out, in)``: it maps ``x`` to ``x @ weight.T + bias``.
"""

from typing import NamedTuple

from minibert.typing import Array, Float


class Linear(NamedTuple):
    """A linear layer."""

    weight: Float[Array, "out in"]
    bias: Float[Array, "out"]


class LayerNorm(NamedTuple):
    """The scale (gamma) and shift (beta) of a layer normalization."""

    weight: Float[Array, "H"]
    bias: Float[Array, "H"]


class Embeddings(NamedTuple):
    """The three embedding tables and the layer normalization of their sum."""

    word: Float[Array, "V H"]
    position: Float[Array, "P H"]
    token_type: Float[Array, "T H"]
    norm: LayerNorm


class SelfAttention(NamedTuple):
    """The projections of multi-head self-attention, ``(H, H)`` each, and the layer normalization after it."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    norm: LayerNorm


class FeedForward(NamedTuple):
    """The two linear layers, ``(I, H)`` and ``(H, I)``, and the layer normalization after them."""

    intermediate: Linear
    output: Linear
    norm: LayerNorm


class Layer(NamedTuple):
    """One encoder layer."""

    attention: SelfAttention
    feed_forward: FeedForward


class BertParams(NamedTuple):
    """All parameters of a checkpoint.

    ``pooler`` is None if the checkpoint has none. ``relative_bias`` has the bias of each attention head for each bucket
    of distances between tokens; it is None in all families but MPNet.
    """

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: Linear | None
    relative_bias: Float[Array, "buckets h"] | None = None
