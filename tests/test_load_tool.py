"""The load tool's own arithmetic, its client against a small server, and a run that lets servers take turns."""

import asyncio
import base64
import contextlib
import itertools
import json
import sys
import textwrap
from pathlib import Path

import load
import load_client
import load_servers
import numpy as np
import pytest
from load_client import Reply
from support import ROOT

pytestmark = pytest.mark.tools
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the tool reads Linux' /proc")

#: A server that answers each request with the vectors of encode; it refuses more than three texts.
SERVER = """
    import asyncio, base64, json, sys
    from minibert import SentenceEncoder

    encoder = SentenceEncoder(on_truncate="ignore")

    async def serve(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
                body = json.loads(await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0])))
                texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
                cut = body.get("dimensions")
                vectors = encoder.encode(texts, normalize_embeddings=True, truncate_dim=cut)
                data = [{"embedding": base64.b64encode(vector).decode()} for vector in vectors]
                answer, status = json.dumps({"data": data}).encode(), b"200 OK"
                if len(texts) > 3:
                    answer, status = b"{}", b"429 Too Many Requests\\r\\nRetry-After: 1"
                writer.write(b"HTTP/1.1 %s\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (status, len(answer), answer))
        except asyncio.IncompleteReadError:
            writer.close()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
            await server.serve_forever()

    asyncio.run(main())
"""


def reply(number, vectors, status=200):
    """Return an answer with vectors."""
    data = [{"embedding": base64.b64encode(np.float32(vector)).decode()} for vector in vectors]
    return Reply(number, 0.0, status, b"", json.dumps({"data": data}).encode())


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5], 50, 5),
        ([5], 99, 5),
        ([3, 1, 2, 4], 50, 2),
        ([3, 1, 2, 4], 51, 3),
        (range(1, 101), 99, 99),
        ([1, 2], 100, 2),
    ],
)
def test_percentile(values, percent, expected):
    """It is the smallest value that so many percent do not exceed."""
    assert load_client.percentile(list(values), percent) == expected


def test_parse():
    """An answer is complete with its last byte, however it comes."""
    whole = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-LENGTH: 5\r\n\r\nab\r\n\r"

    for end in range(len(whole)):
        assert load_client.parse(whole[:end]) is None
    status, head, body = load_client.parse(bytearray(whole))
    assert (status, body) == (429, b"ab\r\n\r")
    assert b"\r\nretry-after: 1" in head
    with pytest.raises(ValueError, match="2 bytes too many"):
        load_client.parse(whole + b"\nx")
    with pytest.raises(ValueError, match="must have a length"):
        load_client.parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_compared():
    """Every answer must have the bits of its own texts. Each request has one answer."""
    expected = np.arange(6, dtype=np.float32).reshape(3, 2)
    good = [reply(1, expected[2:]), reply(0, expected[:2])]

    assert load.compared(good, [2, 1], expected) == {"lost": 0, "different": 0}
    assert load.compared(good[:1], [2, 1], expected) == {"lost": 1, "different": 0}
    assert load.compared([*good, good[0]], [2, 1], expected) == {"lost": 1, "different": 0}
    mixed_up = [reply(0, expected[2:]), reply(1, expected[:2])]
    assert load.compared(mixed_up, [2, 1], expected) == {"lost": 0, "different": 2}
    wrong = [reply(1, np.nextafter(expected[2:], 9)), reply(0, expected[:2], 500)]
    assert load.compared(wrong, [2, 1], expected) == {"lost": 0, "different": 2}


def test_summary_and_table():
    """A row has rates and milliseconds; the table has medians over the rounds."""
    row = load.summary([Reply(0, 0.001, 200, b"", b""), Reply(1, 0.003, 429, b"", b"")], 0.5)
    assert row == {"requests": 2, "per_second": 4.0, "p50_ms": 1.0, "p99_ms": 3.0, "p100_ms": 3.0, "failed": 1}
    assert load.summary([], 0.5) == {"requests": 0, "per_second": 0.0, "failed": 0}

    rows = [
        {"peer": peer, "connections": 8, "per_second": speed, "p50_ms": 1.0, "p99_ms": speed / 10}
        for peer, speed in (("a", 10), ("b", 50), ("a", 30), ("a", 20), ("b", 70))
    ]
    assert load.table(rows).split("\n")[-1] == "| 8 | 20/s; 1.0/2.0 ms | 60/s; 1.0/6.0 ms |"


def test_texts_are_distinct_and_always_the_same():
    """Repeated texts would favour servers that compute equal texts once. Half of them have at most 12 words."""
    texts = list(itertools.islice(load_servers.mixed_texts(), 3000))
    lengths = np.array([len(text.split()) for text in texts])

    assert len(set(texts)) == 3000
    assert texts[:50] == list(itertools.islice(load_servers.mixed_texts(), 50))
    assert 11 <= np.median(lengths) <= 13
    assert (lengths.min(), lengths.max() <= 200) == (1, True)


def test_poisson():
    """Times increase, with the wanted number in each second on average."""
    times = list(itertools.islice(load_client.poisson(100.0), 5000))

    assert times == sorted(times)
    assert times[-1] == pytest.approx(50, rel=0.05)


@contextlib.asynccontextmanager
async def stub(wait, stop_after=None):
    """Run a server that waits, then echoes the body of a request. Give its port and the numbers of open requests."""
    present, seen, tasks = 0, [], []

    async def serve(reader, writer):
        nonlocal present
        tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while len(seen) != stop_after:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.rpartition(b": ")[2]))
                present += 1
                seen.append(present)
                await wait()
                present -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], seen
        await asyncio.gather(*tasks)


def test_closed_loop():
    """Each request is sent once, on a free connection; at most one waits on each."""

    async def main():
        requests = [load_client.request("/", {"number": number}) for number in range(200)]
        async with stub(lambda: asyncio.sleep(0)) as (port, seen):
            replies, elapsed = await load_client.drive(port, requests, 7)
        assert sorted(reply.number for reply in replies) == list(range(200))
        assert all(json.loads(reply.body) == {"number": reply.number} for reply in replies)
        assert max(seen) <= 7
        assert 0 < max(reply.seconds for reply in replies) <= elapsed

    asyncio.run(main())


def test_the_time_limit():
    """No request starts after the limit, and all that have started are answered."""

    async def main():
        async with stub(lambda: asyncio.sleep(0.01)) as (port, _):
            replies, elapsed = await load_client.drive(port, [load_client.request("/", 1)] * 10_000, 2, seconds=0.1)
        assert elapsed >= 0.1
        assert 0 < len(replies) < 10_000

    asyncio.run(main())


def test_open_loop_counts_from_the_intended_start():
    """If all wait for one connection, the latencies have the time in which they wait."""

    async def main():
        async with stub(lambda: asyncio.sleep(0.02)) as (port, _):
            replies, _ = await load_client.drive(port, [load_client.request("/", 1)] * 10, 1, rate=10_000.0)
        times = [reply.seconds for reply in replies]
        assert len(times) == 10
        assert times == sorted(times)
        assert times[-1] >= 0.19

    asyncio.run(main())


def test_a_closed_connection_is_an_error():
    """A lost request is never passed over."""

    async def main():
        async with stub(lambda: asyncio.sleep(0), stop_after=5) as (port, _):
            await load_client.drive(port, [load_client.request("/", 1)] * 10, 1)

    with pytest.raises(ConnectionError, match="has closed a connection"):
        asyncio.run(main())


@LINUX
@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("compare", ["--rounds", "1", "--seconds", "0.2", "--connections", "1,4"]),
        ("soak", ["--requests", "60"]),
        ("overload", ["--requests", "20"]),
    ],
)
def test_a_run(tmp_path, monkeypatch, capsys, mode, more):
    """Servers are started, take turns, and end. Their vectors are compared with encode."""
    program = tmp_path / "server.py"
    program.write_text(textwrap.dedent(SERVER), "utf-8")
    peer = load_servers.Peer([sys.executable, str(program), "{port}"], packages=("numpy",))
    names = ["a", "b"] if mode == "compare" else ["a"]
    monkeypatch.setattr(load, "peers", lambda _: dict.fromkeys(names, peer))
    monkeypatch.setattr(sys, "argv", ["load.py", mode, *more, "--out", str(tmp_path / "out.json")])

    load.main()

    results = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert str(tmp_path) not in json.dumps(results)
    assert list(results["servers"]) == names
    for server in results["servers"].values():
        assert server["difference"] == 0
        assert server["versions"] == {"numpy": np.__version__}
    rows = results["rows"]
    if mode == "compare":
        assert {(row["peer"], row["connections"]) for row in rows} == set(itertools.product("ab", (1, 4)))
        assert all(row["requests"] and not row["failed"] for row in rows)
        assert "| connections | a | b |" in capsys.readouterr().out
    elif mode == "soak":
        sizes = sum(row["requests"] for row in rows)
        assert (sizes, rows[0]["lost"], rows[0]["different"]) == (60, 0, rows[0]["failed"])
        assert rows[0]["failed"] > 0  # the server refuses large requests, and that is seen
        assert rows[0]["resident"] > 1e6
    else:
        assert (rows[0]["answered"]["requests"], rows[0]["refused"]["requests"]) == (0, 20)
        assert rows[0]["without_retry_after"] == 0


def test_the_page_has_the_recorded_numbers():
    """docs/serve.md has the table of the record, and what the records of an overload and of a long run say."""
    results = ROOT / "tools" / "results"
    compared, overload, soak = (
        json.loads((results / f"serve-{name}.json").read_text("utf-8")) for name in ("avx512", "overload", "soak")
    )
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    refused = overload["rows"][0]["refused"]
    pieces = soak["rows"]
    memory = [piece["resident"] / 1e6 for piece in pieces]

    assert load.table(compared["rows"]) in page
    assert (
        f"refused {refused['requests']:,} of 5,000 requests, 99 % of them within\n  {refused['p99_ms']:.0f} ms, all "
        f"within {refused['p100_ms']:.0f} ms"
    ) in page
    assert sum(piece["lost"] + piece["different"] + piece["failed"] for piece in pieces) == 0
    assert f"{sum(piece['requests'] for piece in pieces):,} requests with {sum(p['texts'] for p in pieces):,}" in page
    assert f"{min(memory):.0f} to {max(memory):.0f} MB, and {memory[-1]:.1f} MB in the last tenth" in page
    assert max(memory[-5:]) - min(memory[-5:]) < 0.1
