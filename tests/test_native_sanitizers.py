"""The native kernels under sanitizers: no access out of bounds, no undefined behaviour, no race between threads.

tests/native/exercise.c calls all functions, with memory of exactly the size that they need.
"""

import os
import platform
import re
import shutil
import subprocess

import pytest
from native_support import (
    PROGRAMS,
    SOURCES,
    build_program,
    compiler,
    fixed_addresses,
    programs,
    require_library,
)
from support import some_faults

__all__ = ["programs"]
pytestmark = pytest.mark.slow

#: The flags of each, by what it reports.
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
CALL, COUNT = "team->function(team->argument, team->first + (size_t)task, worker);", "atomic_fetch_add(&team->done, 1);"
#: Faults that a sanitizer must see, so that its silence means something: which, what it says, the file, what is
#: replaced, by what.
FAULTS = {
    "a row read past its end": (
        "address", "AddressSanitizer", "norm.h",
        "return n + VL <= hidden", "return n < hidden",
    ),
    "a row written past its end": (
        "address", "AddressSanitizer", "norm.h",
        "if (n + VL <= hidden) store", "if (n < hidden) store",
    ),
    "a whole panel written": (
        "address", "AddressSanitizer", "product.h",
        "float *c = columns == NR ? y : part", "float *c = y",
    ),
    "too little scratch memory": ("address", "AddressSanitizer", "attention.h", "+ SCORES_APART + width)", "+ width)"),
    "too little workspace": (
        "address", "AddressSanitizer", "library.c",
        "2 * padded_row(shape->hidden))", "padded_row(shape->hidden))",
    ),
    "weights read past their end": ("address", "AddressSanitizer", "product.h", "n < end ? from[", "1 ? from["),
    "a signed sum of exponents": (
        "address", "signed integer overflow", "activations.h",
        "((vu)p[i] + ((vu)shifted[i] << 23))", "(vu)((vi)p[i] + ((vi)shifted[i] << 23))",
    ),
    "an index past an array": ("address", "index", "product.h", "tiles[height](", "tiles[height + MR]("),
    "a team not freed": ("address", "LeakSanitizer", "team.c", "    free(team->ranges);\n", ""),
    "the end of tasks not waited for": (
        "thread", "data race", "team.c",
        "while (atomic_load(&team->done) < tasks) sched_yield();", "",
    ),
    "a task done before it is": (
        "thread", "data race", "team.c",
        f"            {CALL}\n            {COUNT}\n", f"            {COUNT}\n            {CALL}\n",
    ),
    "one scratch memory for all": ("thread", "data race", "library.c", "of->scratch_size * (size_t)worker", "0"),
    "two callers at once": ("thread", "data race", "team.c", "|| atomic_flag_test_and_set(&team->taken)", ""),
    "tasks taken without an atomic operation": (
        "thread", "data race", "team.c",
        "if (atomic_compare_exchange_weak(&range->word, &word, word + 0x10000)) return (int)first;",
        "*(volatile uint64_t *)&range->word = word + 0x10000; return (int)first;",
    ),
}  # fmt: skip


def build(folder, sanitizer, sources=SOURCES):
    """Return tests/native/exercise.c, built with a sanitizer."""
    require_library()
    extra = ("-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS[sanitizer])
    return build_program(folder, "exercise", compiler("gcc"), extra, sources)


def run(program, name, *section):
    """Return what running the program gave."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "history_size=4 halt_on_error=1"}
    command = [*fixed_addresses(), str(program), name, *section]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=120
    )


def sections():
    """Return the names of the sections of exercise.c."""
    table = re.search(r"sections\[\] = \{(.*?)\};", (PROGRAMS / "exercise.c").read_text("utf-8"), re.DOTALL)
    return re.findall(r'\{"(\w+)"', table[1])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean(programs, kernels, sanitizer):
    """All sections run to their end, and the sanitizer reports nothing."""
    done = run(build(programs, sanitizer), kernels)

    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert not done.stderr
    assert done.stdout.splitlines() == [f"{section}: ok" for section in sections()]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set is enough: avx2")
@pytest.mark.parametrize("fault", some_faults(FAULTS))
def test_sanitizers_see(tmp_path, fault):
    """A fault of the kind that a sanitizer is for is reported."""
    sanitizer, said, file, old, new = FAULTS[fault]
    sources = shutil.copytree(SOURCES, tmp_path / "cpu", ignore=shutil.ignore_patterns("*.so*"))
    source = (sources / file).read_text("utf-8")
    assert old in source
    (sources / file).write_text(source.replace(old, new), "utf-8")
    done = run(build(tmp_path, sanitizer, sources), "avx2")

    assert done.returncode != 0
    assert said in done.stderr, done.stdout[-1000:] + done.stderr[-2000:]
