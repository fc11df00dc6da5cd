"""The protocol of text-embeddings-inference: every route, what its clients send, and every error."""

import asyncio
import threading

import numpy as np
import pytest
from serving_support import Limits, Served, as_float32
from support import edit_json, words_of

from minibert import SentenceEncoder, __version__
from minibert.serving import tei


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model with prompts."""
    return SentenceEncoder(prompts={"query": "query: "}, num_threads=2)


@pytest.fixture(scope="module")
def served(encoder):
    """Return a server."""
    with Served(encoder) as served:
        yield served


RECORDED = {
    "feature_extraction": ("/", b'{"inputs": "the cat"}', {"normalize_embeddings": True}),
    "feature_extraction with everything": (
        "/",
        (
            b'{"inputs": "the cat", "normalize": true, "prompt_name": "query", "truncate": true, '
            b'"truncation_direction": "Right", "dimensions": 16, "encoding_format": "float"}'
        ),
        {"normalize_embeddings": True, "prompt_name": "query", "truncate_dim": 16},
    ),
    "LlamaIndex": ("/embed", b'{"inputs": ["the cat"], "truncate": true}', {"normalize_embeddings": True}),
    "Haystack": ("/", b'{"inputs": ["the cat"], "normalize": false, "truncate": true}', {}),
    "nulls": (
        "/embed",
        b'{"inputs": "the cat", "truncate": null, "prompt_name": null, "dimensions": null}',
        {"normalize_embeddings": True},
    ),
}


@pytest.mark.parametrize(("path", "body", "arguments"), RECORDED.values(), ids=RECORDED)
def test_recorded_requests_of_clients(served, encoder, path, body, arguments):
    """A list with a list for each text, with the bits of encode. It is two-dimensional for one text, too."""
    reply = served.post(path, body)

    assert reply.status == 200
    np.testing.assert_array_equal(as_float32(reply.json), [encoder.encode("the cat", **arguments)])
    assert reply.headers["x-compute-characters"] == "7"
    for name in ("compute-time", "total-time", "tokenization-time", "queue-time", "inference-time", "compute-tokens"):
        assert reply.headers[f"x-{name}"].isdecimal()
    assert reply.headers["x-compute-type"] == "cpu"
    assert reply.headers["x-minibert-fingerprint"] == encoder.fingerprint


def test_a_list_of_numbers_is_one_text(served, encoder):
    """Ids can also stand between texts."""
    ids = encoder.tokenizer.encode("the cat").ids
    expected = encoder.encode(["the cat", "a"], normalize_embeddings=True)

    np.testing.assert_array_equal(as_float32(served.post("/embed", {"inputs": ids}).json), expected[:1])
    np.testing.assert_array_equal(as_float32(served.post("/embed", {"inputs": [ids, "a"]}).json), expected)


@pytest.mark.parametrize("side", ["Right", "right", "Left", "left", None])
def test_the_side_of_the_cut(served, encoder, side):
    """A long text is cut at its end, or at its start."""
    words = ["cat"] * 300 + ["music"] * 300
    reply = served.post("/embed", {"inputs": " ".join(words), "truncation_direction": side})
    kept = words[-510:] if side in {"Left", "left"} else words[:510]

    np.testing.assert_array_equal(as_float32(reply.json), [encoder.encode(" ".join(kept), normalize_embeddings=True)])


def test_vectors_of_tokens(served, encoder):
    """One for each token of each text, special ones included."""
    reply = served.post("/embed_all", {"inputs": ["the cat", "music"], "prompt_name": "query"})

    for given, text in zip(reply.json, ["the cat", "music"], strict=True):
        expected = encoder.encode(text, output_value="token_embeddings", prompt_name="query")
        np.testing.assert_array_equal(as_float32(given), expected)


def test_similarity(served, encoder):
    """The cosines of a text with others. huggingface_hub posts to ``/``, with empty parameters."""
    inputs = {"source_sentence": "the cat", "sentences": ["the cat", "a dog", "music"]}
    expected = encoder.similarity(encoder.encode(["the cat"]), encoder.encode(inputs["sentences"]))[0]

    for path, more in (("/similarity", {}), ("/", {"parameters": {}}), ("/", {"parameters": None})):
        np.testing.assert_array_equal(as_float32(served.post(path, {"inputs": inputs, **more}).json), expected)
    prompted = served.post("/similarity", {"inputs": inputs, "parameters": {"prompt_name": "query"}})
    vectors = encoder.encode(inputs["sentences"], prompt_name="query")
    np.testing.assert_array_equal(as_float32(prompted.json), encoder.similarity(vectors[:1], vectors)[0])


def test_similarity_of_vectors_that_are_not_normalized(repo):
    """The bits are those of ``encoder.similarity``."""
    own = SentenceEncoder(repo, num_threads=1)
    texts = [" ".join(words_of(repo)[start : start + 9]) for start in range(10, 60, 3)]
    vectors = own.encode(texts)
    with Served(own) as served:
        body = {"inputs": {"source_sentence": texts[0], "sentences": texts}}
        scores = as_float32(served.post("/similarity", body).json)

    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)
    np.testing.assert_array_equal(scores, own.similarity(vectors[:1], vectors)[0])


def test_tokens_and_back(served, encoder):
    """What ``/tokenize`` gives is accepted by ``/decode`` and ``/embed``."""
    (tokens,) = served.post("/tokenize", {"inputs": "The cat"}).json
    ids = [token["id"] for token in tokens]

    assert ids == encoder.tokenizer.encode("The cat").ids
    assert tokens[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert tokens[1] == {"id": ids[1], "text": "The", "special": False, "start": 0, "stop": 3}
    assert served.post("/decode", {"ids": ids}).json == ["the cat"]
    assert served.post("/decode", {"ids": [ids, ids], "skip_special_tokens": False}).json == ["[CLS] the cat [SEP]"] * 2
    expected = encoder.encode("The cat", normalize_embeddings=True)
    np.testing.assert_array_equal(as_float32(served.post("/embed", {"inputs": [ids]}).json[0]), expected)


def test_tokens_without_special_ones_and_with_a_prompt(served, encoder):
    """A prompt comes before each text."""
    reply = served.post("/tokenize", {"inputs": ["cat", "a"], "add_special_tokens": False, "prompt_name": "query"})

    own = [encoder.tokenizer.encode(f"query: {text}", add_special_tokens=False).ids for text in ("cat", "a")]
    assert [[token["id"] for token in tokens] for tokens in reply.json] == own


def test_tokens_in_their_text(served):
    """Each token has its part of the text with the prompt, and where that is. An empty text is refused as elsewhere."""
    (tokens,) = served.post("/tokenize", {"inputs": "The Happy", "prompt_name": "query"}).json

    assert [(token["text"], token["start"], token["stop"]) for token in tokens[1:-1]] == [
        ("query", 0, 5),
        (":", 5, 6),
        ("The", 7, 10),
        ("Happy", 11, 16),
    ]


def test_tokens_for_people_one_request_at_a_time(served, monkeypatch):
    """They need much memory, so a client that leaves does not make room for another one before its thread is free."""
    entered, go, running = threading.Semaphore(0), threading.Event(), []

    def slow(*_):
        running.append(1)
        entered.release()
        assert go.wait(20)
        return "[]"

    monkeypatch.setattr(tei, "_tokens", slow)
    gone = asyncio.Event()
    left = served.start(served.call("POST", "/tokenize", {"inputs": "a"}, gone=gone))
    assert entered.acquire(timeout=20)
    served.loop.call_soon_threadsafe(gone.set)
    assert left.result(20).status == 499
    assert b'te_request_failure{err="dropped"} 1\n' in served.get("/metrics").content
    other = served.start(served.call("POST", "/tokenize", {"inputs": "a"}))
    assert not entered.acquire(timeout=0.2)
    assert len(running) == 1
    assert served.post("/embed", {"inputs": "a"}).status == 200  # vectors do not wait
    go.set()
    assert other.result(20).status == 200


def test_the_most_characters_to_tokenize(served):
    """A few bytes of text are hundreds in the answer, and more on the way."""
    reply = served.post("/tokenize", {"inputs": ["a" * (1 << 20), "b"]})

    assert reply.status == 422
    assert reply.json["error"] == "`inputs` must have at most 1048576 characters together. Given: 1048577"


def test_the_most_vectors_of_tokens(served):
    """An answer for 60 kB of text was 36 MB. Its size has a limit."""
    reply = served.post("/embed_all", {"inputs": ["a" * 600] * 257})

    assert reply.status == 422
    assert reply.json["error"] == (
        "`inputs` must have at most 131072 tokens together. Given: 131584, if each character is one"
    )
    assert len(served.post("/embed_all", {"inputs": ["a"] * 2048}).json) == 2048


def test_info(served, encoder):
    """The fields of TEI, with the facts of this model."""
    assert served.get("/info").json == {
        "model_id": "built-in",
        "model_sha": encoder.fingerprint,
        "model_dtype": "float32",
        "served_model_name": "built-in",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 512,
        "max_input_length": 512,
        "max_batch_tokens": encoder.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": 2048,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


SIMILARITY = b'{"inputs": {"source_sentence": %s, "sentences": %s}}'
WRONG = {
    "not JSON": ("/embed", b"x", 422, "Validation", "the body must be JSON; it is not: Expecting value."),
    "no inputs": (
        "/embed",
        b"{}",
        422,
        "Validation",
        "`inputs` is required: a text or a list of texts, or their token ids.",
    ),
    "no texts": ("/embed", b'{"inputs": []}', 400, "Empty", "`inputs` cannot be empty."),
    "an empty text": ("/", b'{"inputs": ""}', 400, "Empty", "`inputs` cannot be empty; item 0 is."),
    "a direction": (
        "/embed",
        b'{"inputs": "a", "truncation_direction": "up"}',
        422,
        "Validation",
        "`truncation_direction` must be one of Right, Left, right, left; it is 'up'.",
    ),
    "a prompt": (
        "/embed_all",
        b'{"inputs": "a", "prompt_name": "no"}',
        422,
        "Validation",
        "`prompt_name` must be one of query, document; there is no such prompt.",
    ),
    "dimensions": (
        "/embed",
        b'{"inputs": "a", "dimensions": 0}',
        422,
        "Validation",
        "`dimensions` must be a whole number from 1 to 128; it is 0.",
    ),
    "no source": (
        "/similarity",
        b'{"inputs": {"sentences": ["a"]}}',
        422,
        "Validation",
        "`source_sentence` is required: a text.",
    ),
    "an empty source": ("/", SIMILARITY % (b'""', b'["a"]'), 400, "Empty", "`source_sentence` cannot be empty."),
    "no sentences": ("/", SIMILARITY % (b'"a"', b"[]"), 400, "Empty", "`sentences` cannot be empty."),
    "a source of another type": (
        "/similarity",
        SIMILARITY % (b"[1]", b'["a"]'),
        422,
        "Validation",
        "`source_sentence` must be a text; it is a list.",
    ),
    "a text to compare": (
        "/similarity",
        b'{"inputs": "a"}',
        422,
        "Validation",
        "`inputs` must be an object; it is 'a'.",
    ),
    "ids to tokenize": (
        "/tokenize",
        b'{"inputs": [1]}',
        422,
        "Validation",
        "`inputs[0]` must be a text; it is 1.",
    ),
    "text to decode": (
        "/decode",
        b'{"ids": ["a"]}',
        422,
        "Validation",
        "`ids` must be a list of token ids, or a list of such lists.",
    ),
    "nothing to decode": ("/decode", b'{"ids": []}', 400, "Empty", "`ids` cannot be empty."),
    "unknown ids": ("/decode", b'{"ids": [30522]}', 422, "Validation", None),
    "negative ids": ("/decode", b'{"ids": [-1]}', 422, "Validation", None),
    "foreign ids": ("/embed", b'{"inputs": [[9906, 1917]]}', 422, "Validation", None),
    "a long sentence": (
        "/similarity",
        b'{"inputs": {"source_sentence": "a", "sentences": ["a", "%s"]}, "parameters": {"truncate": false}}'
        % (b"a " * 600),
        422,
        "Validation",
        "item 1: `sentences` must have less than 513 tokens. Given: 602. Send a shorter text, or allow that it is cut.",
    ),
    "a long number": (
        "/embed",
        b'{"inputs": %s}' % (b"1" * 5000),
        422,
        "Validation",
        "the body must be JSON; it is not: a number has too many digits.",
    ),
    "no UTF-8": (
        "/embed",
        b'{"inputs": "\xff"}',
        422,
        "Validation",
        "the body must be JSON; it is not: its characters are not UTF-8.",
    ),
    "a long text": (
        "/embed",
        b'{"inputs": ["a", "%s"], "truncate": false}' % (b"a " * 600),
        422,
        "Validation",
        "item 1: `inputs` must have less than 513 tokens. Given: 602. Send a shorter text, or allow that it is cut.",
    ),
}


@pytest.mark.parametrize(("path", "body", "status", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_requests(served, path, body, status, kind, message):
    """Each is answered with TEI's status and its two fields."""
    reply = served.post(path, body)

    assert reply.status == status
    assert reply.json.keys() == {"error", "error_type"}
    assert reply.json["error_type"] == kind
    assert message is None or reply.json["error"] == message


def test_too_many_texts(encoder):
    """TEI's words, for every route that takes texts."""
    with Served(encoder, limits=Limits(client_batch=1)) as served:
        for path, body in (("/embed", {"inputs": ["a", "b"]}), ("/tokenize", {"inputs": ["a", "b"]})):
            reply = served.post(path, body)
            assert reply.status == 422
            assert reply.json == {
                "error": "batch size 2 > maximum allowed batch size 1",
                "error_type": "Validation",
            }


def test_a_server_that_does_not_cut():
    """With ``--on-truncate error``, a request must ask for the cut."""
    encoder = SentenceEncoder(on_truncate="error", num_threads=1)
    long = "a " * 600
    with Served(encoder) as served:
        assert served.get("/info").json["auto_truncate"] is False
        assert served.post("/embed", {"inputs": long}).status == 422
        assert served.post("/embed", {"inputs": long, "truncate": True}).status == 200


def test_a_tokenizer_that_cuts_at_the_start(repo):
    """Without a direction, a text is cut as in encode."""
    edit_json(repo / "tokenizer_config.json", truncation_side="left")
    own = SentenceEncoder(repo, num_threads=1, max_seq_length=8, on_truncate="ignore")
    text = " ".join(words_of(repo)[10:30])
    with Served(own) as served:
        given = [
            served.post("/embed", {"inputs": text, "normalize": False, **more}).json[0]
            for more in ({}, {"truncation_direction": "Left"}, {"truncation_direction": "Right"})
        ]

    np.testing.assert_array_equal(as_float32(given[0]), own.encode(text))
    assert given[0] == given[1] != given[2]


def test_a_server_of_fewer_dimensions(encoder):
    """``--truncate-dim`` is the width of all answers, and the most that a request may ask for."""
    short = SentenceEncoder(truncate_dim=16, num_threads=1)
    with Served(short) as served:
        vectors = served.post("/embed", {"inputs": "the cat"}).json
        scores = served.post("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}).json

        assert served.post("/embed", {"inputs": "the cat", "dimensions": 17}).status == 422
    np.testing.assert_array_equal(as_float32(vectors)[0], short.encode("the cat", normalize_embeddings=True))
    np.testing.assert_array_equal(as_float32(scores), short.similarity(short.encode("a"), short.encode("b"))[0])


def test_the_default_prompt(encoder):
    """It is put before texts as in encode, unless the request names another."""
    own = SentenceEncoder(prompts={"p": "passage: ", "query": "query: "}, default_prompt_name="p", num_threads=1)
    with Served(own) as served:
        (default,), (named,) = (
            served.post("/embed", {"inputs": "the cat", "normalize": False, **more}).json
            for more in ({}, {"prompt_name": "query"})
        )
        (tokens,) = served.post("/tokenize", {"inputs": "the cat"}).json
    np.testing.assert_array_equal(as_float32(default), own.encode("the cat"))
    np.testing.assert_array_equal(as_float32(named), encoder.encode("the cat", prompt_name="query"))
    assert [token["id"] for token in tokens] == own.tokenizer.encode("passage: the cat").ids
