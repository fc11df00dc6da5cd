"""Real clients on a real server: each gets the vectors of encode, and understands the errors.

It needs the ``clients`` extra, in an environment of its own.
"""

import asyncio
import gc
import json
import threading
import time

import numpy as np
import pytest
from serving_support import Process, vector_of
from support import needs

from minibert import SentenceEncoder

pytestmark = [
    pytest.mark.integrations,
    # The clients' own: deprecated names of their libraries, and sockets that they leave to the collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TEXTS = ["a man is eating", "the cat"]
KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model."""
    return SentenceEncoder()


@pytest.fixture(scope="module")
def server():
    """Return a server with a key."""
    with Process("--strict-model", environment={"MINIBERT_API_KEY": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def small():
    """Return a server without a key, whose queue takes one text."""
    with Process("--max-queue-tokens", "1", "--num-threads", "1") as server:
        yield server


@pytest.fixture(scope="module")
def open_server():
    """Return a server without a key."""
    with Process() as server:
        yield server


@pytest.fixture(autouse=True)
def collected():
    """Collect what a client leaves open before the next test, whose warnings are errors."""
    yield
    gc.collect()


def assert_vectors(given, encoder, texts=TEXTS, **options):
    """Fail unless the numbers are the vectors of encode."""
    expected = encoder.encode(texts, normalize_embeddings=True, **options)
    np.testing.assert_array_equal(np.array(given, np.float64).astype(np.float32), expected)


# --- openai ----------------------------------------------------------------------------------------------------------


def openai_client(server, **options):
    """Return OpenAI's client."""
    return needs("openai").OpenAI(base_url=f"{server.url}/v1", api_key=KEY, **options)


def test_openai(server, encoder):
    """Vectors, dimensions, usage, models, and the id of the request."""
    client = openai_client(server)
    reply = client.embeddings.create(model="built-in", input=TEXTS, user="u1")
    cut = client.embeddings.create(model="built-in", input=TEXTS[0], dimensions=32, encoding_format="float")
    named = client.embeddings.create(model="built-in", input="the cat", encoding_format="base64")

    assert_vectors([each.embedding for each in reply.data], encoder)
    assert_vectors(cut.data[0].embedding, encoder, TEXTS[0], truncate_dim=32)
    np.testing.assert_array_equal(
        vector_of(named.data[0].embedding), encoder.encode("the cat", normalize_embeddings=True)
    )
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == 10
    assert [model.id for model in client.models.list()] == ["built-in"]
    assert client.models.retrieve("built-in").owned_by == "minibert"


def test_openai_extensions(server, encoder):
    """``extra_body`` reaches the server."""
    client = openai_client(server)
    reply = client.embeddings.create(model="built-in", input=TEXTS, extra_body={"normalize": False})

    np.testing.assert_array_equal(np.array([each.embedding for each in reply.data], np.float32), encoder.encode(TEXTS))


def test_openai_async(server, encoder):
    """32 requests at once."""

    async def ask():
        async with needs("openai").AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            work = [client.embeddings.create(model="built-in", input=f"text {number}") for number in range(32)]
            return await asyncio.gather(*work)

    replies = asyncio.run(ask())
    assert_vectors([each.data[0].embedding for each in replies], encoder, [f"text {number}" for number in range(32)])


def test_openai_errors(server):
    """Each error is the class that its users catch, with the message and the field."""
    openai = needs("openai")
    client = openai_client(server, max_retries=0)

    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="built-in", input=[], extra_headers={"x-request-id": "abc"})
    assert (wrong.value.param, wrong.value.request_id) == ("input", "abc")
    assert wrong.value.body["message"] == "`input` cannot be empty."
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model="built-in", input="a " * 600, extra_body={"truncate": False})
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as other:
        client.embeddings.create(model="other", input="a")
    assert other.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as large:
        client.embeddings.create(model="built-in", input="a" * 9_000_000)
    assert large.value.status_code == 413
    with pytest.raises(openai.AuthenticationError) as key:
        client.with_options(api_key="wrong").embeddings.create(model="built-in", input="a")
    assert key.value.code == "invalid_api_key"


def test_openai_tries_again(small, encoder):
    """After 429 it waits as long as the server says, and then it gets its vectors."""
    client = needs("openai").OpenAI(base_url=f"{small.url}/v1", api_key="-", max_retries=8)
    body = {"inputs": [f"{number} {'music ' * 400}" for number in range(200)], "dimensions": 1}
    busy = threading.Thread(target=small.post, args=("/embed", body))
    busy.start()
    while b"\nte_queue_size 0\n" in small.get("/metrics").content:
        time.sleep(0.005)
    reply = client.embeddings.with_raw_response.create(model="built-in", input="the cat")
    busy.join()

    assert reply.retries_taken >= 1
    assert_vectors(reply.parse().data[0].embedding, encoder, "the cat")
    assert b'te_request_failure{err="overloaded"}' in small.get("/metrics").content


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_huggingface_hub(server, encoder):
    """The client of inference endpoints: vectors and similarities."""
    client = needs("huggingface_hub").InferenceClient(server.url, token=KEY)
    one = client.feature_extraction(TEXTS[0])
    full = client.feature_extraction(
        TEXTS[0], normalize=True, prompt_name="query", truncate=True, truncation_direction="Right", dimensions=16
    )

    assert_vectors(one, encoder, TEXTS[:1])
    assert_vectors(client.feature_extraction(TEXTS), encoder)
    assert_vectors(full, encoder, TEXTS[:1], truncate_dim=16)
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    expected = encoder.similarity(encoder.encode(TEXTS[:1]), encoder.encode(TEXTS))[0]
    np.testing.assert_array_equal(np.array(scores, np.float32), expected)


def test_huggingface_hub_errors(server):
    """The message of the server is in the error."""
    hub = needs("huggingface_hub")
    client = hub.InferenceClient(server.url, token=KEY)

    with pytest.raises(hub.errors.HfHubHTTPError, match="`prompt_name` must be one of"):
        client.feature_extraction("a", prompt_name="no")


# --- Cohere, Ollama --------------------------------------------------------------------------------------------------


def test_cohere(server, encoder):
    """Both versions of the protocol."""
    cohere = needs("cohere")
    new = cohere.ClientV2(api_key=KEY, base_url=server.url)
    reply = new.embed(
        model="built-in",
        texts=TEXTS,
        input_type="search_document",
        embedding_types=["float", "base64", "ubinary"],
        output_dimension=64,
        truncate="END",
    )
    old = cohere.Client(api_key=KEY, base_url=server.url).embed(
        model="built-in", texts=TEXTS, input_type="search_query"
    )

    assert_vectors(reply.embeddings.float_, encoder, truncate_dim=64)
    assert_vectors([vector_of(text) for text in reply.embeddings.base64], encoder, truncate_dim=64)
    assert np.shape(reply.embeddings.ubinary) == (2, 8)
    assert reply.meta.billed_units.input_tokens == 10
    assert_vectors(old.embeddings, encoder)
    with pytest.raises(cohere.errors.BadRequestError, match="cannot be empty"):
        new.embed(model="built-in", texts=[], input_type="search_query", embedding_types=["float"])
    with pytest.raises(cohere.errors.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=server.url).embed(
            model="built-in", texts=["a"], input_type="clustering"
        )


def test_ollama(server, encoder):
    """One text, and many."""
    ollama = needs("ollama")
    client = ollama.Client(host=server.url, headers={"Authorization": f"Bearer {KEY}"})
    reply = client.embed(model="built-in", input=TEXTS, truncate=True, dimensions=8, keep_alive=1)

    assert_vectors(reply.embeddings, encoder, truncate_dim=8)
    assert_vectors(client.embed(model="built-in", input=TEXTS[0]).embeddings, encoder, TEXTS[:1])
    assert client.embed(model="built-in", input="").embeddings == []
    with pytest.raises(ollama.ResponseError, match="The model 'other' does not exist") as error:
        client.embed(model="other", input="a")
    assert error.value.status_code == 404


# --- frameworks ------------------------------------------------------------------------------------------------------


def test_langchain(server, encoder):
    """As docs/serve.md says."""
    module = needs("langchain_openai")
    options = {"model": "built-in", "base_url": f"{server.url}/v1", "api_key": KEY}
    embeddings = module.OpenAIEmbeddings(check_embedding_ctx_length=False, **options)

    assert_vectors(embeddings.embed_documents(TEXTS), encoder)
    assert_vectors(asyncio.run(embeddings.aembed_query(TEXTS[0])), encoder, TEXTS[0])


def test_langchain_with_ids_of_another_vocabulary(server, monkeypatch):
    """By default, LangChain sends ids of tiktoken. They are refused, and the message has the remedy."""

    class Encoding:
        def encode(self, *_, **__):
            return [9906, 1917]

        encode_ordinary = encode

    for name in ("encoding_for_model", "get_encoding"):
        monkeypatch.setattr(needs("tiktoken"), name, lambda _: Encoding())
    embeddings = needs("langchain_openai").OpenAIEmbeddings(model="built-in", base_url=f"{server.url}/v1", api_key=KEY)

    with pytest.raises(needs("openai").BadRequestError, match="in LangChain: check_embedding_ctx_length=False"):
        embeddings.embed_documents(TEXTS)


def test_llama_index(server, open_server, encoder):
    """Its class for OpenAI, and the one for TEI."""
    openai = needs("llama_index.embeddings.openai").OpenAIEmbedding(
        model_name="built-in", api_base=f"{server.url}/v1", api_key=KEY
    )
    tei = needs("llama_index.embeddings.text_embeddings_inference").TextEmbeddingsInference(
        model_name="built-in", base_url=open_server.url
    )

    for embedding in (openai, tei):
        assert_vectors(embedding.get_text_embedding_batch(TEXTS), encoder)
        assert_vectors(embedding.get_query_embedding(TEXTS[0]), encoder, TEXTS[0])


def test_haystack(server, encoder):
    """Its embedders for OpenAI, and those for TEI."""
    haystack = needs("haystack")
    embedders, secret = needs("haystack.components.embedders"), needs("haystack.utils").Secret.from_token(KEY)
    hub = needs("haystack_integrations.components.embedders.huggingface_api")
    documents = [haystack.Document(content=text) for text in TEXTS]
    openai = {"api_key": secret, "api_base_url": f"{server.url}/v1", "model": "built-in"}
    tei = {"api_type": "text_embeddings_inference", "api_params": {"url": server.url}, "token": secret}

    for text, document in (
        (embedders.OpenAITextEmbedder(**openai), embedders.OpenAIDocumentEmbedder(**openai)),
        (
            hub.HuggingFaceAPITextEmbedder(normalize=True, **tei),
            hub.HuggingFaceAPIDocumentEmbedder(normalize=True, **tei),
        ),
    ):
        assert_vectors(text.run(TEXTS[0])["embedding"], encoder, TEXTS[0])
        assert_vectors([each.embedding for each in document.run(documents)["documents"]], encoder)


def test_the_recorded_request_is_still_sent(encoder):
    """The tests of the protocol use a recorded body. The client must still send it."""
    httpx = needs("httpx2")
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        return httpx.Response(500)

    openai = needs("openai")
    client = openai.OpenAI(api_key="-", max_retries=0, http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    with pytest.raises(openai.InternalServerError):
        client.embeddings.create(model="built-in", input=TEXTS, user="u1", dimensions=32)

    assert sent == [{"input": TEXTS, "model": "built-in", "user": "u1", "dimensions": 32, "encoding_format": "base64"}]
