"""Measure running embedding servers: requests per second, latencies, answers under overload, and a long run.

    python tools/load.py compare --infinity PYTHON --out RESULTS.json
    python tools/load.py overload --rate 1000 --serve-options "--max-queue-tokens 20000" --out RESULTS.json
    python tools/load.py soak --requests 100000 --out RESULTS.json

The tool starts the servers itself, on this machine. Client and servers share its cores, so only the numbers of one run
can be compared. Every text is random, and a server gets it only once. ``compare`` lets the servers take turns; the
others are stopped meanwhile (SIGSTOP). Each connection sends when it has its last answer (a closed loop). With
``--rate``, requests start at random times, and latencies count from the intended start (an open loop).

The peers: ``minibert serve``; ``one-encode``, minibert behind the smallest HTTP layer with one encode a request;
infinity-emb, if ``--infinity`` names the Python of its environment; fastembed behind the same HTTP layer, if
``--fastembed`` names the Python of its environment, with starlette and uvicorn, and ``--export`` its ONNX file. Linux
only.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_work import commit, machine, without_folders
from load_client import Reply, drive, percentile, vectors_of
from load_servers import Server, peers

from minibert import SentenceEncoder
from minibert.files.hub import BUILTIN_MODEL

#: Requests of a soak between two looks at the memory.
PIECE = 2000

Row = dict[str, Any]


def summary(replies: Sequence[Reply], elapsed: float) -> Row:
    """Return the numbers of a turn: of all answers, in milliseconds."""
    times = [1000 * reply.seconds for reply in replies]
    return {
        "requests": len(replies),
        "per_second": round(len(replies) / elapsed, 1),
        **{f"p{percent}_ms": round(percentile(times, percent), 2) for percent in (50, 99, 100) if times},
        "failed": sum(reply.status != 200 for reply in replies),
    }


async def compare(servers: Sequence[Server], options: argparse.Namespace) -> list[Row]:
    """Measure the servers in turn."""
    rows = []
    encoder = SentenceEncoder(options.model, on_truncate="ignore")
    for server in servers:
        await server.ready(encoder)
        server.signal(signal.SIGSTOP)
    most = dict.fromkeys(servers, 2000.0)  # requests per second, for the number of texts to prepare
    for number, connections in itertools.product(range(options.rounds), options.connections):
        shift = number % len(servers)
        for server in [*servers[shift:], *servers[:shift]]:
            requests = server.requests(
                [[text] for text in server.take(int((2 * most[server] + 500) * options.seconds))]
            )
            server.signal(signal.SIGCONT)
            cpu = server.cpu()
            replies, elapsed = await drive(
                server.port, requests, connections, seconds=options.seconds, rate=options.rate
            )
            cpu = server.cpu() - cpu
            server.signal(signal.SIGSTOP)
            most[server] = max(most[server], len(replies) / elapsed)
            row = {"peer": server.name, "connections": connections, "round": number, **summary(replies, elapsed)}
            rows.append(row | {"cpu_ms": round(1000 * cpu / max(1, len(replies)), 3)})
            print(rows[-1], flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the medians over the rounds as a Markdown table."""
    names = list(dict.fromkeys(row["peer"] for row in rows))
    lines = ["| connections |" + "".join(f" {name} |" for name in names), "|--:|" + "--:|" * len(names)]
    for connections in dict.fromkeys(row["connections"] for row in rows):
        cells = []
        for name in names:
            own = [row for row in rows if row["peer"] == name and row["connections"] == connections]
            speed, p50, p99 = (statistics.median(row[key] for row in own) for key in ("per_second", "p50_ms", "p99_ms"))
            cells.append(f" {speed:.0f}/s; {p50:.1f}/{p99:.1f} ms |")
        lines.append(f"| {connections} |" + "".join(cells))
    return "\n".join(lines)


async def overload(servers: Sequence[Server], options: argparse.Namespace) -> list[Row]:
    """Send more than a server takes, in requests of many texts. Measure how fast it refuses the others."""
    rows = []
    for server in servers:
        await server.ready(SentenceEncoder(options.model, on_truncate="ignore"))
        requests = server.requests([server.take(options.batch) for _ in range(options.requests)])
        replies, elapsed = await drive(server.port, requests, max(options.connections), rate=options.rate)
        refused = [reply for reply in replies if reply.status == 429]
        rows.append(
            {
                "peer": server.name,
                "answered": summary([reply for reply in replies if reply.status == 200], elapsed),
                "refused": summary(refused, elapsed),
                "without_retry_after": sum(b"\r\nretry-after: " not in reply.head for reply in refused),
                "other": len([reply for reply in replies if reply.status not in {200, 429}]),
            }
        )
    return rows


async def soak(servers: Sequence[Server], options: argparse.Namespace) -> list[Row]:
    """Send many requests of different sizes. Compare each vector with encode, bit for bit, and watch the memory."""
    rows: list[Row] = []
    encoder, chance = SentenceEncoder(options.model, on_truncate="ignore"), random.Random(1)  # noqa: S311
    for server in servers:
        await server.ready(encoder)
        for start in range(0, options.requests, PIECE):
            sizes = [chance.choice((1, 1, 1, 1, 2, 7, 40)) for _ in range(min(PIECE, options.requests - start))]
            texts, dimensions = [server.take(size) for size in sizes], chance.choice((None, 32))
            requests = server.requests(texts, dimensions)
            replies, elapsed = await drive(server.port, requests, max(options.connections), rate=options.rate)
            flat = [*itertools.chain(*texts)]
            expected = encoder.encode(flat, truncate_dim=dimensions, normalize_embeddings=True)
            found = {"texts": len(flat), "resident": server.resident(), **compared(replies, sizes, expected)}
            rows.append({"peer": server.name, **summary(replies, elapsed), **found})
            print(rows[-1], flush=True)
    return rows


def compared(replies: Sequence[Reply], sizes: Sequence[int], expected: Any) -> dict[str, int]:
    """Return how many requests do not have exactly one answer, and how many answers have not the expected bits.

    Args:
        replies: The answers.
        sizes: Number of texts of each request.
        expected: The vectors of all texts.
    """
    starts = list(itertools.accumulate(sizes, initial=0))
    answers = [0] * len(sizes)
    different = 0
    for reply in replies:
        answers[reply.number] += 1
        own = expected[starts[reply.number] : starts[reply.number + 1]]
        different += reply.status != 200 or vectors_of(reply).tobytes() != own.tobytes()
    return {"lost": sum(count != 1 for count in answers), "different": different}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the servers, measure, and return the contents of the results file."""
    servers: list[Server] = []
    with contextlib.ExitStack() as logs:
        try:
            for name, peer in peers(options).items():
                servers.append(Server(name, peer, logs.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))))
            rows = await options.measure(servers, options)
        finally:
            statuses = [server.end() for server in servers]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"python tools/load.py {without_folders(' '.join(sys.argv[1:]))}",
        "commit": commit(),
        "machine": machine(),
        "servers": {
            server.name: {"versions": server.versions(), "difference": server.difference, "exit_status": status}
            for server, status in zip(servers, statuses, strict=True)
        },
        "rows": rows,
    }


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for measure, chosen, requests in (
        (compare, None, 0),
        (overload, ["minibert"], 5000),
        (soak, ["minibert"], 100_000),
    ):
        command = commands.add_parser(measure.__name__, help=(measure.__doc__ or "").partition(".")[0].lower())
        command.set_defaults(measure=measure)
        command.add_argument("--peers", type=lambda text: text.split(","), default=chosen, metavar="NAME,...")
        command.add_argument("--model", type=Path, default=BUILTIN_MODEL, help="a folder (default: the built-in model)")
        command.add_argument("--serve-options", default="", help="more options of minibert serve")
        command.add_argument("--infinity", type=Path, metavar="PYTHON")
        command.add_argument("--infinity-engine", default="torch", help="torch or optimum (default: torch)")
        command.add_argument("--fastembed", type=Path, metavar="PYTHON")
        command.add_argument("--export", type=Path, metavar="FILE.onnx")
        connections = [1, 8, 32, 128] if measure is compare else [128]
        command.add_argument("--connections", type=lambda text: [*map(int, text.split(","))], default=connections)
        command.add_argument("--rate", type=float, help="requests per second of an open loop (default: a closed loop)")
        if measure is compare:
            command.add_argument("--rounds", type=int, default=5)
            command.add_argument("--seconds", type=float, default=5.0, help="of each turn (default: 5)")
        else:
            command.add_argument("--requests", type=int, default=requests)
            command.add_argument("--batch", type=int, default=16, help="texts of a request of overload (default: 16)")
        command.add_argument("--out", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = arguments()
    results = asyncio.run(run(options))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(table(results["rows"]) if options.measure is compare else json.dumps(results["rows"][-1], indent=1))


if __name__ == "__main__":
    main()
