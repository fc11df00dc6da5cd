"""How encode and encode_stream get through their texts: in which order, on which threads, in how much memory."""

import gc
import os
import signal
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import copy_twin, edit_json, twin

from minibert import SentenceEncoder
from minibert.errors import TruncationError, TruncationWarning
from minibert.tokenization import TextTokenizer

TEXTS = ["the cat", "", "a man and the hat", "No", "the guitar " * 9, "42!", "the cat", "play the violin, man"]


def load(**settings):
    """Return an encoder."""
    return SentenceEncoder(twin("BertModel-128d"), **settings)


@pytest.fixture(scope="module")
def encoder():
    """Return an encoder that no test changes."""
    return load()


@pytest.fixture
def changeable():
    """Return an encoder of the test's own."""
    return load()


def assert_same_bits(actual, expected):
    """Fail unless two arrays of float32 have the same shape and the same bits."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape) == (np.float32, expected.shape)
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


def distinct(count):
    """Yield so many short texts, all different."""
    words = ["the", "cat", "man", "in", "happy", "play", "no", "and"]
    for i in range(count):
        yield f"{words[i % 8]} {words[i // 8 % 8]} {i}"


# ---------------------------------------------------------------- encode_stream: what comes out


@pytest.mark.parametrize(("chunk_size", "lengths"), [(1, [1] * 8), (3, [3, 3, 2]), (4, [4, 4]), (8, [8]), (100, [8])])
def test_stream_yields_the_vectors_of_encode(encoder, chunk_size, lengths):
    """The vectors are those of encode, to the bit and in order, so many at a time, and the rest at the end."""
    chunks = list(encoder.encode_stream(TEXTS, chunk_size=chunk_size))

    assert [len(chunk) for chunk in chunks] == lengths
    assert_same_bits(np.concatenate(chunks), encoder.encode(TEXTS))


def test_chunks_have_4096_vectors_by_default(encoder):
    """Unless told otherwise, 4096 vectors come at a time."""
    assert [len(chunk) for chunk in encoder.encode_stream(["No"] * 5000)] == [4096, 904]


def test_stream_of_nothing(encoder):
    """No text gives no chunk."""
    assert list(encoder.encode_stream(iter(()))) == []


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_embeddings": True},
        {"truncate_dim": 5},
        {"truncate_dim": 5, "normalize_embeddings": True},
        {"prompt": "a "},
        {"prompt_name": "query"},
        {},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_stream_takes_encodes_options(tmp_path, options):
    """Prompts, the default one too, normalize_embeddings, truncate_dim and batch_size mean what they mean to encode."""
    copy_twin(tmp_path)
    prompts = {"query": "the ", "passage": "a "}
    edit_json(tmp_path / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="passage")
    encoder = SentenceEncoder(tmp_path)
    chunks = list(encoder.encode_stream(TEXTS, chunk_size=3, **options))

    assert_same_bits(np.concatenate(chunks), encoder.encode(TEXTS, **options))


def test_stream_cuts_to_the_encoders_own_truncate_dim():
    """Where the call does not say to how many dimensions, the encoder does."""
    (chunk,) = load(truncate_dim=4).encode_stream(TEXTS)

    assert chunk.shape == (len(TEXTS), 4)


def test_chunks_are_the_callers_own(encoder):
    """A chunk does not change while later ones are computed, and may be changed."""
    chunks = []
    for chunk in encoder.encode_stream(TEXTS, chunk_size=2):
        np.negative(chunk, out=chunk)
        chunks.append(chunk)

    assert_same_bits(-np.concatenate(chunks), encoder.encode(TEXTS))


# ---------------------------------------------------------------- encode_stream: what goes in


def counted(texts, read):
    """Yield texts, and keep each in ``read`` when it is asked for."""
    for text in texts:
        read.append(text)
        yield text


def test_stream_reads_no_further_than_its_chunk(encoder):
    """The call itself reads nothing, and each chunk no more than its own texts."""
    read = []
    stream = encoder.encode_stream(counted(TEXTS, read), chunk_size=3)
    before = len(read)

    assert [before, *(len(read) for _ in stream)] == [0, 3, 6, 8]


def test_progress_of_a_stream(encoder):
    """``progress`` is told of every text, before the chunk that it is in is there."""
    done = []
    stream = encoder.encode_stream(["a", "b", "a", "c", "d"], chunk_size=3, progress=done.append)

    next(stream)
    assert sum(done) == 3
    next(stream)
    assert sum(done) == 5


def test_endless_stream(encoder):
    """An iterator need not end."""
    stream = encoder.encode_stream(iter(lambda: "No", None), chunk_size=2)

    assert_same_bits(np.concatenate([next(stream), next(stream)]), encoder.encode(["No"] * 4))


def test_memory_does_not_grow_with_the_stream():
    """20,000 texts take no more memory than 4,000 do, but for a part of what their vectors alone would take."""
    encoder = load(num_threads=1)
    tracemalloc.start()
    try:
        peaks = []
        for count in (1000, 4000, 20_000):  # the first makes what is made once
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for _ in encoder.encode_stream(distinct(count), chunk_size=500):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()

    assert peaks[2] - peaks[1] < 16_000 * 16 * 4 / 4


def test_memory_of_ids_that_are_checked_first(changeable, monkeypatch):
    """With ``on_truncate="error"`` a token's id takes 4 bytes while the first texts are computed, and its text little.

    Little is 500 bytes here, for texts of 400 tokens.
    """
    texts, held = [f"{i} " + "the cat " * 199 for i in range(1000)], []

    def sentence_features(_pipeline, ids, *_arguments):
        held.append(tracemalloc.get_traced_memory()[0])
        yield {"sentence_embedding": np.zeros((len(ids), 16), np.float32)}

    monkeypatch.setattr("minibert.pipeline.Pipeline.sentence_features", sentence_features)
    changeable.on_truncate = "error"
    changeable.encode(texts[:10])  # makes what is made once
    tracemalloc.start()
    try:
        changeable.encode(texts)
    finally:
        tracemalloc.stop()

    assert changeable.truncation.longest > 400
    assert held[1] < 1000 * (400 * 4.5 + 500)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [(None, TypeError, "item 7 is a missing value"), (b"a", TypeError, "item 7"), ("\udc80", ValueError, "item 7")],
)
def test_bad_item_in_a_stream(encoder, item, error, message):
    """A bad item is named by its index in all of the input, once the chunks before its own were yielded."""
    stream = encoder.encode_stream(iter([*TEXTS[:7], item, "No"]), chunk_size=3)

    assert_same_bits(np.concatenate([next(stream), next(stream)]), encoder.encode(TEXTS[:6]))
    with pytest.raises(error, match=message):
        next(stream)


def test_error_of_the_iterator(encoder):
    """An error of the iterator itself is passed on, after the chunks that were full."""

    def texts():
        yield from TEXTS[:5]
        raise OSError("the disk is gone")

    stream = encoder.encode_stream(texts(), chunk_size=4)
    next(stream)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (5, {}, TypeError, "encode takes"),
        (None, {}, TypeError, "missing value"),
        ("the cat", {}, TypeError, "str"),
        (b"the cat", {}, TypeError, "bytes"),
        ({"text": "the cat"}, {}, TypeError, "dict"),
        ({"the cat"}, {}, TypeError, "set"),
        (np.array([["the cat"]]), {}, TypeError, "one dimension"),
        (TEXTS, {"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        (TEXTS, {"chunk_size": 2.5}, ValueError, "chunk_size must be a whole number"),
        (TEXTS, {"chunk_size": True}, ValueError, "chunk_size must be a whole number"),
        (TEXTS, {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (TEXTS, {"truncate_dim": "many"}, ValueError, "truncate_dim must be a whole number"),
        (TEXTS, {"prompt": 7}, TypeError, "prompt must be a text"),
        (TEXTS, {"prompt": "\ud800"}, ValueError, "lone surrogate"),
        (TEXTS, {"prompt_name": "nope"}, ValueError, "nope"),
    ],
)
def test_stream_checks_its_arguments_at_once(encoder, inputs, options, error, message):
    """A bad argument is refused by the call itself, and not by the first chunk."""
    with pytest.raises(error, match=message):
        encoder.encode_stream(inputs, **options)


# ---------------------------------------------------------------- encode_stream: truncation


def test_stream_reports_truncation_at_its_end(changeable):
    """One warning at the end counts the texts of all chunks, and names the line that reads the stream."""
    changeable.max_seq_length = 5
    stream = changeable.encode_stream(TEXTS, chunk_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            next(stream)
    with pytest.warns(TruncationWarning, match=r"3 of 8 texts were cut to max_seq_length = 5 tokens") as caught:
        assert next(stream, None) is None

    assert [warning.filename for warning in caught] == [__file__]
    assert changeable.truncation.count == 3
    assert changeable.truncation.longest > 9
    assert str(changeable.truncation.longest) in str(caught[0].message)


def test_stream_ignores_truncation_on_request(changeable):
    """on_truncate="ignore" says nothing, and still counts."""
    changeable.max_seq_length = 5
    changeable.on_truncate = "ignore"
    list(changeable.encode_stream(TEXTS, chunk_size=3))

    assert changeable.truncation.count == 3


def test_stream_refuses_truncation_on_request(changeable):
    """on_truncate="error" names the text by its index in all of the input, after the chunks before its own."""
    changeable.max_seq_length = 9
    changeable.on_truncate = "error"
    stream = changeable.encode_stream(TEXTS, chunk_size=2)

    assert_same_bits(np.concatenate([next(stream), next(stream)]), changeable.encode(TEXTS[:4]))
    with pytest.raises(TruncationError, match=r"max_seq_length = 9 tokens; item 4 has \d+\."):
        next(stream)


# ---------------------------------------------------------------- encode: what goes in


@pytest.mark.parametrize(
    "make",
    [iter, reversed, lambda texts: (text for text in texts), lambda texts: dict(enumerate(texts)).values()],
    ids=["iterator", "reversed", "generator", "dict values"],
)
def test_encode_takes_iterators(encoder, make):
    """An iterable in order will do, even one that can be read only once."""
    assert_same_bits(encoder.encode(make(TEXTS)), encoder.encode(list(make(TEXTS))))


# ---------------------------------------------------------------- settings


BAD_SETTINGS = [(0, "at least 1"), (-1, "at least 1"), (2.5, "a whole number"), (False, "a whole number")]


@pytest.mark.parametrize("setting", ["num_threads", "max_batch_tokens"])
@pytest.mark.parametrize(("value", "rule"), BAD_SETTINGS)
def test_bad_setting(setting, value, rule):
    """Both settings are whole numbers of at least 1."""
    with pytest.raises(ValueError, match=f"{setting} must be {rule}"):
        load(**{setting: value})


@pytest.mark.parametrize("setting", ["num_threads", "max_batch_tokens"])
@pytest.mark.parametrize(("value", "rule"), BAD_SETTINGS)
def test_bad_setting_of_a_loaded_encoder(changeable, setting, value, rule):
    """They are so, too, when they are set later: encode does not compute with others."""

    def set_and_encode():
        setattr(changeable, setting, value)
        changeable.encode(TEXTS)

    with pytest.raises(ValueError, match=f"{setting} must be {rule}"):
        set_and_encode()


def test_as_many_threads_as_cores_by_default(monkeypatch):
    """Unless told otherwise, there is a thread for each core that the process may use."""
    monkeypatch.setattr("minibert.engine.cpu_engines.usable_cores", lambda: 3)

    assert load().num_threads == load(num_threads=None).num_threads == 3
    assert load(num_threads=2).num_threads == 2


@pytest.fixture
def started(monkeypatch):
    """Return a list that gets every thread of minibert's that is started."""
    threads = []
    start = threading.Thread.start

    def spy(thread):
        if thread.name.startswith("minibert"):
            threads.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", spy)
    return threads


@pytest.mark.parametrize(
    ("num_threads", "texts", "expected"),
    [
        (1, TEXTS, 1),
        (2, TEXTS, 2),
        (5, TEXTS, 5),
        (5, TEXTS[:3], 3),
        (5, ["No"] * 9 + ["the cat"], 2),
        (5, ["No"] * 9, 1),
        (5, "No", 1),
        (5, [], 1),
    ],
    ids=["one", "two", "five", "fewer texts", "fewer different texts", "one text often", "a single text", "no text"],
)
def test_number_of_threads(changeable, started, num_threads, texts, expected):
    """There are as many threads as set, the calling one included, but no more than different texts."""
    changeable.num_threads = num_threads
    changeable.encode(texts)

    assert len(started) == expected - 1


def test_no_thread_is_left(changeable, started):
    """When a call returns, its threads have ended."""
    changeable.num_threads = 4
    changeable.encode(TEXTS)

    assert len(started) == 3
    assert not any(thread.is_alive() for thread in started)


@pytest.fixture
def batches(monkeypatch):
    """Return a list that gets the lengths of the texts of every batch."""
    lengths = []
    from minibert.pipeline import Pipeline

    sentence_features = Pipeline.sentence_features

    def spy(pipeline, ids, *arguments):
        lengths.append(ids.lengths.tolist())
        return sentence_features(pipeline, ids, *arguments)

    monkeypatch.setattr(Pipeline, "sentence_features", spy)
    return lengths


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 300])
def test_max_batch_tokens(changeable, batches, max_batch_tokens):
    """No batch of several texts has more tokens than max_batch_tokens, and full ones have about as many."""
    changeable.max_batch_tokens = max_batch_tokens
    changeable.encode(list(distinct(500)))
    several = [sum(batch) for batch in batches if len(batch) > 1]

    assert sum(map(len, batches)) == 500
    assert max(several, default=0) <= max_batch_tokens
    assert max(map(sum, batches)) > max_batch_tokens * 0.7


def test_batch_size(encoder, batches):
    """No batch has more texts than batch_size."""
    encoder.encode(list(distinct(50)), batch_size=4)

    assert max(map(len, batches)) == 4


# ---------------------------------------------------------------- duplicates


@pytest.fixture
def tokenized(monkeypatch):
    """Return a list that gets every text that is tokenized."""
    texts = []
    encode = TextTokenizer.encode

    def spy(tokenizer, some):
        texts.extend(some)
        return encode(tokenizer, some)

    monkeypatch.setattr(TextTokenizer, "encode", spy)
    return texts


@pytest.mark.parametrize("on_truncate", ["warn", "error"])
def test_duplicates_are_encoded_once(changeable, tokenized, batches, on_truncate):
    """A text that comes several times is tokenized and computed once, and its vector comes as often as the text."""
    changeable.on_truncate = on_truncate
    texts = ["No", "the cat", "No", "No", "a man", "the cat"]
    vectors = changeable.encode(texts)

    assert sorted(tokenized) == ["No", "a man", "the cat"]
    assert sum(map(len, batches)) == 3
    assert_same_bits(vectors, changeable.encode(["No", "the cat", "a man"])[[0, 1, 0, 0, 2, 1]])


def test_duplicates_in_a_chunk_are_encoded_once(encoder, tokenized):
    """So it is in each chunk of a stream."""
    list(encoder.encode_stream(["No", "No", "the cat", "the cat", "the cat", "No"], chunk_size=3))

    assert sorted(tokenized) == ["No", "No", "the cat", "the cat"]


def test_truncated_duplicates_are_counted_each(changeable):
    """A text that is too long counts as often as it comes."""
    changeable.max_seq_length = 5
    with pytest.warns(TruncationWarning, match="3 of 4 texts"):
        changeable.encode(["the guitar " * 9] * 3 + ["No"])


def arrays_of(output):
    """Return the arrays of what encode gives for a text."""
    return [output] if isinstance(output, np.ndarray) else [x for x in output.values() if isinstance(x, np.ndarray)]


@pytest.mark.parametrize("options", [{"output_value": "token_embeddings"}, {"output_value": None}], ids=str)
def test_outputs_of_duplicates_share_no_memory(encoder, options):
    """Each duplicate has arrays of its own, with the same values: to change one leaves the others as they are."""
    first, _, second = (arrays_of(output) for output in encoder.encode(["No", "a", "No"], **options))

    assert first
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, b)


def test_vectors_of_duplicates_share_no_memory(encoder):
    """So it is with a list of vectors."""
    first, _, second = encoder.encode(["No", "a", "No"], convert_to_numpy=False)

    assert not np.shares_memory(first, second)


# ---------------------------------------------------------------- several callers, processes and signals


def test_from_eight_threads_at_a_time(encoder):
    """Calls from eight threads at a time give what they give one after the other, to the bit (E7)."""
    texts = [*distinct(40), *TEXTS]
    expected = dict(zip(texts, encoder.encode(texts), strict=True))
    start = threading.Barrier(8, timeout=30)

    def encode_often(seed):
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(15):
            some = rng.choice(texts, rng.integers(1, 30)).tolist()
            assert_same_bits(encoder.encode(some), np.stack([expected[text] for text in some]))
            assert_same_bits(encoder.encode(some[0]), expected[some[0]])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(encode_often, range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_after_a_fork(encoder):
    """In a child that was forked after a call, encode gives the same bits, for one text and for many (E8)."""
    expected = encoder.encode(TEXTS)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # rather than wait for a thread that is not there
        code = 1
        try:
            assert_same_bits(encoder.encode(TEXTS), expected)
            assert_same_bits(encoder.encode(TEXTS[0]), expected[0])
            code = 0
        finally:
            os._exit(code)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_same_bits(encoder.encode(TEXTS), expected)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system cannot send a signal to a thread")
def test_ctrl_c(changeable, started):
    """Ctrl-C amid a long call is raised within a second, no thread goes on, and the next call gives the same (E5)."""
    changeable.num_threads = 3
    expected = changeable.encode(TEXTS)
    main_thread = threading.main_thread().ident
    texts = list(distinct(100_000))
    sent = []

    def send():
        time.sleep(0.3)
        sent.append(time.monotonic())
        signal.pthread_kill(main_thread, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    gc.disable()  # hypothesis has Python called at each collection, where an exception is printed and lost
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            changeable.encode(texts)
        took = time.monotonic() - sent[0]
    finally:
        gc.enable()
        sender.join()
        signal.signal(signal.SIGINT, before)

    assert took < 1
    assert not any(thread.is_alive() for thread in started)
    assert_same_bits(changeable.encode(TEXTS), expected)
