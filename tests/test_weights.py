"""Real weights: all-MiniLM-L6-v2."""

import json

import numpy as np
import pytest
from support import GOLDEN, assert_as_accurate, load

from minibert import BertModel, SentenceEncoder

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def expected():
    """Return sentence-transformers' vectors, and the texts."""
    arrays, metadata = load(GOLDEN / "all-MiniLM-L6-v2.safetensors")
    return arrays, json.loads(metadata["texts"])


@pytest.fixture(scope="module")
def encoder(minilm):
    """Return the encoder."""
    return SentenceEncoder(minilm, on_truncate="ignore")


def test_vectors_are_those_of_sentence_transformers(encoder, expected):
    """Every number is within 1e-6 of sentence-transformers', and as near to the exact one."""
    arrays, texts = expected
    vectors = encoder.encode(texts)

    np.testing.assert_allclose(vectors, arrays["embeddings.float32"], rtol=0, atol=1e-6, equal_nan=False)
    assert_as_accurate(vectors, arrays["embeddings.float32"], arrays["embeddings.float64"], factor=2)


def test_vectors_are_exact_to_three_ten_millionths(encoder, expected):
    """Every number is within 3e-7 of the exact one."""
    arrays, texts = expected

    np.testing.assert_allclose(encoder.encode(texts), arrays["embeddings.float64"], rtol=0, atol=3e-7, equal_nan=False)


def test_float64(minilm, expected):
    """In float64 the vectors agree with transformers' float64 to rounding."""
    arrays, texts = expected
    encoder = SentenceEncoder(minilm, on_truncate="ignore", dtype="float64")

    np.testing.assert_allclose(encoder.encode(texts), arrays["embeddings.float64"], rtol=0, atol=1e-14, equal_nan=False)


def test_limit_is_the_repos_own(encoder):
    """The limit is 256: sentence_bert_config.json's, not tokenizer.json's 128 or the tokenizer's 512 (L10, T4)."""
    assert encoder.max_seq_length == 256


def test_meaning(encoder):
    """A paraphrase is nearer than a sentence about something else."""
    query, paraphrase, other = encoder.encode(
        ["How do I reset my password?", "I forgot my login credentials.", "The train leaves at noon."]
    )

    assert query @ paraphrase > query @ other + 0.3


def test_attention_maps(minilm):
    """BertModel gives every layer's hidden states and attention maps of real text."""
    output = BertModel.from_pretrained(minilm)(
        [[101, 7592, 2088, 102]], output_hidden_states=True, output_attentions=True
    )

    assert len(output.hidden_states) == 7
    assert [weights.shape for weights in output.attentions] == [(1, 12, 4, 4)] * 6
    np.testing.assert_allclose([weights.sum(axis=-1) for weights in output.attentions], 1, atol=1e-6)
