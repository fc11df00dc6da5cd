"""The batcher: the bits of encode whatever else is computed, and what becomes of requests when something goes wrong."""

import asyncio
import contextlib
import dataclasses
import logging
import random
import threading

import numpy as np
import pytest
from support import FAMILIES, copy_twin, edit_json, edit_weights, twin, words_of
from test_serving_metrics import value

from minibert import SentenceEncoder
from minibert.errors import VectorError
from minibert.serving.batcher import Batcher, Overloaded, Stopping, TooLong, Work
from minibert.serving.metrics import Metrics

CARD = "BertModel-128d"
#: Letters that are tokens of the card's twin. So are "a", "and", "cat", "happy", "in", "man", "no", "play" and "the".
LETTERS = "acdefghilmnopqrstuvwy"
#: Seconds after which a test that hangs fails.
PATIENCE = 30


class Held(SentenceEncoder):
    """An encoder that computes nothing until it is let go.

    Attributes:
        calls: Number of texts of each call.
        entered: Is set when a call begins.
        go: Lets all calls go.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls, self.entered, self.go = [], threading.Event(), threading.Event()

    def encode_ids(self, ids, **options):
        """Wait, then compute."""
        self.calls.append(len(ids))
        self.entered.set()
        assert self.go.wait(PATIENCE)
        return super().encode_ids(ids, **options)


class HeldTokenizer:
    """A tokenizer that tokenizes nothing until it is let go."""

    def __init__(self, tokenizer):
        self.tokenizer, self.entered, self.go = tokenizer, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode(self, texts):
        """Wait, then tokenize."""
        self.entered.set()
        assert self.go.wait(PATIENCE)
        return self.tokenizer.encode(texts)


class Failing(SentenceEncoder):
    """An encoder that fails with an error if a text has this token."""

    error, token = MemoryError("no memory"), None

    def encode_ids(self, ids, **options):
        """Fail or compute."""
        if any(self.token in row for row in ids):
            raise self.error
        return super().encode_ids(ids, **options)


@contextlib.asynccontextmanager
async def running(encoder, *, max_queue_tokens=10**6, **options):
    """Run a batcher. At the end, let the encoder go, and stop."""
    batcher = Batcher(encoder, max_queue_tokens=max_queue_tokens, metrics=Metrics(), **options)
    batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(encoder, Held):
            encoder.go.set()
        await asyncio.wait_for(batcher.stop(), PATIENCE / 2)
        assert not batcher.alive
        assert batcher.tokens_queued == batcher.texts_queued == 0


def run(main):
    """Run a coroutine function. It fails if it takes too long."""
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


async def until(condition):
    """Let the event loop run until something is true."""
    while not condition():  # noqa: ASYNC110 - threads set it
        await asyncio.sleep(0.001)


async def begun(batcher, encoder, *items):
    """Start a request, and return its task when the encoder computes it."""
    task = asyncio.create_task(batcher.embed(Work(items)))
    await until(encoder.entered.is_set)
    return task


async def queued(batcher, *works):
    """Start requests, and return their tasks when all of them wait for the compute thread."""
    already = batcher._to_compute.qsize()
    tasks = [asyncio.create_task(batcher.embed(work)) for work in works]
    await until(lambda: batcher._to_compute.qsize() == already + len(works))
    return tasks


def sentence(chance, words, most):
    """Return a random text."""
    return " ".join(chance.choices(words, k=chance.randint(0, most)))


# ---------------------------------------------------------------- the vectors


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("engine", ["numpy", None], ids=["numpy", "best"])
@pytest.mark.parametrize("max_batch_tokens", [None, 40])
def test_bits_of_encode(tmp_path, engine, include_prompt, max_batch_tokens):
    """64 concurrent requests of all kinds: each vector has the bits that encode gives for its text alone."""
    options = {"kernels": engine, "include_prompt": include_prompt, "max_seq_length": 24, "on_truncate": "ignore"}
    sides = {}
    for side in ("left", "right"):
        folder = copy_twin(tmp_path / side)
        edit_json(folder / "tokenizer_config.json", truncation_side=side)
        sides[side] = SentenceEncoder(folder, **options)
    encoder, chance = sides["right"], random.Random(0)  # noqa: S311
    words = [word for word in words_of(twin(CARD)) if word.isalpha()]

    def request():
        texts = [sentence(chance, words, 40) for _ in range(chance.choice((1, 1, 1, 2, 9, 30)))]
        prompt, side = chance.choice(("", "the man ", "a very old cat and ")), chance.choice((None, "left", "right"))
        is_ids = [chance.random() < 0.2 for _ in texts]
        items = [encoder.tokenizer.encode(text).ids if ids else text for text, ids in zip(texts, is_ids, strict=True)]
        work = Work(items, prompt, truncation_side=side, token_vectors=chance.random() < 0.2)
        return texts, is_ids, work, chance.choice((None, 3, 16)), chance.random() < 0.5

    requests = [request() for _ in range(64)]

    async def main():
        async with running(encoder, max_batch_tokens=max_batch_tokens) as batcher:
            answers = await asyncio.gather(*(batcher.embed(work) for _, _, work, _, _ in requests))
            return [
                answer.vectors if work.token_vectors else batcher.finish(answer.vectors, dimensions, normalize)
                for answer, (_, _, work, dimensions, normalize) in zip(answers, requests, strict=True)
            ], answers

    results, answers = asyncio.run(main())
    for vectors, answer, (texts, is_ids, work, dimensions, normalize) in zip(results, answers, requests, strict=True):
        assert len(vectors) == len(answer.lengths) == len(texts)
        truncated = 0
        for vector, length, text, ids in zip(vectors, answer.lengths, texts, is_ids, strict=True):
            prompt, peer = "" if ids else work.prompt, sides[work.truncation_side or "right"]
            kind = "token_embeddings" if work.token_vectors else "sentence_embedding"
            cut = {} if work.token_vectors else {"truncate_dim": dimensions, "normalize_embeddings": normalize}
            expected = peer.encode(text, prompt=prompt, output_value=kind, **cut)
            assert np.array_equal(vector, expected)
            assert vector.dtype == np.float32
            tokens = len(encoder.tokenizer.encode(prompt + text))
            truncated += tokens > 24
            assert length == min(tokens, 24)
        assert answer.truncated == truncated


@pytest.mark.parametrize("card", FAMILIES)
def test_families(card):
    """So it is for the families of models, with an empty text, and with token ids."""
    encoder = SentenceEncoder(twin(card))
    texts = ["the cat", "", "a man and the cat", "42!"]
    ids = [encoding.ids for encoding in encoder.tokenizer.encode_batch(texts)]

    async def main():
        async with running(encoder) as batcher:
            return await asyncio.gather(batcher.embed(Work(texts)), batcher.embed(Work(ids)))

    expected = encoder.encode(texts)
    for answer in asyncio.run(main()):
        assert np.array_equal(answer.vectors, expected)
        assert answer.lengths.tolist() == list(map(len, ids))


def test_no_special_tokens(changeable):
    """A tokenizer without special tokens: an empty text has no token, and a vector all the same."""
    tokenizer = dataclasses.replace(changeable._pipeline.tokenizer, prefix=(), suffix=())
    changeable._pipeline = dataclasses.replace(changeable._pipeline, tokenizer=tokenizer)
    texts = ["", "the cat", ""]

    async def main():
        async with running(changeable) as batcher:
            answers = await asyncio.gather(*(batcher.embed(Work([text])) for text in texts), batcher.embed(Work([[]])))
            assert [answer.lengths.tolist() for answer in answers] == [[0], [2], [0], [0]]
            return [answer.vectors[0] for answer in answers]

    assert np.array_equal(asyncio.run(main()), changeable.encode([*texts, ""]))


def test_setting_of_dimensions():
    """The encoder's number of dimensions is the default. A request may ask for more."""
    encoder = SentenceEncoder(twin(CARD), truncate_dim=4)

    async def main():
        async with running(encoder) as batcher:
            vectors = (await batcher.embed(Work(["the cat"]))).vectors
            for dimensions in (None, 2, 9):
                for normalize in (False, True):
                    expected = encoder.encode(["the cat"], truncate_dim=dimensions, normalize_embeddings=normalize)
                    assert np.array_equal(batcher.finish(vectors, dimensions, normalize), expected)

    run(main)


def test_settings_are_those_at_the_start(changeable):
    """A later change of the encoder changes nothing."""
    expected = changeable.encode("a man and the cat")

    async def main():
        async with running(changeable) as batcher:
            changeable.max_seq_length = 3
            assert np.array_equal((await batcher.embed(Work(["a man and the cat"]))).vectors[0], expected)

    run(main)


@pytest.mark.parametrize("dimensions", [None, 5])
def test_finish_row_by_row(dimensions):
    """The bits of a finished row do not depend on other rows."""
    batcher = Batcher(SentenceEncoder(twin(CARD)), max_queue_tokens=1, metrics=Metrics())
    vectors = np.random.default_rng(0).standard_normal((33, 16)).astype(np.float32)
    together = batcher.finish(vectors, dimensions, normalize=True)

    for row, vector in zip(together, vectors, strict=True):
        assert np.array_equal(row, batcher.finish(vector[None], dimensions, normalize=True)[0])


def test_equal_texts_are_computed_once():
    """Requests for the same text share its computation."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder) as batcher:
            first = await begun(batcher, encoder, "go")
            others = await queued(batcher, *[Work(["the cat"])] * 3, Work(["a man", "the cat"]))
            encoder.go.set()
            answers = await asyncio.gather(first, *others)
            assert encoder.calls == [1, 2]
            cat, man = encoder.encode(["the cat", "a man"])
            for answer in answers[1:4]:
                assert np.array_equal(answer.vectors, [cat])
            assert np.array_equal(answers[4].vectors, [man, cat])

    run(main)


# ---------------------------------------------------------------- the queue


def test_a_full_queue_refuses_a_whole_request():
    """A request is taken as a whole or not at all. The estimate of the time comes from the measured speed."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder, max_queue_tokens=20) as batcher:
            tasks = [await begun(batcher, encoder, "the cat " * 50)]  # an empty queue takes any request
            assert batcher.tokens_queued == 102
            with pytest.raises(Overloaded) as refused:
                await batcher.embed(Work(["a"]))
            assert refused.value.retry_after == 1  # nothing is measured yet
            encoder.go.set()
            await tasks.pop()

            encoder.go.clear()
            encoder.entered.clear()
            tasks = [await begun(batcher, encoder, "the cat", "the happy")]  # 8 tokens
            tasks += await queued(batcher, Work(["a man"] * 2))  # 8 more
            assert batcher.tokens_queued == 16
            assert batcher.texts_queued == 4
            with pytest.raises(Overloaded) as refused:
                await batcher.embed(Work(["a"] * 5))
            assert refused.value.retry_after == pytest.approx(16 / batcher._speed)
            assert batcher.tokens_queued == 16
            assert batcher.texts_queued == 4
            tasks += await queued(batcher, Work(["a"]))
            encoder.go.set()
            assert [len(answer.vectors) for answer in await asyncio.gather(*tasks)] == [2, 2, 1]

    run(main)


def test_a_cancelled_request_leaves_its_place():
    """It is not computed, and its tokens are free at once."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder, max_queue_tokens=30) as batcher:
            first = await begun(batcher, encoder, "the cat")
            (dropped,) = await queued(batcher, Work(["a man"] * 6))
            with pytest.raises(Overloaded):
                await batcher.embed(Work(["a cat " * 10]))
            dropped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dropped
            assert (batcher.tokens_queued, batcher.texts_queued) == (4, 1)
            (other,) = await queued(batcher, Work(["a cat " * 10]))
            encoder.go.set()
            await asyncio.gather(first, other)
            assert encoder.calls == [1, 1]

    run(main)


def test_cancelled_while_it_is_tokenized():
    """The exact number of tokens comes too late then, and is not added to the queue."""

    async def main():
        async with running(SentenceEncoder(twin(CARD))) as batcher:
            batcher._tokenizer = slow = HeldTokenizer(batcher._tokenizer)
            dropped = asyncio.create_task(batcher.embed(Work(["the cat"])))
            await until(slow.entered.is_set)
            dropped.cancel()
            await asyncio.wait([dropped])
            slow.go.set()
            assert len((await batcher.embed(Work(["a man"]))).vectors) == 1  # it is tokenized after the other
            assert batcher.tokens_queued == 0

    run(main)


def test_an_answer_that_cannot_be_made():
    """If there is no memory for an answer, its request fails, and the others of the batch get theirs."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder) as batcher:
            answer = batcher._answer

            def sometimes(job, now):
                if job.work.items == ["a man"]:
                    raise MemoryError
                return answer(job, now)

            batcher._answer = sometimes
            tasks = [await begun(batcher, encoder, "go"), *await queued(batcher, Work(["a man"]), Work(["the cat"]))]
            encoder.go.set()
            _, failed, good = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(failed, MemoryError)
            assert np.array_equal(good.vectors[0], encoder.encode("the cat"))

    run(main)


def test_nothing_is_left_of_a_batch():
    """If all that waits is cancelled, there is no batch."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder) as batcher:
            first = await begun(batcher, encoder, "the cat")
            (dropped,) = await queued(batcher, Work(["a man"]))
            dropped.cancel()
            await asyncio.wait([dropped])
            encoder.go.set()
            await first
            await batcher.embed(Work(["a man"]))
            assert encoder.calls == [1, 1]
            assert value(batcher._metrics.text(), "te_batch_next_size_count") == 2

    run(main)


def test_cancelled_while_it_is_computed():
    """Its vectors go nowhere, and the others of its batch get theirs. The rest of it is not computed."""
    encoder = Held(twin(CARD), num_threads=1)

    async def main():
        async with running(encoder, max_batch_tokens=40) as batcher:
            large = await begun(batcher, encoder, *(f"the {word}" for word in LETTERS))
            (small,) = await queued(batcher, Work(["the cat"]))
            large.cancel()
            await asyncio.wait([large])
            assert (batcher.tokens_queued, batcher.texts_queued) == (4, 1)
            encoder.go.set()
            assert np.array_equal((await small).vectors[0], encoder.encode("the cat"))
            assert encoder.calls == [10, 1]

    run(main)


def test_a_large_request_does_not_block_small_ones():
    """Small requests that come later are computed in the next round, in their order."""
    encoder = Held(twin(CARD), num_threads=1)
    order = []

    async def main():
        async with running(encoder, max_batch_tokens=40) as batcher:
            large = await begun(batcher, encoder, *(f"the {a} {b}" for a in LETTERS[:10] for b in LETTERS[:10]))
            small = await queued(batcher, *(Work([f"the {word}"]) for word in LETTERS[:5]))
            for name, task in (("large", large), *enumerate(small)):
                task.add_done_callback(lambda _, name=name: order.append(name))
            encoder.go.set()
            answers = await asyncio.gather(large, *small)
            assert order == [0, 1, 2, 3, 4, "large"]
            assert encoder.calls[:2] == [8, 5 + 4]  # 20 tokens of small requests; 20 more, of 5 for each text, fit
            assert len(answers[0].vectors) == 100
            assert answers[0].inference >= answers[1].inference

    run(main)


def test_first_in_first_out():
    """If only one text fits in a batch, the order is that of the requests. Two large requests take turns."""
    encoder = Held(twin(CARD), num_threads=1)
    order = []

    async def main():
        async with running(encoder, max_batch_tokens=1) as batcher:
            first = await begun(batcher, encoder, "go")
            works = [Work([f"{name} {i}" for i in range(count)]) for name, count in (("a", 3), ("b", 2), ("c", 1))]
            tasks = [first, *await queued(batcher, *works)]
            for name, task in zip("-abc", tasks, strict=True):
                task.add_done_callback(lambda _, name=name: order.append(name))
            encoder.go.set()
            await asyncio.gather(*tasks)
            assert order == ["-", "c", "b", "a"]  # rounds: a b c, a b, a
            assert encoder.calls == [1] * 7

    run(main)


def test_waiting_for_others():
    """With a waiting time, a batch is computed when it is full, or when the time is over."""
    encoder = Held(twin(CARD), num_threads=1)
    encoder.go.set()

    async def main():
        async with running(encoder, max_batch_tokens=8, max_wait=2 * PATIENCE) as batcher:
            await asyncio.gather(batcher.embed(Work(["the cat"])), batcher.embed(Work(["the happy"])))
            assert encoder.calls == [2]
        encoder.go.clear()
        encoder.entered.clear()
        async with running(encoder, max_batch_tokens=8, max_wait=2 * PATIENCE) as batcher:
            tasks = [await begun(batcher, encoder, "the cat", "the man", "a man"), *await queued(batcher, Work(["a"]))]
            encoder.go.set()
            await asyncio.gather(*tasks)
            assert encoder.calls == [2, 2, 2]  # a large request is not held up in the middle
        async with running(encoder, max_wait=0.001) as batcher:
            assert len((await batcher.embed(Work(["the cat"]))).vectors) == 1

    run(main)


def test_metrics():
    """Texts, batches and durations are counted."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder) as batcher:
            tasks = [
                await begun(batcher, encoder, "the cat", "a man"),
                *await queued(batcher, Work(["a"]), Work(["b"])),
            ]
            text = batcher._metrics.text()
            assert value(text, "te_queue_size") == 4
            assert value(text, "minibert_queue_tokens") == 8 + 6
            assert value(text, "te_embed_count") == 4
            encoder.go.set()
            answers = await asyncio.gather(*tasks)
            text = batcher._metrics.text()
            assert value(text, "te_queue_size") == value(text, "minibert_queue_tokens") == 0
            assert value(text, "te_embed_success") == value(text, "te_embed_duration_count") == 4
            assert value(text, "te_batch_next_size_bucket", le="2") == value(text, "te_batch_next_size_count") == 2
            assert value(text, "te_batch_next_tokens_sum") == value(text, "te_request_input_length_sum") == 14
            for name in ("tokenization", "queue", "inference"):
                times = [getattr(answer, name) for answer in answers]
                assert min(times) >= 0
                total = value(text, f"te_embed_{name}_duration_sum")
                assert total == pytest.approx(2 * times[0] + times[1] + times[2])

    run(main)


# ---------------------------------------------------------------- what goes wrong


def test_too_long():
    """A text that must not be cut fails its own request, with its index. The queue is as before."""
    encoder = SentenceEncoder(twin(CARD), max_seq_length=6, on_truncate="ignore")
    long = "the cat " * 9

    async def main():
        async with running(encoder) as batcher:
            works = [Work(["the cat", long]), Work(["a", long], truncate=False), Work(["the cat"], truncate=False)]
            cut, refused, whole = await asyncio.gather(*map(batcher.embed, works), return_exceptions=True)
            assert (cut.truncated, cut.lengths.tolist()) == (1, [4, 6])
            assert whole.truncated == 0
            assert isinstance(refused, TooLong)
            assert (refused.index, refused.tokens, refused.limit) == (1, 20, 6)
            assert "at most 6 tokens; item 1 has 20" in str(refused)

    run(main)


def test_one_bad_vector_fails_only_its_request(repo):
    """A vector that is not finite fails its request alone, also if the request is split. The message has the index."""

    def enlarge(arrays):
        rows = arrays["embeddings.word_embeddings.weight"]
        rows[number] = np.where(np.arange(rows.shape[1]) % 2, 3e38, -1e38)
        return arrays

    number = SentenceEncoder(repo).tokenizer.token_to_id("happy")
    edit_weights(repo / "model.safetensors", enlarge)
    encoder = Held(repo, num_threads=1)
    good = [f"the cat {word}" for word in LETTERS[:6]]

    async def main():
        async with running(encoder, max_batch_tokens=40) as batcher:
            first = await begun(batcher, encoder, "go")
            items = [*good, *good, *good, "the happy", *good]
            works = [Work([good[0]]), Work(["a", "a", "the happy"]), Work(good), Work(items), Work([good[1]])]
            tasks = await queued(batcher, *works)
            encoder.go.set()
            _, *answers = await asyncio.gather(first, *tasks, return_exceptions=True)
            for work, answer in zip(works, answers, strict=True):
                if "the happy" in work.items:
                    assert isinstance(answer, VectorError)
                    assert f"item {work.items.index('the happy')} has" in str(answer)
                else:
                    assert np.array_equal(answer.vectors, encoder.encode(list(work.items)))

    run(main)


@pytest.mark.parametrize("error", [MemoryError("no memory"), ZeroDivisionError("a bug")], ids=repr)
def test_any_error_fails_only_its_request(error):
    """So it is for every other error of a computation, and for a text that is no text."""
    encoder = Failing(twin(CARD))
    encoder.error, encoder.token = error, encoder.tokenizer.token_to_id("happy")

    async def main():
        async with running(encoder) as batcher:
            texts = ["the cat", "the happy", "a cat", "\ud800", "a man"]
            answers = await asyncio.gather(*(batcher.embed(Work([text])) for text in texts), return_exceptions=True)
            assert answers[1] is error
            assert isinstance(answers[3], TypeError)
            for index in (0, 2, 4):
                assert np.array_equal(answers[index].vectors[0], SentenceEncoder.encode(encoder, texts[index]))
            assert batcher.alive

    run(main)


def test_stop_computes_what_is_in_the_queue():
    """New requests are refused meanwhile."""
    encoder = Held(twin(CARD))

    async def main():
        async with running(encoder) as batcher:
            tasks = [await begun(batcher, encoder, "the cat"), *await queued(batcher, Work(["a"]), Work(["b", "c"]))]
            stopping = asyncio.create_task(batcher.stop())
            await asyncio.sleep(0)
            with pytest.raises(Stopping):
                await batcher.embed(Work(["the cat"]))
            assert not stopping.done()
            encoder.go.set()
            await stopping
            assert [len((await task).vectors) for task in tasks] == [1, 1, 2]
            assert not batcher.alive

    run(main)


def test_stop_computes_what_is_being_tokenized():
    """The second thread waits for the first one."""

    async def main():
        async with running(SentenceEncoder(twin(CARD))) as batcher:
            batcher._tokenizer = slow = HeldTokenizer(batcher._tokenizer)
            tasks = [asyncio.create_task(batcher.embed(Work([text]))) for text in ("the cat", "a man")]
            await until(slow.entered.is_set)
            stopping = asyncio.create_task(batcher.stop())
            await asyncio.wait([stopping], timeout=0.1)
            slow.go.set()
            await stopping
            assert [len((await task).vectors) for task in tasks] == [1, 1]

    run(main)


class Crash(BaseException):
    """What no request is prepared for."""


def test_a_crash_of_a_thread_fails_everything(caplog):
    """Nothing hangs, and no text is in the log."""
    encoder = Failing(twin(CARD))
    encoder.error, encoder.token = Crash("the secret happy"), encoder.tokenizer.token_to_id("happy")
    caplog.set_level(logging.DEBUG, "minibert")

    async def main():
        async with running(encoder) as batcher:
            assert batcher.alive
            works = [Work(["the secret happy"]), Work(["the cat"]), Work(["a man"])]
            answers = await asyncio.gather(*map(batcher.embed, works), return_exceptions=True)
            assert isinstance(answers[0], RuntimeError)
            assert "ended by Crash" in str(answers[0])
            assert not batcher.alive
            with pytest.raises(RuntimeError, match="must be running, and are not"):
                await batcher.embed(Work(["the cat"]))

    run(main)
    assert "a thread of the server has ended by Crash" in caplog.text
    assert "secret" not in caplog.text


def test_a_crash_fails_what_waits():
    """Also requests that were not in the batch."""

    def crash(_):
        raise Crash

    encoder = Held(twin(CARD), num_threads=1)

    async def main():
        async with running(encoder, max_batch_tokens=4) as batcher:
            first = await begun(batcher, encoder, "the cat")
            others = await queued(batcher, *[Work(["a man"])] * 3)
            batcher._excluded = crash  # a bug in the next round
            encoder.go.set()
            answers = await asyncio.gather(first, *others, return_exceptions=True)
            assert np.array_equal(answers[0].vectors[0], encoder.encode("the cat"))
            assert all(isinstance(answer, RuntimeError) for answer in answers[1:])

    run(main)


def test_not_started():
    """A batcher that does not run refuses requests."""
    batcher = Batcher(SentenceEncoder(twin(CARD)), max_queue_tokens=1, metrics=Metrics())

    with pytest.raises(RuntimeError, match="threads must be running"):
        asyncio.run(batcher.embed(Work(["the cat"])))
