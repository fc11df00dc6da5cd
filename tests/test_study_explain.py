"""Why two texts are similar: every sum, against definitions in plain numpy."""

import copy
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import LINEAR, NOT_LINEAR, by_hand, chain, chains, close, pooled
from support import CARDS, MODES, twin

from minibert import SentenceEncoder, study
from minibert.modules.kinds import Pooling
from minibert.study.similar import integrate
from minibert.study.traces import Trace

A, B = "No man can play.", "The happy cat listens!"
EACH_CARD = pytest.mark.parametrize("card", CARDS)
EACH_FUNCTION = pytest.mark.parametrize("function", ["cosine", "dot"])


@pytest.fixture(scope="module")
def models(encoder):
    """Return the reference of a twin with each pooling mode."""
    return {mode: dataclasses.replace(encoder._reference, modules=(Pooling(mode),)) for mode in MODES}


def score_of(function, a, b):
    """Return the similarity of two vectors."""
    return a @ b if function == "dot" else a @ b / np.sqrt((a @ a) * (b @ b))


def assert_sums(found, tolerance):
    """Fail unless all shares of a similarity have the sum that they promise."""
    size = np.linalg.norm(found.a.vector) * np.linalg.norm(found.b.vector) if found.function == "dot" else 1.0
    close(found.score, score_of(found.function, found.a.vector, found.b.vector))
    close(found.words.sum() + found.rest + found.error, found.score)
    assert abs(found.error) <= (2 * tolerance + tolerance**2) * size
    for axis, trace in enumerate((found.a, found.b)):
        fixed = trace.special | (np.arange(len(trace.ids)) < trace.prompt_length)
        assert not np.compress(fixed, found.words, axis=axis).any()


# ---------------------------------------------------------------- pairs of token vectors


@EACH_FUNCTION
@pytest.mark.parametrize("truncate_dim", [None, 5])
@pytest.mark.parametrize("name", LINEAR)
def test_vectors_sum_to_the_score(tmp_path, name, truncate_dim, function):
    """The shares of token vectors sum to the score exactly, for every pooling, width and length of the vectors."""
    mine = chain(tmp_path, name, similarity_fn_name=function, truncate_dim=truncate_dim)
    for prompt in ("", "a man: "):
        found = mine.explain(mine.trace(A, prompt=prompt), mine.trace(B, prompt=prompt))
        assert found.why_no_vectors is None
        assert found.vectors.shape == (len(found.a.ids), len(found.b.ids))
        close(found.vectors.sum(), found.score)
        close(found.score, score_of(function, found.a.vector, found.b.vector))


def test_vectors_by_hand(tmp_path):
    """With mean pooling, a share is a product of two token vectors; with cls, all of the score is at [CLS]."""
    found = chain(tmp_path / "mean", "mean").explain(A, B)
    a, b = (trace.layers[-1].x for trace in (found.a, found.b))
    close(found.vectors, a @ b.T / np.linalg.norm(a.sum(axis=0)) / np.linalg.norm(b.sum(axis=0)))
    first = chain(tmp_path / "cls", "cls").explain(A, B)
    assert np.flatnonzero(first.vectors).tolist() == [0]
    close(first.vectors[0, 0], first.score)
    largest = chain(tmp_path / "max", "max").explain(A, B)
    a, b = (trace.layers[-1].x for trace in (largest.a, largest.b))
    expected = np.zeros((len(a), len(b)))
    np.add.at(expected, (a.argmax(axis=0), b.argmax(axis=0)), a.max(axis=0) * b.max(axis=0))
    close(largest.vectors, expected / np.linalg.norm(a.max(axis=0)) / np.linalg.norm(b.max(axis=0)))


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_vectors_are_none_where_they_are_not_exact(tmp_path, name):
    """The reason says which module it is. All other parts of the result are there."""
    found = chain(tmp_path, name).explain("a cat", "the man")

    assert found.vectors is None
    assert found.why_no_vectors == NOT_LINEAR[name]
    assert f"vectors        None: {NOT_LINEAR[name]}" in repr(found)
    assert_sums(found, 0.01)


# ---------------------------------------------------------------- pairs of words


@EACH_FUNCTION
@pytest.mark.parametrize("name", chains())
def test_words_and_rest_sum_to_the_score(tmp_path, name, function):
    """After every chain of modules, the sum misses the score by what the tolerance allows. Prompts have no share."""
    mine = chain(tmp_path, name, similarity_fn_name=function)

    assert_sums(mine.explain(mine.trace("a cat", prompt="no man: "), "a man", tolerance=1e-3), 1e-3)


@EACH_CARD
def test_a_smaller_tolerance_gives_a_smaller_error(card):
    """The error falls, and the shares become more exact."""
    mine = SentenceEncoder(twin(card))
    rough, fine = (mine.explain(A, B, tolerance=tolerance) for tolerance in (1e-3, 1e-5))
    assert_sums(rough, 1e-3)
    assert_sums(fine, 1e-5)

    assert abs(fine.error) < 2e-5
    np.testing.assert_allclose(rough.words, fine.words, atol=2e-3)


@EACH_CARD
def test_words_by_hand(card):
    """The shares are the integrated Jacobians of Moeller et al., here with 40 fixed points and central differences."""
    mine = SentenceEncoder(twin(card))
    found = mine.explain("a man", "the p", tolerance=1e-5)
    added, blanks, ends = [], [], []
    for trace in (found.a, found.b):
        blank = np.where(trace.special, trace.ids, mine.tokenizer.token_to_id("[MASK]"))
        start, end = (by_hand(twin(card), row)[0]["embeddings.x"] for row in (blank, trace.ids))

        def vector(x, ids=trace.ids):
            return by_hand(twin(card), ids, edits={"embeddings.x": lambda _: x})[1]

        nodes, weights = np.polynomial.legendre.leggauss(40)
        total = np.zeros((len(start), len(trace.vector)))
        for place, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for token in np.flatnonzero(~trace.special):
                step = np.zeros_like(start)
                step[token] = 1e-5 * (end - start)[token]
                x = start + place * (end - start)
                total[token] += weight * (vector(x + step) - vector(x - step)) / 2e-5
        added.append(total)
        blanks.append(vector(start))
        ends.append(vector(end))
    away = np.eye(len(blanks[0]))
    for direction in blanks:
        direction = away @ direction  # noqa: PLW2901
        if np.linalg.norm(direction) > 1e-6:
            away -= np.outer(direction, direction) / (direction @ direction)
    length = np.linalg.norm(ends[0]) * np.linalg.norm(ends[1])

    np.testing.assert_allclose(found.words, added[0] @ away @ added[1].T / length, atol=3e-5)
    np.testing.assert_allclose(found.rest, ends[0] @ (np.eye(len(away)) - away) @ ends[1] / length, atol=1e-10)


def test_texts_of_equal_length_set_one_direction_aside(encoder):
    """They have the same blank text. A second direction would be rounding error, with a share of its own."""
    found = encoder.explain("cat and man", "man and cat")
    blank = encoder.trace("[MASK] [MASK] [MASK]").vector

    a, b = found.a.vector, found.b.vector
    close(found.rest, (a @ blank) * (b @ blank) / (blank @ blank) / np.linalg.norm(a) / np.linalg.norm(b))


@EACH_CARD
def test_a_text_and_itself(card):
    """The score is 1, the shares are symmetric, and nothing of a text is nearer to the other than itself."""
    found = SentenceEncoder(twin(card)).explain(A, A, tolerance=1e-3)

    close(found.score, 1.0)
    close(found.words, found.words.T)
    close(found.by_layer, np.ones(3))
    close(found.without_head, np.zeros_like(found.without_head))
    assert (found.without_token[0][1:-1] > 0).all()
    close(*found.without_token)


@pytest.mark.parametrize(("a", "b"), [("[MASK] [MASK]", "[MASK]"), ("", "[MASK]"), ("", ""), ("", A), (A, "[MASK]")])
def test_texts_without_words(encoder, a, b):
    """[MASK] is what a word is faded in from: it has no share. All of the score is rest."""
    found = encoder.explain(a, b)

    assert_sums(found, 0.01)
    assert not found.words.any()
    close(found.rest, found.score)
    close(found.vectors.sum(), found.score)
    assert [part.shape for part in found.without_token] == [found.a.ids.shape, found.b.ids.shape]


@settings(deadline=None, max_examples=20)
@given(texts=st.tuples(*[st.text("acdeno 4.[]中é", max_size=8)] * 2), mode=st.sampled_from(MODES))
def test_any_two_texts(models, texts, mode):
    """All sums are right for any texts and poolings, and exchange of the texts exchanges the shares."""
    a, b = (Trace.of(models[mode], text, "", 512, ["*"], {}) for text in texts)
    there, back = study.Similarity(a, b), study.Similarity(b, a)

    assert_sums(there, 0.01)
    close(there.vectors.sum(), there.score)
    close(there.words, back.words.T)
    close(there.rest, back.rest)
    close(there.vectors, back.vectors.T)
    close(there.without_head, back.without_head)


def test_prompts_have_no_share(changeable):
    """The words of a prompt stay on the way, in both texts, for both ways to pool."""
    for included in (True, False):
        changeable.include_prompt = included
        traces = [changeable.trace(text, prompt="a man: ") for text in (A, B)]
        found = changeable.explain(*traces, tolerance=1e-3)
        assert_sums(found, 1e-3)
        for falls, trace in zip(found.without_token, traces, strict=True):
            assert not falls[: trace.prompt_length].any()
            assert falls[trace.prompt_length : -1].all()
    changeable.include_prompt = True
    mixed = changeable.trace(A, prompt="a man: ")
    assert_sums(changeable.explain(mixed, traces[1], tolerance=1e-4), 1e-4)
    assert_sums(changeable.explain(traces[1], mixed, tolerance=1e-4), 1e-4)


# ---------------------------------------------------------------- without a part


@EACH_FUNCTION
@EACH_CARD
def test_without_token(card, function):
    """The score falls by what it is without the token's id, computed by the second implementation."""
    found = SentenceEncoder(twin(card), similarity_fn_name=function).explain(A, "the cat")
    for trace, other, falls in zip((found.a, found.b), (found.b, found.a), found.without_token, strict=True):
        assert falls[0] == falls[-1] == 0
        for place in range(1, len(trace.ids) - 1):
            _, vector = by_hand(twin(card), np.delete(trace.ids, place))
            close(falls[place], found.score - score_of(function, vector, other.vector))


def test_without_token_under_a_prompt(tmp_path):
    """The prompt stays left out of the pooling, and the modules after it work on the new vector."""
    mine = chain(tmp_path, "word weights without the prompt")
    found = mine.explain(mine.trace(A, prompt="a man: "), B)
    for place in np.flatnonzero(found.without_token[0]):
        _, vector = by_hand(tmp_path, np.delete(found.a.ids, place), found.a.prompt_length)
        close(found.without_token[0][place], found.score - score_of("cosine", vector, found.b.vector))
    assert np.flatnonzero(found.without_token[0])[0] == found.a.prompt_length


@EACH_FUNCTION
@EACH_CARD
def test_without_head(card, function):
    """The score falls by what it is with the head of both texts set to 0, as study.without does."""
    mine = SentenceEncoder(twin(card), similarity_fn_name=function)
    found = mine.explain(A, B)
    layers, heads = found.without_head.shape
    for layer in range(layers):
        for head in range(heads):
            edit = {f"layers.{layer}.heads": study.without(head)}
            without = score_of(function, *(trace.vector for trace in mine.trace([A, B], edit=edit)))
            close(found.without_head[layer, head], found.score - without)
    assert (layers, heads) == (2, len(found.a.layers[0].heads))


@pytest.mark.parametrize("name", [*MODES, "all modes", "without the prompt", "dense", "layers"])
def test_by_layer(tmp_path, name):
    """The cosines of the pooled token vectors of each layer, whatever comes after the pooling."""
    mine = chain(tmp_path, name)
    traces = [mine.trace(text, prompt="a man: ") for text in (A, B)]
    modes = next(config["pooling_mode"] for kind, config, _ in chains()[name] if kind == "Pooling")
    found = mine.explain(*traces).by_layer
    for number, part in enumerate(("embeddings.x", "layers.0.x", "layers.1.x")):
        each = [pooled(t[part], modes, t.prompt_length if name == "without the prompt" else 0) for t in traces]
        close(found[number], score_of("cosine", *each))
    assert found.shape == (3,)


# ---------------------------------------------------------------- what is refused


def test_what_explain_refuses(encoder, changeable):
    """Distances, tolerances that cannot be met, edits, other encoders and settings, and what is no text."""
    trace = encoder.trace(A)
    for name in ("euclidean", "manhattan"):
        changeable.similarity_fn_name = name
        with pytest.raises(ValueError, match=f'similarity_fn_name must be "cosine" or "dot"; it is {name!r}'):
            changeable.explain(A, B)
    for tolerance in (0, -1, 9e-6, float("nan"), None, "0.1"):
        with pytest.raises(ValueError, match=f"tolerance must be a number of at least 1e-05; it is {tolerance!r}"):
            encoder.explain(A, B, tolerance=tolerance)
    with pytest.raises(ValueError, match=re.escape(f"the trace of {A!r} has edits")):
        encoder.explain(B, encoder.trace(A, edit={"layers.0.x": lambda value: value}))
    with pytest.raises(ValueError, match="b must be a text or a trace of this encoder"):
        encoder.explain(trace, changeable.trace(B))
    with pytest.raises(ValueError, match="these traces have two"):
        study.Similarity(trace, changeable.trace(B))
    for wrong in (None, 3, [A], b"a"):
        with pytest.raises(TypeError, match=r"b must be a text \(str\)"):
            encoder.explain(A, wrong)
    changeable.similarity_fn_name, whole = "cosine", changeable.trace(A)
    changeable.truncate_dim = 5
    with pytest.raises(ValueError, match="with the same settings"):
        changeable.explain(whole, B)
    with pytest.raises(ValueError, match="a must be valid Unicode"):
        changeable.explain("\ud800", B)


def test_copies_explain_each_other():
    """A trace of a copy is a trace of the encoder, also if the copy was made before the first trace."""
    encoder = SentenceEncoder()
    other = copy.copy(encoder)

    assert encoder.explain(other.trace(A), B).score == other.explain(A, encoder.trace(B)).score


def test_parts_need_what_was_kept(encoder):
    """A trace that kept little still has a score, words, and what is without a part."""
    found = encoder.explain(encoder.trace(A, keep=[]), B)

    assert_sums(found, 0.01)
    assert found.without_head.shape == (2, 2)
    for part in ("vectors", "by_layer"):
        with pytest.raises(AttributeError, match="was not kept"):
            getattr(found, part)


# ---------------------------------------------------------------- the integral


@pytest.mark.parametrize("allowed", [1e-2, 1e-5])
def test_integrate_is_the_integral(allowed):
    """Of functions whose integrated Jacobian is known: products, powers and an exponential of three numbers."""
    end, rates = np.array([1.5, -2.0, 0.5]), np.array([1.0, 0.5, -4.0])
    calls = []

    def vectors(places, tokens):
        calls.append(len(places))
        x = places[:, None] * end
        x[tokens >= 0, tokens[tokens >= 0]] += 1e-6 * end[tokens[tokens >= 0]]
        return np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 3, np.exp(x @ rates)], axis=1)

    found = integrate(vectors, np.arange(3), allowed)
    product = end[0] * end[1] / 2
    exponential = rates * end * np.expm1(rates @ end) / (rates @ end)
    expected = np.array([[product, 0, exponential[0]], [product, 0, exponential[1]], [0, end[2] ** 3, exponential[2]]])

    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
    assert sum(calls) < 500


def test_integrate_halves_where_the_error_is():
    """A function with a bend in one place needs more points there, and gets them."""

    def vectors(places, tokens):
        seen.append(places)
        x = places + 1e-6 * (tokens == 0)
        return np.arctan((x - 0.3) * 200)[:, None]

    seen = []
    found = integrate(vectors, np.array([0]), 1e-4)
    places = np.concatenate(seen)

    np.testing.assert_allclose(found[0, 0], np.arctan(140) + np.arctan(60), atol=1e-4)
    assert np.count_nonzero(np.abs(places - 0.3) < 0.05) > 5 * np.count_nonzero(np.abs(places - 0.8) < 0.05)


def test_integrate_ends_where_it_cannot_get_better():
    """A jump has no derivative: the stretches end at their shortest."""

    def vectors(places, tokens):
        assert len(places) == len(tokens)
        return (places > 0.3)[:, None] * 1.0

    assert integrate(vectors, np.array([0]), 1e-9).tolist() == [[0.0]]
