"""Faults that are planted in copies of the native kernels are caught by the kernels' own tests.

Each fault is one that somebody could write. A copy is compiled without optimization, and the tests that must see the
fault run on it in a process of their own. A process that crashes or never ends has seen it, too.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_support import SOURCES, build_library, require_library
from support import some_faults

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="some faults are only in the kernels for x86-64"),
]

#: Tests of kernels against their definitions, of recorded bits, of threads, and of roundings.
KERNELS, HASHES, THREADS = "test_native_kernels.py", "test_native_hashes.py", "test_native_threads.py"
ROUNDING = "test_native_contraction.py"
ADD = "(vf)_mm{}_fmadd_ps((__m{})a, (__m{})b, (__m{})c)"
#: By name: the tests that must see it, the file, what is replaced, by what.
FAULTS = {
    "product: blocks of other sizes": (HASHES, "product.h", "LONGEST_SUM = 64", "LONGEST_SUM = 128"),
    "product: sums of blocks in order": (HASHES, "product.h", "last ? before : before & 1", "last ? before : 0"),
    "product: a block dropped": (KERNELS, "product.h", "if (!(before & 1)) continue;", "if (before & 1) continue;"),
    "product: the second group not added": (KERNELS, "product.h", "ldc, start > 0, ahead", "ldc, 0, ahead"),
    "product: a narrow panel starts anew": (KERNELS, "product.h", "else if (start > 0)", "else if (0)"),
    "product: bias of the first panel": (KERNELS, "product.h", "of->bias + column, columns", "of->bias, columns"),
    "product: bias before the last group": (KERNELS, "product.h", "if (last && of->bias)", "if (of->bias)"),
    "product: the last row dropped": (
        KERNELS, "product.h", "first_row + rows * (piece + 1) / pieces - row;",
        "first_row + rows * (piece + 1) / pieces - row - (pieces > 2 && piece + 1 == pieces);",
    ),
    "pack: padding not written": (KERNELS, "product.h", "end == outputs ? panels * NR : end;", "end;"),
    "pack: factor dropped": (
        KERNELS, "product.h", "(ptrdiff_t)k * input_stride] * scale",
        "(ptrdiff_t)k * input_stride]",
    ),
    "attention: query bias dropped": (KERNELS, "attention.h", "load(x + i) + load(bias + i)", "load(x + i)"),
    "attention: query bias of another head": (
        KERNELS, "attention.h", "of->query_bias + head * d", "of->query_bias",
    ),
    "attention: bias by distance of another head": (
        HASHES, "attention.h", "+ head * of->distances +", "+",
    ),
    "attention: bias by distance from the first query": (
        HASHES, "attention.h", "of->distances / 2 - (row + i)", "of->distances / 2 - row",
    ),
    "attention: no maximum subtracted": (KERNELS, "attention.h", "load(x + j * VL) - top", "load(x + j * VL)"),
    "attention: maximum of half of the scores": (
        KERNELS, "attention.h", "largest_lane(max_(even, odd))",
        "largest_lane(even)",
    ),
    "attention: padding counted": (KERNELS, "attention.h", "x[n] = -__builtin_inff();", "x[n] = 0.0f;"),
    "attention: not divided by the sum": (
        KERNELS, "attention.h", "out[i * width + j] / sums[i]",
        "out[i * width + j] / sums[0]",
    ),
    "attention: keys not transposed": (
        KERNELS, "attention.h", "SHUFFLE(ac2, bd2, 2, 6, 3, 7);",
        "SHUFFLE(ac2, bd2, 0, 4, 1, 5);",
    ),
    "norm: lanes after the end counted": (
        KERNELS, "norm.h", "part_of(row, n + j * VL, hidden, first) - mean",
        "part_of(row, n + j * VL, hidden, 0.0f) - mean",
    ),
    "norm: second mean dropped": (ROUNDING, "norm.h", "mean2 = all(second)", "mean2 = all(0.0f)"),
    "norm: epsilon dropped": (KERNELS, "norm.h", "0.0f : variance) + eps)", "0.0f : variance))"),
    "norm: bias dropped": (
        KERNELS, "norm.h", "(load(a + at) + load(b + at)) + load(c + at)",
        "load(a + at) + load(c + at)",
    ),
    "norm: other order of the sum": (
        HASHES, "norm.h", "(load(a + at) + load(b + at)) + load(c + at)",
        "load(a + at) + (load(b + at) + load(c + at))",
    ),
    "embedding: position of the row": (KERNELS, "norm.h", "of->positions[i] * of->hidden", "(int64_t)i * of->hidden"),
    "gelu: a digit of a constant": (KERNELS, "activations.h", "4.3218818f", "4.3218218f"),
    "gelu: a last digit of a constant": (HASHES, "activations.h", "3.4681232f", "3.4681235f"),
    "exp: a coefficient": (KERNELS, "activations.h", "0.166665211f", "0.166665511f"),
    "exp: nothing vanishes": (KERNELS, "activations.h", " & ~(vu)vanishes);", ");"),
    "activations: numbers swapped": (
        KERNELS, "kernels.h", "    ACTIVATION_MISH,\n    ACTIVATION_QUICK_GELU,",
        "    ACTIVATION_QUICK_GELU,\n    ACTIVATION_MISH,",
    ),
    "activations: the last numbers dropped": (
        KERNELS, "activations.h", "if (i < count) store_some", "if (i + 1 < count) store_some",
    ),
    "pool: modes swapped": (KERNELS, "kernels.h", "POOL_CLS, POOL_LASTTOKEN", "POOL_LASTTOKEN, POOL_CLS"),
    "pool: one token too many left out": (
        KERNELS, "pool.h", "smaller(exclude, tokens)",
        "smaller(exclude + (exclude > 0), tokens)",
    ),
    "pool: weights from 0": (KERNELS, "pool.h", "(double)(row + 1)", "(double)row"),
    "pool: weights of what is left out": (KERNELS, "pool.h", " - first * (first + 1) / 2", ""),
    "pool: sums in float32": (
        HASHES, "pool.h", "total[n] += (double)from[n] * weight",
        "total[n] = (float)(total[n] + (double)from[n] * weight)",
    ),
    "pool: NaN is not the largest": (KERNELS, "pool.h", " || from[n] != from[n]", ""),
    "normalization: zeros divided by zero": (KERNELS, "pool.h", "found < 1e-12 ? 1e-12 : found", "found"),
    "fold: the last numbers dropped": (
        KERNELS, "library.c", "for (int i = 0; k < inputs; k++, i++)",
        "for (int i = 0; k < inputs && 0; k++, i++)",
    ),
    "first tokens: rows not moved": (
        KERNELS, "library.c", "(size_t)batch->keys[text] * ld, hidden",
        "(size_t)text * ld, hidden",
    ),
    "first tokens: columns of keys dropped": (
        KERNELS, "library.c", "qkv.first_panel = hidden / panel;",
        "qkv.first_panel = panels;",
    ),
    "layer: the second bias is the first": (KERNELS, "library.c", "y, layer->down_bias", "y, layer->output_bias"),
    "team: a task of others twice": (
        THREADS, "team.c", "            atomic_fetch_add(&team->done, 1);",
        "            atomic_fetch_add(&team->done, 1 + (of != worker));",
    ),
    "team: taken twice": (THREADS, "team.c", "|| atomic_flag_test_and_set(&team->taken)", ""),
    "team: one scratch memory for all": (THREADS, "library.c", "of->scratch_size * (size_t)worker", "0"),
    "avx2: another tree of sums": (
        HASHES, "vec.h", "(a.part[0] + a.part[2]) + (a.part[1] + a.part[3])",
        "(a.part[0] + a.part[VL == 8 ? 1 : 2]) + (a.part[VL == 8 ? 2 : 1] + a.part[3])",
    ),
    "avx2: two roundings": (HASHES, "vec.h", ADD.format(256, 256, 256, 256), "a * b + c"),
    "avx512: two roundings": (HASHES, "vec.h", ADD.format(512, 512, 512, 512), "a * b + c"),
    "avx512: an estimate of a root": (
        HASHES, "norm.h", "1.0f / __builtin_sqrtf((variance < 0.0f ? 0.0f : variance) + eps)",
        "_mm_cvtss_f32(_mm_rsqrt_ss(_mm_set_ss((variance < 0.0f ? 0.0f : variance) + eps)))",
    ),
    "contraction": (
        ROUNDING, "norm.h", "sum_lanes(squares) * share - second * second;",
        "__builtin_fmaf(-second, second, sum_lanes(squares) * share);",
    ),
}  # fmt: skip
TESTS = (KERNELS, HASHES, THREADS, ROUNDING)


def plant(folder, fault):
    """Copy the sources, with a fault unless None, and return the library that they make."""
    require_library()
    sources = shutil.copytree(SOURCES, folder / "cpu", ignore=shutil.ignore_patterns("*.so*"))
    if fault is not None:
        _, file, old, new = FAULTS[fault]
        source = (sources / file).read_text("utf-8")
        assert old in source
        (sources / file).write_text(source.replace(old, new), "utf-8")
    return build_library(folder / "library", sources, ("-O1",))


def run_tests(library, *files):
    """Run tests with a library until one fails; return the exit status and the output. Status 124: they never end."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    environment = {**os.environ, "MINIBERT_TEST_LIBRARY": str(library)}
    try:
        done = subprocess.run(
            [*command, *(str(HERE / file) for file in files)],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout[-3000:]


def test_without_a_fault_the_tests_pass(tmp_path):
    """The sources as they are pass all of these tests."""
    status, output = run_tests(plant(tmp_path, None), *TESTS)

    assert status == 0, output


@pytest.mark.parametrize("fault", some_faults(FAULTS))
def test_a_fault_is_caught(tmp_path, fault):
    """The tests fail, for a reason that is a result, or crash, or never end."""
    status, output = run_tests(plant(tmp_path, fault), FAULTS[fault][0])

    assert status in {1, 124} or status < 0, output
