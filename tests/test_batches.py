"""Batches: how texts are cut up, and how threads work on the pieces until all is done or something stops them."""

import contextlib
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.engine import threads
from minibert.engine.batches import _TOKENIZE_AT_ONCE, Batch, Limits, ahead, cut, run
from minibert.engine.devices import CpuEngine
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule

FEWEST_TOKENS = CpuEngine.efficient_tokens
PATIENCE = 10  # seconds until a test gives up waiting for another thread

# ---------------------------------------------------------------- cut


def lengths_of(ids):
    """Return how many ids each text has."""
    return np.array([len(each) for each in ids], np.intp)


class Tokenizer:
    """Makes a token of so many characters, and special ones; it keeps what it was asked for, and counts tokens."""

    def __init__(self, texts, characters=4, special=1):
        self.texts, self.characters, self.special = texts, characters, special
        self.calls, self.tokens = [], 0

    def __call__(self, indices):
        """Return the lengths and the ids of some texts."""
        found = [self.ids(i) for i in indices.tolist()]
        self.calls.append(indices.tolist())
        self.tokens += sum(map(len, found))
        return lengths_of(found), found

    def ids(self, i):
        """Return the ids of a text, which tell it from others."""
        return [i] * (self.special + len(self.texts[i]) // self.characters)


def batches(texts, tokenize=None, *, max_tokens=1024, max_texts=None, number=2):
    """Return the batches of texts."""
    return list(cut(texts, tokenize or Tokenizer(texts), Limits(max_tokens, max_texts, number, FEWEST_TOKENS)))


def sizes(texts, **limits):
    """Return how many tokens each batch has."""
    return [batch.tokens for batch in batches(texts, **limits)]


def share_of(left, number):
    """Return how many tokens a thread is to take of those that are left."""
    return max(FEWEST_TOKENS, -(-left // number))


CALLS = {
    "texts": st.lists(st.integers(0, 700), max_size=60).map(lambda lengths: ["x" * length for length in lengths]),
    "characters": st.integers(1, 6),
    "special": st.integers(0, 2),
    "max_tokens": st.integers(1, 600),
    "max_texts": st.none() | st.integers(1, 5),
    "number": st.integers(1, 8),
}


@settings(deadline=None)
@given(**CALLS)
def test_every_text_comes_once_with_its_ids(texts, characters, special, **limits):
    """Every text is in one batch, with its own length and ids."""
    tokenize = Tokenizer(texts, characters, special)
    found = [each for batch in batches(texts, tokenize, **limits) for each in zip(*batch, strict=True)]
    expected = [(i, tokenize.ids(i)) for i in range(len(texts))]

    assert sorted(found) == [(i, len(ids), ids) for i, ids in expected]


@settings(deadline=None)
@given(**CALLS)
def test_limits(texts, characters, special, max_tokens, max_texts, number):
    """No batch is empty, none of several texts has more than max_tokens, and none has more than max_texts texts."""
    tokenize = Tokenizer(texts, characters, special)
    for batch in batches(texts, tokenize, max_tokens=max_tokens, max_texts=max_texts, number=number):
        assert len(batch.rows) > 0
        assert len(batch.rows) == 1 or batch.tokens <= max_tokens
        assert max_texts is None or len(batch.rows) <= max_texts


def test_longest_first():
    """Texts come by length, the longest first, so that those of equal length meet; equal ones in their order."""
    texts = ["x" * (4 * (7 * i % 40)) for i in range(4000)]
    tokenize = Tokenizer(texts)
    rows = [i for batch in batches(texts, tokenize, max_tokens=64) for i in batch.rows.tolist()]

    assert rows == sorted(rows, key=lambda i: (-len(texts[i]), i))
    assert len(tokenize.calls) > 10


def test_most_tokens_first():
    """Of the texts that are tokenized, that with the most tokens is the first, whatever its characters."""
    found = batches(["x" * 10] * 100, lambda indices: (1 + 7 * indices % 40, indices.tolist()))
    lengths = [length for batch in found for length in batch.lengths]

    assert lengths == sorted(lengths, reverse=True)


def test_full_batches():
    """While there is much left, a batch is as large as the limit allows."""
    assert sizes(["x" * 36] * 10_000)[:80] == [1020] * 80


def test_text_over_the_limit():
    """A text with more tokens than a batch may have is a batch of its own."""
    texts = ["x" * 8, "x" * 40_000, "x" * 8]

    assert [batch.rows.tolist() for batch in batches(texts, number=1)] == [[1], [0, 2]]


def test_many_texts_over_the_limit():
    """So are many of them, each."""
    assert sizes(["x" * 400] * 50, max_tokens=10) == [101] * 50


def test_no_limit():
    """Limits that no machine has, and that do not fit in 64 bits, are as good as none."""
    found = batches(["x" * 36] * 3000, max_tokens=10**30, max_texts=10**30, number=1)

    assert [batch.tokens for batch in found] == [30_000]


def test_no_text():
    """No text gives no batch, and the tokenizer is not asked."""
    tokenize = Tokenizer([])

    assert batches([], tokenize) == []
    assert tokenize.calls == []


@pytest.mark.parametrize("special", [0, 2])
def test_empty_texts(special):
    """Empty texts are texts, even where they have no token at all."""
    texts = [""] * 3000
    found = batches(texts, Tokenizer(texts, special=special))

    assert sorted(i for batch in found for i in batch.rows) == list(range(3000))


@pytest.mark.parametrize("number", [1, 2, 5, 16])
def test_batches_shrink_at_the_end(number):
    """No batch has more than a thread's share of what is left, but for the fewest tokens that are worth a product."""
    texts = ["x" * 36] * 3000
    left = 10 * len(texts)
    for size in sizes(texts, max_tokens=4096, number=number):
        assert size <= share_of(left, number)
        left -= size


def test_batches_do_not_shrink_too_much():
    """No batch but the last has fewer tokens than are worth a product, less one text."""
    assert min(sizes(["x" * 36] * 3000, number=16)[:-1]) > FEWEST_TOKENS - 10


@pytest.mark.parametrize(
    ("count", "tokens", "number"), [(2, 100, 2), (2, 500, 2), (4, 100, 4), (8, 100, 4), (3, 400, 2), (16, 250, 8)]
)
def test_small_inputs_keep_all_threads_busy(count, tokens, number):
    """A few texts of equal size, of half the fewest tokens or more, give each thread a batch of about its share."""
    found = sizes(["x" * 4 * (tokens - 1)] * count, number=number)

    assert len(found) >= number
    assert max(found) <= share_of(count * tokens, number)


def test_shares_count_texts_that_are_not_tokenized_yet():
    """Batches do not shrink because only a piece of the input is tokenized."""
    texts = ["x" * 3] * 20_000  # a token each: one call of the tokenizer has no more than one batch wants
    found = sizes(texts, max_tokens=900, number=2)

    assert found[:18] == [900] * 18


@pytest.mark.parametrize("number", [1, 4])
def test_tokenizer_is_asked_just_ahead(number):
    """The tokenizer is never more than six batches a thread ahead of the one that is being filled."""
    texts = ["x" * 40] * 20_000
    tokenize = Tokenizer(texts, special=0)
    given_out = 0
    for batch in cut(texts, tokenize, Limits(256, None, number, FEWEST_TOKENS)):
        assert tokenize.tokens - given_out <= (6 * number + 1) * 256
        given_out += batch.tokens


def test_tokenizer_learns_how_long_tokens_are():
    """Where each character is a token, the tokenizer is too far ahead with the first pieces only."""
    texts = ["x" * 20] * 20_000
    tokenize = Tokenizer(texts, characters=1)
    batches(texts, tokenize, max_tokens=256)
    first, others = tokenize.calls[:3], tokenize.calls[3:]

    assert min(map(len, first)) > max(map(len, others))
    assert max(map(len, others)) * 21 <= 1.1 * 2 * 2 * 256


def test_tokenizer_is_asked_for_many_short_texts_at_a_time():
    """Short texts are tokenized by the thousand at most: no call is long, and none is too short for its threads."""
    texts = ["x"] * 5 * _TOKENIZE_AT_ONCE
    tokenize = Tokenizer(texts)
    batches(texts, tokenize, max_tokens=16_384)

    assert {len(call) for call in tokenize.calls[:-1]} == {_TOKENIZE_AT_ONCE}


def test_tokenizer_is_asked_for_one_long_text_at_a_time():
    """A text with more characters than are wanted is still tokenized, alone."""
    texts = ["x" * 100_000] * 3
    tokenize = Tokenizer(texts)
    batches(texts, tokenize, max_tokens=64)

    assert tokenize.calls == [[0], [1], [2]]


def test_tokenized_texts_are_given_away():
    """What was tokenized for a batch is in memory only as long as the batch is."""

    class Encoding:
        """What stands for a text."""

    def tokenize(rows):
        return np.full(len(rows), 10), [Encoding() for _ in rows]

    with contextlib.closing(cut(["x" * 40] * 100, tokenize, Limits(100, None, 1, 1))) as generator:
        batch = next(generator)
        known = [weakref.ref(each) for each in batch.tokenized]
        del batch

        assert len(known) == 10
        assert all(each() is None for each in known)


# ---------------------------------------------------------------- ahead


def test_results_are_in_order():
    """The results are the function's, in the order of the arguments, which are used up."""
    assert list(ahead(lambda x: x * x, iter(range(50)))) == [x * x for x in range(50)]


@pytest.mark.parametrize("count", [0, 1])
def test_no_thread_for_a_single_argument(count):
    """No argument gives no result, and a single one is worked on in the thread that asks."""
    assert list(ahead(lambda _: threading.current_thread(), range(count))) == [threading.current_thread()] * count


def test_another_thread_is_ahead():
    """While a result is in use, the next two are made; no more are begun."""
    begun = []

    def function(x):
        begun.append(x)
        return threading.current_thread()

    results = ahead(function, range(50))
    assert next(results) is not threading.current_thread()
    end = time.monotonic() + PATIENCE
    while len(begun) < 3 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    results.close()

    assert begun == [0, 1, 2]


def test_error_of_the_other_thread():
    """An error is raised where the result would have been, and the thread ends."""
    before = set(threading.enumerate())
    results = ahead(lambda x: 1 // (3 - x), range(10))

    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert set(threading.enumerate()) <= before


def test_closing_waits_for_the_thread():
    """Once it is closed, nothing is going on or begun any more."""
    before, done = set(threading.enumerate()), []

    def function(x):
        time.sleep(0.02)
        done.append(x)

    results = ahead(function, range(10))
    next(results)
    results.close()
    count = len(done)
    time.sleep(0.05)

    assert len(done) == count <= 3
    assert set(threading.enumerate()) <= before


# ---------------------------------------------------------------- run


def numbered(count):
    """Return so many batches, each with its number as its only row."""
    return [Batch(np.array([i]), np.array([1]), [[i]]) for i in range(count)]


def calls_of(batches, work, number):
    """Run, and fail if a thread is left behind."""
    before = set(threading.enumerate())
    try:
        run(batches, work, Limits(64, None, number, 1), CpuEngine(np.float32).worker)
    finally:
        assert set(threading.enumerate()) <= before


class OutOfMemory:
    """Work that fails on batches of more than so many tokens; it keeps those that it did."""

    def __init__(self, most):
        self.most, self.done = most, []

    def __call__(self, batch, _fused):
        """Work on a batch."""
        if batch.tokens > self.most:
            raise MemoryError("no room")
        self.done += batch.rows.tolist()


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("most", [5, 6, 11, 1000])
def test_out_of_memory(number, most, caplog):
    """A batch that does not fit is done in parts, each text once, and later batches are made smaller."""
    texts, work = ["x" * 16] * 50, OutOfMemory(most)  # of 5 tokens each
    limits = Limits(100, None, number, 1)
    run(cut(texts, Tokenizer(texts), limits), work, limits, CpuEngine(np.float32).worker)

    assert sorted(work.done) == list(range(50))
    assert (limits.max_tokens == 100) == (most == 1000)
    assert ("did not fit in memory" in caplog.text) == (most != 1000)


def test_out_of_memory_for_one_text():
    """A single text that does not fit is an error that says how long it is; nothing is tried for ever."""
    texts, limits = ["x" * 16, "x" * 4000, "x" * 16], Limits(64, None, 1, 1)

    with pytest.raises(MemoryError, match="not enough memory for a single text, of 1001 tokens: no room"):
        run(cut(texts, Tokenizer(texts), limits), OutOfMemory(100), limits, CpuEngine(np.float32).worker)


def until_cancelled(fused):
    """Do as an operation does that takes long: raise InterruptedError once it is cancelled."""
    x, weight = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    packing = Packing.of([2], [0], RowRule((0,), threads=False))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        fused.linear("test", x, weight, packing, 2)
        time.sleep(0.001)
    pytest.fail("it was not cancelled")


@pytest.mark.parametrize("number", range(1, 9))
def test_each_batch_is_worked_on_once(number):
    """However many threads there are, work is called once with each batch."""
    done = []
    calls_of(numbered(100), lambda batch, _: done.append(batch.rows[0]), number)

    assert sorted(done) == list(range(100))


@pytest.mark.parametrize("number", range(1, 9))
def test_so_many_threads_work_at_a_time(number):
    """So many threads as asked for work at the same time, the calling one among them."""
    meet = threading.Barrier(number, timeout=PATIENCE)
    seen = set()

    def work(_batch, _fused):
        seen.add(threading.current_thread())
        meet.wait()

    calls_of(numbered(3 * number), work, number)

    assert len(seen) == number
    assert threading.current_thread() in seen


def test_more_threads_than_batches():
    """Threads for which there is no batch end."""
    done = []
    calls_of(numbered(2), lambda batch, _: done.append(batch.rows[0]), 8)

    assert sorted(done) == [0, 1]


def test_no_batch():
    """No batch is no work."""
    calls_of([], lambda *_: pytest.fail("there is nothing to do"), 3)


def test_each_thread_has_operations_of_its_own():
    """Threads do not share the memory of results, and each keeps its own from batch to batch."""
    meet = threading.Barrier(4, timeout=PATIENCE)
    seen = set()

    def work(_batch, fused):
        seen.add((threading.current_thread(), fused))
        meet.wait()

    calls_of(numbered(12), work, 4)

    assert len(seen) == len({fused for _, fused in seen}) == 4


class Source:
    """An iterator of batches that notes which threads ask, and how many are inside at a time."""

    def __init__(self, count):
        self.left, self.made = numbered(count), 0
        self.inside = self.most_inside = 0
        self.askers = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.001)
        self.askers.add(threading.current_thread())
        self.inside -= 1
        if not self.left:
            raise StopIteration
        self.made += 1
        return self.left.pop(0)


def test_one_thread_at_a_time_makes_a_batch():
    """The iterator is entered by one thread at a time, whichever needs a batch."""
    source = Source(60)
    calls_of(source, lambda *_: None, 6)

    assert source.most_inside == 1
    assert len(source.askers) == 6


def test_batches_are_made_when_they_are_needed():
    """No batch is made before a thread is free for it."""
    source, done, ahead = Source(40), [], []

    def work(batch, _):
        ahead.append(source.made - len(done))
        done.append(batch)

    calls_of(source, work, 3)

    assert max(ahead) <= 3


# ---------------------------------------------------------------- run, stopped


@pytest.mark.parametrize("where", ["caller", "other"])
def test_first_error_reaches_the_caller(where):
    """An error in any thread is raised in the calling one, and not that of a thread which is stopped by it."""
    all_at_work = threading.Barrier(3, timeout=PATIENCE)

    def work(batch, fused):
        all_at_work.wait()
        if (threading.current_thread() is threading.main_thread()) == (where == "caller") and batch.rows[0] < 3:
            raise MemoryError(where)
        until_cancelled(fused)

    start = time.monotonic()
    with pytest.raises(MemoryError, match=where):
        calls_of(numbered(30), work, 3)

    assert time.monotonic() - start < 1


def test_no_batch_is_made_after_an_error():
    """After an error, threads take no other batch."""
    source, all_at_work = Source(30), threading.Barrier(3, timeout=PATIENCE)

    def work(batch, fused):
        if all_at_work.wait() == 0:
            raise ValueError(batch)
        with contextlib.suppress(InterruptedError):
            until_cancelled(fused)

    with pytest.raises(ValueError, match="Batch"):
        calls_of(source, work, 3)

    assert source.made == 3


def test_error_while_a_batch_is_made():
    """An error in the iterator, in whatever thread, is raised in the calling one."""

    def source():
        yield from numbered(5)
        raise RuntimeError("the tokenizer is out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        calls_of(source(), lambda *_: None, 4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["caller", "other"])
def test_any_exception_is_passed_on(where, error):
    """What is no Exception, such as a signal handler's exit, stops the others and is raised all the same."""
    both_at_work = threading.Barrier(2, timeout=PATIENCE)

    def work(_, fused):
        both_at_work.wait()
        if (threading.current_thread() is threading.main_thread()) == (where == "caller"):
            raise error
        until_cancelled(fused)

    with pytest.raises(error):
        calls_of(numbered(30), work, 2)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system cannot send a signal to a thread")
class TestCtrlC:
    """Ctrl-C in the calling thread stops the others within a second, and the next call works."""

    @pytest.fixture(autouse=True)
    def handler(self):
        """Let Ctrl-C raise KeyboardInterrupt, even where tests run in the background."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def interrupt(self, main):
        """Run what takes long, but ``main`` in the main thread; send that one Ctrl-C, and check."""
        main_thread = threading.main_thread()
        all_at_work = threading.Barrier(4, timeout=PATIENCE)  # three threads, and the one that sends

        def work(_, fused):
            all_at_work.wait()
            (main if threading.current_thread() is main_thread else until_cancelled)(fused)

        def send():
            all_at_work.wait()
            time.sleep(0.05)
            signal.pthread_kill(main_thread.ident, signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                run(numbered(3), work, Limits(64, None, 3, 1), CpuEngine(np.float32).worker)
            took = time.monotonic() - start
        finally:
            sender.join()

        assert took < 1
        assert not any(thread.name.startswith("minibert") for thread in threading.enumerate())
        test_each_batch_is_worked_on_once(3)

    def test_while_it_computes(self):
        """So it is while the calling thread computes itself."""
        self.interrupt(until_cancelled)

    def test_while_it_waits_for_the_others(self):
        """So it is while the calling thread has nothing left to do but to wait for the others."""
        self.interrupt(lambda _: None)


# ---------------------------------------------------------------- BLAS


@pytest.fixture
def blas():
    """Return numpy's BLAS on two threads, or skip where it cannot be limited."""
    libraries = [library for some in threads._libraries() for library in some]
    if not libraries:
        pytest.skip("numpy's BLAS takes no limit on its threads")
    before = libraries[0].num_threads
    threads._set_threads(libraries[0], 2)
    yield libraries[0]
    threads._set_threads(libraries[0], before)


def test_blas_has_one_thread_meanwhile(blas):
    """BLAS has one thread in every thread that works, and afterwards what it had."""
    seen = []
    meet = threading.Barrier(3, timeout=PATIENCE)

    def work(_batch, _fused):
        seen.append(blas.num_threads)
        meet.wait()

    calls_of(numbered(6), work, 3)

    assert seen == [1] * 6
    assert blas.num_threads == 2


def test_blas_is_restored_after_an_error(blas):
    """After an error, BLAS has what it had."""

    def work(_batch, _fused):
        raise MemoryError

    with pytest.raises(MemoryError):
        calls_of(numbered(6), work, 3)

    assert blas.num_threads == 2
