"""What each part of the model added to a vector: exact sums, and each part against a forward pass without it."""

import numpy as np
import pytest
from study_cases import LINEAR, NOT_LINEAR, chain, close, pooled
from support import CARDS, twin

from minibert import SentenceEncoder, study

TEXT = "No man can play."
EACH_CARD = pytest.mark.parametrize("card", CARDS)


@EACH_CARD
@pytest.mark.parametrize("text", [TEXT, ""])
def test_contributions_sum_to_the_last_token_vectors(card, text):
    """There is one for each table, head and feed-forward layer; their sum is x, exactly."""
    trace = SentenceEncoder(twin(card)).trace(text)
    heads = len(trace.layers[0].heads)
    parts = trace.contributions()
    in_layers = [[*(f"layers.{i}.heads.{k}" for k in range(heads)), f"layers.{i}.outer"] for i in range(2)]

    assert list(parts) == ["words", "types", "positions", *in_layers[0], *in_layers[1], "biases"]
    assert {part.shape for part in parts.values()} == {trace.layers[-1].x.shape}
    close(sum(parts.values()), trace.layers[-1].x)


def replayed(trace, without=None):
    """Return the last token vectors where every layer normalization divides as it did in the trace, without a part."""
    params = trace.model.bert.params

    def of(name, part):
        return np.zeros_like(part) if name == without else part

    def fixed(x, before, layer_norm):
        """Return the layer normalization of ``x`` with the divisors of ``before``."""
        divisors = np.sqrt(((before - before.mean(axis=-1, keepdims=True)) ** 2).mean(axis=-1, keepdims=True) + 1e-12)
        return (x - x.mean(axis=-1, keepdims=True)) / divisors * layer_norm.weight + layer_norm.bias

    tables = {name: getattr(trace.embeddings, name) for name in ("words", "types", "positions")}
    own = sum(tables.values())
    x = fixed(sum(of(name, part) for name, part in tables.items()), own, params.embeddings.norm)
    own = trace.embeddings.x
    for number, (layer, weights) in enumerate(zip(trace.layers, params.layers, strict=True)):
        columns = np.split(weights.attention.output.weight, len(layer.heads), axis=1)
        for head, matrix in enumerate(columns):
            x = x + of(f"layers.{number}.heads.{head}", np.einsum("sd,nd->sn", layer.heads[head], matrix))
        x = fixed(x + weights.attention.output.bias, own + layer.multihead, weights.attention.norm)
        x = x + of(f"layers.{number}.outer", layer.outer)
        x = fixed(x, layer.attended + layer.outer, weights.feed_forward.norm)
        own = layer.x
    return x


@EACH_CARD
def test_contributions_are_what_is_missing_without_the_part(card):
    """Each is the difference of x with and without the part, where all divisors stay as they were."""
    trace = SentenceEncoder(twin(card)).trace(TEXT)
    parts = trace.contributions()

    close(replayed(trace), trace.layers[-1].x)
    for name, part in parts.items():
        if name != "biases":
            close(part, trace.layers[-1].x - replayed(trace, name))
            assert np.abs(part).max() > 1e-3


@pytest.mark.parametrize("prompt", ["", "a man: "])
@pytest.mark.parametrize("name", LINEAR)
def test_shares_sum_to_one(tmp_path, name, prompt):
    """All shares of the pooled vector sum to 1, for every pooling; each is its contribution, pooled."""
    trace = chain(tmp_path, name).trace(TEXT, prompt=prompt)
    shares = trace.shares()

    assert list(shares) == list(trace.contributions())
    assert {share.shape for share in shares.values()} == {trace.ids.shape}
    close(sum(share.sum() for share in shares.values()), 1.0)
    if name in {"cls", "lasttoken", "mean", "mean_sqrt_len_tokens", "weightedmean"}:
        for part, share in zip(trace.contributions().values(), shares.values(), strict=True):
            close(share.sum(), pooled(part, [name]) @ trace.pooled / (trace.pooled @ trace.pooled))


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_shares_are_refused_where_they_are_not_exact(tmp_path, name):
    """A module before the pooling makes them inexact, and the error says which one; contributions stay exact."""
    trace = chain(tmp_path, name).trace(TEXT)

    close(sum(trace.contributions().values()), trace.layers[-1].x)
    if "before" in NOT_LINEAR[name]:
        with pytest.raises(ValueError, match=rf"is no sum of the last layer's token vectors: {NOT_LINEAR[name]}\."):
            trace.shares()
    else:
        close(sum(share.sum() for share in trace.shares().values()), 1.0)


def test_a_trace_with_edits_is_refused():
    """An edit breaks the sum."""
    trace = SentenceEncoder(twin("BertModel-128d")).trace(TEXT, edit={"layers.0.heads": study.without(0)})
    for method in (trace.contributions, trace.shares):
        with pytest.raises(ValueError, match="exact only without edits; this trace has edits"):
            method()


@EACH_CARD
def test_value_norms(card):
    """They are the lengths of V_j times the columns of W_O that belong to the head."""
    trace = SentenceEncoder(twin(card)).trace(TEXT)
    for number, layer in enumerate(trace.layers):
        heads, tokens, size = layer.V.shape
        output = trace.model.bert.params.layers[number].attention.output.weight
        lengths = [
            [np.linalg.norm(output[:, k * size : (k + 1) * size] @ layer.V[k, j]) for j in range(tokens)]
            for k in range(heads)
        ]
        close(trace.value_norms(number), np.array(lengths))
