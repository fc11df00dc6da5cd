"""Dynamic batching: the texts of many requests are computed together. There is no HTTP here.

A request takes three steps: the event loop admits it, a thread tokenizes it, a second thread computes it. Each thread
takes what is there when it is free. So a lone request starts immediately, and under load the batches grow. A vector has
the bits of :meth:`minibert.SentenceEncoder.encode`, whatever else is computed at the same time.
"""

import asyncio
import contextlib
import copy
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from minibert.encoder import SentenceEncoder
from minibert.errors import VectorError
from minibert.serving.metrics import Metrics
from minibert.typing import Array, Float, Int

__all__ = ["Answer", "Batcher", "Overloaded", "Stopping", "TooLong", "Work"]

logger = logging.getLogger("minibert")

#: One call of the tokenizer has about this many characters. Short requests do not wait for the whole of a long one.
_CHARACTERS_AT_ONCE: Final = 1 << 17
#: A text has about one token for so many characters.
_CHARACTERS_PER_TOKEN: Final = 4
#: The share of the last batch in the measured speed.
_NEWEST: Final = 0.2


class Work(NamedTuple):
    """What a request wants.

    Attributes:
        items: Texts, or token ids with the special tokens of the model's tokenizer, or both. At least one.
        prompt: It is put before each text, but not before ids.
        truncate: Whether texts that are too long are cut. Otherwise, they raise :class:`TooLong`.
        truncation_side: The end that is cut, ``"left"`` or ``"right"``. None is the tokenizer's own choice.
        token_vectors: Whether to return the vectors of the tokens instead of one vector for each text.
    """

    items: Sequence[str | Sequence[int]]
    prompt: str = ""
    truncate: bool = True
    truncation_side: str | None = None
    token_vectors: bool = False


class Answer(NamedTuple):
    """What a request gets.

    Attributes:
        vectors: ``(n, D)`` vectors with all dimensions of the model, for :meth:`Batcher.finish`; or a list of
            ``(tokens, H)`` arrays.
        lengths: Number of tokens of each text after truncation, with special tokens.
        truncated: Number of texts that were cut.
        tokenization: Seconds until the last text was tokenized.
        queue: Seconds from then until the first text was taken into a batch.
        inference: Seconds from then until the last text was computed.
    """

    vectors: Any
    lengths: Int[Array, "n"]
    truncated: int
    tokenization: float
    queue: float
    inference: float


class Overloaded(Exception):  # noqa: N818 - it is no error of the program
    """The queue is full.

    Attributes:
        retry_after: Estimated seconds until everything in the queue is computed.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in about {retry_after:.3f} seconds.")
        self.retry_after = retry_after


class Stopping(Exception):  # noqa: N818 - it is no error of the program
    """The server is shutting down."""


class TooLong(ValueError):  # noqa: N818 - the name says what is wrong
    """A text has more tokens than the model takes, and must not be cut.

    Attributes:
        index: The index of the text in its request.
        tokens: Its number of tokens, with special tokens.
        limit: The largest number of tokens.
    """

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"every text must have at most {limit} tokens; item {index} has {tokens}. Split it, or allow the cut."
        )
        self.index, self.tokens, self.limit = index, tokens, limit


class _OwnIds(list[int]):
    """A text's own ids, without special tokens, in the form of a tokenizer's result."""

    @property
    def ids(self) -> list[int]:
        return self


@dataclasses.dataclass(eq=False, slots=True)
class _Job:
    """A request in the batcher.

    Attributes:
        work: What it wants.
        future: What it waits for.
        charged: Number of tokens in the queue that are due to it. It is an estimate until the request is tokenized.
        texts: Number of its texts in the queue.
        costs: What each item costs in the present step: characters, then tokens.
        taken: Number of items that the present step has taken.
        rows: The token ids of each item, after truncation.
        lengths: Number of tokens of each item before truncation.
        outputs: The results so far.
        times: When it was admitted, tokenized, and first taken into a batch.
        failed: Whether it has failed. Its future says so a little later.
    """

    work: Work
    future: asyncio.Future[Answer]
    charged: int
    texts: int
    costs: list[int]
    taken: int = 0
    rows: list[Int[Array, "tokens"]] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    outputs: list[Array] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=lambda: [time.perf_counter()])
    failed: bool = False


class _Part(NamedTuple):
    """Some items of a request that are tokenized or computed together."""

    job: _Job
    start: int
    stop: int

    @property
    def items(self) -> Sequence[str | Sequence[int]]:
        return self.job.work.items[self.start : self.stop]


class Batcher:
    """Computes the vectors of concurrent requests in common batches.

    Attributes:
        tokens_queued: Number of tokens that are waiting or being computed. It is estimated for new requests.
        texts_queued: Number of texts that are waiting or being computed.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        *,
        max_queue_tokens: int,
        max_batch_tokens: int | None = None,
        max_wait: float = 0.0,
        metrics: Metrics,
    ) -> None:
        """Make the batcher. :meth:`start` starts its threads.

        Args:
            encoder: The encoder, with its settings now: later changes have no effect.
            max_queue_tokens: The largest number of tokens in the queue. If it is empty, it takes any request.
            max_batch_tokens: Number of tokens that each of the encoder's threads computes at a time. By default, it is
                the encoder's.
            max_wait: Seconds that a request may wait for others, so that batches get larger.
            metrics: Counts texts, batches and their durations: all metrics except those of requests.
        """
        self._encoder = encoder = copy.copy(encoder)
        if max_batch_tokens is not None:
            encoder.max_batch_tokens = max_batch_tokens
        self._budget = encoder.max_batch_tokens * encoder.num_threads
        self._max_queue_tokens, self._max_wait, self._metrics = max_queue_tokens, max_wait, metrics
        tokenizer = encoder._pipeline.tokenizer  # noqa: SLF001 - the server is part of the package
        self._sides = {
            side: dataclasses.replace(tokenizer, truncation_side=side or tokenizer.truncation_side)
            for side in (None, "left", "right")
        }
        self._tokenizer, self._limit = tokenizer, encoder.max_seq_length
        self._prompt_length = functools.lru_cache(64)(lambda prompt: tokenizer.prompt_length(prompt, self._limit))
        self.tokens_queued = self.texts_queued = 0
        self._lock = threading.Lock()  # of tokens_queued
        self._jobs: set[_Job] = set()
        self._speed = 0.0  # tokens per second
        self._stopping = self._crashed = False
        self._threads: list[threading.Thread] = []
        self._to_tokenize: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._to_compute: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        metrics.gauge("te_queue_size", lambda: self.texts_queued)
        metrics.gauge("minibert_queue_tokens", lambda: self.tokens_queued)

    # ------------------------------------------------------------ on the event loop

    @property
    def alive(self) -> bool:
        """Whether the threads are running."""
        return not self._crashed and bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start the threads. Call it on the event loop that makes the requests."""
        self._loop = asyncio.get_running_loop()
        for name, arguments in (
            ("tokenize", (self._to_tokenize, self._tokenize, _CHARACTERS_AT_ONCE)),
            ("compute", (self._to_compute, self._compute, self._budget, self._max_wait)),
        ):
            thread = threading.Thread(target=self._run, args=arguments, name=f"minibert-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def stop(self) -> None:
        """Refuse new requests, compute what is in the queue, and end the threads."""
        self._stopping = True
        # One after the other: what the first thread has tokenized must reach the second one.
        for inbox, thread in zip((self._to_tokenize, self._to_compute), self._threads, strict=True):
            inbox.put(None)
            await asyncio.to_thread(thread.join)

    async def embed(self, work: Work) -> Answer:
        """Return the vectors of a request. If the awaiting task is cancelled, its texts are no longer computed.

        Raises:
            Overloaded: The queue is full. Nothing of the request was taken.
            Stopping: :meth:`stop` was called.
            TooLong: A text is too long and must not be cut.
            TokenizerError: The tokenizer failed on a text.
            VectorError: A vector has NaN or infinity.
            MemoryError: A single text does not fit in memory.
            RuntimeError: The threads are not running.
        """
        if self._stopping:
            raise Stopping("the server is shutting down.")
        if not self.alive:
            raise RuntimeError("the batcher's threads must be running, and are not. Restart the server.")
        costs = [len(work.prompt) + len(item) for item in work.items]
        estimate = max(len(costs), sum(costs) // _CHARACTERS_PER_TOKEN)
        if self.tokens_queued and self.tokens_queued + estimate > self._max_queue_tokens:
            raise Overloaded(self.tokens_queued / self._speed if self._speed else 1.0)
        job = _Job(work, self._loop.create_future(), 0, len(costs), costs)
        self._jobs.add(job)
        self._charge(job, estimate)
        self.texts_queued += job.texts
        self._metrics.count("te_embed_count", len(costs))
        self._to_tokenize.put(job)
        try:
            return await job.future
        finally:
            self._jobs.discard(job)
            self._charge(job, 0)
            self.texts_queued -= job.texts

    def finish(
        self, vectors: Float[Array, "n D"], dimensions: int | None, normalize: bool
    ) -> Float[Array, "n dimensions"]:
        """Return the vectors of ``encode(truncate_dim=dimensions, normalize_embeddings=normalize)``.

        Args:
            vectors: The vectors of an :class:`Answer`.
            dimensions: Number of dimensions. None is the encoder's setting.
            normalize: Whether vectors are scaled to length 1, after the cut.
        """
        vectors = vectors[:, : self._encoder.truncate_dim if dimensions is None else dimensions]
        return self._encoder._engine.host_arithmetic.l2_normalize(vectors) if normalize else vectors  # noqa: SLF001

    def _charge(self, job: _Job, tokens: int) -> None:
        """Replace the tokens that are due to a request, unless it has left."""
        with self._lock:
            if job in self._jobs or not tokens:
                self.tokens_queued += tokens - job.charged
                job.charged = tokens

    def _deliver(self, parts: list[_Part], outputs: list[Array], seconds: float) -> None:
        """Give the results of a batch to the requests."""
        tokens, start, now = 0, 0, time.perf_counter()
        for part in parts:
            job, texts = part.job, part.stop - part.start
            computed = sum(job.costs[part.start : part.stop])
            tokens += computed
            if not job.future.done():
                job.outputs += outputs[start : start + texts]
                self._charge(job, job.charged - computed)
                self.texts_queued -= texts
                job.texts -= texts
                if not job.texts:
                    try:
                        job.future.set_result(self._answer(job, now))
                    except Exception as error:  # noqa: BLE001 - for example, no memory: nobody must wait for ever
                        self._fail(job, error)
            start += texts
        self._speed += (_NEWEST if self._speed else 1.0) * (tokens / seconds - self._speed)
        self._metrics.observe("te_batch_next_size", len(outputs))
        self._metrics.observe("te_batch_next_tokens", tokens)

    def _answer(self, job: _Job, now: float) -> Answer:
        """Return the answer of a computed request, and measure it."""
        lengths, observe = np.array(job.costs), self._metrics.observe
        admitted, tokenized, taken = job.times
        vectors = job.outputs if job.work.token_vectors else np.array(job.outputs)
        truncated = sum(length > self._limit for length in job.lengths)
        answer = Answer(vectors, lengths, truncated, tokenized - admitted, taken - tokenized, now - taken)
        texts = len(lengths)
        self._metrics.count("te_embed_success", texts)
        observe("te_embed_duration", now - admitted, times=texts)
        observe("te_embed_tokenization_duration", answer.tokenization, times=texts)
        observe("te_embed_queue_duration", answer.queue, times=texts)
        observe("te_embed_inference_duration", answer.inference, times=texts)
        for length in job.costs:
            observe("te_request_input_length", length)
        return answer

    def _fail(self, job: _Job, error: Exception) -> None:
        """Give an error to a request."""
        if not job.future.done():
            job.future.set_exception(error)

    def _crash(self, error: BaseException) -> None:
        """Give an error to all requests, after a thread has ended by another one."""
        self._crashed = True
        logger.critical("a thread of the server has ended by %s; it must be restarted", type(error).__name__)
        for job in self._jobs:
            failure = RuntimeError(f"a thread of the server has ended by {type(error).__name__}. Restart the server.")
            failure.__cause__ = error
            self._fail(job, failure)

    # ------------------------------------------------------------ on the threads

    def _run(
        self,
        inbox: queue.SimpleQueue[_Job | None],
        step: Callable[[list[_Part]], None],
        budget: int,
        max_wait: float = 0.0,
    ) -> None:
        """Take a step with the next items, again and again, until None comes in.

        A request with items left goes behind those that have come meanwhile. So a large one does not hold up others.
        """
        waiting: deque[_Job] = deque()
        unfinished: list[_Job] = []
        stop = False
        try:
            while True:
                while not stop:
                    try:
                        if not waiting and not unfinished:
                            job = inbox.get()
                        elif not unfinished and (left := _seconds_left(waiting, budget, max_wait)) > 0:
                            job = inbox.get(timeout=left)
                        else:
                            job = inbox.get_nowait()
                    except queue.Empty:
                        break
                    stop = job is None
                    if job is not None:
                        waiting.append(job)
                waiting += unfinished
                if not waiting:
                    return
                parts = _take(waiting, budget)
                unfinished = [part.job for part in parts if part.stop < len(part.job.costs)]
                if parts:
                    self._together(step, parts)
        except BaseException as error:  # noqa: BLE001 - it is the error of all requests
            self._tell(self._crash, error)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)

    def _together(self, step: Callable[[list[_Part]], None], parts: list[_Part]) -> None:
        """Take a step with parts of requests. If it fails, take it with each part alone: only that one may fail."""
        try:
            step(parts)
        except Exception as error:  # noqa: BLE001 - it is the error of the request
            if len(parts) == 1:
                self._give_up(parts[0].job, error)
                return
            for part in parts:
                self._together(step, [part])

    def _give_up(self, job: _Job, error: Exception) -> None:
        """Let a request fail."""
        job.failed = True
        self._tell(self._fail, job, error)

    def _tokenize(self, parts: list[_Part]) -> None:
        """Tokenize some items. Requests that are complete go to the other thread."""
        texts = [part.job.work.prompt + item for part in parts for item in part.items if isinstance(item, str)]
        encodings = iter(self._tokenizer.encode(texts))
        tokenized = []
        for part in parts:
            own: list[Any] = [next(encodings) if isinstance(item, str) else self._own_ids(item) for item in part.items]
            tokenizer = self._sides[part.job.work.truncation_side]
            tokenized.append((part, tokenizer.lengths(own).tolist(), list(tokenizer.ids(own, self._limit))))
        for part, lengths, rows in tokenized:  # nothing fails from here on
            job = part.job
            job.lengths += lengths
            job.rows += rows
            if not job.work.truncate and max(lengths) > self._limit:
                index = next(i for i, length in enumerate(lengths) if length > self._limit)
                self._give_up(job, TooLong(part.start + index, lengths[index], self._limit))
            elif part.stop == len(job.costs):
                job.costs, job.taken = list(map(len, job.rows)), 0
                job.times.append(time.perf_counter())
                self._charge(job, sum(job.costs))
                self._to_compute.put(job)

    def _own_ids(self, ids: Sequence[int]) -> _OwnIds:
        """Return a text's ids without its special tokens."""
        return _OwnIds(ids[len(self._tokenizer.prefix) : len(ids) - len(self._tokenizer.suffix)])

    def _compute(self, parts: list[_Part]) -> None:
        """Compute some items, and deliver their vectors."""
        start = time.perf_counter()
        try:
            outputs = self._outputs(parts)
        except VectorError:
            if len(parts) == 1:  # find it again, for a message with the index in the request
                job = parts[0].job
                self._vectors(job.rows[: parts[0].stop], job.work.token_vectors, self._excluded(job))
            raise
        for part in parts:
            if not part.start:
                part.job.times.append(start)
        self._tell(self._deliver, parts, outputs, time.perf_counter() - start)

    def _outputs(self, parts: list[_Part]) -> list[Array]:
        """Return the vectors of some items, or of their tokens. Equal items are computed once."""
        rows = [row for part in parts for row in part.job.rows[part.start : part.stop]]
        kinds: list[tuple[bool, int]] = []
        for part in parts:
            excluded, token_vectors = self._excluded(part.job), part.job.work.token_vectors
            kinds += [(token_vectors, excluded if isinstance(item, str) else 0) for item in part.items]
        groups: dict[tuple[bool, int], dict[bytes, list[int]]] = {}
        for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
            groups.setdefault(kind, {}).setdefault(row.tobytes(), []).append(number)
        outputs: list[Any] = [None] * len(rows)
        for kind, equal in groups.items():
            vectors = self._vectors([rows[numbers[0]] for numbers in equal.values()], *kind)
            for vector, numbers in zip(vectors, equal.values(), strict=True):
                for number in numbers:
                    outputs[number] = vector
        return outputs

    def _excluded(self, job: _Job) -> int:
        """Return the number of tokens at the start of each text that pooling leaves out."""
        return 0 if self._encoder.include_prompt or not job.work.prompt else self._prompt_length(job.work.prompt)

    def _vectors(self, rows: list[Int[Array, "tokens"]], token_vectors: bool, prompt_length: int) -> Any:
        """Return the vectors of texts in all dimensions, or of their tokens."""
        return self._encoder.encode_ids(
            rows,
            prompt_length=prompt_length,
            output_value="token_embeddings" if token_vectors else "sentence_embedding",
            truncate_dim=self._encoder._pipeline.dimension,  # noqa: SLF001
        )


def _take(waiting: deque[_Job], budget: int) -> list[_Part]:
    """Return the next items, in the order of requests, until their cost is at least ``budget``."""
    parts = []
    while waiting and budget > 0:
        job = waiting.popleft()
        if job.failed or job.future.done():  # it was cancelled, if it has not failed
            continue
        start = job.taken
        while job.taken < len(job.costs) and budget > 0:
            budget -= max(job.costs[job.taken], 1)
            job.taken += 1
        parts.append(_Part(job, start, job.taken))
    return parts


def _seconds_left(waiting: deque[_Job], budget: int, max_wait: float) -> float:
    """Return how long the first request may wait for others: 0 if there is enough for a batch."""
    if not max_wait or not waiting or sum(sum(job.costs) for job in waiting) >= budget:
        return 0.0
    return waiting[0].times[-1] + max_wait - time.perf_counter()
