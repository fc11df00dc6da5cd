"""What an encoder accepts as texts, and how it refuses the rest: the item's index and type, before any arithmetic."""

import re
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import twin

from minibert import SentenceEncoder
from minibert.inputs import _INSTEAD, as_texts, iterate, refuse_torch_only, require_choice, require_int

TEXTS = ["one", "", "zwölf ☃ 𝄞"]


class Column:
    """A column of pandas: iterable, of one dimension, and no sequence."""

    ndim = 1

    def __init__(self, values):
        self.values = values
        self.shape = (len(values),)

    def __iter__(self):
        return iter(self.values)


class DataFrame(Column):
    """A table of pandas, whose iterator gives the names of its columns."""

    ndim = 2

    def __init__(self, values):
        super().__init__(values)
        self.shape = (5, len(values))


class ArrowColumn:
    """A column of Arrow: its iterator gives Arrow's own scalars."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return (types.SimpleNamespace(value=value) for value in self.values)

    def to_pylist(self):
        """Return the values as Python objects."""
        return list(self.values)


class SlicedArrowColumn(ArrowColumn):
    """A column of Arrow, of which a part is a column again."""

    def __len__(self):
        return len(self.values)

    def slice(self, offset, length):
        """Return a part, without copying it."""
        return type(self)(self.values[offset : offset + length])


class ArrowTable(ArrowColumn):
    """A table of Arrow, whose rows are dicts."""

    def to_pylist(self):
        """Return the rows."""
        return [{"text": value} for value in self.values]


# ---------------------------------------------------------------- what is a text, or many


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "one",
        "é",
        "\0",
        "𝄞",
        "\U0010ffff",
        "[SEP]",
        np.str_("one"),
        np.array("one"),
        np.array("one", object),
    ],
    ids=repr,
)
def test_single_text(text):
    """A str is one text, whatever is in it; so are numpy's own str and an array of no dimension (E5)."""
    assert as_texts(text) == ([str(text)], True)


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: map(str, texts),
        lambda texts: dict(enumerate(texts)).values(),
        np.array,
        lambda texts: np.array(texts, object),
        lambda texts: np.array(texts, np.dtypes.StringDType()),
        Column,
        ArrowColumn,
        SlicedArrowColumn,
    ],
    ids=[
        "list",
        "tuple",
        "iterator",
        "generator",
        "map",
        "dict values",
        "numpy str",
        "numpy object",
        "numpy StringDType",
        "pandas column",
        "Arrow column",
        "sliced Arrow column",
    ],
)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], []], ids=["3", "1", "0"])
def test_many_texts(make, texts):
    """Any iterable of texts in a definite order is a list of them, of one or none too (E5)."""
    got, single = as_texts(make(texts))

    assert got == texts
    assert all(isinstance(text, str) for text in got)
    assert not single


def test_arrow_column_is_converted_in_parts():
    """Of a long Arrow column, only as many values are converted as are needed, and some more."""
    converted = []

    class Watched(SlicedArrowColumn):
        def to_pylist(self):
            converted.append(len(self.values))
            return super().to_pylist()

    column = Watched([str(number) for number in range(10_001)])
    values = iterate(column)

    assert next(values) == "0"
    assert sum(converted) < 2000
    assert list(values) == column.values[1:]
    assert max(converted) < 2000


@settings(deadline=None)
@given(st.lists(st.text()))
def test_any_unicode_is_taken(texts):
    """Any text of Unicode characters is taken, unchanged."""
    assert as_texts(texts) == (texts, False)


# ---------------------------------------------------------------- what is neither


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (None, "missing value (None); drop it"),
        (np.array(None), "missing value (None); drop it"),
        (float("nan"), "missing value (nan); drop it"),
        (b"one", "bytes; decode it first"),
        (bytearray(b"one"), "bytearray; decode it first"),
        (5, "int"),
        (np.int64(5), "int64"),
        (True, "bool"),
        (1.5, "float"),
        ({"text": "one"}, "dict"),
        ({}, "dict"),
        (types.MappingProxyType({"text": "one"}), "mappingproxy"),
        ({"one", "two"}, "set"),
        (frozenset(), "frozenset"),
        ({"one": 1}.keys(), "dict_keys"),
        ({"one": 1}.items(), "dict_items"),
        (object(), "object"),
    ],
    ids=repr,
)
def test_what_is_neither_a_text_nor_texts(inputs, received):
    """What is no iterable of texts in order is a TypeError that names its type: keys are never texts (E5)."""
    with pytest.raises(TypeError, match=r"takes a text \(str\) or an iterable.*; got (an? )?" + re.escape(received)):
        as_texts(inputs)


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (np.array([["one", "two"]]), "ndarray of shape (1, 2)"),
        (np.zeros((0, 2), object), "ndarray of shape (0, 2)"),
        (DataFrame(["title", "text"]), "DataFrame of shape (5, 2)"),
    ],
)
def test_tables_are_refused(inputs, received):
    """A matrix or a data frame is a TypeError with its shape: the names of its columns are not texts (E5)."""
    with pytest.raises(TypeError, match=re.escape(received)):
        as_texts(inputs)


BAD_ITEMS = pytest.mark.parametrize(
    ("item", "received"),
    [
        (None, "missing value (None); drop it, or replace it by an empty text"),
        (float("nan"), "missing value (nan); drop it, or replace it by an empty text"),
        (np.float64("nan"), "missing value (nan); drop it, or replace it by an empty text"),
        (b"one", "bytes; decode it first"),
        (bytearray(b"one"), "bytearray; decode it first"),
        (5, "int"),
        (1.5, "float"),
        (True, "bool"),
        ({"text": "one"}, "dict"),
        ({"one"}, "set"),
        (["one", "two"], "list; text pairs and nested lists are not supported"),
        (("one", "two"), "tuple; text pairs and nested lists are not supported"),
        ([], "list; text pairs and nested lists are not supported"),
        (np.array(["one"]), "ndarray"),
    ],
    ids=repr,
)


@BAD_ITEMS
@pytest.mark.parametrize("index", [0, 2])
def test_bad_item_is_named(item, received, index):
    """An item that is no text is a TypeError with its index and type: no pair, no keys, no empty text (E5)."""
    texts = ["one"] * 3
    texts[index] = item
    with pytest.raises(TypeError, match=rf"item {index} is (an? )?{re.escape(received)}\."):
        as_texts(texts)


def test_arrow_column_as_a_stream():
    """encode_stream takes an Arrow column, too, and gives the vectors of its texts."""
    encoder, texts = SentenceEncoder(twin("BertModel-128d")), ["one", "two", "three"]

    stream = encoder.encode_stream(ArrowColumn(texts), chunk_size=2)

    np.testing.assert_array_equal(np.concatenate(list(stream)), encoder.encode(texts))


@pytest.mark.parametrize("make", [Column, ArrowColumn, lambda texts: np.array(texts, object), iter, tuple])
@pytest.mark.parametrize("item", [None, float("nan")])
def test_missing_value_in_a_column_is_named(make, item):
    """A missing value in a column is refused, with its index (E5)."""
    with pytest.raises(TypeError, match="item 1 is a missing value"):
        as_texts(make(["one", item]))


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (np.array([b"one"]), "bytes_; decode it first"),
        (np.array([1, 2]), "int64"),
        (ArrowTable(["one"]), "dict"),
        (range(3), "int"),
        (memoryview(b"one"), "int"),
    ],
    ids=["numpy bytes", "numpy numbers", "Arrow table", "range", "memoryview"],
)
def test_items_of_other_containers_are_named(inputs, received):
    """Containers of what is no text are refused at their first item."""
    with pytest.raises(TypeError, match=f"item 0 is (an? )?{received}"):
        as_texts(inputs)


@pytest.mark.parametrize(
    ("inputs", "index", "surrogate", "position"),
    [
        ("\ud800", 0, "\\ud800", 0),
        ("one \udfff", 0, "\\udfff", 4),
        (["one", "é\udc80"], 1, "\\udc80", 1),
        (["\ude00\ud83d"], 0, "\\ude00", 0),
    ],
    ids=["alone", "at the end", "in a list", "in the wrong order"],
)
def test_lone_surrogate_is_named(inputs, index, surrogate, position):
    """A lone surrogate is a ValueError with the item's index, and where it stands (E5)."""
    message = f"item {index} holds a lone surrogate, '{surrogate}', at position {position}."
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        as_texts(inputs)

    assert str(error.value).encode("utf-8")  # the message itself can be printed


@pytest.mark.parametrize("index", [0, 4321, 9999])
@pytest.mark.parametrize(("item", "error"), [(None, TypeError), (("a", "b"), TypeError), ("\ud800", ValueError)])
def test_bad_item_among_many(item, error, index, monkeypatch):
    """One bad item among 10,000 is named by its index before anything is tokenized or computed (E5)."""
    encoder = SentenceEncoder(twin("BertModel-128d"))
    monkeypatch.setattr(SentenceEncoder, "_embed", lambda *_: pytest.fail("texts were tokenized"))
    texts = ["one"] * 10_000
    texts[index] = item

    with pytest.raises(error, match=rf"\bitem {index} "):
        encoder.encode(texts)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", sorted(_INSTEAD))
def test_torch_only_argument_is_refused(name):
    """An argument that only PyTorch could honour is a ValueError that says what to use instead."""
    with pytest.raises(ValueError, match=re.escape(f"encode({name}='x') needs PyTorch: {_INSTEAD[name]}.")):
        refuse_torch_only("encode", {name: "x"}, TypeError)


@pytest.mark.parametrize("name", sorted(_INSTEAD))
@pytest.mark.parametrize("value", [None, False])
def test_torch_only_argument_that_asks_for_nothing_is_accepted(name, value):
    """None and False, the defaults of sentence-transformers, ask for nothing."""
    refuse_torch_only("encode", {name: value}, TypeError)


@pytest.mark.parametrize("value", [None, False, 1])
def test_unknown_argument_is_refused(value):
    """An unknown argument is a TypeError that names it, whatever its value (E7)."""
    with pytest.raises(TypeError, match=re.escape("encode() has no argument 'batchsize'.")):
        refuse_torch_only("encode", {"batchsize": value}, TypeError)


@pytest.mark.parametrize("value", ["c", "A", None, ["a"], 1])
def test_value_outside_the_choices_is_refused(value):
    """A value that is not among the choices is a ValueError that lists them."""
    require_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match=re.escape(f"mode must be one of 'a', 'b'; it is {value!r}.")):
        require_choice("mode", value, ("a", "b"))


@pytest.mark.parametrize("value", [0, -3, 10**9, np.int64(7), np.uint8(7)])
def test_whole_number_is_returned(value):
    """A whole number, of numpy too, is returned as a Python int."""
    number = require_int("batch_size", value)

    assert (type(number), number) == (int, value)


@pytest.mark.parametrize("value", [1.0, "1", None, [1], np.float32(1)])
def test_other_numbers_are_refused(value):
    """What is not a whole number by its type is a ValueError with the name of the argument."""
    with pytest.raises(ValueError, match=re.escape(f"batch_size must be a whole number; it is {value!r}.")):
        require_int("batch_size", value)
