"""The client of tools/load.py: many keep-alive connections on one thread, with little Python for each request."""

import asyncio
import base64
import json
import random
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

#: Seconds after which a request without an answer is an error.
PATIENCE = 120.0


class Reply(NamedTuple):
    """What became of a request.

    Attributes:
        number: The index of the request.
        seconds: From the intended start of the request to the last byte of the answer.
        status: The status of HTTP.
        head: The status line and the headers, in lower case.
        body: The body.
    """

    number: int
    seconds: float
    status: int
    head: bytes
    body: bytes


class Crowd:
    """Clients that send requests, each on its own connection.

    Attributes:
        replies: The answers so far.
        finished: It is done after the last answer, or fails with the first broken connection.
    """

    def __init__(self, requests: Sequence[bytes], seconds: float, arrivals: Iterator[float] | None) -> None:
        """Send some requests, but none after so many seconds.

        Args:
            requests: The requests.
            seconds: When the last one starts at the latest.
            arrivals: The intended start of each request, in seconds from now. None: as soon as a connection is free.
        """
        self.loop = asyncio.get_running_loop()
        self.begun = time.perf_counter()
        self.requests, self.until, self.arrivals = requests, self.begun + seconds, arrivals
        self.replies: list[Reply] = []
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self.sent = self.open = 0
        self.idle: list[_Connection] = []
        self.late: deque[float] = deque()
        self.more = True
        if arrivals is not None:
            self.schedule()

    def schedule(self) -> None:
        """Wait for the next intended start."""
        start = self.begun + next(self.arrivals or iter(()), float("inf"))
        self.more = start < self.until and self.sent + len(self.late) < len(self.requests)
        if self.more:
            self.loop.call_later(max(0.0, start - time.perf_counter()), self.arrive, start)
        elif not self.open and not self.finished.done():
            self.finished.set_result(None)

    def arrive(self, start: float) -> None:
        """Start a request that is due, or let it wait for a connection."""
        self.late.append(start)
        if self.idle:
            self.free(self.idle.pop())
        self.schedule()

    def free(self, connection: "_Connection") -> None:
        """Give the next request to a connection, if there is one."""
        now = time.perf_counter()
        if self.arrivals is not None:
            start = self.late.popleft() if self.late else None
        else:
            self.more = now < self.until and self.sent < len(self.requests)
            start = now if self.more else None
        if start is None:
            self.idle.append(connection)
            if not self.more and not self.open and not self.finished.done():
                self.finished.set_result(None)
            return
        self.open += 1
        connection.send(self.sent, start, self.requests[self.sent])
        self.sent += 1


class _Connection(asyncio.Protocol):
    """A connection. It has at most one request at a time."""

    crowd: Crowd
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, number: int, start: float, request: bytes) -> None:
        """Send a request."""
        self.number, self.start = number, start
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer, and ask for the next request when it is complete."""
        self.received += data
        found = parse(self.received)
        if found is None:
            return
        status, head, body = found
        crowd = self.crowd
        crowd.replies.append(Reply(self.number, time.perf_counter() - self.start, status, head, body))
        self.received.clear()
        crowd.open -= 1
        crowd.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report a connection that the server has closed."""
        if not self.crowd.finished.done():
            self.crowd.finished.set_exception(ConnectionError(f"the server has closed a connection: {exc}"))


def parse(received: bytearray | bytes) -> tuple[int, bytes, bytes] | None:
    """Return the status, the head and the body of an answer, or None if it is not complete.

    Raises:
        ValueError: It has no length, or more bytes than its length.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    if length is None:
        raise ValueError(f"an answer must have a length; this one has the headers {head!r}")
    missing = end + 4 + int(length[1]) - len(received)
    if missing < 0:
        raise ValueError(f"an answer has {-missing} bytes too many")
    return None if missing else (int(head[9:12]), head, bytes(received[end + 4 :]))


async def drive(
    port: int, requests: Sequence[bytes], connections: int, *, seconds: float = float("inf"), rate: float | None = None
) -> tuple[list[Reply], float]:
    """Send requests to a server on this machine. Return the answers, and the seconds until the last one.

    Args:
        port: Its port.
        requests: The requests.
        connections: Number of connections.
        seconds: No request starts later. All answers are awaited.
        rate: Requests per second of an open loop, with random times between them (a Poisson process), and latencies
            from the intended starts. None is a closed loop: each connection sends when it has its last answer.
    """
    loop = asyncio.get_running_loop()
    pool = [(await loop.create_connection(_Connection, "127.0.0.1", port))[1] for _ in range(connections)]
    crowd = Crowd(requests, seconds, None if rate is None else poisson(rate))
    for connection in pool:
        connection.crowd = crowd
    try:
        for connection in pool:
            crowd.free(connection)
        limit = None if seconds == float("inf") else seconds + PATIENCE
        await asyncio.wait_for(crowd.finished, limit)
        elapsed = time.perf_counter() - crowd.begun
    finally:
        for connection in pool:
            connection.transport.abort()
    return crowd.replies, elapsed


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Yield random increasing times, in seconds, with so many in each second on average."""
    chance, now = random.Random(seed), 0.0  # noqa: S311
    while True:
        now += chance.expovariate(rate)
        yield now


def request(path: str, body: Any) -> bytes:
    """Return the bytes of a POST request."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    return f"{head}\r\n\r\n".encode() + text


def vectors_of(reply: Reply) -> Array:
    """Return the vectors of an answer of ``/v1/embeddings`` with base64."""
    rows = [base64.b64decode(item["embedding"]) for item in json.loads(reply.body)["data"]]
    return np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), -1)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]
