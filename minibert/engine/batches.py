"""Batches: how the texts of a call are cut up, and how threads work on the pieces.

Nothing here can change a result: a text's vector does not depend on its batch.
"""

import contextlib
import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from minibert.engine.fused import Fused
from minibert.typing import Array, Int

logger = logging.getLogger("minibert")

#: Texts that are tokenized in one call, at most: enough to keep the tokenizer's threads busy.
_TOKENIZE_AT_ONCE = 4096
#: Batches, for each thread, that are tokenized in one call, if they are not too many texts.
_BATCHES_AT_ONCE = 2
#: Calls of the tokenizer that are ahead of what is in use: one is done or going on, the next can start at once.
_CALLS_AHEAD = 2

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Batch(NamedTuple):
    """Texts that are computed together.

    Attributes:
        rows: The index of each text.
        lengths: How many tokens it has.
        tokenized: What the tokenizer returned for it. Its ids are made of that when they are needed.
    """

    rows: Int[Array, "texts"]
    lengths: Int[Array, "texts"]
    tokenized: list[Any]

    @property
    def tokens(self) -> int:
        """How many tokens all of them have."""
        return int(self.lengths.sum())

    def part(self, which: slice) -> Self:
        """Return some of the texts."""
        return type(self)(self.rows[which], self.lengths[which], self.tokenized[which])

    def given_away(self, which: slice) -> Self:
        """Return some of the texts, and keep nothing of what was tokenized for them: it is large."""
        part = self.part(which)
        self.tokenized[which] = [None] * len(part.rows)
        return part

    def merged(self, other: Self) -> Self:
        """Return the texts of both, those with the most tokens first, and equal ones in their order."""
        rows, lengths = np.concatenate([self.rows, other.rows]), np.concatenate([self.lengths, other.lengths])
        order = _longest_first(lengths)
        tokenized = self.tokenized + other.tokenized
        return type(self)(rows[order], lengths[order], [tokenized[i] for i in order.tolist()])


@dataclasses.dataclass
class Limits:
    """How large batches may be.

    Attributes:
        max_tokens: The most tokens in a batch of more than one text. It is lowered where memory runs out.
        max_texts: The most texts in a batch, or None.
        threads: How many threads work on batches at a time.
        efficient_tokens: What makes an efficient batch: at the end of a call, batches get no smaller.
    """

    max_tokens: int
    max_texts: int | None
    threads: int
    efficient_tokens: int


def cut(
    texts: Sequence[str],
    tokenize: Callable[[Int[Array, "n"]], tuple[Int[Array, "n"], list[Any]]],
    limits: Limits,
) -> Generator[Batch, None, None]:
    """Yield batches of texts, the longest first, so that equal lengths meet and the last batches are small.

    Tokenization goes in pieces, on a thread of its own, some pieces ahead of the batches. Towards the end batches
    shrink, for all threads to end at about the same time. Close the generator if it is not used up: it waits for the
    tokenizer.

    Args:
        texts: The texts.
        tokenize: Returns the number of tokens of each of the texts at some indices, and what is put in a batch for it.
        limits: How large batches may be.
    """
    sizes = np.fromiter(map(len, texts), np.intp, len(texts))
    order = _longest_first(sizes)
    characters_up_to = np.concatenate([[0], np.cumsum(sizes[order])])
    characters, tokens = 4, 1  # of what is tokenized: an estimate of how many tokens the others have
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
    tokens_up_to, start = np.zeros(1, np.intp), 0  # in `waiting`, which is used up from its start
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
    """Return the indices of lengths in descending order; equal ones keep their order."""
    longest = lengths.max(initial=0)
    return np.argsort((longest - lengths).astype(np.min_scalar_type(longest)), kind="stable")  # 16 bits sort quickest


def _last_within(up_to: Int[Array, "n"], start: int, most: int) -> int:
    """Return the last index up to which, counted from ``start``, there is no more than ``most``."""
    most = min(most, int(up_to[-1]))  # a user's limit need not fit in 64 bits
    return int(np.searchsorted(up_to, up_to[start] + most, side="right")) - 1


def ahead(function: Callable[[_Argument], _Result], arguments: Iterable[_Argument]) -> Generator[_Result, None, None]:
    """Yield the function's results in order. Another thread makes them, before they are asked for.

    So it should spend its time where other threads of Python can run. For a single argument no thread is started.
    Close the generator if it is not used up: it waits for the thread.
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
    """Call ``work`` on every batch, on so many threads, this one among them.

    Batches are made by whichever thread needs one. If a thread raises, the others stop at their next matrix product,
    and the first exception is raised here.

    Args:
        batches: The batches.
        work: Computes one of them.
        limits: How many threads there are, and how large ``batches`` makes batches: that is lowered here, and the batch
            computed in parts, where memory runs out.
        worker: Returns what a thread computes with; it gets a function that tells whether to stop.

    Raises:
        MemoryError: Not even a single text fits.
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
                    del batch  # before the lock: to free what was tokenized takes time
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the caller
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
    finally:  # where Ctrl-C interrupted any of this
        stopped.set()
        _wait(others, ends)
    if errors:
        raise errors[0]


def work_within_memory(batch: Batch, work: Callable[[Batch, Fused], None], limits: Limits, fused: Fused) -> None:
    """Call ``work`` on a batch; where memory runs out, on its halves, and lower the limit for those to come.

    Raises:
        MemoryError: Not even a single text fits.
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
    """Wait until those of the threads that were started have ended.

    Not by joining alone: in Python 3.11, a join that Ctrl-C has interrupted takes the thread for ended ever after.
    """
    for thread, ended in zip(threads, ends, strict=True):
        if thread.ident is not None:
            ended.wait()
            thread.join()
