"""encode_ids: the vectors of texts that another program has tokenized."""

import numpy as np
import pytest
from support import FAMILIES, MODELS, copy_twin, edit_weights, twin

from minibert import SentenceEncoder
from minibert.errors import TruncationError, VectorError

TEXTS = ["the cat", "", "a man and the hat", "No", "the guitar " * 9, "42!", "the cat"]


def ids_of(encoder, texts, prompt=""):
    """Return the ids of texts, as a user's own copy of the tokenizer gives them."""
    return [encoding.ids for encoding in encoder.tokenizer.encode_batch([prompt + text for text in texts])]


@pytest.mark.parametrize("card", MODELS)
@pytest.mark.parametrize("options", [{}, {"normalize_embeddings": True, "truncate_dim": 5}], ids=["plain", "cut"])
def test_same_bits(card, options):
    """The ids of the model's tokenizer give the bits of the texts, for every model."""
    encoder = SentenceEncoder(twin(card))

    vectors = encoder.encode_ids(ids_of(encoder, TEXTS), **options)

    assert np.array_equal(vectors, encoder.encode(TEXTS, **options))
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("card", FAMILIES)
def test_token_vectors(card):
    """So do token vectors, and all features."""
    encoder = SentenceEncoder(twin(card))
    ids = ids_of(encoder, TEXTS)

    for a, b in zip(
        encoder.encode_ids(ids, output_value="token_embeddings"),
        encoder.encode(TEXTS, output_value="token_embeddings"),
        strict=True,
    ):
        assert np.array_equal(a, b)
    features = encoder.encode_ids(ids[0], output_value=None)
    assert features["input_ids"].tolist() == ids[0]


@pytest.mark.parametrize("engine", ["numpy", None], ids=["numpy", "best"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_batches(engine, batch_size):
    """Neither the engine's batches nor their limit change anything."""
    encoder = SentenceEncoder(twin("BertModel-128d"), kernels=engine, num_threads=2, max_batch_tokens=16)
    texts = TEXTS * 5

    vectors = encoder.encode_ids(ids_of(encoder, texts), batch_size=batch_size)

    assert np.array_equal(vectors, encoder.encode(texts))


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids,
        lambda ids: (np.array(row, np.uint64) if i % 2 else np.array(row, np.int32) for i, row in enumerate(ids)),
        lambda ids: [tuple(row) for row in ids],
        lambda ids: np.array([np.array(row) for row in ids], object),
    ],
    ids=["lists", "generator of arrays", "tuples", "array of arrays"],
)
def test_forms_of_many(encoder, form):
    """Many texts are any iterable of sequences of whole numbers."""
    assert np.array_equal(encoder.encode_ids(form(ids_of(encoder, TEXTS))), encoder.encode(TEXTS))


def test_forms_of_one(encoder):
    """A single sequence of whole numbers is one text. A matrix has a text in each row."""
    ids = ids_of(encoder, TEXTS)[0]
    expected = encoder.encode(TEXTS[0])

    for one in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        assert np.array_equal(encoder.encode_ids(one), expected)
    assert np.array_equal(encoder.encode_ids(np.array([ids, ids])), np.stack([expected, expected]))


def test_nothing(encoder):
    """No text gives an empty matrix. A text without tokens has a vector, as the model says."""
    assert encoder.encode_ids([]).shape == (0, 16)
    assert encoder.encode_ids([[], []]).shape == (2, 16)


def test_prompt_that_pooling_leaves_out(tmp_path):
    """prompt_length says how many tokens pooling leaves out."""
    encoder = SentenceEncoder(copy_twin(tmp_path), include_prompt=False)
    prompt = "the man "
    ids = ids_of(encoder, TEXTS, prompt)
    before = len(ids_of(encoder, [prompt.strip()])[0]) - 1

    assert np.array_equal(encoder.encode_ids(ids, prompt_length=before), encoder.encode(TEXTS, prompt=prompt))
    assert not np.array_equal(encoder.encode_ids(ids), encoder.encode(TEXTS, prompt=prompt))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("the cat", TypeError, "got a str. For texts, use encode"),
        (b"the cat", TypeError, "bytes; decode it first"),
        (5, TypeError, "got an int"),
        ({1: 2}, TypeError, "got a dict"),
        (["the cat"], TypeError, "item 0 is a str. For texts, use encode"),
        ([[2, 3], ["a"]], TypeError, "item 1 is a list"),
        ([[2, 3], [2.0, 3.0]], TypeError, "item 1 is a list of float64"),
        ([[2, 3], [True]], TypeError, "item 1 is a list of bool"),
        ([[2, 3], [[4], [5, 6]]], TypeError, "item 1 is a list"),
        ([[2, 3], None], TypeError, "item 1 is a NoneType"),
        ([2, None], TypeError, "the text is a list of object"),
        ([[2, 2**80]], TypeError, "item 0 is a list of object"),
        (np.array([[[2]]]), TypeError, "item 0 is a ndarray"),
        ([[], [2, 3], [2, -1, 3]], ValueError, r"from 0 to \d+, .*; item 2 has -1 at position 1"),
        ([[], [2, 3], [2, 4, 10**6]], ValueError, "item 2 has 1000000 at position 2. Did another model's tokenizer"),
        ([[2, 2**40]], ValueError, f"item 0 has {2**40} at position 1"),
        (np.array([2, 2**63], np.uint64), ValueError, "item 0 has -9223372036854775808 at position 1"),
        ([[2, 5, 3], [2, 3, 0, 0]], ValueError, "no padding; item 1 ends with the id 0"),
        ([[2, 3], [2] * 600], TruncationError, "at most max_seq_length = 512 tokens; item 1 has 600"),
    ],
)
def test_refused(encoder, ids, error, message):
    """What cannot be the ids of texts is an error that names the text."""
    with pytest.raises(error, match=message):
        encoder.encode_ids(ids)


@pytest.mark.parametrize(
    "options",
    [{"prompt_length": "2"}, {"batch_size": 0}, {"truncate_dim": 1.5}, {"output_value": "tokens"}],
    ids=lambda options: next(iter(options)),
)
def test_refused_options(encoder, options):
    """Options are checked as those of encode."""
    with pytest.raises(ValueError, match=next(iter(options))):
        encoder.encode_ids([[2, 3]], **options)


def test_own_limit(changeable):
    """The encoder's current limit counts, and nothing is reported as truncated."""
    changeable.max_seq_length, changeable.on_truncate = 4, "ignore"
    changeable.encode("a man and the hat")
    before = changeable.truncation

    with pytest.raises(TruncationError, match="max_seq_length = 4 tokens; item 0 has 5"):
        changeable.encode_ids([2, 5, 6, 7, 3])
    changeable.encode_ids([2, 5, 6, 3])
    assert changeable.truncation == before


def test_not_finite(tmp_path):
    """A vector that is not finite names its text."""

    def enlarge(arrays):
        arrays["embeddings.word_embeddings.weight"][5] = np.where(np.arange(16) % 2, 3e38, -1e38)
        return arrays

    edit_weights(copy_twin(tmp_path) / "model.safetensors", enlarge)

    with pytest.raises(VectorError, match="item 2"):
        SentenceEncoder(tmp_path).encode_ids([[2, 3], [2, 4, 3], [2, 5, 3]])


def test_padding_token_inside_a_text(encoder):
    """A text that holds the padding token, but does not end with it, has a vector."""
    ids = ids_of(encoder, ["the [PAD] cat [PAD]"])

    assert ids[0].count(0) == 2
    assert np.array_equal(encoder.encode_ids(ids), encoder.encode(["the [PAD] cat [PAD]"]))


@pytest.mark.parametrize(
    ("limits", "threads"),
    [
        ({"max_batch_tokens": 100}, [2]),  # all threads work together on one batch
        ({"max_batch_tokens": 10}, [1]),  # the batches are too few for more threads
        ({"max_batch_tokens": 10, "texts": 50}, [1, 1]),
        ({"max_batch_tokens": 10**4, "texts": 50}, [2]),
        ({"max_batch_tokens": 100, "batch_size": 3}, [1]),
    ],
    ids=str,
)
def test_few_texts_are_one_batch(kernels, monkeypatch, limits, threads):
    """With native kernels, texts that fit in one batch are computed by all threads together: none is started."""
    limits = {"texts": 1, "batch_size": None, **limits}
    encoder = SentenceEncoder(
        twin("BertModel-128d"), kernels=kernels, num_threads=2, max_batch_tokens=limits["max_batch_tokens"]
    )
    ids = ids_of(encoder, TEXTS * limits["texts"])
    expected = encoder.encode(TEXTS * limits["texts"])
    encoder._engine.threads = 2  # of the team, on any machine
    used, worker = [], encoder._engine.worker

    def spy(*arguments, threads=1):
        used.append(threads)
        return worker(*arguments, threads=threads)

    monkeypatch.setattr(encoder._engine, "worker", spy)

    assert np.array_equal(encoder.encode_ids(ids, batch_size=limits["batch_size"]), expected)
    assert used == threads


def test_last_id_of_the_vocabulary(encoder):
    """The last id has a vector, and the one after it does not."""
    size = encoder._pipeline.config.vocab_size

    assert encoder.encode_ids([2, size - 1, 3]).shape == (16,)
    with pytest.raises(ValueError, match=f"from 0 to {size - 1}, .*; item 0 has {size} at position 1"):
        encoder.encode_ids([2, size, 3])
