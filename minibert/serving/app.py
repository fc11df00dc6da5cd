"""The web application: one table of routes, and what happens to each request around its route."""

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from minibert.serving import cohere, ollama, openai, tei
from minibert.serving.metrics import CONTENT_TYPE
from minibert.serving.refused import Refused
from minibert.serving.service import Call, Service

__all__ = ["ROUTES", "application"]

logger = logging.getLogger("minibert")

_Handler = Callable[[Call], Awaitable[str]]

#: Method, protocol, what answers, and the paths.
ROUTES: Final[tuple[tuple[str, ModuleType, _Handler, tuple[str, ...]], ...]] = (
    ("POST", openai, openai.embeddings, ("/v1/embeddings", "/embeddings")),
    ("GET", openai, openai.models, ("/v1/models", "/models")),
    ("GET", openai, openai.model, ("/v1/models/{id:path}", "/models/{id:path}")),
    ("POST", tei, tei.embed, ("/embed",)),
    ("POST", tei, tei.root, ("/",)),
    ("POST", tei, tei.embed_all, ("/embed_all",)),
    ("POST", tei, tei.similarity, ("/similarity",)),
    ("POST", tei, tei.tokenize, ("/tokenize",)),
    ("POST", tei, tei.decode, ("/decode",)),
    ("GET", tei, tei.info, ("/info",)),
    ("POST", ollama, ollama.embed, ("/api/embed",)),
    ("POST", cohere, cohere.embed, ("/v2/embed", "/v1/embed")),
)
#: The protocols of other paths, by their beginnings. Elsewhere it is that of TEI.
_ROOTS: Final = {"/v1/": openai, "/v2/": cohere, "/api/": ollama}


def application(service: Service, *, cors_origins: tuple[str, ...] = ()) -> Starlette:
    """Return the application that serves a model. Web pages of ``cors_origins`` may call it from browsers."""
    protocols = {path: protocol for _, protocol, _, paths in ROUTES for path in paths}

    async def health(_: Request) -> Response:
        if service.ready:
            return Response()
        status, body = tei.error(Refused("stopping", "the server is stopping, or its worker has ended."))
        return _json(json.dumps(body), status, {})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def unknown(request: Request, error: HTTPException) -> Response:
        """Answer a request without a route."""
        path = request.url.path
        protocol = protocols.get(path) or next((own for root, own in _ROOTS.items() if path.startswith(root)), tei)
        kind, what = (
            ("method", f"has no method {request.method}") if error.status_code == 405 else ("route", "is no route")
        )
        call = Call(service, request)
        call.headers |= error.headers or {}
        return _refusal(call, protocol, Refused(kind, f"{path!a} {what}."))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.batcher.start()
        with contextlib.suppress(asyncio.CancelledError):  # a second SIGINT is no failure
            yield
        await service.batcher.stop()

    service.metrics.gauge(
        "minibert_info", lambda: 1, model=service.name, fingerprint=service.fingerprint, version=service.version
    )
    routes = [
        Route(path, _endpoint(service, protocol, handler), methods=[method])
        for method, protocol, handler, paths in ROUTES
        for path in paths
    ]
    routes += [Route(path, health, methods=["GET"]) for path in ("/", "/health", "/ping")]
    routes.append(Route("/metrics", metrics, methods=["GET"]))
    cors = Middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    found = Starlette(
        routes=routes,
        middleware=[cors] if cors_origins else [],
        exception_handlers={404: unknown, 405: unknown},
        lifespan=lifespan,
    )
    # A redirection would have the host that the client names, and http behind a proxy with TLS: the key would be sent.
    found.router.redirect_slashes = False
    return found


def _endpoint(service: Service, protocol: ModuleType, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers the requests of a route. It turns every exception into an answer of the protocol."""

    async def answer(request: Request) -> Response:
        call = Call(service, request)
        try:
            service.admit(call.given.get(b"authorization", b""))
            if request.method == "POST":
                await call.read()
            return _json(await handler(call), 200, call.headers)
        except Refused as error:
            refused = error
        except ClientDisconnect:
            service.metrics.count("te_request_failure", err="dropped")
            return Response(status_code=499)  # nobody reads it
        except asyncio.CancelledError:
            if not service.stopping:
                raise
            # The time for requests in flight is over.
            refused = Refused("stopping", "the server has stopped before it could answer.", retry_after=1)
        except Exception as error:  # noqa: BLE001  # a bug must not end other requests
            logger.error("request %s failed: %s", call.id, _where(error))  # noqa: TRY400  # a message can quote a text
            refused = Refused("bug", f"the server has failed on this request ({call.id}); its log says where.")
        service.metrics.count("te_request_failure", err=refused.kind.metric)
        return _refusal(call, protocol, refused)

    return answer


def _refusal(call: Call, protocol: ModuleType, refused: Refused) -> Response:
    """Return the answer to a request that is refused."""
    status, body = protocol.error(refused)
    return _json(json.dumps(body), status, call.headers | refused.headers)


def _json(content: str, status: int, headers: dict[str, str]) -> Response:
    return Response(content, status, headers, "application/json")


def _where(error: BaseException) -> str:
    """Return the type of an error and the places of its traceback, innermost first, without any value."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return f"{type(error).__name__} at " + ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
