"""The model that comes with minibert."""

import json
import socket

import numpy as np
import pytest
from support import GOLDEN, assert_as_accurate, load, split

import minibert
from minibert import BUILTIN_MODEL, BertModel, SentenceEncoder

ARRAYS, METADATA = load(GOLDEN / "builtin.safetensors")
TEXTS = json.loads(METADATA["texts"])

#: A question, and the passage that answers it: of all these, its vector must be the nearest.
RETRIEVAL = {
    "How do I get my money back?": "Refunds are paid to the card that you used, within ten working days.",
    "I can't log in to my account": "If you have forgotten your password, a link to choose a new one is sent by email.",
    "What do pandas eat?": "The giant panda feeds almost entirely on bamboo.",
    "Which city is the capital of France?": "Paris, on the river Seine, has been the seat of the French government.",
    "How can I make bread at home?": "Mix flour, water, yeast and salt, let the dough rise, and bake it in a hot oven.",
    "Why is the sky blue?": "Air scatters short wavelengths of sunlight more than long ones.",
    "When did the Second World War end?": "Germany surrendered in May 1945, and Japan in September of that year.",
    "symptoms of the flu": "Influenza brings fever, a cough, a sore throat and aching muscles.",
    "best way to learn the guitar": "Practise chords every day, slowly, until your fingers find the strings.",
    "How does a vaccine work?": "It shows the immune system a harmless piece of a virus, to learn from.",
    "Is it going to rain tomorrow?": "The forecast says that showers will come from the west in the morning.",
    "How do plants make their food?": "In photosynthesis, leaves turn light, water and carbon dioxide into sugar.",
    "cheap flights to Spain": "Airline tickets to Madrid and Barcelona cost least in February.",
    "How are interest rates decided?": "The central bank raises the cost of borrowing when inflation is too high.",
    "My laptop does not turn on": "Check the charger of the computer and hold the power button for ten seconds.",
    "Who painted the Mona Lisa?": "The portrait is by Leonardo da Vinci and hangs in the Louvre.",
}


@pytest.fixture(scope="module")
def encoder():
    """Return the encoder that is made without a name."""
    return SentenceEncoder(on_truncate="ignore")


def test_no_name_and_no_network(monkeypatch):
    """Without a name the built-in model is loaded, from the package, and no connection is tried."""

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    vectors = SentenceEncoder().encode(["A sentence.", "Another one."])

    assert vectors.shape == (2, 128)
    np.testing.assert_array_equal(vectors, SentenceEncoder(BUILTIN_MODEL).encode(["A sentence.", "Another one."]))


def test_vectors_are_those_of_sentence_transformers(encoder):
    """Every number is within 1e-6 of sentence-transformers', and as near to the exact one."""
    vectors = encoder.encode(TEXTS)

    np.testing.assert_allclose(vectors, ARRAYS["embeddings.float32"], rtol=0, atol=1e-6, equal_nan=False)
    assert_as_accurate(vectors, ARRAYS["embeddings.float32"], ARRAYS["embeddings.float64"], factor=2)


def test_float64():
    """In float64 the vectors agree with transformers' float64 to rounding."""
    vectors = SentenceEncoder(on_truncate="ignore", dtype="float64").encode(TEXTS)

    np.testing.assert_allclose(vectors, ARRAYS["embeddings.float64"], rtol=0, atol=1e-14, equal_nan=False)


def test_ids_are_those_of_sentence_transformers(encoder):
    """So are the token ids, for every script."""
    expected = split(ARRAYS["unicode.ids"], ARRAYS["unicode.lengths"])
    texts = json.loads(METADATA["unicode"])

    for text, ids in zip(texts, expected, strict=True):
        assert encoder.tokenize([text])["input_ids"][0].tolist() == ids.tolist(), f"{text!r}"


def test_its_shape(encoder):
    """It has 2 layers and 128 dimensions, takes 512 tokens, and its vectors have length 1."""
    config = BertModel.from_pretrained(BUILTIN_MODEL).config

    assert (config.num_hidden_layers, config.hidden_size, encoder.max_seq_length) == (2, 128, 512)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1, atol=1e-6)


def test_weights_are_half_precision():
    """Weights are stored in float16; sentence-transformers is told to compute in float32."""
    arrays, _ = load(BUILTIN_MODEL / "model.safetensors")

    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert json.loads((BUILTIN_MODEL / "config.json").read_text("utf-8"))["dtype"] == "float32"


def test_it_is_small():
    """All of its files together have less than 10 MB."""
    assert sum(path.stat().st_size for path in BUILTIN_MODEL.rglob("*") if path.is_file()) < 10e6


def test_retrieval(encoder):
    """Each question finds the passage that answers it, first of all."""
    questions, passages = encoder.encode_query(list(RETRIEVAL)), encoder.encode_document(list(RETRIEVAL.values()))
    found = encoder.similarity(questions, passages).argmax(axis=1)
    wrong = {list(RETRIEVAL)[i]: list(RETRIEVAL.values())[j] for i, j in enumerate(found) if i != j}

    assert not wrong


def test_long_texts_are_used_to_their_end(encoder):
    """What a text says in its last tokens moves its vector, up to the limit of 512."""
    filler = "The committee met again and nothing was decided. " * 45
    pandas, flights = "Pandas eat bamboo.", "Flights to Spain are cheap."
    about_pandas, about_flights, query = encoder.encode([filler + pandas, filler + flights, pandas])

    assert encoder.truncation.count == 0
    assert encoder.truncation.longest > 400
    assert about_pandas @ query > about_flights @ query


def test_card_says_what_is_in_the_file():
    """The model card's number of parameters is right."""
    arrays, _ = load(BUILTIN_MODEL / "model.safetensors")
    count = sum(array.size for array in arrays.values())
    card = (BUILTIN_MODEL / "README.md").read_text("utf-8").replace("\n", " ")

    assert f"{count / 1e6:.1f} million parameters" in card


def test_its_folder_is_public():
    """Other programs find the folder by the name that the card uses."""
    assert (minibert.BUILTIN_MODEL / "modules.json").is_file()
