"""tools/findings.py finds what was put into a model, and writes a record without anything about the machine."""

import json
import subprocess
import sys

import findings
import numpy as np
import pytest
from support import ROOT

from minibert import BUILTIN_MODEL, BertModel

pytestmark = pytest.mark.tools

PAIRS = """A man is eating food.,A man eats.,4.5
A dog runs in the park.,A dog is running outside.,4.2
The sky is blue today.,A man plays the guitar.,0.2
A woman reads a book.,A girl is reading.,3.1
"""


@pytest.fixture
def pairs(tmp_path):
    """Return a benchmark of four pairs."""
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRS, "utf-8")
    return path


@pytest.fixture
def corpus(pairs):
    """Return the built-in model with this benchmark."""
    return findings.Corpus(BUILTIN_MODEL, pairs)


def changed(corpus, **parts):
    """Put other parameters into the last layer's feed-forward part."""
    *layers, last = corpus.bert.params.layers
    last = last._replace(feed_forward=last.feed_forward._replace(**parts))
    corpus.bert = BertModel(corpus.bert.config, corpus.bert.params._replace(layers=(*layers, last)))


def test_a_dead_dimension_is_found(corpus):
    """A dimension with neither scale nor bias is always 0."""
    norm = corpus.bert.params.layers[-1].feed_forward.norm
    changed(corpus, norm=norm._replace(weight=np.where(np.arange(128) == 5, 0, norm.weight), bias=0 * norm.bias))

    assert findings.dead_dimensions(corpus)["dimensions"] == [5]


def test_a_drain_is_found(corpus):
    """What the feed-forward part writes into a dimension without scale is the part of the length that is lost."""
    _, last = corpus.bert.params.layers
    norm, output = last.feed_forward.norm, last.feed_forward.output
    weight = np.where(np.arange(128) == 7, 1e-3, np.ones(128, np.float32))
    bias = np.where(np.arange(128) == 7, 1e6, 0).astype(np.float32)
    changed(corpus, norm=norm._replace(weight=weight), output=output._replace(weight=0 * output.weight, bias=bias))
    found = findings.stop_words(corpus)

    assert list(found["drain"]) == [7]
    assert found["in_drain"]["frequent"] == pytest.approx(127 / 128, abs=1e-3)  # the mean has the rest


def test_shares_of_a_text_have_the_mean_1(corpus):
    """The parts of the tokens of one text sum to the number of its tokens."""
    corpus.ids = [ids for ids in corpus.ids if len(set(ids)) == len(ids)][:1]
    share = findings.stop_words(corpus)["share"]

    assert share["[CLS]"] + share["[SEP]"] + (len(corpus.ids[0]) - 2) * share["rare"] == pytest.approx(
        len(corpus.ids[0]), abs=0.02
    )


def test_without_positions_a_shuffle_changes_nothing(corpus):
    """Without position embeddings, the model is a bag of words: the cosine after a shuffle is 1."""
    embeddings = corpus.bert.params.embeddings
    parameters = corpus.bert.params._replace(embeddings=embeddings._replace(position=0 * embeddings.position))
    corpus.bert = BertModel(corpus.bert.config, parameters)
    found = findings.word_order(corpus)

    assert (found["shuffled_mean"], found["shuffled_lowest"]) == (1.0, 1.0)
    assert found["without_positions"] == found["spearman"]


def test_layers_agree_with_the_vectors_of_encode(corpus, pairs):
    """The last layer with mean pooling has the correlation of the encoder; the cosines are those of all pairs."""
    from sts import read_pairs, score

    benchmark = read_pairs(pairs)
    vectors = corpus.encoder.encode([*benchmark.left, *benchmark.right])
    found = findings.layers(corpus)
    cosines = vectors @ vectors.T

    assert found["mean"][-1] == pytest.approx(score(vectors, benchmark), abs=1e-4)
    assert found["cosine_of_two_texts"][-1] == pytest.approx((cosines.sum() - 8) / (8 * 7), abs=1e-4)


def test_heads_agree_with_a_trace(corpus):
    """The weights and lengths of one text are those of its trace."""
    corpus.ids = corpus.ids[:1]
    text, tokens = min(text for pair in corpus.pairs for text in pair), len(corpus.ids[0])
    trace, masked = corpus.encoder.trace([text, " ".join(["[MASK]"] * (tokens - 2))])
    found = findings.heads(corpus)

    assert masked.ids[1:-1].tolist() == [103] * (tokens - 2)
    for layer in range(2):
        for name, each in (("previous", trace), ("previous_masked", masked)):
            previous = np.diagonal(each.layers[layer].weights, -1, 1, 2)[:, 1 : tokens - 2].mean(axis=1)
            np.testing.assert_allclose(found[name][layer], previous, rtol=0, atol=1e-4)
        weights = trace.layers[layer].weights[:, 1:-1]
        arriving = weights * trace.value_norms(layer)[:, None]
        arriving /= arriving.sum(axis=-1, keepdims=True)
        assert found["cls"][layer] == pytest.approx(weights[..., 0].mean(), abs=1e-4)
        assert found["cls_norm"][layer] == pytest.approx(arriving[..., 0].mean(), abs=1e-4)
    assert found["equal"] == pytest.approx(1 / tokens, abs=1e-4)


def test_the_record(pairs, tmp_path):
    """The program prints each finding, and writes a record without paths."""
    out = tmp_path / "record.json"
    command = [sys.executable, ROOT / "tools" / "findings.py", "--pairs", pairs, "--out", out, "--explain", "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(out.read_text("utf-8"))

    assert record["data"]["pairs"] == 4
    assert record["explanations"]["pairs"] == 2
    assert str(tmp_path) not in out.read_text("utf-8")
    for name in findings.FINDINGS:
        assert record[name]
        assert f"{name}\n" in run.stdout


def test_explanations_agree_with_encode(corpus):
    """Without the token that has the largest share, the similarity falls more than without a random token."""
    corpus.explain = 4
    found = findings.explanations(corpus)

    assert found["pairs"] == 4
    assert found["error"]["largest"] <= 0.01
    assert found["ratio"]["words"][0] > 1
