"""The protocols of Ollama and Cohere: what their clients send, and every error."""

import numpy as np
import pytest
from serving_support import Limits, Served, as_float32, vector_of

from minibert import SentenceEncoder, quantize_embeddings

TEXTS = ["the cat", "music"]


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model with prompts."""
    return SentenceEncoder(prompts={"query": "query: ", "document": "passage: "}, num_threads=2)


@pytest.fixture(scope="module")
def served(encoder):
    """Return a server."""
    with Served(encoder) as served:
        yield served


def test_ollama(served, encoder):
    """A recorded request of its client: vectors of length 1."""
    body = b'{"model": "built-in", "input": ["the cat", "music"], "truncate": true, "dimensions": 8, "keep_alive": 1}'
    reply = served.post("/api/embed", body).json

    assert {**reply, "embeddings": 0, "total_duration": 0} == {
        "model": "built-in",
        "embeddings": 0,
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_count": 7,
    }
    assert reply["total_duration"] > 0
    expected = encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=8)
    np.testing.assert_array_equal(as_float32(reply["embeddings"]), expected)


@pytest.mark.parametrize("more", [{"dimensions": 0}, {"dimensions": None}, {"options": {"seed": 1}}, {}])
def test_ollama_defaults(served, encoder, more):
    """0 dimensions are all. A single text gives a list too. Options of generation have no effect."""
    reply = served.post("/api/embed", {"model": "any", "input": "the cat", **more}).json

    np.testing.assert_array_equal(
        as_float32(reply["embeddings"]), [encoder.encode("the cat", normalize_embeddings=True)]
    )


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_ollama_without_text(served, body):
    """It is no error, and gives no vectors."""
    reply = served.post("/api/embed", {"model": "built-in", **body})

    assert (reply.status, reply.json["embeddings"], reply.json["prompt_eval_count"]) == (200, [], 0)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body must be JSON; it is not: Expecting property name enclosed in double quotes."),
        (b'{"input": 5}', 400, "`input` must be a text or a list of texts; it is 5."),
        (b'{"input": [[1]]}', 400, "`input[0]` must be a text; it is a list."),
        (b'{"input": "a", "dimensions": -1}', 400, "`dimensions` must be a whole number from 0 to 128; it is -1."),
        (
            b'{"input": "%s", "truncate": false}' % (b"a " * 600),
            400,
            "item 0: `input` must have less than 513 tokens. Given: 602. Send a shorter text, or allow that it is cut.",
        ),
    ],
)
def test_ollama_errors(served, body, status, message):
    """One field, ``error``."""
    reply = served.post("/api/embed", body)

    assert (reply.status, reply.json) == (status, {"error": message})


def test_ollama_and_another_model(encoder):
    """A strict server knows its name with Ollama's tag, too."""
    with Served(encoder, limits=Limits(strict_model=True)) as served:
        assert served.post("/api/embed", {"model": "built-in:latest", "input": "a"}).status == 200
        assert served.post("/api/embed", {"model": "other", "input": "a"}).json == {
            "error": "The model 'other' does not exist; this server has 'built-in'."
        }


@pytest.mark.parametrize(
    ("purpose", "arguments"),
    [
        ("search_query", {"prompt_name": "query"}),
        ("search_document", {"prompt_name": "document"}),
        ("classification", {}),
        (None, {}),
    ],
)
def test_cohere(served, encoder, purpose, arguments):
    """The type of the input chooses the prompt."""
    body = {"model": "built-in", "texts": TEXTS, "input_type": purpose, "embedding_types": ["float", "base64"]}
    reply = served.post("/v2/embed", body).json
    expected = encoder.encode(TEXTS, normalize_embeddings=True, **arguments)

    assert reply["texts"] == TEXTS
    assert reply["response_type"] == "embeddings_by_type"
    assert reply["meta"]["api_version"] == {"version": "2"}
    assert reply["meta"]["billed_units"]["input_tokens"] == (11 if arguments else 7)
    assert reply["embeddings"].keys() == {"float", "base64"}
    np.testing.assert_array_equal(as_float32(reply["embeddings"]["float"]), expected)
    np.testing.assert_array_equal([vector_of(text) for text in reply["embeddings"]["base64"]], expected)


def test_cohere_bits(served, encoder):
    """Signs are packed as in quantize_embeddings."""
    body = {"texts": TEXTS, "embedding_types": ["binary", "ubinary"], "output_dimension": 64}
    found = served.post("/v2/embed", body).json["embeddings"]
    vectors = encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=64)

    for kind in ("binary", "ubinary"):
        assert found[kind] == quantize_embeddings(vectors, kind).tolist()


def test_cohere_types_given_twice(served):
    """Each type is written once: a small request must not keep the server busy."""
    reply = served.post("/v2/embed", {"texts": TEXTS, "embedding_types": ["base64", "float"] * 3}).content

    assert (reply.count(b'"base64":'), reply.count(b'"float":')) == (1, 1)


def test_cohere_v1(served, encoder):
    """Without types, the vectors are plain lists."""
    plain = served.post("/v1/embed", {"texts": TEXTS}).json
    typed = served.post("/v1/embed", {"texts": TEXTS, "embedding_types": ["float"]}).json
    expected = encoder.encode(TEXTS, normalize_embeddings=True)

    assert plain["response_type"] == "embeddings_floats"
    assert plain["meta"]["api_version"] == typed["meta"]["api_version"] == {"version": "1"}
    np.testing.assert_array_equal(as_float32(plain["embeddings"]), expected)
    np.testing.assert_array_equal(as_float32(typed["embeddings"]["float"]), expected)


@pytest.mark.parametrize(("cut", "kept"), [("END", slice(510)), ("START", slice(-510, None)), (None, slice(510))])
def test_cohere_cuts(served, encoder, cut, kept):
    """At the end, at the start, or not at all."""
    words = ["cat"] * 300 + ["music"] * 300
    reply = served.post("/v2/embed", {"texts": [" ".join(words)], "truncate": cut}).json
    expected = encoder.encode(" ".join(words[kept]), normalize_embeddings=True)

    np.testing.assert_array_equal(as_float32(reply["embeddings"]["float"][0]), expected)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"texts": None}, "`texts` is required: a text or a list of texts."),
        ({"texts": []}, "`texts` cannot be empty."),
        ({"texts": [[101, 102]]}, "`texts[0]` must be a text; it is a list."),
        (
            {"input_type": "image"},
            "`input_type` must be one of search_query, search_document, classification, clustering; it is 'image'.",
        ),
        (
            {"embedding_types": ["int8"]},
            (
                "`embedding_types` cannot have int8 here: its ranges come from many texts together. Use float, base64, "
                "binary or ubinary."
            ),
        ),
        (
            {"embedding_types": ["hex"]},
            "`embedding_types` must be a list of float, base64, binary, ubinary; it has another item.",
        ),
        ({"embedding_types": "float"}, "`embedding_types` must be a list; it is 'float'."),
        ({"truncate": "MIDDLE"}, "`truncate` must be one of END, START, NONE; it is 'MIDDLE'."),
        ({"output_dimension": 256}, "`output_dimension` must be a whole number from 1 to 128; it is 256."),
        (
            {"texts": ["a " * 600], "truncate": "NONE"},
            "item 0: `texts` must have less than 513 tokens. Given: 602. Send a shorter text, or allow that it is cut.",
        ),
    ],
)
def test_cohere_errors(served, more, message):
    """One field, ``message``."""
    for path in ("/v2/embed", "/v1/embed"):
        reply = served.post(path, {"texts": ["a"], **more})
        assert (reply.status, reply.json) == (400, {"message": message})
