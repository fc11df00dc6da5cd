"""Batches: how the texts of a call are cut up, and how threads work on the pieces.

Nothing here can change a result: a text's vector does not depend on its batch.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from minibert.fused.operations import Fused

logger = logging.getLogger("minibert")

#: Texts that are tokenized in one call, at most: enough to keep the tokenizer's threads busy.
_TOKENIZE_AT_ONCE = 1024


class Batch(NamedTuple):
    """Texts that are computed together.

    Attributes:
        rows: The index of each text.
        ids: Its token ids.
    """

    rows: list[int]
    ids: list[list[int]]


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
    texts: Sequence[str], tokenize: Callable[[Sequence[int]], Sequence[list[int]]], limits: Limits
) -> Iterator[Batch]:
    """Yield batches of texts, the longest first, so that equal lengths meet and the last batches are small.

    Tokenization goes in pieces, just ahead of the batches, so that other threads compute meanwhile. Towards the end
    batches shrink, for all threads to end at about the same time.

    Args:
        texts: The texts.
        tokenize: Returns the ids of the texts at some indices.
        limits: How large batches may be.
    """
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    characters_left = sum(map(len, texts))
    characters, tokens = 4, 1  # of what is tokenized: an estimate of how many tokens the others have
    waiting: list[tuple[int, list[int]]] = []
    tokens_waiting = next_text = 0
    while True:
        while next_text < len(order) and tokens_waiting < limits.max_tokens:
            wanted = 4 * limits.threads * limits.max_tokens * characters // tokens
            piece: list[int] = []
            for i in order[next_text : next_text + _TOKENIZE_AT_ONCE]:
                if piece and wanted < len(texts[i]):
                    break
                wanted -= len(texts[i])
                piece.append(i)
            new = tokenize(piece)
            waiting = sorted([*waiting, *zip(piece, new, strict=True)], key=lambda item: -len(item[1]))
            next_text += len(piece)
            tokens_waiting += sum(map(len, new))
            tokens += sum(map(len, new))
            characters += sum(len(texts[i]) for i in piece)
            characters_left -= sum(len(texts[i]) for i in piece)
        if not waiting:
            return
        left = tokens_waiting + characters_left * tokens // characters
        budget = min(limits.max_tokens, max(limits.efficient_tokens, -(-left // limits.threads)))
        batch = Batch([], [])
        batch_tokens = 0
        for i, ids in waiting:
            if batch.rows and (batch_tokens + len(ids) > budget or len(batch.rows) == limits.max_texts):
                break
            batch.rows.append(i)
            batch.ids.append(ids)
            batch_tokens += len(ids)
        del waiting[: len(batch.rows)]
        tokens_waiting -= batch_tokens
        yield batch


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
        tokens = sum(map(len, batch.ids))
        if len(batch.rows) == 1:
            raise MemoryError(f"there is not enough memory for a single text, of {tokens} tokens: {error}") from error
        limits.max_tokens = min(limits.max_tokens, max(1, tokens // 2))
    else:
        return
    logger.warning("a batch of %d tokens did not fit in memory; going on with at most %d", tokens, limits.max_tokens)
    middle = len(batch.rows) // 2
    for half in (slice(None, middle), slice(middle, None)):
        work_within_memory(Batch(batch.rows[half], batch.ids[half]), work, limits, fused)


def _wait(threads: Sequence[threading.Thread], ends: Sequence[threading.Event]) -> None:
    """Wait until those of the threads that were started have ended.

    Not by joining alone: in Python 3.11, a join that Ctrl-C has interrupted takes the thread for ended ever after.
    """
    for thread, ended in zip(threads, ends, strict=True):
        if thread.ident is not None:
            ended.wait()
            thread.join()
