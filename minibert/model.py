"""BERT's forward pass: the reference for all tests of minibert.

    Devlin, Chang, Lee and Toutanova 2018, "BERT", https://arxiv.org/abs/1810.04805
    Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762

It runs on numpy and CuPy arrays. It computes in the dtype of the parameters, float32 or float64.

    B  texts        H  hidden size            h  attention heads
    S  tokens       I  intermediate size      d  head size, H / h
"""

from typing import NamedTuple

from minibert import ops, params
from minibert.arrays import array_namespace
from minibert.config import BertConfig
from minibert.typing import Array, Bool, Float, Int


class BertOutput(NamedTuple):
    """The result of BERT. The fields have the names of transformers' BertModel.

    Attributes:
        last_hidden_state: The token vectors after the last layer, ``(B, S, H)``.
        pooler_output: The pooled first token, ``(B, H)``; None if the checkpoint has no pooler.
        hidden_states: On request, L + 1 arrays ``(B, S, H)``: the embeddings, then the output of each layer.
        attentions: On request, L arrays ``(B, h, S, S)``: each layer's attention weights, query by key.
    """

    last_hidden_state: Float[Array, "B S H"]
    pooler_output: Float[Array, "B H"] | None
    hidden_states: tuple[Float[Array, "B S H"], ...] | None
    attentions: tuple[Float[Array, "B h S S"], ...] | None


def bert(
    model: params.BertParams,
    config: BertConfig,
    input_ids: Int[Array, "B S"],
    attention_mask: Bool[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
    *,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> BertOutput:
    """Return the token vectors of ``B`` texts. Shorter texts are padded at the end to ``S`` tokens.

    ``attention_mask`` is True at the real tokens. Real tokens never attend to padding. The vectors at padded positions
    are finite but have no meaning. The ids must be inside the embedding tables: this function does not check them.
    """
    hidden_states, attentions = [], []

    x = embed(model.embeddings, config, input_ids, token_type_ids)
    hidden_states.append(x)
    for layer in model.layers:
        x, weights = attend(layer.attention, config, x, attention_mask)
        x = feed_forward(layer.feed_forward, config, x)
        if output_attentions:
            attentions.append(weights)
        if output_hidden_states:
            hidden_states.append(x)

    return BertOutput(
        last_hidden_state=x,
        pooler_output=None if model.pooler is None else pool_first_token(model.pooler, x),
        hidden_states=tuple(hidden_states) if output_hidden_states else None,
        attentions=tuple(attentions) if output_attentions else None,
    )


def embed(
    table: params.Embeddings,
    config: BertConfig,
    input_ids: Int[Array, "B S"],
    token_type_ids: Int[Array, "B S"],
) -> Float[Array, "B S H"]:
    """Return the sum of each token's word, position and type embedding, layer-normalized.

    Positions count from 0 in every text; they do not depend on the mask.
    """
    tokens = input_ids.shape[1]
    x = table.word[input_ids] + table.token_type[token_type_ids]  # (B, S, H)
    x += table.position[:tokens]
    return ops.layer_norm(x, *table.norm, eps=config.layer_norm_eps)


def attend(
    layer: params.SelfAttention,
    config: BertConfig,
    x: Float[Array, "B S H"],
    attention_mask: Bool[Array, "B S"],
) -> tuple[Float[Array, "B S H"], Float[Array, "B h S S"]]:
    """Return LayerNorm(x + MultiHead(x)), and the attention weights.

    MultiHead(x) = Concat(head_1, ..., head_h) W_O, where each head is Attention(Q, K, V) on its own slice.
    """
    h = config.num_attention_heads
    Q = ops.split_heads(ops.linear(x, *layer.query), h)  # (B, h, S, d)
    K = ops.split_heads(ops.linear(x, *layer.key), h)  # (B, h, S, d)
    V = ops.split_heads(ops.linear(x, *layer.value), h)  # (B, h, S, d)
    heads, weights = scaled_dot_product_attention(Q, K, V, attention_mask[:, None, None, :])
    concat = ops.merge_heads(heads)  # (B, S, H)
    x = x + ops.linear(concat, *layer.output)
    return ops.layer_norm(x, *layer.norm, eps=config.layer_norm_eps), weights


def scaled_dot_product_attention(
    Q: Float[Array, "B h S d"],
    K: Float[Array, "B h S d"],
    V: Float[Array, "B h S d"],
    mask: Bool[Array, "B 1 1 S"],
) -> tuple[Float[Array, "B h S d"], Float[Array, "B h S S"]]:
    """Return softmax(Q K^T / sqrt(d)) V over the keys where ``mask`` is True, and the softmax itself."""
    d = Q.shape[-1]
    scores = Q @ K.swapaxes(-2, -1)  # (B, h, S, S): query by key
    scores *= d**-0.5
    weights = ops.softmax(scores, mask)
    return weights @ V, weights  # (B, h, S, d)


def feed_forward(layer: params.FeedForward, config: BertConfig, x: Float[Array, "B S H"]) -> Float[Array, "B S H"]:
    """Return LayerNorm(x + W_2 act(W_1 x + b_1) + b_2), for each token separately."""
    act = ops.activation(config.hidden_act)
    inner = act(ops.linear(x, *layer.intermediate))  # (B, S, I)
    x = x + ops.linear(inner, *layer.output)  # (B, S, H)
    return ops.layer_norm(x, *layer.norm, eps=config.layer_norm_eps)


def pool_first_token(pooler: params.Linear, x: Float[Array, "B S H"]) -> Float[Array, "B H"]:
    """Return tanh(W x_0 + b), where x_0 is the first token. BERT trained it on next-sentence prediction.

    sentence-transformers does not use it: its "cls" pooling takes ``x[:, 0]`` unchanged.
    """
    return array_namespace(x).tanh(ops.linear(x[:, 0], *pooler))
