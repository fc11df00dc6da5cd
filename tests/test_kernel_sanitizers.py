"""The kernels under AddressSanitizer and ThreadSanitizer: no access out of bounds, no race between CUDA threads."""

import os
import platform
import shutil
import subprocess

import pytest
from executor_device import FLAGS, HERE, KERNELS, require_compiler

pytestmark = pytest.mark.slow

ATTENTION = ("attention", "attention_short", "attention_general")
#: Faults that a sanitizer must see, so that its silence means something: which, the file, what is replaced, by what.
FAULTS = {
    "rows past the end": ("address", "attention.cuh", "const bool is_there = r < rows;", "const bool is_there = true;"),
    "biases of keys past the end": ("address", "attention.cuh", "if (!MASKED || key < keys) scores", "scores"),
    "biases of queries past the end": (
        "address",
        "attention.cu",
        "of_lane < queries ? of_lane : queries - 1",
        "of_lane",
    ),
    "short: biases of queries past the end": (
        "address",
        "attention_short.cu",
        "of_lane < queries ? of_lane : queries - 1",
        "of_lane",
    ),
    "columns past the end": ("address", "pool.cu", "if (vector * N < columns)", ""),
    "barrier dropped": (
        "thread",
        "attention.cu",
        "__syncthreads();       // for all threads; and nobody reads the other tile of keys any more",
        "",
    ),
    "tile of the next warp": ("thread", "attention_short.cu", "warp * 3 * TILE * D", "warp * 2 * TILE * D"),
    "barrier of the pool dropped": ("thread", "pool.cu", "__syncthreads();", ""),
}


def build_and_run(folder, sanitizer, kernels):
    """Build tests/executor/race_check.cpp with a sanitizer, and return what running it gave; skip where it cannot."""
    require_compiler()
    program = folder / "race_check"
    options = [f"-fsanitize={sanitizer}", "-O1", "-g", f"-I{HERE / 'executor'}", f"-I{kernels}"]
    command = ["g++", *FLAGS, *options, str(HERE / "executor" / "race_check.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "history_size=4"}
    fixed_addresses = ["setarch", platform.machine(), "-R"]  # ThreadSanitizer cannot use all of the address space
    command = [*fixed_addresses, str(program)]
    if subprocess.run([*fixed_addresses, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setarch -R is not allowed here")
    return subprocess.run(command, env={**os.environ, **options}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_are_clean(tmp_path, sanitizer):
    """The kernels run to their end, and the sanitizer reports nothing."""
    done = build_and_run(tmp_path, sanitizer, KERNELS)

    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [f"{name}{biased}" for name in ATTENTION for biased in ("", ", biased")]
    assert done.stdout.splitlines() == [*(f"{name}: ok" for name in kernels), "pool: ok"]


@pytest.mark.parametrize("fault", FAULTS)
def test_sanitizers_see(tmp_path, fault):
    """A fault of the kind that a sanitizer is for is reported."""
    sanitizer, file, old, new = FAULTS[fault]
    kernels = shutil.copytree(KERNELS, tmp_path / "kernels")
    source = (kernels / file).read_text("utf-8")
    assert old in source
    (kernels / file).write_text(source.replace(old, new), "utf-8")
    done = build_and_run(tmp_path, sanitizer, kernels)

    assert done.returncode != 0
    assert f"SUMMARY: {sanitizer.capitalize()}Sanitizer" in done.stderr
