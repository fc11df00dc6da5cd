"""A server for tools/load.py: an encoder of the benchmark behind the smallest HTTP layer, one encode a request.

    python tools/load_server.py fastembed MODEL EXPORT PORT

It runs in the environment of the encoder, which also needs starlette and uvicorn. MODEL and EXPORT are as in
tools/bench.py; an encoder without an export ignores it. Requests wait for each other, in the order in which they come.
"""

import asyncio
import base64
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import uvicorn
from bench_peers import PEERS, Setting
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def application(peer: str, model: Path, export: Path) -> Starlette:
    """Return the application. It answers ``POST /v1/embeddings`` with base64."""
    encode = PEERS[peer].load(Setting(model, export, 32, len(os.sched_getaffinity(0))))
    thread = ThreadPoolExecutor(1)

    async def embeddings(request: Request) -> Response:
        texts = json.loads(await request.body())["input"]
        texts = [texts] if isinstance(texts, str) else texts
        vectors = await asyncio.get_running_loop().run_in_executor(thread, encode, texts)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")
        data = [
            {"object": "embedding", "index": index, "embedding": base64.b64encode(vector).decode()}
            for index, vector in enumerate(vectors)
        ]
        answer = {"object": "list", "data": data, "model": peer, "usage": {"prompt_tokens": 0, "total_tokens": 0}}
        return Response(json.dumps(answer), media_type="application/json")

    async def health(_: Request) -> Response:
        return Response()

    return Starlette(
        routes=[Route("/v1/embeddings", embeddings, methods=["POST"]), Route("/health", health, methods=["GET"])]
    )


def main() -> None:
    """Serve until a signal."""
    peer, model, export, port = sys.argv[1:]
    app = application(peer, Path(model), Path(export))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()
