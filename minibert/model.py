"""BERT's forward pass: the reference for all tests of minibert.

    Devlin, Chang, Lee and Toutanova 2018, "BERT", https://arxiv.org/abs/1810.04805
    Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762

It runs on numpy and CuPy arrays. It computes in the dtype of the parameters, float32 or float64. Each result goes
through ``tap(name, value)``, which can keep or replace it: ``minibert.study`` looks into the model through it.

    B  texts        H  hidden size            h  attention heads
    S  tokens       I  intermediate size      d  head size, H / h
"""

from collections.abc import Callable

from minibert import ops, params
from minibert.arrays import array_namespace
from minibert.config import BertConfig
from minibert.positions import bias_of_pairs, rows_of_positions
from minibert.typing import Array, Bool, Float, Int

#: It takes the name of a result, such as ``layers.3.weights``, and its value. It returns the value to continue with.
Tap = Callable[[str, Array], Array]


def untapped(name: str, value: Array) -> Array:  # noqa: ARG001
    """Return ``value``."""
    return value


def within(part: str, tap: Tap) -> Tap:
    """Return the tap for a part of the model. It puts the name of the part before the name of each result."""
    return lambda name, value: tap(f"{part}.{name}", value)


def bert(
    model: params.BertParams,
    config: BertConfig,
    input_ids: Int[Array, "B S"],
    attention_mask: Bool[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    tap: Tap = untapped,
) -> Float[Array, "B S H"]:
    """Return the token vectors of ``B`` texts. Shorter texts are padded at the end to ``S`` tokens.

    ``attention_mask`` is True at the real tokens. Real tokens never attend to padding. The vectors at padded positions
    are finite but have no meaning. The ids must be inside the embedding tables: this function does not check them.
    """
    x = embed(model.embeddings, config, input_ids, token_type_ids, within("embeddings", tap))
    bias = bias_of_pairs(model.relative_bias, input_ids.shape[1])  # MPNet: (h, S, S); else 0
    for number, layer in enumerate(model.layers):
        tap_layer = within(f"layers.{number}", tap)
        x = attend(layer.attention, config, x, attention_mask, bias, tap_layer)
        x = feed_forward(layer.feed_forward, config, x, tap_layer)
    return x


def embed(
    table: params.Embeddings,
    config: BertConfig,
    input_ids: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    tap: Tap = untapped,
) -> Float[Array, "B S H"]:
    """Return the sum of each token's word, position and type embedding, layer-normalized.

    BERT counts positions from 0 in every text; RoBERTa counts them from the padding id.
    """
    words = tap("words", table.word[input_ids])  # (B, S, H)
    types = tap("types", table.token_type[token_type_ids])  # (B, S, H)
    rows = rows_of_positions(input_ids, config.position_padding_id)  # (B, S)
    positions = tap("positions", table.position[rows])  # (B, S, H)
    return tap("x", ops.layer_norm(words + types + positions, *table.norm, eps=config.layer_norm_eps))


def attend(
    layer: params.SelfAttention,
    config: BertConfig,
    x: Float[Array, "B S H"],
    attention_mask: Bool[Array, "B S"],
    bias: Float[Array, "h S S"] | float = 0.0,
    tap: Tap = untapped,
) -> Float[Array, "B S H"]:
    """Return LayerNorm(x + MultiHead(x)).

    MultiHead(x) = Concat(head_1, ..., head_h) W_O, where each head is Attention(Q, K, V) on its own slice.
    """
    h = config.num_attention_heads
    Q = tap("Q", ops.split_heads(ops.linear(x, *layer.query), h))  # (B, h, S, d)
    K = tap("K", ops.split_heads(ops.linear(x, *layer.key), h))  # (B, h, S, d)
    V = tap("V", ops.split_heads(ops.linear(x, *layer.value), h))  # (B, h, S, d)
    mask = attention_mask[:, None, None, :]  # (B, 1, 1, S)
    heads = tap("heads", scaled_dot_product_attention(Q, K, V, mask, bias, tap))  # (B, h, S, d)
    multihead = tap("multihead", ops.linear(ops.merge_heads(heads), *layer.output))  # (B, S, H)
    return tap("attended", ops.layer_norm(x + multihead, *layer.norm, eps=config.layer_norm_eps))


def scaled_dot_product_attention(
    Q: Float[Array, "B h S d"],
    K: Float[Array, "B h S d"],
    V: Float[Array, "B h S d"],
    mask: Bool[Array, "B 1 1 S"],
    bias: Float[Array, "h S S"] | float = 0.0,
    tap: Tap = untapped,
) -> Float[Array, "B h S d"]:
    """Return softmax(Q K^T / sqrt(d) + bias) V over the keys where ``mask`` is True."""
    d = Q.shape[-1]
    scores = tap("scores", Q @ K.swapaxes(-2, -1) * d**-0.5 + bias)  # (B, h, S, S): query by key
    weights = tap("weights", ops.softmax(scores, mask))  # (B, h, S, S): each row sums to 1
    return weights @ V  # (B, h, S, d)


def feed_forward(
    layer: params.FeedForward, config: BertConfig, x: Float[Array, "B S H"], tap: Tap = untapped
) -> Float[Array, "B S H"]:
    """Return LayerNorm(x + W_2 act(W_1 x + b_1) + b_2), for each token separately."""
    act = ops.activation(config.hidden_act)
    inner = tap("inner", act(ops.linear(x, *layer.intermediate)))  # (B, S, I)
    outer = tap("outer", ops.linear(inner, *layer.output))  # (B, S, H)
    return tap("x", ops.layer_norm(x + outer, *layer.norm, eps=config.layer_norm_eps))


def pool_first_token(pooler: params.Linear, x: Float[Array, "B S H"]) -> Float[Array, "B H"]:
    """Return tanh(W x_0 + b), where x_0 is the first token. BERT trained it on next-sentence prediction.

    sentence-transformers does not use it: its "cls" pooling takes ``x[:, 0]`` unchanged.
    """
    return array_namespace(x).tanh(ops.linear(x[:, 0], *pooler))
