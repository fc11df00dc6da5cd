"""The protocol of OpenAI: what its client sends, what it needs to get, and every error."""

import json

import numpy as np
import pytest
from serving_support import Limits, Served, as_float32, vector_of

from minibert import SentenceEncoder

#: A body as openai 3.57 sends it.
RECORDED = (
    b'{"input": ["a man is eating", "the cat"], "model": "built-in", "user": "u1", "dimensions": 32, '
    b'"encoding_format": "base64"}'
)


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model with prompts."""
    return SentenceEncoder(prompts={"query": "query: "}, num_threads=2)


@pytest.fixture(scope="module")
def served(encoder):
    """Return a server."""
    with Served(encoder) as served:
        yield served


def test_the_recorded_request_of_the_client(served, encoder):
    """The answer has the fields that the client's models require, and vectors with the bits of encode."""
    reply = served.post("/v1/embeddings", RECORDED, accept="application/json", x_stainless_lang="python")
    expected = encoder.encode(["a man is eating", "the cat"], normalize_embeddings=True, truncate_dim=32)

    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert {name: value for name, value in reply.json.items() if name != "data"} == {
        "object": "list",
        "model": "built-in",
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }
    assert [(each["object"], each["index"]) for each in reply.json["data"]] == [("embedding", 0), ("embedding", 1)]
    vectors = np.stack([vector_of(each["embedding"]) for each in reply.json["data"]])
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_floats_are_the_default_and_have_the_fewest_digits(served, encoder, path):
    """Without ``encoding_format``, there are numbers, each with the digits of its float32."""
    reply = served.post(path, {"input": "the cat"})
    vector = encoder.encode("the cat", normalize_embeddings=True)

    assert f'"embedding":[{",".join(map(str, vector))}]'.encode() in reply.content
    np.testing.assert_array_equal(as_float32(reply.json["data"][0]["embedding"]), vector)


def test_base64_is_little_endian_float32(served):
    """Both formats give the same numbers."""
    given = [
        served.post("/v1/embeddings", {"input": "the cat", "encoding_format": kind}).json["data"][0]["embedding"]
        for kind in ("float", "base64")
    ]

    np.testing.assert_array_equal(as_float32(given[0]), vector_of(given[1]))


def test_ids_give_the_vectors_of_their_texts(served, encoder):
    """Token ids are accepted as the tokenizer gives them: for one text, or for many, also between texts."""
    ids = encoder.tokenizer.encode("the cat").ids
    expected = encoder.encode("the cat", normalize_embeddings=True)

    for given in (ids, [ids], ["a", ids]):
        reply = served.post("/v1/embeddings", {"input": given})
        np.testing.assert_array_equal(as_float32(reply.json["data"][-1]["embedding"]), expected)


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ({}, {"normalize_embeddings": True}),
        ({"normalize": False}, {}),
        ({"dimensions": 7}, {"normalize_embeddings": True, "truncate_dim": 7}),
        ({"dimensions": 7, "normalize": False}, {"truncate_dim": 7}),
        ({"prompt_name": "query"}, {"normalize_embeddings": True, "prompt_name": "query"}),
        ({"prompt_name": None, "dimensions": None, "truncate": True}, {"normalize_embeddings": True}),
    ],
)
def test_extensions_are_the_arguments_of_encode(served, encoder, extra, arguments):
    """``dimensions`` cuts before it normalizes. What the caller puts into ``extra_body`` arrives."""
    reply = served.post("/v1/embeddings", {"input": "the cat", **extra})

    np.testing.assert_array_equal(
        as_float32(reply.json["data"][0]["embedding"]), encoder.encode("the cat", **arguments)
    )


def test_tokens_are_counted_after_the_cut(served, encoder):
    """Usage has the special tokens, and no token that was cut away."""
    reply = served.post("/v1/embeddings", {"input": ["This is a test", "a " * 1000]})

    assert reply.json["usage"]["prompt_tokens"] == 6 + encoder.max_seq_length
    assert reply.headers["x-minibert-truncated"] == "1"


def test_models(served):
    """The list has the one model, with the four fields that the client requires."""
    for path in ("/v1/models", "/models"):
        (model,) = served.get(path).json["data"]
        assert {**model, "created": 0} == {"id": "built-in", "object": "model", "created": 0, "owned_by": "minibert"}
        assert isinstance(model["created"], int)
        assert served.get(f"{path}/built-in").json == model
        assert served.get(f"{path}/other").status == 404


def test_a_model_with_a_slash_in_its_name(encoder):
    """A repo of the hub has one."""
    with Served(encoder, name="team/model") as served:
        assert served.get("/v1/models/team/model").json["id"] == "team/model"


LONE = b'{"input": "\\ud800"}'
WRONG = {
    "not JSON": (b"{", None, "the body must be JSON; it is not: Expecting property name enclosed in double quotes."),
    "not UTF-8": (b'{"input": "\xff"}', None, "the body must be JSON; it is not: its characters are not UTF-8."),
    "nested": (b"[" * 100_000, None, "the body must be JSON; it is nested too deeply."),
    "no object": (b"[1]", None, "the body must be a JSON object; it is a list."),
    "no input": (b"{}", "input", "`input` is required: a text or a list of texts, or their token ids."),
    "a null": (b'{"input": null}', "input", "`input` is required: a text or a list of texts, or their token ids."),
    "a number": (
        b'{"input": 5}',
        "input",
        "`input` must be a text or a list of texts, or their token ids; it is 5.",
    ),
    "no texts": (b'{"input": []}', "input", "`input` cannot be empty."),
    "an empty text": (b'{"input": ""}', "input", "`input` cannot be empty; item 0 is."),
    "an empty item": (b'{"input": ["a", ""]}', "input", "`input` cannot be empty; item 1 is."),
    "an item": (b'{"input": ["a", {}]}', "input", "`input[1]` must be a text, or its token ids; it is an object."),
    "true": (b'{"input": [true]}', "input", "`input[0]` must be a text, or its token ids; it is true."),
    "ids and true": (b'{"input": [101, true]}', "input", "`input[0]` must be a text, or its token ids; it is a list."),
    "a fraction": (b'{"input": [[1.5]]}', "input", "`input[0]` must be a text, or its token ids; it is a list."),
    "a surrogate": (LONE, "input", "`input` must be valid Unicode; it holds a lone surrogate."),
    "dimensions of 0": (
        b'{"input": "a", "dimensions": 0}',
        "dimensions",
        "`dimensions` must be a whole number from 1 to 128; it is 0.",
    ),
    "too many dimensions": (
        b'{"input": "a", "dimensions": 129}',
        "dimensions",
        "`dimensions` must be a whole number from 1 to 128; it is 129.",
    ),
    "dimensions of true": (
        b'{"input": "a", "dimensions": true}',
        "dimensions",
        "`dimensions` must be a whole number from 1 to 128; it is true.",
    ),
    "dimensions as text": (
        b'{"input": "a", "dimensions": "8"}',
        "dimensions",
        "`dimensions` must be a whole number from 1 to 128; it is '8'.",
    ),
    "a format": (
        b'{"input": "a", "encoding_format": "hex"}',
        "encoding_format",
        "`encoding_format` must be one of float, base64; it is 'hex'.",
    ),
    "a flag": (
        b'{"input": "a", "normalize": 1}',
        "normalize",
        "`normalize` must be true or false; it is 1.",
    ),
    "a model": (b'{"input": "a", "model": 3}', "model", "`model` must be a text; it is 3."),
    "a prompt": (
        b'{"input": "a", "prompt_name": "no"}',
        "prompt_name",
        "`prompt_name` must be one of query, document; there is no such prompt.",
    ),
}


@pytest.mark.parametrize(("body", "field", "message"), WRONG.values(), ids=WRONG)
def test_wrong_requests(served, body, field, message):
    """Each is answered with 400 and OpenAI's error object, which says the field, the rule and what was found."""
    reply = served.post("/v1/embeddings", body)

    assert reply.status == 400
    assert reply.json == {"error": {"message": message, "type": "invalid_request_error", "param": field, "code": None}}


@pytest.mark.parametrize("given", [[[9906, 1917]], [[101, 9906]], [[101, 30522, 102]], [[101, -1, 102]], [[]], [[101]]])
def test_foreign_ids_are_refused(served, given):
    """LangChain sends tiktoken's ids by default. Many are in the vocabulary, but would give vectors of other texts."""
    reply = served.post("/v1/embeddings", {"input": ["a", *given]})

    assert reply.status == 400
    assert reply.json["error"]["message"] == (
        "`input` must have token ids as /tokenize gives them, with special tokens; item 1 has others. Are they tokens "
        "of another vocabulary? Send text; in LangChain: check_embedding_ctx_length=False"
    )


def test_too_many_texts(encoder):
    """The limit of a request is OpenAI's, and can be another."""
    with Served(encoder, limits=Limits(client_batch=2)) as served:
        reply = served.post("/v1/embeddings", {"input": ["a", "b", "c"]})

        assert served.post("/v1/embeddings", {"input": ["a", "b"]}).status == 200
    assert (reply.status, reply.json["error"]["message"]) == (400, "batch size 3 > maximum allowed batch size 2")
    assert Limits().client_batch == 2048


@pytest.mark.parametrize("text", ["a " * 600, "x" * 200_000])
def test_a_text_that_must_not_be_cut(served, text):
    """It is refused with OpenAI's code, and the index of the item. A very long one is not even tokenized."""
    reply = served.post("/v1/embeddings", {"input": ["b", text], "truncate": False})
    error = reply.json["error"]

    assert reply.status == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    if len(text) < 2000:
        assert error["message"] == (
            "item 1: `input` must have less than 513 tokens. Given: 602. Send a shorter text, or allow that it is cut."
        )
    else:
        assert error["message"] == "item 1: `input` must have less than 128001 characters. Given: 200000"


def test_another_model(served, encoder):
    """By default any name is accepted, and the answer has ours. A strict server refuses."""
    body = {"input": "a", "model": "text-embedding-3-small"}
    with Served(encoder, limits=Limits(strict_model=True)) as strict:
        refused = strict.post("/v1/embeddings", body)
        known = strict.post("/v1/embeddings", {"input": "a", "model": "built-in"})

    assert served.post("/v1/embeddings", body).json["model"] == "built-in"
    assert (refused.status, known.status) == (404, 200)
    assert refused.json["error"] == {
        "message": "The model 'text-embedding-3-small' does not exist; this server has 'built-in'.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_messages_do_not_quote_long_values(served):
    """What was found is told in a few words."""
    reply = served.post("/v1/embeddings", {"input": "a", "encoding_format": "x" * 10_000, "dimensions": None})

    assert reply.json["error"]["message"] == "`encoding_format` must be one of float, base64; it is a text."
    huge = served.post("/v1/embeddings", json.dumps({"input": "a", "dimensions": 10**40}).encode())
    assert huge.json["error"]["message"].endswith("it is a number of many digits.")
