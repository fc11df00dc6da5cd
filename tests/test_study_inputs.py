"""Traces: what is refused and with which message, texts of all kinds, and the encoder that makes traces."""

import copy
import doctest
import pickle
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import FLOAT32, close, ids_of
from support import CARDS, copy_twin, edit_json, twin

from minibert import SentenceEncoder, study
from minibert import encoder as encoder_module
from minibert.errors import ModelFileError, TruncationError, TruncationWarning
from minibert.study import names, reference, similar, traces

TEXT = "no man can play."


# ---------------------------------------------------------------- what is kept


def test_keep(encoder):
    """A trace keeps what a name or pattern names, in the order of computing. The vector is there always."""
    whole = encoder.trace(TEXT)
    one = encoder.trace(TEXT, keep="layers.*.weights")
    two = encoder.trace(TEXT, keep=(pattern for pattern in ("layers.1.[QK]", "*.words", "layers.1.Q")))

    assert list(one) == ["layers.0.weights", "layers.1.weights"]
    assert list(two) == ["embeddings.words", "layers.1.Q", "layers.1.K"]
    assert len(encoder.trace(TEXT, keep=[])) == 0
    assert "layers.0.Q" not in two
    assert two.get("layers.0.Q") is None
    assert two["layers.1.Q"] is two.layers[1].Q
    np.testing.assert_array_equal(two.layers[1].Q, whole.layers[1].Q)
    np.testing.assert_array_equal(two.vector, whole.vector)
    assert dir(two.layers[1]) == ["K", "Q"]
    assert repr(two.layers[1]) == "layers.1: K, Q"


NAMES = [
    ("weights", r"'weights'\. Near names: .*layers\.0\.weights"),
    ("layers.7.weights", r"'layers\.7\.weights'\. Near names: .*layers\.[01]\.weights"),
    ("layer.0.weights", r"'layer\.0\.weights'\. Near names: layers\.0\.weights"),
    ("modules.0.sentence_embedding", r"Near names: modules\.1\.sentence_embedding"),
    ("layers.*.z", r"'layers\.\*\.z'"),
    ("§", r"There are 27 names, from embeddings\.words to modules\.1\.sentence_embedding\."),
    ("", r"''\. There are 27 names"),
]


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_that_are_not_there(encoder, name, message):
    """A name or pattern without a result is an error that has the nearest names, in keep and in edit."""
    with pytest.raises(ValueError, match=rf"no result has the name or pattern .*{message}"):
        encoder.trace(TEXT, keep=["layers.0.weights", name])
    with pytest.raises(ValueError, match=message):
        encoder.trace(TEXT, edit={name: lambda value: value})
    with pytest.raises(KeyError, match=re.escape(repr(name))):
        encoder.trace(TEXT)[name]


def test_parts_that_were_not_kept(encoder):
    """The attributes of a part say what there is instead."""
    trace = encoder.trace(TEXT, keep=["layers.0.x", "layers.0.Q"])

    with pytest.raises(AttributeError, match=r"layers\.0\.Z is not a result, or was not kept; there are Q, x\."):
        _ = trace.layers[0].Z
    with pytest.raises(AttributeError, match=r"layers\.1\.x is not .*; nothing of layers\.1 was kept\."):
        _ = trace.layers[1].x
    with pytest.raises(AttributeError, match=r"modules\.1\.sentence_embedding is not"):
        _ = trace.pooled
    with pytest.raises(AttributeError, match=r"embeddings\.words is not a result, or was not kept"):
        trace.contributions()
    with pytest.raises(KeyError, match=r"Near names: layers\.0\.x"):
        trace["layers.1.x"]
    with pytest.raises(KeyError, match="Nothing was kept"):
        encoder.trace(TEXT, keep=())["layers.0.x"]


# ---------------------------------------------------------------- edits that are refused

RETURNED = {
    "another shape": (lambda _: np.zeros((3, 3)), r"float64 \(3, 3\)"),
    "with the dimension of texts": (lambda value: value[None], r"float64 \(1, 9, 16\)"),
    "a number": (lambda _: 0.0, r"float64 \(\)"),
    "None": (lambda _: None, "None"),
    "texts": (lambda value: value.astype(str), r"<U\d+ \(9, 16\)"),
    "complex numbers": (lambda value: value + 1j, r"complex128 \(9, 16\)"),
    "objects": (lambda value: value.astype(object), "other objects"),
    "lists of unequal lengths": (lambda _: [[1.0], [1.0, 2.0]], "other objects"),
}


@pytest.mark.parametrize(("edit", "found"), RETURNED.values(), ids=RETURNED)
def test_edits_must_return_numbers_of_the_same_shape(encoder, edit, found):
    """The error has the name of the result, both shapes and what was returned."""
    with pytest.raises(
        ValueError, match=rf"the edit of layers\.0\.x must return numbers of the shape \(9, 16\); it returned {found}\."
    ):
        encoder.trace(TEXT, edit={"layers.0.*": lambda value: value, "layers.*.x": edit})


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, bool])
def test_edits_may_return_other_numbers(encoder, kind):
    """They are converted to float64."""
    trace = encoder.trace(TEXT, edit={"layers.0.x": lambda value: value.astype(kind)})

    assert trace.layers[0].x.dtype == trace.vector.dtype == np.float64
    np.testing.assert_array_equal(trace.layers[0].x, encoder.trace(TEXT).layers[0].x.astype(kind))


def test_edits_that_raise(encoder):
    """The error of an edit is the caller's, and the encoder can be used as before."""
    before = encoder.trace(TEXT).vector
    with pytest.raises(ZeroDivisionError):
        encoder.trace(TEXT, edit={"layers.0.x": lambda _: 1 / 0})
    with pytest.raises(TypeError, match=r"the edit of layers\.0\.x must be a function .*; it is of type ndarray\."):
        encoder.trace(TEXT, edit={"layers.0.x": np.zeros((8, 16))})

    np.testing.assert_array_equal(encoder.trace(TEXT).vector, before)


def test_without(encoder):
    """It takes results with heads only, and numbers of heads that there are."""
    edit = {"layers.0.weights": study.without(), "layers.1.weights": study.without(np.int64(1), 0)}
    trace = encoder.trace(TEXT, edit=edit)

    np.testing.assert_array_equal(trace.layers[0].weights, encoder.trace(TEXT).layers[0].weights)
    assert not trace.layers[1].heads.any()
    for name in ("layers.0.x", "embeddings.words", "modules.1.sentence_embedding"):
        with pytest.raises(ValueError, match=r"edits a result with heads, \(h, S, d\) or \(h, S, S\); this is \("):
            encoder.trace(TEXT, edit={name: study.without(0)})
    for head in (2, -1):
        with pytest.raises(ValueError, match=rf"a head must be from 0 to 1; it is {head}\."):
            encoder.trace(TEXT, edit={"layers.0.heads": study.without(0, head)})


# ---------------------------------------------------------------- inputs that are refused


@pytest.mark.parametrize("wrong", [None, 3, b"text", {"a": 1}, ["a", None], [["a"]], float("nan"), [], "\ud800"])
def test_inputs_are_those_of_encode(encoder, wrong):
    """A trace refuses what encode refuses, with the same error, and takes what encode takes."""
    outcomes = []
    for method in (encoder.encode, encoder.trace):
        try:
            outcomes.append(len(method(wrong)))
        except (TypeError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_prompts_are_those_of_encode(encoder):
    """A wrong prompt or name is refused with encode's error."""
    for wrong in ({"prompt": 3}, {"prompt_name": "nobody"}, {"prompt": "\udfff"}):
        with pytest.raises((TypeError, ValueError)) as theirs:
            encoder.encode(TEXT, **wrong)
        with pytest.raises(theirs.type, match=f"^{re.escape(str(theirs.value))}$"):
            encoder.trace(TEXT, **wrong)


def test_texts_that_are_too_long(changeable):
    """They are cut, with the warning or the error of encode, at the caller's line; or with none."""
    changeable.max_seq_length = 6
    texts = ["a", "no man can play the violin", "the cat"]
    messages = []
    for method in (changeable.encode, changeable.trace):
        with pytest.warns(TruncationWarning) as caught:
            method(texts)
        messages.append([(str(warning.message), warning.filename) for warning in caught])
    assert messages[0] == messages[1] == [(messages[0][0][0], __file__)]
    assert (changeable.truncation.count, changeable.truncation.limit) == (1, 6)
    changeable.on_truncate = "ignore"
    cut = changeable.trace(texts)[1]
    assert len(cut.ids) == 6
    close(cut.vector, changeable.encode(texts[1]), FLOAT32)
    changeable.on_truncate = "error"
    with pytest.raises(TruncationError) as theirs:
        changeable.encode(texts)
    with pytest.raises(TruncationError, match=re.escape(str(theirs.value))):
        changeable.trace(texts)


def test_explain_warns_at_the_line_of_the_caller(changeable):
    """The warning about a text that was cut is about the line that called explain."""
    changeable.max_seq_length = 6
    with pytest.warns(TruncationWarning) as caught:
        changeable.explain("no man can play the violin", "a")

    assert [warning.filename for warning in caught] == [__file__]


# ---------------------------------------------------------------- texts of all kinds

TEXTS = {
    "empty": "",
    "spaces": " \t\n ",
    "one token": "a",
    "Chinese": "中文 text 和 cat",
    "emoji": "a \N{GRINNING FACE} cat \N{FAMILY} and \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "combining": "No\u0308 pla\u0301y, cafe\u0301 ve\u0301",
    "script": "</script><script>alert('cat')</script>",
    "control": "a\x00b\u200bcat\x7f the\ufffd",
    "special": "the [MASK] and [SEP] a [CLS]",
    "long words": "a" * 150 + " cat",
    "German": "Die Größe der Straße im Öl",
}


@pytest.mark.parametrize("prompt", ["", "the man: "])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("card", CARDS)
def test_texts_of_all_kinds(card, text, prompt):
    """Ids are those of encode; spans lead back to prompt + text; the vector is that of encode."""
    mine = SentenceEncoder(twin(card))
    trace, whole = mine.trace(text, prompt=prompt), prompt + text
    own = [number for number, special in enumerate(trace.special) if not special]

    np.testing.assert_array_equal(trace.ids, ids_of(mine, whole))
    assert len(trace.tokens) == len(trace.ids) == len(trace.spans) == len(trace.special)
    assert trace.special.sum() == 2
    assert (trace.tokens[0], trace.tokens[-1]) == ("[CLS]", "[SEP]")
    assert trace.spans[0] == trace.spans[-1] == (0, 0)
    assert [trace.spans[number] for number in own] == sorted(trace.spans[number] for number in own)
    for number in own:
        start, end = trace.spans[number]
        assert 0 <= start < end <= len(whole)
        if trace.tokens[number] != "[UNK]":
            assert plain(trace.tokens[number].removeprefix("##")) == plain(whole[start:end])
    close(trace.vector, mine.encode(text, prompt=prompt), FLOAT32)


def plain(text):
    """Return a text in lower case, without accents and control characters."""
    kept = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) not in {"Mn", "Cc", "Cf"})
    return "".join(kept).lower()


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text(encoder, text):
    """The ids and the vector of any text are those of encode."""
    trace = encoder.trace(text, keep="*.words")

    np.testing.assert_array_equal(trace.ids, ids_of(encoder, text))
    close(trace.vector, encoder.encode(text), FLOAT32)
    assert all(start < end <= len(text) for start, end in trace.spans[1:-1])


@pytest.mark.parametrize("card", CARDS)
def test_the_longest_text(card):
    """A text of as many tokens as the model takes."""
    mine = SentenceEncoder(twin(card))
    text = "a " * (mine.max_seq_length - 2)
    trace = mine.trace(text, keep=["layers.1.weights"])

    assert len(trace.ids) == mine.max_seq_length == CARDS[card]["max_seq_length"]
    assert trace.layers[1].weights.shape[1:] == (len(trace.ids),) * 2
    assert trace.spans[-2] == (len(text) - 2, len(text) - 1)
    close(trace.vector, mine.encode(text), FLOAT32)


def test_truncation_from_the_left(tmp_path):
    """The last tokens are kept, and their spans are those of the end of the text."""
    edit_json(copy_twin(tmp_path) / "tokenizer_config.json", truncation_side="left")
    mine = SentenceEncoder(tmp_path, max_seq_length=5, on_truncate="ignore")
    text = "no man can play the happy cat"
    trace = mine.trace(text)

    assert [text[start:end] for start, end in trace.spans[1:-1]] == ["the", "happy", "cat"]
    np.testing.assert_array_equal(trace.ids, ids_of(mine, text))
    close(trace.vector, mine.encode(text), FLOAT32)
    mine.max_seq_length = 2
    assert mine.trace(text).tokens == ["[CLS]", "[SEP]"]


# ---------------------------------------------------------------- the encoder


def test_many_texts(encoder):
    """An iterable of texts gives a list of traces, each that of the text alone."""
    found = encoder.trace(text for text in (TEXT, "", TEXT))

    assert [trace.text for trace in found] == [TEXT, "", TEXT]
    for trace in found:
        np.testing.assert_array_equal(trace.vector, encoder.trace(trace.text).vector)
    assert len({*found}) == 3
    assert found[0] != found[2]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])  # noqa: S301
def test_copies(changeable, copied):
    """Encoders can be copied and pickled before and after the first trace; so can traces."""
    early, trace = copied(changeable), changeable.trace(TEXT)
    late, same = copied(changeable), copied(trace)
    assert len(pickle.dumps(changeable)) < 1.1 * len(pickle.dumps(early))

    for other in (early.trace(TEXT), late.trace(TEXT), same):
        assert list(other) == list(trace)
        assert all((other[name] == trace[name]).all() for name in trace)
        np.testing.assert_array_equal(other.layers[1].x, trace.layers[1].x)
        np.testing.assert_array_equal(other.vector, trace.vector)
    assert list(same.contributions()) == list(trace.contributions())


def test_threads_get_the_same_bits():
    """Many threads may trace and explain at once, also at the first call."""
    mine, texts = SentenceEncoder(twin("BertModel-128d")), [TEXT, "the cat", "a happy man listens"]

    def explained(number):
        one, two = texts[number % 3], texts[number % 2]
        found = mine.explain(one, two)
        return (mine.trace(one).vector, found.score, found.words, *found.without_token, found.without_head)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(explained, range(12)))
    for number, found in enumerate(together):
        for one, two in zip(found, explained(number), strict=True):
            np.testing.assert_array_equal(one, two)


def test_files_that_are_gone(tmp_path):
    """The first trace reads the files again, and says so if it cannot."""
    mine = SentenceEncoder(copy_twin(tmp_path))
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(ModelFileError, match=re.escape(str(tmp_path))):
        mine.trace(TEXT)


@pytest.mark.parametrize("module", [names, reference, similar, traces], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    """Each example runs, and prints what the docstring says."""
    assert doctest.testmod(module).failed == 0


def test_examples_of_the_encoder():
    """Those of trace and explain, too; there is one at least."""
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    found = [
        test
        for method in (SentenceEncoder.trace, SentenceEncoder.explain)
        for test in finder.find(method, method.__name__, globs=vars(encoder_module).copy())
    ]
    tried = sum(runner.run(test).attempted for test in found)

    assert tried >= 2
    assert runner.failures == 0
