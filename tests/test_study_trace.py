"""Traces: every result of the reference by name, against a second implementation, and edits."""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import cast, random_tensors
from study_cases import EMBEDDINGS, FLOAT32, LAYER, by_hand, chain, chains, close, ids_of, transformer
from support import CARDS, copy_twin, twin

from minibert import BertModel, SentenceEncoder, model, study
from minibert.config import BertConfig
from minibert.files.checkpoint import names as tensor_names
from minibert.modules.kinds import Pooling
from minibert.params import BertParams
from minibert.study import names
from minibert.study.reference import Reference
from minibert.study.traces import Trace

TEXT, OTHER = "no man can play.", "The happy cat!"
EACH_CARD = pytest.mark.parametrize("card", CARDS)
#: All results of the twins' transformers, which have two layers.
NAMES = [f"embeddings.{name}" for name in EMBEDDINGS] + [f"layers.{i}.{name}" for i in range(2) for name in LAYER]
EACH_NAME = pytest.mark.parametrize("name", [*NAMES, "modules.1.sentence_embedding"])


def assert_is_by_hand(trace, results):
    """Fail unless a trace has exactly these results, in this order."""
    assert list(trace) == list(results)
    for name, value in results.items():
        assert trace[name].dtype == np.float64
        close(trace[name], value)


# ---------------------------------------------------------------- every result is right


@EACH_CARD
@pytest.mark.parametrize("text", [TEXT, ""])
def test_every_result_is_that_of_a_second_implementation(card, text):
    """The names are all there, in the order of computing; the values are right; the vector is what encode returns."""
    single, double = (SentenceEncoder(twin(card), dtype=dtype) for dtype in ("float32", "float64"))
    results, vector = by_hand(twin(card), ids_of(single, text))
    trace = single.trace(text)

    assert list(trace) == [*NAMES, "modules.1.sentence_embedding"]
    assert_is_by_hand(trace, results)
    close(trace.vector, vector)
    close(trace.pooled, vector)
    close(double.encode(text), trace.vector)
    close(single.encode(text), trace.vector, FLOAT32)
    np.testing.assert_array_equal(double.trace(text).vector, trace.vector)


@pytest.mark.parametrize("prompt", ["", "a man: "])
@pytest.mark.parametrize("name", chains())
def test_every_result_of_modules(tmp_path, name, prompt):
    """The modules after the transformer have their results too, under their numbers in modules.json."""
    mine = chain(tmp_path, name, dtype="float64")
    prompt_length = len(mine.tokenizer.encode(prompt).ids) - 1 if prompt else 0
    results, vector = by_hand(tmp_path, ids_of(mine, prompt + TEXT), prompt_length)
    trace = mine.trace(TEXT, prompt=prompt)

    assert_is_by_hand(trace, results)
    close(trace.vector, vector)
    close(trace.vector, mine.encode(TEXT, prompt=prompt))
    close(trace.vector, SentenceEncoder(tmp_path).encode(TEXT, prompt=prompt), FLOAT32 * np.abs(vector).max())


def test_settings_of_the_encoder(changeable):
    """truncate_dim, include_prompt and prompts hold for traces; those made before do not change."""
    before = changeable.trace(TEXT, prompt="a man: ")
    changeable.prompts["query"] = "a man: "
    changeable.truncate_dim, changeable.include_prompt = 5, False
    after = changeable.trace(TEXT, prompt_name="query")

    assert (after.prompt, after.text, after.prompt_length) == ("a man: ", TEXT, before.prompt_length)
    assert (len(before.vector), len(after.vector), len(after.pooled)) == (16, 5, 16)
    close(after.vector, before.layers[1].x[before.prompt_length :].mean(axis=0)[:5])
    close(before.vector, before.layers[1].x.mean(axis=0))
    close(after.vector, changeable.encode(TEXT, prompt_name="query"), FLOAT32)


def test_a_model_without_modules(tmp_path):
    """A repo of transformers alone has mean pooling, as in encode."""
    (copy_twin(tmp_path) / "modules.json").unlink()
    trace = SentenceEncoder(tmp_path).trace(TEXT)

    assert list(trace)[-1] == "modules.1.sentence_embedding"
    close(trace.vector, trace.layers[-1].x.mean(axis=0))


ACTS = st.sampled_from(["gelu", "tanh"])


@settings(deadline=None, max_examples=25)
@given(data=st.data(), heads=st.integers(1, 4), layers=st.integers(1, 3), act=ACTS, seed=st.integers(0, 99))
def test_random_models_and_edits(data, heads, layers, act, seed):
    """Models of other sizes, any text, any edit: all results are those of the second implementation."""
    sizes = {"hidden_size": heads * 3, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 80}
    config = BertConfig(**sizes, intermediate_size=7, max_position_embeddings=40, hidden_act=act, layer_norm_eps=1e-6)
    tensors = {name: array.astype(np.float64) for name, array in random_tensors(config, seed).items()}
    parts = [tensor_names.layer(tensors, number) for number in range(layers)]
    parameters = BertParams(tensor_names.embeddings(tensors), tuple(parts), tensor_names.pooler(tensors))
    tokenizer = SentenceEncoder(twin("BertModel-128d"))._pipeline.tokenizer
    loaded = Reference(BertModel(config, cast(parameters, np.float64)), (Pooling("mean"),), tokenizer)
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
    edited = data.draw(st.sampled_from(names.names_of(config)))
    factor = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    expected = {}

    def put(name, value):
        expected[name] = value * factor if name == edited else value
        return expected[name]

    trace = Trace.of(loaded, text, "", 40, ["*"], {edited: lambda value: value * factor})
    vector = transformer(tensors, vars(config), trace.ids, put)[-1].mean(axis=0)

    assert list(trace) == [*expected, "modules.1.sentence_embedding"]
    for name, value in expected.items():
        close(trace[name], value, 1e-9)  # an edit can make a row nearly constant: digits are lost
    close(trace.vector, vector, 1e-9)


# ---------------------------------------------------------------- the tap and its names


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EACH_CARD
def test_a_tap_that_changes_nothing_changes_no_bit(card, dtype):
    """Neither the presence of a tap nor a copy of each result changes a bit, also of padded batches."""
    bert = BertModel.from_pretrained(twin(card), dtype=dtype)
    ids, mask = [[2, 9, 30, 41, 3], [2, 17, 3, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    seen = []

    def tap(name, value):
        seen.append(name)
        return value.copy()

    plain, tapped = (bert(ids, mask, output_hidden_states=True, output_attentions=True, tap=t) for t in (id_, tap))
    default = bert(ids, mask).last_hidden_state
    assert seen == NAMES
    np.testing.assert_array_equal(plain.hidden_states, tapped.hidden_states)
    np.testing.assert_array_equal(plain.attentions, tapped.attentions)
    np.testing.assert_array_equal(default, tapped.last_hidden_state)


def id_(name, value):
    """Return ``value``."""
    return value


@EACH_CARD
def test_an_edit_that_changes_nothing_changes_no_bit(card):
    """A trace with edits that return what they got has the same bits."""
    mine = SentenceEncoder(twin(card))
    plain = mine.trace(TEXT)
    for edit in (lambda value: value, lambda value: value.copy(), lambda value: value.tolist()):
        edited = mine.trace(TEXT, edit={"*": edit})
        assert edited.edited
        assert list(edited) == list(plain)
        assert all((edited[name] == plain[name]).all() for name in plain)
        assert (edited.vector == plain.vector).all()


def test_each_line_has_its_tap(encoder):
    """The line of each result in model.py has the tap with its name, and every tap there has its result."""
    lines = inspect.getsource(model).splitlines()
    shown = re.findall(r"^(\S+) .*?(?:model\.py:(\d+))?$", repr(encoder.trace(TEXT)), re.MULTILINE)[1:]

    assert [name for name, _ in shown] == [*NAMES, "modules.1.sentence_embedding"]
    assert shown[-1][1] == ""
    for name, number in shown[:-1]:
        assert f'tap("{name.split(".")[-1]}", ' in lines[int(number) - 1]
        functions = [line for line in lines[: int(number)] if line.startswith("def ")]
        of_part = {
            "embeddings": ("def embed(",),
            "layers": ("def attend(", "def scaled_dot_product_attention(", "def feed_forward("),
        }
        assert functions[-1].startswith(of_part[name.split(".")[0]])
    taps = re.findall(r'tap\("(\w+)", ', "\n".join(lines))
    assert len(taps) == len({number for _, number in shown[:-1]}) == 15


# ---------------------------------------------------------------- edits


@EACH_NAME
@EACH_CARD
def test_every_result_can_be_replaced(card, name):
    """Only the results after it change, and they are what the second implementation makes of the edit."""
    mine = SentenceEncoder(twin(card))
    plain, edited = mine.trace(TEXT), mine.trace(TEXT, edit={name: lambda value: value[::-1] * 0.5})
    results, vector = by_hand(twin(card), plain.ids, edits={name: lambda value: value[::-1] * 0.5})

    for other in list(plain)[: list(plain).index(name)]:
        np.testing.assert_array_equal(edited[other], plain[other])
    assert np.abs(edited[name] - plain[name]).max() > 1e-3
    assert np.abs(edited.vector - plain.vector).max() > 1e-4
    assert_is_by_hand(edited, results)
    close(edited.vector, vector)


@pytest.mark.parametrize("layer", [None, 0, 1])
@EACH_CARD
def test_patching_all_tokens_gives_the_other_text(card, layer):
    """With another text's token vectors of the same number, the vector is that text's, bit for bit."""
    mine = SentenceEncoder(twin(card))
    name = "embeddings.x" if layer is None else f"layers.{layer}.x"
    ours, other = mine.trace("a d e a"), mine.trace("i p n l")
    patched = mine.trace("a d e a", edit={name: lambda _: other[name]})

    assert (ours.vector != other.vector).any()
    np.testing.assert_array_equal(patched.vector, other.vector)


@EACH_CARD
def test_a_removed_head_is_its_columns_of_w_o_removed(card):
    """Without a head, multihead is that of an output matrix with zeros in the head's columns."""
    mine = SentenceEncoder(twin(card))
    plain = mine.trace(TEXT)
    output = plain.model.bert.params.layers[0].attention.output
    size = plain.layers[0].heads.shape[-1]
    for head in range(len(plain.layers[0].heads)):
        edited = mine.trace(TEXT, edit={"layers.0.heads": study.without(head)})
        matrix = output.weight.copy()
        matrix[:, head * size : (head + 1) * size] = 0
        close(edited.layers[0].multihead, np.concatenate(plain.layers[0].heads, axis=-1) @ matrix.T + output.bias)
    every = mine.trace(TEXT, edit={"layers.0.heads": study.without(*range(len(plain.layers[0].heads)))})
    close(every.layers[0].multihead, np.tile(output.bias, (len(plain.ids), 1)))


def test_uniform_attention(encoder):
    """With scores of 0 everywhere, each token gets the mean of all values."""
    trace = encoder.trace(TEXT, edit={"layers.*.scores": np.zeros_like})

    for layer in trace.layers:
        close(layer.weights, np.full(layer.weights.shape, 1 / len(trace.ids)))
        close(layer.heads, np.repeat(layer.V.mean(axis=1, keepdims=True), len(trace.ids), axis=1))


def test_several_edits_are_made_in_order(encoder):
    """Each edit gets the result of the one before; the first sees the model's own value."""
    doubled = {
        "layers.0.*": lambda value: value,
        "layers.?.x": lambda value: value * 2,
        "*.0.x": lambda value: value + 1,
    }
    plain, edited = encoder.trace(TEXT), encoder.trace(TEXT, edit=doubled)
    swapped = encoder.trace(TEXT, edit=dict(reversed(doubled.items())))

    np.testing.assert_array_equal(edited.layers[0].x, plain.layers[0].x * 2 + 1)
    np.testing.assert_array_equal(swapped.layers[0].x, (plain.layers[0].x + 1) * 2)


def test_edits_of_modules(tmp_path):
    """The results of modules can be edited: the modules after them go on with the new value."""
    mine = chain(tmp_path, "word weights without the prompt")
    plain = mine.trace(TEXT)
    replaced = mine.trace(TEXT, edit={"modules.2.sentence_embedding": lambda value: np.arange(len(value))})
    heavier = mine.trace(TEXT, edit={"modules.1.token_weights_sum": lambda value: value * 4})

    close(replaced.vector, np.arange(32) / np.linalg.norm(np.arange(32)))
    close(heavier.pooled[:16], plain.pooled[:16] / 4)  # the mean
    close(heavier.pooled[16:], plain.pooled[16:])  # the largest
    assert plain.modules[1].token_weights_sum.shape == ()


@EACH_NAME
def test_edits_in_place_change_nothing_else(encoder, name):
    """A function may change its copy in place. Parameters, the next trace and the caller's own array stay."""

    def wipe(value):
        value[...] = 7
        return value

    before, mine = encoder.trace(TEXT), np.full(encoder.trace(TEXT)[name].shape, 7.0)
    wiped, given_ = encoder.trace(TEXT, edit={name: wipe}), encoder.trace(TEXT, edit={name: lambda _: mine})
    mine[...] = 8
    after = encoder.trace(TEXT)

    assert all((before[other] == after[other]).all() for other in before)
    assert (wiped[name] == 7).all()
    assert (given_[name] == 7).all()
    np.testing.assert_array_equal(wiped.vector, given_.vector)
    with pytest.raises(ValueError, match="read-only"):
        after[name][...] = 0


def test_all_arrays_are_read_only(encoder):
    """What a trace keeps cannot be changed by mistake."""
    trace = encoder.trace(TEXT)

    assert not any(value.flags.writeable for value in (*trace.values(), trace.vector, trace.pooled))
