"""Measure running embedding servers: requests per second, latencies, answers under overload, and a long run.

    python tools/load.py compare --infinity PYTHON --bench DIR --out RESULTS.json
    python tools/load.py overload --out RESULTS.json
    python tools/load.py soak --requests 100000 --out RESULTS.json

The tool starts the servers itself, on this machine. The client and the server share its cores, so only the numbers of
one run can be compared. Every text is random, and a server gets it only once. ``compare`` lets the servers take turns;
the others are stopped meanwhile (SIGSTOP). Each connection sends when it has its last answer, or with ``--rate`` at
random times, and then latencies count from the intended start. Requests ask for base64, as OpenAI's client does.

``--infinity`` names the Python of an environment with infinity-emb, ``--bench`` the folder of ``bench.py setup``, whose
environment of fastembed then also needs starlette and uvicorn. Linux only.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_setup import ROOT
from bench_work import OWN_CHOICE, commit, machine, without_folders
from load_client import Reply, drive, percentile, request, vectors_of

from minibert import SentenceEncoder
from minibert.files.hub import BUILTIN_MODEL

#: The numbers of connections of ``compare``.
CONNECTIONS = (1, 8, 32, 128)
#: A server must answer within so many seconds after its start.
START = 180.0
#: Requests before the first turn of each server.
WARM_UP = 200
#: Requests of a soak between two looks at the memory.
PIECE = 2000
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


class Peer(NamedTuple):
    """A server.

    Attributes:
        command: The command that starts it. ``{port}`` is the port.
        path: The route of OpenAI's protocol.
        packages: The packages whose versions the results have.
    """

    command: Sequence[str]
    path: str = "/v1/embeddings"
    packages: Sequence[str] = ("numpy", "starlette", "uvicorn")


def peers(options: argparse.Namespace) -> dict[str, Peer]:
    """Return the servers that the options make possible, by name."""
    own, model = sys.executable, str(options.model)
    tool = str(ROOT / "tools" / "load_server.py")
    serve = [own, "-m", "minibert", "serve", "--model", model, "--port", "{port}", *options.serve_options.split()]
    found = {"minibert": Peer(serve), "one-encode": Peer([own, tool, "minibert", model, "-", "{port}"])}
    if options.infinity:
        program = str(options.infinity.parent / "infinity_emb")
        engine = ["--engine", options.infinity_engine, "--no-bettertransformer", "--device", "cpu"]
        command = [program, "v2", "--model-id", model, *engine, "--port", "{port}", "--no-model-warmup"]
        packages = ("infinity-emb", "torch", "transformers", "uvicorn", "fastapi")
        found["infinity"] = Peer([str(options.infinity), *command], "/embeddings", packages)
    if options.bench:
        python = str(options.bench / "envs" / "fastembed" / "bin" / "python")
        export = str(options.bench / "exports" / options.bench_model / "fastembed" / "model.onnx")
        bench_model = str(options.bench / "models" / options.bench_model)
        command = [python, tool, "fastembed", bench_model, export, "{port}"]
        found["fastembed"] = Peer(command, packages=("fastembed", "onnxruntime", "starlette", "uvicorn"))
    return {name: found[name] for name in options.peers or found}


class Server:
    """A running server."""

    def __init__(self, name: str, peer: Peer, log: Any) -> None:
        """Start it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name, self.peer = name, peer
        environment = {key: value for key, value in os.environ.items() if not OWN_CHOICE.fullmatch(key)}
        command = [part.format(port=self.port) for part in peer.command]
        self.process = subprocess.Popen(
            command, env={**environment, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log, start_new_session=True
        )
        self.texts = mixed_texts()

    async def ready(self) -> None:
        """Wait until it answers, and warm it up."""
        deadline = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError):
                replies, _ = await drive(self.port, self.requests(1), 1)
                if replies[0].status == 200:
                    break
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not answer; its output is above")
            await asyncio.sleep(0.2)
        await drive(self.port, self.requests(WARM_UP), 8)

    def requests(self, count: int, texts: Iterator[str] | None = None) -> list[bytes]:
        """Return requests for one new text each."""
        chosen = itertools.islice(texts or self.texts, count)
        return [
            request(self.peer.path, {"model": "model", "input": text, "encoding_format": "base64"}) for text in chosen
        ]

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def resident(self) -> int:
        """Return its memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def end(self) -> int:
        """Ask it to end; return its exit status."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self.process.wait()

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages."""
        command = [self.peer.command[0], "-c", VERSIONS, *self.peer.packages]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return json.loads(run.stdout) if run.returncode == 0 else {}


def mixed_texts(seed: int = 0) -> Iterator[str]:
    """Yield random texts of 1 to 200 words, half of them of at most 12 words. No text occurs twice."""
    chance = random.Random(seed)  # noqa: S311
    words = sorted(filter(str.isalpha, SentenceEncoder().tokenizer.get_vocab()))
    seen = set()
    while True:
        text = " ".join(chance.choices(words, k=min(200, max(1, round(chance.lognormvariate(2.485, 0.8))))))
        if hash(text) not in seen:
            seen.add(hash(text))
            yield text


async def compare(servers: Sequence[Server], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the servers in turn."""
    rows = []
    for server in servers:
        await server.ready()
        server.signal(signal.SIGSTOP)
    speed = dict.fromkeys(servers, 2000.0)
    for number, connections in itertools.product(range(options.rounds), options.connections):
        shift = number % len(servers)
        for server in [*servers[shift:], *servers[:shift]]:
            requests = server.requests(int((2 * speed[server] + 500) * options.seconds))
            server.signal(signal.SIGCONT)
            replies, elapsed = await drive(
                server.port, requests, connections, seconds=options.seconds, rate=options.rate
            )
            server.signal(signal.SIGSTOP)
            speed[server] = len(replies) / elapsed
            row = {"peer": server.name, "connections": connections, "round": number, **summary(replies, elapsed)}
            rows.append(row)
            print(row, flush=True)
    return rows


def summary(replies: Sequence[Reply], elapsed: float) -> dict[str, Any]:
    """Return the numbers of a turn."""
    times = [reply.seconds for reply in replies]
    return {
        "requests": len(replies),
        "per_second": round(len(replies) / elapsed, 1),
        **{f"p{percent}_ms": round(1000 * percentile(times, percent), 2) for percent in (50, 99)},
        "failed": sum(reply.status != 200 for reply in replies),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
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


async def overload(servers: Sequence[Server], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Send more than the server takes, in requests of many texts. Measure how fast it refuses the others."""
    (server,) = servers
    await server.ready()
    batches = iter(lambda: list(itertools.islice(server.texts, options.batch)), [])
    bodies = ({"model": "model", "input": batch, "encoding_format": "base64"} for batch in batches)
    requests = [request(server.peer.path, body) for body in itertools.islice(bodies, options.requests)]
    replies, elapsed = await drive(server.port, requests, max(options.connections))
    refused = [reply for reply in replies if reply.status == 429]
    times = [1000 * reply.seconds for reply in refused]
    return [
        {
            "peer": server.name,
            **summary([reply for reply in replies if reply.status == 200], elapsed),
            "other": sum(reply.status not in {200, 429} for reply in replies),
            "refused": len(refused),
            "refused_ms": {f"p{p}": round(percentile(times, p), 2) for p in (50, 99, 100)} if times else {},
            "without_retry_after": sum(b"\r\nretry-after: " not in reply.head for reply in refused),
        }
    ]


async def soak(servers: Sequence[Server], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Send many requests of different sizes. Compare each vector with encode, bit for bit, and watch the memory."""
    (server,) = servers
    await server.ready()
    encoder = SentenceEncoder(options.model, on_truncate="ignore")
    chance = random.Random(1)  # noqa: S311
    rows: list[dict[str, Any]] = []
    while (sent := sum(row["requests"] for row in rows)) < options.requests:
        sizes = [chance.choice((1, 1, 1, 1, 2, 7, 40)) for _ in range(min(PIECE, options.requests - sent))]
        texts = [list(itertools.islice(server.texts, size)) for size in sizes]
        width = chance.choice((None, 32))
        extra = {"encoding_format": "base64"} | ({"dimensions": width} if width else {})
        bodies = [{"input": each[0] if len(each) == 1 else each, **extra} for each in texts]
        requests = [request(server.peer.path, body) for body in bodies]
        replies, elapsed = await drive(server.port, requests, max(options.connections))
        expected = encoder.encode([*itertools.chain(*texts)], truncate_dim=width, normalize_embeddings=True)
        rows.append(
            {
                **summary(replies, elapsed),
                "texts": len(expected),
                "resident": server.resident(),
                **compared(replies, sizes, expected),
            }
        )
        print(rows[-1], flush=True)
    return rows


def compared(replies: Sequence[Reply], sizes: Sequence[int], expected: Any) -> dict[str, int]:
    """Return how many requests have no answer of their own, and how many have a vector with other bits."""
    starts = list(itertools.accumulate(sizes, initial=0))
    lost = (
        len(set(range(len(sizes))) ^ {reply.number for reply in replies})
        + len(replies)
        - len({reply.number for reply in replies})
    )
    wrong = 0
    for reply in replies:
        own = expected[starts[reply.number] : starts[reply.number + 1]]
        wrong += reply.status != 200 or vectors_of(reply).tobytes() != own.tobytes()
    return {"lost": lost, "different": wrong}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the servers, measure, and return the contents of the results file."""
    servers: list[Server] = []
    try:
        for name, peer in peers(options).items():
            servers.append(Server(name, peer, sys.stderr))
        rows = await options.measure(servers, options)
    finally:
        ends = {server.name: server.end() for server in servers}
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"python tools/load.py {without_folders(' '.join(sys.argv[1:]))}",
        "commit": commit(),
        "machine": machine(),
        "shared": "client and server on the same cores",
        "versions": {server.name: server.versions() for server in servers},
        "exit_status": ends,
        "rows": rows,
    }


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for measure, peer_names, count in (
        (compare, None, 0),
        (overload, ["minibert"], 5000),
        (soak, ["minibert"], 100_000),
    ):
        command = commands.add_parser(measure.__name__, help=(measure.__doc__ or "").split(".")[0])
        command.set_defaults(measure=measure)
        command.add_argument("--peers", type=lambda text: text.split(","), default=peer_names, help="the servers")
        command.add_argument("--model", type=Path, default=BUILTIN_MODEL, help="a model folder (default: the built-in)")
        command.add_argument("--serve-options", default="", help="more options of minibert serve")
        command.add_argument("--infinity", type=Path, metavar="PYTHON")
        command.add_argument("--infinity-engine", default="torch")
        command.add_argument("--bench", type=Path, metavar="DIR")
        command.add_argument("--bench-model", default="builtin")
        command.add_argument(
            "--connections",
            type=lambda text: [*map(int, text.split(","))],
            default=CONNECTIONS,
            help="default: 1,8,32,128",
        )
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--seconds", type=float, default=5.0, help="of each turn (default: 5)")
        command.add_argument("--rate", type=float, help="requests per second of an open loop (default: a closed loop)")
        command.add_argument("--requests", type=int, default=count)
        command.add_argument("--batch", type=int, default=16, help="texts of a request of overload (default: 16)")
        command.add_argument("--out", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = arguments()
    results = asyncio.run(run(options))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(table(results["rows"]) if options.command == "compare" else json.dumps(results["rows"][-1]))


if __name__ == "__main__":
    main()
