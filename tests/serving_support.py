"""What the tests of the server share: a server in this process, without a network, and a server in one of its own."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np
from cli_support import COMMAND
from support import ROOT, needs

needs("starlette")

from minibert import __version__  # noqa: E402
from minibert.serving.app import application  # noqa: E402
from minibert.serving.batcher import Batcher  # noqa: E402
from minibert.serving.metrics import Metrics  # noqa: E402
from minibert.serving.service import Limits, Service  # noqa: E402


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: dict
    content: bytes

    @property
    def json(self):
        """Its body as JSON."""
        return json.loads(self.content)


class Served:
    """An application that runs on an event loop in a thread, and is called without HTTP."""

    def __init__(self, encoder, *, name="built-in", keys=(), limits=None, cors_origins=(), **batching):
        """Serve an encoder. The other arguments are those of ``Service``, ``application`` and ``Batcher``."""
        metrics = Metrics()
        limits = limits or Limits()
        self.batcher = Batcher(encoder, metrics=metrics, **{"max_queue_tokens": limits.queue_tokens, **batching})
        self.service = Service(encoder, self.batcher, metrics, name=name, version=__version__, limits=limits, keys=keys)
        self.app = application(self.service, cors_origins=cors_origins)
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.run(self.lifespan.__aenter__())
        return self

    def __exit__(self, *error):
        self.run(self.lifespan.__aexit__(*error))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def run(self, work):
        """Return the result of a coroutine on the loop."""
        return self.start(work).result(timeout=30)

    def start(self, work):
        """Start a coroutine on the loop, and return its future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def get(self, path, **headers):
        """Send a GET request. An underscore in the name of a header is a dash."""
        return self.run(self.call("GET", path, b"", headers))

    def post(self, path, body, **headers):
        """Send a POST request with an object as JSON, or with bytes."""
        return self.run(self.call("POST", path, body, headers))

    async def call(self, method, path, body=b"", headers=None, gone=None):
        """Send a request, and return its answer. The client goes when the event ``gone`` is set."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {
            "content-length": str(len(body)),
            **{name.replace("_", "-"): it for name, it in (headers or {}).items()},
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
        }
        events = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive():
            if events:
                return events.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(event):
            sent.append(event)

        await self.app(scope, receive, send)
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(event.get("body", b"") for event in sent[1:]))


def vector_of(text):
    """Return the vector in a base64 text."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def as_float32(numbers):
    """Return numbers of JSON as the float32 that they stand for."""
    return np.array(numbers, np.float64).astype(np.float32)


class Process:
    """``minibert serve`` in a process of its own, on a free port."""

    def __init__(self, *options, environment=None):
        """Start it with these options, and wait until it listens."""
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        self.head = b""
        while b" on http://" not in self.head:
            line = self.process.stderr.readline()
            assert line, self.head
            self.head += line
        self.url = self.head.decode().rsplit(" on ", 1)[1].strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def post(self, path, body, **headers):
        """Send a POST request."""
        return self.request(path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def get(self, path, **headers):
        """Send a GET request."""
        return self.request(path, None, headers)

    def request(self, path, data, headers):
        """Send a request, and return its answer, whatever its status."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **names})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return _reply(answer)
        except urllib.error.HTTPError as answer:
            with answer:
                return _reply(answer)

    def send(self, path, body):
        """Send a request on a socket, and return the socket."""
        body = json.dumps(body).encode()
        own = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        own.sendall(head.encode() + body)
        return own

    def stop(self, number=signal.SIGTERM):
        """Send a signal; return the exit status and everything that was written to standard error."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, (self.head + rest).decode()


def _reply(answer):
    """Return an answer of urllib."""
    return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())


def wait_until(condition, seconds=10.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


@contextlib.contextmanager
def blocked(served):
    """Let the server compute nothing inside the block. Requests wait, as behind a slow model."""
    free, own = threading.Event(), served.batcher._encoder
    encode_ids = own.encode_ids

    def slow(*arguments, **options):
        assert free.wait(30)
        return encode_ids(*arguments, **options)

    own.encode_ids = slow
    try:
        yield
    finally:
        free.set()
        own.encode_ids = encode_ids
