"""The page of `minibert explain --html`: one file that asks for nothing, with the numbers of the traces as data."""

import base64
import functools
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import copy_twin, edit_json, twin, write_module

from minibert import SentenceEncoder, model
from minibert.study import page as page_module
from minibert.study.page import page
from minibert.study.similar import Similarity

PACKAGE = Path(model.__file__).parent

TEXTS = ["A man is eating food.", "Someone is having a meal."]
HOSTILE = [
    "</script><script>window.hacked = 1</script><!--",
    "<img src=x onerror='window.hacked = 1'>",
    "\"'`&amp;&lt;b&gt; {{DATA}} {{SCRIPT}}",
    "\u2028\u2029 \u202eabc\u202c \u2066x\u2069 \x00\x1b[31m \ud800",
]


class Reader(HTMLParser):
    """The tags of a page with their attributes, and the text of each style and script."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.inside = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        """Note a tag."""
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        """Note the text of a style or script."""
        if self.tags and self.tags[-1][0] in {"script", "style"} and data.strip():
            self.inside.append((*self.tags[-1], data))

    def handle_comment(self, data):
        """Note a comment as a tag."""
        self.tags.append(("comment", {"data": data}))

    def data(self):
        """Return the data of the page."""
        (text,) = (text for tag, attributes, text in self.inside if attributes.get("type") == "application/json")
        return json.loads(text)


@functools.cache
def opened():
    """Return the encoder with the built-in model."""
    return SentenceEncoder()


@functools.cache
def built_in():
    """Return two traces, and their page."""
    traces = opened().trace(TEXTS)
    return traces, page(traces, opened().explain(*traces), name="the built-in model")


def array_of(packed):
    """Return an array of the data."""
    raw = np.frombuffer(base64.b64decode(packed["data"]), f"<{packed['type']}")
    return raw.reshape(packed["shape"])


class Untouched(Similarity):
    """A similarity with parts that must not be computed."""

    @property
    def words(self):
        """Fail."""
        pytest.fail("words were computed")

    without_token = without_head = words


# ---------------------------------------------------------------- one file, which asks for nothing


def test_it_names_no_other_file():
    """No tag loads anything, and there is no address in the page, its style or its script."""
    reader = Reader(built_in()[1])
    loading = {"src", "srcset", "href", "action", "data", "poster", "ping", "background", "style"}

    assert not [
        (tag, name) for tag, attributes in reader.tags for name in attributes if name in loading or name[:2] == "on"
    ]
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base", "comment"})
    html = built_in()[1]
    for word in (
        "://",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "eval(",
        "innerHTML",
        "document.write",
    ):
        # The namespace of SVG is a name. Nothing is loaded from it.
        assert word not in html.replace('"http://www.w3.org/2000/svg"', ""), word


def test_policy_allows_only_the_style_and_the_script():
    """The policy has the hashes of the style and of the script, and allows nothing else."""
    reader = Reader(built_in()[1])
    (policy,) = (a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {
        attributes.get("id", tag): base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, attributes, text in reader.inside
    }

    assert set(hashes) == {"style", "data", "script"}
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{hashes['style']}'",
        f"script-src 'sha256-{hashes['script']}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_data(text):
    """A text, a token or a name with markup changes no tag. Controls and lone surrogates are escaped."""
    harmless, trace = opened().trace(["x", text.replace("\ud800", "")])
    trace.text, trace.tokens = text, [text, *trace.tokens[1:]]
    html = page([trace], None, name=text)
    data = Reader(html).data()

    assert [tag for tag, _ in Reader(html).tags] == [tag for tag, _ in Reader(page([harmless], None, name="x")).tags]
    for shown in (data["name"], data["texts"][0]["text"], data["texts"][0]["tokens"][0]):
        assert re.sub(r"\\u([0-9a-f]{4})|\\x([0-9a-f]{2})", lambda m: chr(int(m[1] or m[2], 16)), shown) == text
        assert not re.search("[\x00-\x1f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    html.encode("utf-8")


def test_size():
    """Two short texts of the built-in model take less than 300 kB, and the page without data less than 100 kB."""
    html = built_in()[1]

    assert len(html.encode()) < 300_000
    assert sum((PACKAGE / "study" / f"page.{kind}").stat().st_size for kind in ("html", "css", "js")) < 100_000


@pytest.mark.weights
def test_size_on_minilm(minilm):
    """Two short texts of all-MiniLM-L6-v2 take less than 2 MB, with every result."""
    traces = SentenceEncoder(minilm).trace(TEXTS)
    html = page(traces, None, name="all-MiniLM-L6-v2")

    assert len(html.encode()) < 2_000_000
    assert Reader(html).data()["notes"] == []


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("which", [0, 1])
def test_results_are_those_of_the_trace(which):
    """Each result is the trace's, rounded to float16: 11 significant bits, or 2**-25 near 0."""
    traces, html = built_in()
    results = Reader(html).data()["texts"][which]["results"]

    assert list(results) == list(traces[which])
    for name, packed in results.items():
        value = traces[which][name]
        assert packed["type"] == "f2"
        assert (np.abs(array_of(packed) - value) <= np.maximum(np.abs(value) * 2**-11, 2**-25)).all(), name


def test_large_numbers_are_float32():
    """A result beyond the range of float16 is stored as float32; a number that is not finite does not count."""
    assert array_of(page_module._packed(np.array([1e5, -1.0]), "f2")).tolist() == [1e5, -1.0]
    assert page_module._packed(np.array([np.inf, 1.0]), "f2")["type"] == "f2"


def test_lines_are_those_of_the_source():
    """The lines are those of model.py, with their numbers. A line with a result is the call of tap with its name."""
    data = Reader(built_in()[1]).data()
    (source, *modules) = data["source"]
    lines = (PACKAGE / "model.py").read_text("utf-8").splitlines()
    start = source["start"]

    assert model.__file__.endswith(source["file"])
    assert source["lines"] == lines[start - 1 : start - 1 + len(source["lines"])]
    for line, name in source["results"].items():
        assert f'tap("{name.split(".")[-1]}"' in lines[int(line) - 1]
    assert set(source["results"].values()) == {
        re.sub(r"\.\d+\.", ".", name) for name in data["steps"] if "mod" not in name
    }
    kinds = (PACKAGE / "modules" / "kinds.py").read_text("utf-8").splitlines()
    assert [list(each["results"].values()) for each in modules] == [[n] for n in data["steps"] if "modules" in n]
    for each in modules:
        ((line, _),) = each["results"].items()
        assert kinds[int(line) - 1].strip().startswith("features[")
        assert kinds[int(line) - 1].strip() == each["lines"][int(line) - each["start"]].strip()


def test_shares_sum_to_the_whole():
    """The shares of all parts at all tokens sum to 1; so do those of the tokens, and those of the parts."""
    for text in Reader(built_in()[1]).data()["texts"]:
        parts = text["parts"]
        sums = [array_of(parts[key]).sum(dtype=float) for key in ("shares", "tokens", "totals")]
        np.testing.assert_allclose(sums, 1, atol=1e-5)
        np.testing.assert_allclose(array_of(parts["shares"]).sum(axis=0), array_of(parts["tokens"]), atol=1e-6)


def test_similarity_is_that_of_the_traces():
    """The parts of the similarity are numpy's. What words miss is stated."""
    traces, html = built_in()
    expected, found = opened().explain(*traces), Reader(html).data()["similarity"]

    assert found["score"] == expected.score
    np.testing.assert_allclose(array_of(found["words"]["pairs"]), expected.words, atol=1e-7)
    assert found["words"]["sum"] + found["words"]["rest"] + found["words"]["error"] == pytest.approx(expected.score)
    np.testing.assert_allclose(array_of(found["vectors"]["pairs"]), expected.vectors, atol=1e-7)
    for falls, own in zip(found["withoutToken"]["falls"], expected.without_token, strict=True):
        np.testing.assert_allclose(array_of(falls), own, atol=1e-7)
    np.testing.assert_allclose(array_of(found["withoutHead"]["falls"]), expected.without_head, atol=1e-7)
    np.testing.assert_allclose(array_of(found["byLayer"]), expected.by_layer, atol=1e-7)


def test_habits():
    """A head that looks at the previous token is said to; so is one that looks at [CLS], or nowhere in particular."""
    trace = opened().trace("one two three four")
    size = len(trace.tokens)

    assert page_module._habit(trace, np.eye(size, k=-1)) == "previous 100%"
    assert page_module._habit(trace, np.eye(size)[[0] * size] * 0.5) == "[CLS] 50%"
    assert page_module._habit(trace, np.full((size, size), 1 / size)) == "spread"
    assert page_module._habit(opened().trace(""), np.eye(2)) == "no words"


# ---------------------------------------------------------------- what a page has room for


def test_long_texts_are_cut_and_the_page_says_so():
    """A page of texts of 512 tokens stays below 5 MB, with the first tokens; what takes long is not computed."""
    traces = SentenceEncoder(on_truncate="ignore").trace(["a man " * 300, "a meal " * 100])
    html = page(traces, Untouched(*traces), name="x")
    data = Reader(html).data()
    shown = len(data["texts"][0]["tokens"])

    assert len(html.encode()) < 5_000_000
    assert data["texts"][0]["count"] == 512 > shown
    assert "Text A has 602 tokens. The model reads only 512 of them." in data["notes"]
    assert any(f"the first {shown} tokens" in note for note in data["notes"])
    assert "512 and 202 tokens" in data["similarity"]["words"]["reason"]
    assert data["similarity"]["withoutToken"] == data["similarity"]["withoutHead"] == data["similarity"]["words"]
    own = traces[0]["layers.1.weights"][:, :shown, :shown]
    np.testing.assert_allclose(array_of(data["texts"][0]["results"]["layers.1.weights"]), own, atol=1e-3)


@pytest.mark.parametrize("tokens", [8, 30, 128, 512])
@pytest.mark.parametrize("texts", [1, 2])
def test_a_large_model_fits(tokens, texts):
    """Of a model with the sizes of BERT-base, a page has all weights, and at most 1.5 million numbers."""
    shapes = dict.fromkeys(("multihead", "attended", "outer", "x"), (tokens, 768)) | {"inner": (tokens, 3072)}
    shapes |= dict.fromkeys("QKV", (12, tokens, 64)) | dict.fromkeys(("scores", "weights"), (12, tokens, tokens))
    results = {f"layers.{n}.{name}": np.broadcast_to(0.0, shape) for n in range(12) for name, shape in shapes.items()}
    results |= {"embeddings.x": np.broadcast_to(0.0, (tokens, 768)), "modules.1.sentence_embedding": np.zeros(768)}
    trace = SimpleNamespace(
        items=results.items, layers=range(12), tokens=range(tokens), ids=range(tokens), length=tokens
    )
    cut = page_module._Cut.fitting([trace] * texts)
    kept = cut.results(trace)
    notes = " ".join(cut.notes([trace] * texts))

    assert sum(value.size for value in kept.values()) * texts <= 1_500_000
    assert all(f"layers.{n}.{name}" in kept for n in range(12) for name in ("weights", "x"))
    assert {f"layers.{n}.scores" in kept for n in (0, 11)} == {True}
    assert cut.tokens >= min(tokens, 24)
    assert ("shows the first" in notes) == (cut.tokens < tokens)
    assert ("inner" in notes) == any(name not in kept for name in results if name.endswith("inner"))
    assert ("first and the last layer" in notes) == ("layers.5.Q" not in kept)


def test_a_trace_must_have_all_results():
    """A trace that kept only some results is refused, and so is no trace."""
    with pytest.raises(ValueError, match=r"lacks|not kept"):
        page([opened().trace("x", keep="*.weights")], None, name="x")
    with pytest.raises(ValueError, match="at least one trace"):
        page([], None, name="x")


# ---------------------------------------------------------------- other models


def test_a_text_without_words():
    """An empty text has special tokens only: the page has no pairs, and no share fails."""
    traces = opened().trace(["", "word"])
    data = Reader(page(traces, opened().explain(*traces), name="x")).data()

    assert data["texts"][0]["special"] == [True, True]
    assert not array_of(data["similarity"]["words"]["pairs"]).any()
    assert data["texts"][0]["habits"][0] == ["no words", "no words"]


def test_cls_pooling():
    """With cls pooling, all of the vector is of the first token."""
    encoder = SentenceEncoder(twin("bert-base-nli-cls-token"))
    data = Reader(page([encoder.trace("a text")], None, name="x")).data()
    (text,) = data["texts"]

    assert text["pooling"] == [[1.0] + [0.0] * (len(text["tokens"]) - 1)]
    np.testing.assert_allclose(array_of(text["parts"]["tokens"]), text["pooling"][0], atol=1e-6)


def test_a_dense_layer_after_pooling(tmp_path):
    """With a Dense layer after the pooling, pairs of token vectors are not exact: the page says why."""
    folder = copy_twin(tmp_path / "model")
    config = {
        "in_features": 16,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    weight = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    write_module(folder / "2_Dense", config, linear__weight=weight)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))[:2]
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]), "utf-8")
    encoder = SentenceEncoder(folder)
    traces = encoder.trace(["a man", "a meal"])
    data = Reader(page(traces, encoder.explain(*traces), name="x")).data()

    assert "a Dense module comes after the pooling" in data["similarity"]["vectors"]["reason"]
    assert data["modules"]["modules.2.sentence_embedding"]["kind"] == "Dense"
    assert data["texts"][0]["shapes"]["modules.2.sentence_embedding"] == "8 dimensions"


def test_max_pooling(tmp_path):
    """Max pooling takes each dimension from one token: the shares are exact, and no token has one weight."""
    folder = copy_twin(tmp_path / "model")
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    data = Reader(page([SentenceEncoder(folder).trace("a man")], None, name="x")).data()

    assert data["texts"][0]["pooling"] is None
    assert array_of(data["texts"][0]["parts"]["shares"]).sum(dtype=float) == pytest.approx(1, abs=1e-5)
