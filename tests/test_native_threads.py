"""The team of threads of the native kernels: with many callers, after a fork, at Ctrl-C and at the end of a process."""

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from native_cases import TEXTS, encoder, wide
from native_support import build_program, compiler, fixed_addresses, programs, require_library

from minibert import SentenceEncoder
from minibert.engine import native
from minibert.engine.threads import usable_cores

__all__ = ["programs"]

LONG = TEXTS[-1]
#: The beginning of each script: an encoder that has called its team, and one text's vector.
START = """
import os, sys, threading, time
from minibert import SentenceEncoder
def threads():
    return len(os.listdir("/proc/self/task"))
text = "no man can play the violin " * 60
SentenceEncoder(kernels="numpy").encode([text, "a"])
before = threads() if os.path.isdir("/proc/self/task") else 0
encoder = SentenceEncoder(on_truncate="ignore", num_threads=4)
vector = encoder.encode(text)
"""


@pytest.fixture
def mine(kernels):
    """Return an encoder with each instruction set, whose team helps with single texts."""
    return encoder(None, kernels, num_threads=4)


def run_script(script):
    """Run a script after START, and return what it wrote. It must end well, and soon."""
    require_library()
    environment = {name: value for name, value in os.environ.items() if name != "MINIBERT_KERNELS"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + script],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


# ---------------------------------------------------------------- callers


def test_eight_callers(mine):
    """Eight threads encode single texts at the same time; each vector has the bits of the same text alone."""
    texts = TEXTS[1:25]
    alone = encoder(None, mine.kernels, num_threads=1).encode(texts)

    def call(number):
        return all((mine.encode(texts[i % 24]) == alone[i % 24]).all() for i in range(number, number + 10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


def test_caller_beside_a_batch(mine):
    """A single text has the same bits while another thread's batches keep all cores busy."""
    alone, ended = mine.encode(LONG), threading.Event()

    def batches():
        while not ended.is_set():
            mine.encode(TEXTS)

    other = threading.Thread(target=batches)
    other.start()
    try:
        same = [(mine.encode(LONG) == alone).all() for _ in range(20)]
    finally:
        ended.set()
        other.join()
    assert all(same)


def test_encoder_is_deleted_while_a_copy_computes(mine):
    """The weights live as long as somebody computes with them."""
    expected, begun = mine.encode(TEXTS), threading.Event()
    copies, found = [copy.copy(SentenceEncoder(kernels=mine.kernels, on_truncate="ignore"))], []

    def compute(encoder):
        begun.set()
        found.extend(encoder.encode(TEXTS) for _ in range(5))

    thread = threading.Thread(target=compute, args=(copies.pop(),))
    thread.start()
    begun.wait()
    gc.collect()
    garbage = [np.full(1 << 20, np.nan, np.float32) for _ in range(8)]  # in the memory that was freed, if it was
    thread.join()

    assert len(garbage) == 8
    assert all((vectors == expected).all() for vectors in found)


# ---------------------------------------------------------------- processes


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads in Linux' /proc")  # noqa: PTH112
def test_no_more_threads_than_the_team_remain():
    """After calls of all kinds, the process has the team's helpers, and no other threads that were not there before."""
    script = """
encoder.encode([text, "a", "b c"] * 200)
for _ in range(20): encoder.encode(text)
callers = [threading.Thread(target=encoder.encode, args=(text,)) for _ in range(6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
SentenceEncoder().encode(text)
print(threads() - before)
"""
    assert int(run_script(script)) <= min(usable_cores(), 16) - 1


FORK = """
child = os.fork()
if not child:
    same = all((encoder.encode(text) == vector).all() for _ in range(5)) and len(encoder.encode([text, "a"] * 40)) == 80
    os._exit(not same)
print(os.waitpid(child, 0)[1])
print(int((encoder.encode(text) == vector).all()))
"""
#: A thread that is nearly always inside the library. At its end, a process unwinds the stacks of daemon threads. Old
#: versions of other compiled libraries abort the process if that happens in their code; so it tokenizes no text.
BUSY = """
ids = encoder._pipeline.tokenizer([text], 512).ids
def compute():
    with encoder._engine.worker(threads=4) as fused:
        while True: list(encoder._pipeline.sentence_features(ids, fused))
threading.Thread(target=compute, daemon=True).start()
time.sleep(0.02)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork():
    """A child has none of the team's threads. It makes its own, and computes the same bits."""
    assert run_script(FORK) == "0\n1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_the_team_works():
    """A child that is made during a call of another thread does not wait for helpers that it does not have."""
    assert run_script(BUSY + FORK) == "0\n1\n"


def test_process_ends_while_a_thread_computes():
    """The process ends without a message though a daemon thread is inside the library."""
    assert run_script(BUSY + "print('end')\n") == "end\n"


# ---------------------------------------------------------------- Ctrl-C


@contextmanager
def interrupting():
    """Let the alarm of this process raise KeyboardInterrupt, and switch it off at the end."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(encoder, delay, calls):
    """Encode a text ``calls`` times, and return whether an alarm after ``delay`` seconds has ended that."""
    try:  # the alarm is set in here: on a busy machine, a short one rings before the next line
        signal.setitimer(signal.ITIMER_REAL, delay)
        for _ in range(calls):
            encoder.encode(LONG)
    except KeyboardInterrupt:
        return True
    return False


def test_interrupted_calls(mine):
    """Ctrl-C arrives at any time of a call. The next call has the same bits."""
    vector, alone = mine.encode(LONG), mine.encode(TEXTS)
    with interrupting():
        for delay in (1e-4, 1e-3, 3e-3, 5e-3, 0.01):
            assert interrupted(mine, delay, 10_000)
            assert (mine.encode(LONG) == vector).all()
    assert (mine.encode(TEXTS) == alone).all()


@pytest.mark.slow
def test_interrupted_long_call(tmp_path, kernels):
    """In a single text of a large model, Ctrl-C ends the call before all layers are computed."""
    large = encoder(wide(tmp_path / "model", 1152, 12, 4608), kernels, num_threads=2)
    expected = large.encode(LONG)
    with interrupting():
        assert interrupted(large, 0.02, 1)
    assert (large.encode(LONG) == expected).all()


# ---------------------------------------------------------------- in C


@pytest.mark.slow
@pytest.mark.parametrize("build", ["gcc", "clang"])
def test_exercise(programs, kernels, build):
    """Tasks run exactly once, however they are taken; helpers and other callers change no bit (exercise.c)."""
    done = subprocess.run(
        [*fixed_addresses(), str(build_program(programs, "exercise", compiler(build))), kernels],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert "tasks: ok\ncallers: ok\nremade: ok\n" in done.stdout


@pytest.mark.slow
def test_exercise_for_arm(programs):
    """The same on an emulated ARM processor."""
    of = compiler("neon")
    program = build_program(programs, "exercise", of)
    for section in ("packing", "rows", "attention", "models", "remade", "callers", "refusals"):
        done = subprocess.run(
            [*of.run, str(program), "neon", section], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.stdout == f"{section}: ok\n"


@pytest.mark.parametrize("workers", [-1, 0, 1])
def test_team_of_one(workers):
    """There is no team of one worker."""
    require_library()

    assert native.open_library().c.mb_team(workers) is None
