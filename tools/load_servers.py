"""The servers of tools/load.py: how each is started, and what it is sent."""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from bench_setup import ROOT
from bench_work import OWN_CHOICE
from load_client import Reply, drive, request, vectors_of

from minibert import SentenceEncoder

#: A server must answer within so many seconds after its start.
START = 180.0
#: Requests before the first turn of each server. Their vectors are compared with those of encode.
WARM_UP = 200
#: The program behind the peers that have no server of their own.
SMALLEST = str(ROOT / "tools" / "load_server.py")
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


class Peer(NamedTuple):
    """A server.

    Attributes:
        command: The command that starts it, with a Python at the beginning. ``{port}`` is the port.
        path: The route of OpenAI's protocol.
        packages: The packages whose versions the results have.
    """

    command: Sequence[str]
    path: str = "/v1/embeddings"
    packages: Sequence[str] = ("numpy", "starlette", "uvicorn")


def peers(options: argparse.Namespace) -> dict[str, Peer]:
    """Return the servers that the options name, or all that they make possible."""
    own, model = sys.executable, str(options.model)
    serve = [own, "-m", "minibert", "serve", "--model", model, "--port", "{port}", *options.serve_options.split()]
    found = {"minibert": Peer(serve), "one-encode": Peer([own, SMALLEST, "minibert", model, "-", "{port}"])}
    if options.infinity:
        program = [str(options.infinity), str(options.infinity.parent / "infinity_emb"), "v2", "--port", "{port}"]
        engine = ["--engine", options.infinity_engine, "--no-bettertransformer", "--device", "cpu"]
        command = [*program, "--model-id", model, *engine, "--no-model-warmup", "--log-level", "error"]
        packages = ("infinity-emb", "torch", "transformers", "fastapi", "uvicorn")
        found["infinity"] = Peer(command, "/embeddings", packages)
    if options.fastembed:
        command = [str(options.fastembed), SMALLEST, "fastembed", model, str(options.export), "{port}"]
        found["fastembed"] = Peer(command, packages=("fastembed", "onnxruntime", "starlette", "uvicorn"))
    return {name: found[name] for name in options.peers or found}


class Server:
    """A running server.

    Attributes:
        texts: Texts that it has not got yet.
        difference: The largest difference of a number in its vectors from those of encode, both of length 1.
    """

    def __init__(self, name: str, peer: Peer, log: IO[str]) -> None:
        """Start it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name, self.peer, self.log = name, peer, log
        self.texts, self.difference = mixed_texts(), np.inf
        kept = {key: value for key, value in os.environ.items() if not OWN_CHOICE.fullmatch(key)}
        command = [part.format(port=self.port) for part in peer.command]
        self.process = subprocess.Popen(
            command, env={**kept, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log, start_new_session=True
        )

    async def ready(self, encoder: SentenceEncoder) -> None:
        """Wait until it answers, warm it up, and compare its vectors."""
        deadline = time.monotonic() + START
        replies: list[Reply] = []
        while not replies or replies[0].status != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise SystemExit(f"{self.name} does not answer:\n{self.log.read()[-4000:]}")
            await asyncio.sleep(0.2)
            with contextlib.suppress(OSError):
                replies, _ = await drive(self.port, self.requests([["the first text"]]), 1)
        texts = self.take(WARM_UP)
        replies, _ = await drive(self.port, self.requests([[text] for text in texts]), 8)
        expected = encoder.encode(texts, normalize_embeddings=True)
        self.difference = max(float(np.abs(vectors_of(reply) - expected[reply.number]).max()) for reply in replies)

    def take(self, count: int) -> list[str]:
        """Return new texts."""
        return list(itertools.islice(self.texts, count))

    def requests(self, texts: Sequence[Sequence[str]], dimensions: int | None = None) -> list[bytes]:
        """Return a request for each list of texts. They ask for base64, as OpenAI's client does."""
        extra = {} if dimensions is None else {"dimensions": dimensions}
        return [
            request(
                self.peer.path,
                {"model": "model", "input": each[0] if len(each) == 1 else each, "encoding_format": "base64", **extra},
            )
            for each in texts
        ]

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def resident(self) -> int:
        """Return its memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def cpu(self) -> float:
        """Return the CPU time that it has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        versions: dict[str, str] = json.loads(found.stdout) if found.returncode == 0 else {}
        return versions


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
