"""What the routes of all protocols share: the model, the limits, and the way of a request through the batcher."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import functools
import hmac
import itertools
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request

from minibert.encoder import SentenceEncoder
from minibert.errors import MinibertError, TokenizerError, VectorError
from minibert.serving.batcher import Answer, Batcher, Overloaded, Stopping, TooLong, Work
from minibert.serving.fields import Fields, Items
from minibert.serving.metrics import Metrics
from minibert.serving.refused import Refused
from minibert.typing import Array, Float

__all__ = ["Call", "Limits", "Service", "base64s", "dumps", "floats"]

_Result = TypeVar("_Result")

#: Seconds after which the server looks whether the client of a request is still there.
_WATCH_AFTER = 0.05
#: Characters that a token can have at most, on average. A longer text is refused before it is tokenized, if it must not
#: be cut: this bounds the work. It is the number of text-embeddings-inference.
_CHARACTERS_PER_TOKEN = 250
#: A body that is too long is read and discarded up to so many times the limit. Otherwise, its client would find the
#: connection closed while it still writes, and would not read the error.
_DISCARDED = 8
#: Numbers in an answer from which they are written in another thread, so that other requests do not wait.
_MANY = 4096

#: The start of the ids of requests, and their numbers.
_PROCESS, _NUMBERS = uuid.uuid4().hex[:12], itertools.count(1)
_IDENTIFIER = re.compile(rb"[\w.-]{1,128}")

dumps = functools.partial(json.dumps, allow_nan=False, separators=(",", ":"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be.

    Attributes:
        client_batch: The most texts.
        body_bytes: The most bytes of its body.
        queue_tokens: The tokens of waiting texts from which it is refused.
        batch_tokens: Tokens that are computed together.
        strict_model: Whether it must name the model of this server, if it names one.
    """

    client_batch: int = 2048
    body_bytes: int = 8_000_000
    queue_tokens: int = 262_144
    batch_tokens: int | None = None
    strict_model: bool = False


class Service:
    """A model that is served.

    Attributes:
        stopping: Whether the server drains: requests in flight are answered, others are refused.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        batcher: Batcher,
        metrics: Metrics,
        *,
        name: str,
        version: str,
        limits: Limits | None = None,
        keys: Sequence[bytes] = (),
    ) -> None:
        """Serve a model under a name. If there are keys, each request must have one of them."""
        self.encoder = encoder
        self.batcher = batcher
        self.metrics = metrics
        self.name, self.version = name, version
        self.limits = limits or Limits()
        self.keys = tuple(keys)
        self.stopping = False
        self.created = int(time.time())
        self.fingerprint = encoder.fingerprint
        self.width = encoder.get_embedding_dimension()
        self.truncates = encoder.on_truncate != "error"
        self.tokenizer = encoder._pipeline.tokenizer  # noqa: SLF001  # special tokens have no public name
        self.prefix, self.suffix = list(self.tokenizer.prefix), list(self.tokenizer.suffix)
        self._ids = frozenset(self.tokenizer.backend.get_vocab().values())
        self._one_thread = concurrent.futures.ThreadPoolExecutor(1, "minibert-alone")
        self._headers = {
            "x-minibert-fingerprint": self.fingerprint,
            "x-compute-type": "cpu" if encoder.device == "cpu" else "gpu",
        }

    @property
    def ready(self) -> bool:
        """Whether new requests are answered."""
        return self.batcher.alive and not self.stopping

    def admit(self, authorization: bytes) -> None:
        """Refuse a request without a key, or one that comes while the server stops."""
        if self.keys:
            scheme, _, key = authorization.partition(b" ")
            # All keys are compared: the time must not tell which one is similar.
            known = [hmac.compare_digest(key.strip(), each) for each in self.keys]
            if scheme.lower() != b"bearer" or not any(known):
                raise Refused("key", "a key of this server is required, in the header Authorization: Bearer KEY.")
        if not self.ready:
            raise _stopping()

    def prompt(self, name: str | None) -> str:
        """Return the text before each input: the prompt with this name, or else the default one, as in ``encode``."""
        name = self.encoder.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.encoder.prompts:
            known = ", ".join(self.encoder.prompts)
            raise Refused(
                "validation", f"`prompt_name` must be one of {known}; there is no such prompt.", "prompt_name"
            )
        return self.encoder.prompts[name]

    def check_model(self, name: str | None) -> None:
        """Refuse another model's name, if the server is strict."""
        if self.limits.strict_model and name not in {None, self.name}:
            message = f"The model {name!a} does not exist; this server has {self.name!a}."
            raise Refused("model", message, "model")

    def check_batch(self, field: str, size: int) -> None:
        """Refuse more texts than a request may have."""
        most = self.limits.client_batch
        if size > most:
            raise Refused("batch_size", f"batch size {size} > maximum allowed batch size {most}", field)

    def alone(self, function: Callable[..., _Result], *arguments: Any) -> asyncio.Future[_Result]:
        """Return what a function gives in a thread that does one of them at a time: each can need much memory."""
        return asyncio.get_running_loop().run_in_executor(self._one_thread, function, *arguments)

    def check_ids(self, field: str, items: Items, *, whole: bool = True) -> None:
        """Refuse the token ids of another vocabulary.

        Args:
            field: The name of the field that has them.
            items: The ids of each text. Items that are texts are skipped.
            whole: Whether they must have the special tokens around a text, as ``/tokenize`` gives them. Ids from
                elsewhere, such as those of tiktoken, do not have them, but many of them are small enough to be in the
                vocabulary.
        """
        start, end = len(self.prefix), len(self.suffix)
        for index, ids in enumerate(items):
            if isinstance(ids, str):
                continue
            around = len(ids) >= start + end and ids[:start] == self.prefix and ids[len(ids) - end :] == self.suffix
            if not self._ids.issuperset(ids) or (whole and not around):
                raise Refused(
                    "validation",
                    f"`{field}` must have token ids as /tokenize gives them, with special tokens; item {index} has "
                    "others. Are they tokens of another vocabulary? Send text; in LangChain: "
                    "check_embedding_ctx_length=False",
                    field,
                )


class Call:
    """One request on its way.

    Attributes:
        service: The model.
        request: The request.
        given: Its headers.
        id: What identifies it: its header ``x-request-id``, or else a number after a random part.
        fields: Its body.
        headers: The headers of the answer.
        seconds: The time since the request came.
    """

    def __init__(self, service: Service, request: Request) -> None:
        self.service = service
        self.request = request
        self.given: dict[bytes, bytes] = dict(request.scope["headers"])
        given = self.given.get(b"x-request-id", b"")
        self.id = given.decode() if _IDENTIFIER.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS)}"
        self.fields = Fields({})
        self.headers = {"x-request-id": self.id, **service._headers}  # noqa: SLF001
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self._start

    async def read(self) -> None:
        """Read the body.

        Raises:
            Refused: It is too long, or not a JSON object.
            starlette.requests.ClientDisconnect: The client has gone.
        """
        most, body, size = self.service.limits.body_bytes, bytearray(), 0
        length = self.given.get(b"content-length", b"0")
        refused = Refused("body_size", f"the body must have at most {most} bytes; it has more.")
        if length.isdigit() and int(length[:20]) > most * _DISCARDED:
            raise refused
        async for part in self.request.stream():
            size += len(part)
            if size <= most:
                body += part  # a list would take 40 bytes for each chunk, and a chunk can have one byte
            elif size > most * _DISCARDED:
                raise refused
        if size > most:
            raise refused
        self.fields = Fields.read(body)

    def dimensions(self, name: str = "dimensions") -> int | None:
        """Return the field with the number of dimensions to keep."""
        return self.fields.whole(name, 1, self.service.width)

    async def embed(
        self,
        field: str,
        items: Items,
        *,
        prompt: str,
        truncate: bool,
        side: str | None = None,
        tokens: bool = False,
    ) -> Answer:
        """Return the vectors of the texts in a field, not yet cut or normalized; or those of all their tokens.

        Args:
            field: The name of the field, for messages.
            items: Its texts.
            prompt: The text before each of them.
            truncate: Whether long texts are cut.
            side: The end at which they are cut: ``"right"`` or ``"left"``. None is that of the tokenizer.
            tokens: Whether to return the vectors of tokens.

        Raises:
            Refused: The texts are too many or too long, the queue is full, or the model gives no finite vectors.
            starlette.requests.ClientDisconnect: The client has gone.
        """
        service, metrics = self.service, self.service.metrics
        method = "single" if len(items) == 1 else "batch"
        metrics.count("te_request_count", method=method)
        service.check_batch(field, len(items))
        service.check_ids(field, items)
        most = service.encoder.max_seq_length * _CHARACTERS_PER_TOKEN
        for index, item in enumerate(() if truncate else items):
            if len(item) > most:
                message = f"item {index}: `{field}` must have less than {most + 1} characters. Given: {len(item)}"
                raise Refused("too_long", message, field)
        work = Work(items, prompt, truncate, side, tokens)
        try:
            answer = await self.or_gone(service.batcher.embed(work))
        except TooLong as error:
            where = f"item {error.index}: `{field}` must have less than {error.limit + 1} tokens. Given: {error.tokens}"
            raise Refused("too_long", f"{where}. Send a shorter text, or allow that it is cut.", field) from None
        except Overloaded as error:
            after = error.retry_after
            raise Refused("overloaded", "Model is overloaded: its queue is full.", retry_after=after) from None
        except Stopping:
            raise _stopping() from None
        except VectorError as error:
            raise Refused("inference", str(error), field) from None
        except TokenizerError:  # its message has the path of the model
            raise Refused("tokenization", "the tokenizer of this server has failed on a text.", field) from None
        except MinibertError as error:
            raise Refused("inference", f"the model cannot compute this: {type(error).__name__}.") from None
        metrics.count("te_request_success", method=method)
        metrics.observe("te_request_duration", self.seconds)
        metrics.observe("te_request_tokenization_duration", answer.tokenization)
        metrics.observe("te_request_queue_duration", answer.queue)
        metrics.observe("te_request_inference_duration", answer.inference)
        self._report(items, answer)
        return answer

    async def or_gone(self, work: Awaitable[_Result]) -> _Result:
        """Return the result of something. If the client goes before, cancel it.

        Raises:
            starlette.requests.ClientDisconnect: The client has gone.
        """
        task, watchers = asyncio.current_task(), list[asyncio.Task[None]]()
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self.request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            if task is not None:
                task.cancel()

        def start() -> None:
            watchers.append(asyncio.ensure_future(watch()))

        # Most answers are there before. They do not pay for another task.
        timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, start)
        try:
            return await work
        except asyncio.CancelledError:
            if gone:
                raise ClientDisconnect from None
            raise
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    def _report(self, items: Items, answer: Answer) -> None:
        """Put sizes and times into the headers, in milliseconds."""
        total = str(int(self.seconds * 1000))
        self.headers |= {
            "x-compute-time": total,
            "x-total-time": total,
            "x-compute-characters": str(sum(len(item) for item in items if isinstance(item, str))),
            "x-compute-tokens": str(int(answer.lengths.sum())),
            "x-tokenization-time": str(int(answer.tokenization * 1000)),
            "x-queue-time": str(int(answer.queue * 1000)),
            "x-inference-time": str(int(answer.inference * 1000)),
        }
        if answer.truncated:
            self.headers["x-minibert-truncated"] = str(answer.truncated)


async def written(function: Callable[[Any], _Result], vectors: Array | Sequence[Array]) -> _Result:
    """Return the text of vectors. Many numbers are written in another thread."""
    size = vectors.size if isinstance(vectors, np.ndarray) else sum(each.size for each in vectors)
    return await asyncio.to_thread(function, vectors) if size > _MANY else function(vectors)


def floats(vectors: Float[Array, "n D"]) -> list[str]:
    """Return each vector as JSON. Each number has the fewest digits that identify the float."""
    return [f"[{','.join(map(str, vector))}]" for vector in vectors]


def base64s(vectors: Float[Array, "n D"]) -> list[str]:
    """Return each vector as JSON: a text with the base64 of its numbers, as little-endian float32."""
    return [f'"{base64.b64encode(row).decode()}"' for row in np.ascontiguousarray(vectors, "<f4")]


def matrix(rows: Sequence[str]) -> str:
    """Return JSON values as a JSON list."""
    return f"[{','.join(rows)}]"


def _stopping() -> Refused:
    return Refused("stopping", "the server is stopping, or has to be restarted. Try again later.", retry_after=1)
