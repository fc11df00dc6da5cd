"""What other servers promise in their tests, asked of this one.

The cases are those of three test suites, written anew: of llama.cpp (tools/server/tests/unit/test_embedding.py), of
infinity (libs/infinity_emb/tests/end_to_end: test_api_with_dummymodel.py and test_authentication.py), and of
text-embeddings-inference (router/tests/test_http_embed.rs). Left out is what needs another kind of model: images,
audio, reranking, and embeddings without pooling, which are the route ``/embed_all`` here.
"""

import json

import numpy as np
import pytest
from serving_support import Served, as_float32, vector_of

from minibert import SentenceEncoder

LIFE = "I believe the meaning of life is"


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model."""
    return SentenceEncoder(num_threads=2)


@pytest.fixture(scope="module")
def served(encoder):
    """Return a server."""
    with Served(encoder) as served:
        yield served


def vectors_of(reply):
    """Return the vectors of an answer in OpenAI's protocol."""
    assert reply.status == 200, reply.content
    return as_float32([each["embedding"] for each in reply.json["data"]])


# --- llama.cpp -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [
        LIFE,
        [LIFE, "Write a joke about AI", "This is a test", "This is another test"],
        [f"{letter} " * words for letter, words in zip("abcd", range(253, 257), strict=True)],
    ],
)
def test_llama_cpp_vectors_have_length_1(served, encoder, texts):
    """For one text, for several, and for lengths around a multiple of 256, where kernels change their way."""
    vectors = vectors_of(served.post("/v1/embeddings", {"input": texts}))

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    expected = encoder.encode([texts] if isinstance(texts, str) else texts, normalize_embeddings=True)
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("string", 1),
        ([101, 12, 34, 102], 1),
        (["string1", "string2"], 2),
        (["string1", [101, 12, 34, 102]], 2),
        ([[101, 12, 34, 102], [101, 12, 34, 102]], 2),
    ],
)
def test_llama_cpp_mixed_inputs(served, given, number):
    """Texts and ids, alone and together. Our ids have the special tokens."""
    assert len(vectors_of(served.post("/v1/embeddings", {"input": given}))) == number


@pytest.mark.parametrize(
    "given",
    [
        [],
        "",
        {"content": "string"},
        {"content": [{"type": "input_audio", "input_audio": {}}]},
        {"prompt_string": "string"},
        [101, 12, "string", 102],
        [[101, "string", 102]],
        [12, 34, 56],
    ],
)
def test_llama_cpp_invalid_inputs(served, given):
    """They give 400, not 500. So does an empty text, as with OpenAI, and so do objects and ids mixed with text."""
    reply = served.post("/v1/embeddings", {"input": given})

    assert (reply.status, reply.json["error"]["param"]) == (400, "input")


def test_llama_cpp_equal_texts(served):
    """They have equal vectors: here, to the last bit."""
    vectors = vectors_of(served.post("/v1/embeddings", {"input": [LIFE] * 5}))

    assert (vectors == vectors[0]).all()


@pytest.mark.parametrize(("given", "tokens"), [(LIFE, 9), ("This is a test", 6), ([LIFE, LIFE], 18)])
def test_llama_cpp_usage(served, given, tokens):
    """Tokens are counted with special ones, for equal texts each time."""
    usage = served.post("/v1/embeddings", {"input": given}).json["usage"]

    assert usage == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_llama_cpp_base64(served):
    """It has the numbers of the other format: here, to the last bit."""
    body = {"input": "Test base64 embedding output"}
    numbers = vectors_of(served.post("/v1/embeddings", body))[0]
    text = served.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json["data"][0]["embedding"]

    np.testing.assert_array_equal(vector_of(text), numbers)


# --- infinity --------------------------------------------------------------------------------------------------------


def test_infinity_the_longest_text(served, encoder):
    """A text of the greatest length is accepted, and one that is a token longer is not, if it must not be cut."""
    for words, status in ((encoder.max_seq_length - 2, 200), (encoder.max_seq_length - 1, 400)):
        reply = served.post("/v1/embeddings", {"input": "music " * words, "truncate": False})
        assert reply.status == status


def test_infinity_many_small_requests(served, encoder):
    """All sent at once, each with a few texts, they give the vectors that one call gives."""
    texts = [f"sentence number {number}, {'very ' * (number % 23)}long" for number in range(400)]
    requests = [
        served.start(served.call("POST", "/embeddings", {"input": texts[start : start + 8]}))
        for start in range(0, 400, 8)
    ]
    found = np.concatenate([vectors_of(request.result(30)) for request in requests])

    np.testing.assert_array_equal(found, encoder.encode(texts, normalize_embeddings=True))


def test_infinity_fewer_dimensions(served):
    """A request can ask for fewer, or the server can have fewer. Unlike there, the vectors have length 1 again."""
    texts = ["This is a test sentence.", "This is another test sentence."]
    asked = vectors_of(served.post("/embeddings", {"input": texts, "dimensions": 10}))
    with Served(SentenceEncoder(truncate_dim=10, num_threads=1)) as short:
        default = vectors_of(short.post("/embeddings", {"input": texts}))

    assert asked.shape == (2, 10)
    np.testing.assert_array_equal(asked, default)
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("key", [None, "dummy-password"])
def test_infinity_authentication(encoder, key):
    """With the key, there are answers; without, there is 401 on every route of the protocol."""
    header = {} if key is None else {"authorization": f"Bearer {key}"}
    with Served(encoder, keys=[b"dummy-password"]) as served:
        found = [
            served.run(served.call(method, path, json.dumps(body).encode(), header)).status
            for method, path, body in (
                ("GET", "/models", None),
                ("POST", "/embeddings", {"input": "sentence"}),
                ("POST", "/embeddings", {"input": []}),
            )
        ]

    assert found == ([401] * 3 if key is None else [200, 200, 400])


# --- text-embeddings-inference ---------------------------------------------------------------------------------------


def test_tei_batches(served):
    """Each vector of a batch is that of its text alone: here, to the last bit."""
    (single,) = served.post("/embed", {"inputs": "test"}).json
    batch = served.post("/embed", {"inputs": ["test"] * 5}).json

    assert batch == [single] * 5


def test_tei_vectors_of_tokens(served):
    """There is one for each token, with the special ones."""
    (vectors,) = served.post("/embed_all", {"inputs": "test"}).json

    assert np.shape(vectors) == (3, 128)
