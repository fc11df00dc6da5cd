"""What all routes share: keys, limits, overload, stopping, clients that leave, bugs, metrics, and bits."""

import asyncio
import base64
import json
import re
import threading
import time

import numpy as np
import pytest
from serving_support import Limits, Served, as_float32, blocked, vector_of, wait_until
from starlette.requests import Request

from minibert import SentenceEncoder
from minibert.errors import TokenizerError, VectorError
from minibert.serving.app import ROUTES
from minibert.serving.refused import Refused

#: A route of each protocol, a body for it, and the keys of its errors.
PROTOCOLS = {
    "openai": ("/v1/embeddings", {"input": "the cat"}, ["error"]),
    "tei": ("/embed", {"inputs": "the cat"}, ["error", "error_type"]),
    "ollama": ("/api/embed", {"input": "the cat"}, ["error"]),
    "cohere": ("/v2/embed", {"texts": ["the cat"]}, ["message"]),
}
OPEN = ["/", "/health", "/ping", "/metrics"]


@pytest.fixture(scope="module")
def encoder():
    """Return the built-in model."""
    return SentenceEncoder(prompts={"query": "query: "}, num_threads=2)


@pytest.fixture
def served(encoder):
    """Return a server."""
    with Served(encoder) as served:
        yield served


def message_of(reply):
    """Return the message of an error, in any protocol."""
    error = reply.json.get("error", reply.json.get("message"))
    return error["message"] if isinstance(error, dict) else error


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_key_is_required(encoder, path, body, fields):
    """Without one of the keys, there is 401 in the shape of the protocol, before the body is read."""
    with Served(encoder, keys=[b"first", "schlüssel".encode()]) as served:
        for header in (None, "Bearer", "Bearer third", "Basic first", "first", "Bearer firs", "Bearer \xe9"):
            given = {} if header is None else {"authorization": header.encode("latin-1").decode("latin-1")}
            reply = served.run(served.call("POST", path, b"not JSON", given))
            assert (reply.status, list(reply.json)) == (401, fields)
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "first" not in reply.content.decode()
        for header in ("Bearer first", "bearer first", "Bearer  first "):
            assert served.post(path, body, authorization=header).status == 200
        # A header is bytes; clients write keys in UTF-8.
        assert served.run(served.call("POST", path, body, {"authorization": "Bearer schlüssel"})).status == 200


def test_what_needs_no_key(encoder):
    """Health checks and metrics; all other routes need one."""
    with Served(encoder, keys=[b"key"]) as served:
        assert [served.get(path).status for path in OPEN] == [200] * 4
        for method, _, _, paths in ROUTES:
            for path in paths:
                assert served.run(served.call(method, path.replace("{id:path}", "x"))).status == 401, path


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("length", ["true", "false", "none", "absurd"])
def test_the_body_has_a_limit(encoder, path, body, fields, length):
    """A long body gets 413 in the shape of the protocol, whether its length is announced or not."""
    large = json.dumps(body | {"user": "x" * 300}).encode()
    announced = {"true": str(len(large)), "false": "3", "none": "", "absurd": "9" * 5000}[length]
    with Served(encoder, limits=Limits(body_bytes=200)) as served:
        reply = served.run(served.call("POST", path, large, {"content-length": announced}))

        assert served.post(path, body).status == 200
    assert (reply.status, list(reply.json), reply.headers["connection"]) == (413, fields, "close")
    assert message_of(reply) == "the body must have at most 200 bytes; it has more."


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_full_queue(encoder, path, body, fields):
    """A request that does not fit into the queue gets 429, and when to try again. The others are not hurt."""
    with Served(encoder, max_queue_tokens=4) as served:
        with blocked(served):
            first = served.start(served.call("POST", path, body))
            wait_until(lambda: served.batcher.tokens_queued == 4)
            reply = served.post(path, body)
        assert first.result(10).status == 200
        assert served.post(path, body).status == 200
        failures = re.findall(r'te_request_failure{err="(\w+)"} (\d+)', served.get("/metrics").content.decode())

    assert (reply.status, list(reply.json)) == (429, fields)
    assert message_of(reply) == "Model is overloaded: its queue is full."
    assert int(reply.headers["retry-after"]) >= 1
    assert 1 <= int(reply.headers["retry-after-ms"]) <= 1000 * int(reply.headers["retry-after"])
    assert failures == [("overloaded", "1")]


@pytest.mark.parametrize(("seconds", "headers"), [(0.0001, ("1", "1")), (0.25, ("1", "250")), (1.2, ("2", "1200"))])
def test_when_to_try_again(seconds, headers):
    """Whole seconds are rounded up: 0 would mean at once."""
    refused = Refused("overloaded", "full", retry_after=seconds)

    assert tuple(refused.headers.values()) == headers


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_server_that_stops(served, path, body, fields):
    """Requests in flight are answered, new ones get 503, and health checks fail."""
    assert [served.get(path).status for path in OPEN] == [200] * 4
    with blocked(served):
        first = served.start(served.call("POST", path, body))
        wait_until(lambda: served.batcher.texts_queued == 1)
        served.service.stopping = True
        health = [served.get(path) for path in OPEN[:3]]
        reply = served.post(path, body)

    assert first.result(10).status == 200
    assert [(each.status, each.json["error_type"]) for each in health] == [(503, "Unhealthy")] * 3
    assert (reply.status, list(reply.json), reply.headers["retry-after"]) == (503, fields, "1")
    assert reply.headers["retry-after-ms"] == "1000"


def test_a_server_without_its_worker(served, monkeypatch):
    """If a thread of the batcher has ended, health checks and requests say so."""
    monkeypatch.setattr(served.batcher, "_crashed", True)

    assert served.get("/health").status == 503
    assert served.post("/embed", {"inputs": "a"}).status == 503


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_client_that_leaves(served, path, body, fields):
    """Its texts leave the queue at once, are not computed, and are counted once."""
    with blocked(served):
        other = served.start(served.call("POST", path, body))
        wait_until(lambda: served.batcher.texts_queued == 1)
        gone = asyncio.Event()
        left = served.start(served.call("POST", path, body, gone=gone))
        wait_until(lambda: served.batcher.texts_queued == 2)
        served.loop.call_soon_threadsafe(gone.set)
        assert left.result(10).status == 499
        wait_until(lambda: served.batcher.texts_queued == 1)
    assert other.result(10).status == 200

    text = served.get("/metrics").content.decode()
    assert 'te_request_failure{err="dropped"} 1\n' in text
    assert "te_embed_success 1\n" in text
    assert served.batcher.tokens_queued == 0


def test_a_client_that_leaves_while_it_sends(served):
    """There is no error in the log, and nothing in the queue."""
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
    served.run(served.app(scope, receive, send))

    assert sent[0]["status"] == 499
    assert served.batcher.texts_queued == 0


def test_a_fast_answer_starts_no_watch(served, monkeypatch):
    """Only a request that waits for 50 ms is watched: the watch costs a task."""
    receives = []
    receive = Request.receive
    monkeypatch.setattr(Request, "receive", property(lambda self: receives.append(self) or receive.fget(self)))
    served.post("/embed", {"inputs": "a"})
    time.sleep(0.1)
    assert not receives
    with blocked(served):
        slow = served.start(served.call("POST", "/embed", {"inputs": "a"}))
        wait_until(lambda: receives)
    assert slow.result(10).status == 200
    wait_until(lambda: not asyncio.all_tasks(served.loop))  # the watch ends with the request


# --- bugs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body", "fields"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_bug(served, monkeypatch, caplog, path, body, fields):
    """It gets 500, which clients do not try again. The log has the place, and nothing of the request."""

    def fail(*_, **__):
        raise KeyError("the cat")

    with monkeypatch.context() as broken:
        broken.setattr(served.batcher, "finish", fail)
        reply = served.post(path, body, x_request_id="a-7")
    after = served.post(path, body)

    assert (reply.status, list(reply.json), reply.headers["x-should-retry"]) == (500, fields, "false")
    assert message_of(reply) == "the server has failed on this request (a-7); its log says where."
    assert after.status == 200
    (record,) = caplog.records
    assert re.fullmatch(
        r"request a-7 failed: KeyError at test_serving_app.py:\d+ fail, (\w+.py:\d+ \w+, )+app.py:\d+ answer",
        record.getMessage(),
    )
    assert "cat" not in caplog.text


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 500), ("/embed", 424)])
def test_a_vector_that_is_not_finite(served, monkeypatch, path, status):
    """It is the model's fault, and only of the request with the text."""
    encode_ids = served.batcher._encoder.encode_ids
    bad = served.service.encoder.tokenizer.encode("bad").ids

    def fail(rows, **options):
        for index, row in enumerate(rows):
            if row.tolist() == bad:
                raise VectorError(f"that of item {index} has NaN.")
        return encode_ids(rows, **options)

    monkeypatch.setattr(served.batcher._encoder, "encode_ids", fail)
    field = "input" if "v1" in path else "inputs"
    requests = [
        served.start(served.call("POST", path, {field: text})) for text in ("good", ["fine", "bad"], "also good")
    ]
    good, wrong, other = (request.result(10) for request in requests)

    assert (good.status, other.status) == (200, 200)
    assert (wrong.status, wrong.headers["x-should-retry"]) == (status, "false")
    assert message_of(wrong) == "that of item 1 has NaN."


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 500), ("/embed", 422)])
def test_a_tokenizer_that_fails(encoder, path, status):
    """Its files are wrong. The path of the model is not told."""

    class Failing:
        """A tokenizer that fails."""

        def encode(self, texts):
            """Fail."""
            raise TokenizerError(f"/models/secret: the tokenizer failed on {texts}.")

    with Served(encoder) as served:
        served.batcher._tokenizer = Failing()
        reply = served.post(path, {"input" if "v1" in path else "inputs": "a"})
        metrics = served.get("/metrics").content

    assert (reply.status, reply.headers["x-should-retry"]) == (status, "false")
    assert message_of(reply) == "the tokenizer of this server has failed on a text."
    assert reply.json.get("error_type", "Tokenizer") == "Tokenizer"
    assert b'te_request_failure{err="tokenization"} 1\n' in metrics


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "fields"),
    [
        ("POST", "/predict", 404, ["error", "error_type"]),
        ("POST", "/rerank", 404, ["error", "error_type"]),
        ("POST", "/v1/chat/completions", 404, ["error"]),
        ("POST", "/v2/rerank", 404, ["message"]),
        ("POST", "/api/generate", 404, ["error"]),
        ("GET", "/v1/embeddings", 405, ["error"]),
        ("GET", "/embed", 405, ["error", "error_type"]),
        ("PUT", "/api/embed", 405, ["error"]),
        ("DELETE", "/v1/embed", 405, ["message"]),
        ("POST", "/health", 405, ["error", "error_type"]),
        ("POST", "/v1/embeddings/", 404, ["error"]),
        ("GET", "/health/", 404, ["error", "error_type"]),
    ],
)
def test_what_is_not_there(served, method, path, status, fields):
    """Every error is JSON, in the shape of the protocol to which the path belongs."""
    reply = served.run(served.call(method, path, b"{}"))

    assert (reply.status, list(reply.json)) == (status, fields)
    assert reply.headers["content-type"] == "application/json"
    assert path in message_of(reply)
    assert ("allow" in reply.headers) == (status == 405)


def test_health(served):
    """The body is empty."""
    assert {served.get(path).content for path in OPEN[:3]} == {b""}
    assert served.run(served.call("HEAD", "/health")).status == 200


@pytest.mark.parametrize("given", ["abc-1.2_3", "", "x" * 129, "a b", "a\tb", "ä"])
def test_request_ids(served, given):
    """A sound one comes back, also with an error; others are replaced."""
    for path in ("/embed", "/predict"):
        found = served.post(path, {"inputs": "a"}, x_request_id=given).headers["x-request-id"]
        assert (found == given) == (given == "abc-1.2_3")
        assert re.fullmatch(r"[\w.-]{1,128}", found)


def test_web_pages(encoder, served):
    """Only pages of the origins that the operator names may call the server."""
    page = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with Served(encoder, cors_origins=("https://a.example",)) as cors:
        allowed = cors.run(cors.call("OPTIONS", "/v1/embeddings", b"", page)).headers
        other = cors.post("/embed", {"inputs": "a"}, origin="https://b.example").headers
        real = cors.post("/embed", {"inputs": "a"}, origin="https://a.example").headers

    name = "access-control-allow-origin"
    assert allowed[name] == real[name] == "https://a.example"
    assert name not in other
    assert name not in served.post("/embed", {"inputs": "a"}, origin="https://a.example").headers


def test_metrics(served):
    """The counters of requests, and what is measured of them."""
    served.post("/embed", {"inputs": "a"})
    served.post("/embed", {"inputs": ["a", "b"]})
    served.post("/embed", {"inputs": []})
    served.post("/embed", {"inputs": ["a"] * 2049})
    reply = served.get("/metrics")
    values = dict(line.rsplit(" ", 1) for line in reply.content.decode().splitlines() if line[0] != "#")

    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert values['te_request_count{method="single"}'] == "1"
    assert values['te_request_count{method="batch"}'] == "2"
    assert values['te_request_success{method="batch"}'] == "1"
    assert values['te_request_failure{err="validation"}'] == "1"
    assert values['te_request_failure{err="batch_size"}'] == "1"
    for name in ("", "_tokenization", "_queue", "_inference"):
        assert values[f"te_request{name}_duration_count"] == "2"
    assert values["te_embed_success"] == "3"
    assert any(name.startswith('minibert_info{model="built-in",fingerprint="') for name in values)


# --- the promise -----------------------------------------------------------------------------------------------------


def test_bits_under_load(served, encoder):
    """64 requests at once, of all protocols, with mixed prompts, dimensions and scales, get the bits of encode."""
    rng = np.random.default_rng(5)
    words = ["a", "man", "is", "playing", "some", "very", "old", "music", "where", "people", "go", "by"]
    wanted = []
    for number in range(64):
        texts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(rng.integers(1, 6))]
        options = {"normalize": bool(rng.integers(2)), "prompt_name": [None, "query"][rng.integers(2)]}
        dimensions = [None, 16, 128][rng.integers(3)]
        expected = encoder.encode(
            texts,
            normalize_embeddings=options["normalize"] or number % 3 == 2,
            prompt_name=options["prompt_name"] if number % 3 < 2 else None,
            truncate_dim=dimensions,
        )
        path, body = [
            ("/v1/embeddings", {"input": texts, "encoding_format": "base64", **options}),
            ("/embed", {"inputs": texts, **options}),
            ("/api/embed", {"input": texts}),
        ][number % 3]
        wanted.append((path, {**body, "dimensions": dimensions}, expected))
    futures = [served.start(served.call("POST", path, body)) for path, body, _ in wanted]

    for future, (path, _, expected) in zip(futures, wanted, strict=True):
        found = future.result(30).json
        if path == "/v1/embeddings":
            vectors = np.stack([vector_of(each["embedding"]) for each in found["data"]])
        else:
            vectors = as_float32(found if path == "/embed" else found["embeddings"])
        np.testing.assert_array_equal(vectors, expected)


def test_a_large_answer_is_written_in_another_thread(served, encoder, monkeypatch):
    """Other requests do not wait for its numbers."""
    texts = [f"text {number}" for number in range(300)]
    threads = []
    encode = base64.b64encode
    monkeypatch.setattr(base64, "b64encode", lambda row: threads.append(threading.current_thread()) or encode(row))
    large, small = (
        served.post("/v1/embeddings", {"input": own, "encoding_format": "base64"}).json for own in (texts, texts[:1])
    )

    np.testing.assert_array_equal(
        [vector_of(each["embedding"]) for each in large["data"]], encoder.encode(texts, normalize_embeddings=True)
    )
    assert large["data"][0] == small["data"][0]
    assert served.thread not in threads[:300]
    assert threads[300:] == [served.thread]
