"""Batches: this module cuts the texts of a call into batches, and threads compute them.

Nothing here can change a result, because a text's vector does not depend on its batch.
"""

import contextlib
import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from minibert.engine.fused import Fused
from minibert.typing import Array, Int

logger = logging.getLogger("minibert")

#: The largest number of texts in one call of the tokenizer: enough to keep the tokenizer's threads busy.
_TOKENIZE_AT_ONCE = 4096
#: One call of the tokenizer has the texts of about this many batches for each thread.
_BATCHES_AT_ONCE = 2
#: How many calls of the tokenizer run ahead: one is running or done, and the next can start immediately.
_CALLS_AHEAD = 2

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Batch(NamedTuple):
    """Texts that are computed together.

    Attributes:
        rows: The index of each text.
        lengths: Number of tokens of each text.
        tokenized: The tokenizer's result for each text. The ids are extracted from it later.
    """

    rows: Int[Array, "texts"]
    lengths: Int[Array, "texts"]
    tokenized: list[Any]

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts together."""
        return int(self.lengths.sum())

    def part(self, which: slice) -> Self:
        """Return some of the texts."""
        return type(self)(self.rows[which], self.lengths[which], self.tokenized[which])

    def given_away(self, which: slice) -> Self:
        """Return some of the texts, and drop the tokenizer's results for them here, because these are large."""
        part = self.part(which)
        self.tokenized[which] = [None] * len(part.rows)
        return part

    def merged(self, other: Self) -> Self:
        """Return the texts of both batches, the longest first. Texts of equal length keep their order."""
        rows, lengths = np.concatenate([self.rows, other.rows]), np.concatenate([self.lengths, other.lengths])
        order = _longest_first(lengths)
        tokenized = self.tokenized + other.tokenized
        return type(self)(rows[order], lengths[order], [tokenized[i] for i in order.tolist()])


@dataclasses.dataclass
class Limits:
    """How large batches may be.

    Attributes:
        max_tokens: The largest number of tokens in a batch of more than one text. It is lowered when memory runs out.
        max_texts: The largest number of texts in a batch, or None.
        threads: Number of threads that compute batches.
        efficient_tokens: Number of tokens of an efficient batch. At the end of a call, batches do not get smaller.
    """

    max_tokens: int
    max_texts: int | None
    threads: int
    efficient_tokens: int


def cut(
    texts: Sequence[Sized],
    tokenize: Callable[[Int[Array, "n"]], tuple[Int[Array, "n"], list[Any]]],
    limits: Limits,
) -> Generator[Batch, None, None]:
    """Yield batches of texts, the longest first. So equal lengths are together, and the last batches are small.

    A separate thread tokenizes the texts in pieces, ahead of the batches. Towards the end, batches get smaller, so that
    all threads finish at about the same time. Close the generator if you stop before its end: this waits for the
    tokenizer.

    Args:
        texts: The texts. Only their lengths are used.
        tokenize: Tokenizes the texts with these indices. It returns their lengths in tokens, and a result for each text
            that is put in the batch.
        limits: How large batches may be.
    """
    sizes = np.fromiter(map(len, texts), np.intp, len(texts))
    order = _longest_first(sizes)
    characters_up_to = np.concatenate([[0], np.cumsum(sizes[order])])
    characters, tokens = 4, 1  # of tokenized texts: they estimate the tokens of the others
    characters_left = int(characters_up_to[-1])

    def pieces() -> Iterator[Int[Array, "n"]]:
        start = 0
        while start < len(order):
            wanted = _BATCHES_AT_ONCE * limits.threads * limits.max_tokens * characters // tokens
            stop = _last_within(characters_up_to, start, wanted)
            stop = min(max(stop, start + 1), start + _TOKENIZE_AT_ONCE)
            yield order[start:stop]
            start = stop

    none = np.zeros(0, np.intp)
    waiting, tokens_waiting = Batch(none, none, []), 0
    tokens_up_to, start = np.zeros(1, np.intp), 0  # in `waiting`: its first `start` texts are already used
    with contextlib.closing(ahead(lambda rows: Batch(rows, *tokenize(rows)), pieces())) as coming:
        while True:
            while tokens_waiting < limits.max_tokens and (new := next(coming, None)) is not None:
                waiting, start = waiting.part(slice(start, None)).merged(new), 0
                tokens_up_to = np.concatenate([[0], np.cumsum(waiting.lengths)])
                new_characters = int(sizes[new.rows].sum())
                tokens_waiting, tokens = tokens_waiting + new.tokens, tokens + new.tokens
                characters, characters_left = characters + new_characters, characters_left - new_characters
                del new
            if start == len(waiting.rows):
                return
            left = tokens_waiting + characters_left * tokens // characters
            budget = min(limits.max_tokens, max(limits.efficient_tokens, -(-left // limits.threads)))
            stop = max(_last_within(tokens_up_to, start, budget), start + 1)
            if limits.max_texts is not None:
                stop = min(stop, start + limits.max_texts)
            tokens_waiting -= int(tokens_up_to[stop] - tokens_up_to[start])
            which, start = slice(start, stop), stop
            yield waiting.given_away(which)


def _longest_first(lengths: Int[Array, "n"]) -> Int[Array, "n"]:
    """Return the indices that sort lengths in descending order. Equal lengths keep their order."""
    longest = lengths.max(initial=0)
    return np.argsort((longest - lengths).astype(np.min_scalar_type(longest)), kind="stable")  # 16 bits sort fastest


def _last_within(up_to: Int[Array, "n"], start: int, most: int) -> int:
    """Return the last index where the cumulative sum ``up_to``, counted from ``start``, is at most ``most``."""
    most = min(most, int(up_to[-1]))  # a user's limit need not fit in 64 bits
    return int(np.searchsorted(up_to, up_to[start] + most, side="right")) - 1


def ahead(function: Callable[[_Argument], _Result], arguments: Iterable[_Argument]) -> Generator[_Result, None, None]:
    """Yield the function's results in order. Another thread computes them in advance.

    The function should release the GIL most of the time. For a single argument, no thread is started. Close the
    generator if you stop before its end: this waits for the thread.
    """
    remaining: Iterator[_Argument] = iter(arguments)
    first = list(itertools.islice(remaining, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    from concurrent.futures import ThreadPoolExecutor

    thread, results = ThreadPoolExecutor(1, "minibert-ahead"), deque[Any]()
    remaining = itertools.chain(first, remaining)
    try:
        while True:
            more = itertools.islice(remaining, 1 + _CALLS_AHEAD - len(results))
            results.extend(thread.submit(function, argument) for argument in more)
            if not results:
                return
            yield results.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def run(
    batches: Iterable[Batch],
    work: Callable[[Batch, Fused], None],
    limits: Limits,
    worker: Callable[[Callable[[], bool]], AbstractContextManager[Fused]],
) -> None:
    """Call ``work`` on every batch, on ``limits.threads`` threads. The calling thread is one of them.

    Each thread takes the next batch when it needs one. If a thread raises, the others stop at their next matrix
    product, and this function raises the first exception.

    Args:
        batches: The batches.
        work: Computes one batch.
        limits: The number of threads, and the limits of ``batches``. When memory runs out, the batch is computed in
            parts, and the limit is lowered.
        worker: Returns the operations and memory of a thread. Its argument is a function that says whether to stop.

    Raises:
        MemoryError: A single text does not fit in memory.
    """
    iterator = iter(batches)
    lock = threading.Lock()
    stopped = threading.Event()
    errors: list[BaseException] = []

    def work_on_parts() -> None:
        try:
            with worker(stopped.is_set) as fused:
                while not stopped.is_set():
                    with lock:
                        batch = next(iterator, None)
                    if batch is None:
                        return
                    work_within_memory(batch, work, limits, fused)
                    del batch  # before the lock: to free the tokenizer's results takes time
        except BaseException as error:  # noqa: BLE001 - raised again below, in the calling thread
            errors.append(error)
            stopped.set()

    def other(ended: threading.Event) -> None:
        try:
            work_on_parts()
        finally:
            ended.set()

    ends = [threading.Event() for _ in range(limits.threads - 1)]
    others = [threading.Thread(target=other, args=(ended,), name="minibert", daemon=True) for ended in ends]
    try:
        for thread in others:
            thread.start()
        work_on_parts()
        _wait(others, ends)
    finally:  # needed if Ctrl-C interrupts the lines above
        stopped.set()
        _wait(others, ends)
    if errors:
        raise errors[0]


def work_within_memory(batch: Batch, work: Callable[[Batch, Fused], None], limits: Limits, fused: Fused) -> None:
    """Call ``work`` on a batch. If memory runs out, call it on the two halves, and lower the limit for later batches.

    Raises:
        MemoryError: A single text does not fit in memory.
    """
    try:
        work(batch, fused)
    except MemoryError as error:
        fused.free()
        tokens = batch.tokens
        if len(batch.rows) == 1:
            raise MemoryError(f"there is not enough memory for a single text, of {tokens} tokens: {error}") from error
        limits.max_tokens = min(limits.max_tokens, max(1, tokens // 2))
    else:
        return
    logger.warning("a batch of %d tokens did not fit in memory; going on with at most %d", tokens, limits.max_tokens)
    middle = len(batch.rows) // 2
    for half in (slice(None, middle), slice(middle, None)):
        work_within_memory(batch.part(half), work, limits, fused)


def _wait(threads: Sequence[threading.Thread], ends: Sequence[threading.Event]) -> None:
    """Wait until all started threads have ended.

    ``join`` alone is not enough: in Python 3.11, after Ctrl-C interrupts a join, the thread counts as ended.
    """
    for thread, ended in zip(threads, ends, strict=True):
        if thread.ident is not None:
            ended.wait()
            thread.join()
