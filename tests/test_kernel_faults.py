"""Faults that are planted in copies of the kernels are caught: their tests can fail, and the executor sees.

Each fault is one that somebody could write. The tests run on the copy in a process of their own, with warps in order
and in the opposite order; in one of the two at least they must fail.
"""

import os
import shutil
import subprocess
import sys

import pytest
from executor_device import HERE, KERNELS, require_compiler
from support import some_faults

pytestmark = pytest.mark.slow


def nth(text, old, number, new):
    """Return a text with the so-manyth occurrence of something replaced."""
    parts = text.split(old)
    assert len(parts) > number, f"there is no {old!r} number {number}"
    return old.join(parts[:number]) + new + old.join(parts[number:])


TWICE = """  row.subtract(row.sum() * share, width);
  row.subtract(row.sum() * share, width);
  const float scale = 1.f / sqrtf(row.sum_of_squares() * share + eps);
"""
SINGLE = """  const float mean = row.sum() * share;
  const float scale = 1.f / sqrtf(row.sum_of_squares() * share - mean * mean + eps);
  row.subtract(mean, width);
"""
#: By name: the file, what is replaced, which occurrence, and by what.
FAULTS = {
    "first barrier dropped": ("attention.cu", "__syncthreads();", 1, ""),
    "second barrier dropped": ("attention.cu", "__syncthreads();", 2, ""),
    "keys not waited for": ("attention.cu", "wait_for_copies<1>();", 1, "wait_for_copies<2>();"),
    "values not waited for": ("attention.cu", "wait_for_copies<1>();", 2, "wait_for_copies<2>();"),
    "mask shifted by one": ("attention.cuh", "+ i >= keys", 1, "+ i > keys"),
    "mask dropped": ("attention.cu", "weigh<TILE / 8, !ALL>", 1, "weigh<TILE / 8, false>"),
    "one stage of keys": ("attention.cu", "K + stage * TILE * D", 1, "K"),
    "rows past the end": ("attention.cuh", "const bool is_there = r < rows;", 1, "const bool is_there = true;"),
    "sums not rescaled": ("attention.cu", "sums[n][2 * row] *= rescale;", 1, ""),
    "total not rescaled": ("attention.cuh", "total *= rescale;", 1, ""),
    "no guard at the store": ("attention.cuh", "if (r >= rows) break;", 1, ""),
    "rows stored before they are there": ("attention.cuh", "  __syncwarp();\n#pragma", 1, "#pragma"),
    "fragments of weights swapped": ("attention.cuh", "pack<T>(low[2], low[3])", 1, "pack<T>(high[0], high[1])"),
    "values not transposed": ("attention.cuh", "load_matrices_transposed(b,", 1, "load_matrices(b,"),
    "values read without the permutation": (
        "attention.cuh",
        "values + place<D>(lane % 16, d * 2 + lane / 16)",
        1,
        "values + lane % 16 * D + (d * 2 + lane / 16) * 8",
    ),
    "key groups cut short": ("attention.cu", "ALL || n * 16 < keys", 1, "ALL || n * 16 + 16 < keys"),
    "full tiles cut short": ("attention.cu", "ALL || n * 16 < keys", 1, "n * 16 + 16 < keys"),
    "copied rows not rounded up": ("attention.cuh", "((rows + 15) & ~15)", 1, "rows"),
    "idle warps leave early": (
        "attention.cu",
        "  unsigned q_fragments",
        1,
        "  if (!has_queries) return;\n  unsigned q_fragments",
    ),
    "idle tiles not passed over": ("attention.cu", "if (queries == 0) return;", 1, ""),
    "bias of the wrong columns": ("attention.cuh", "+ i / 2 * 8 + pair()", 1, "+ pair()"),
    "one tile of values short": ("attention.cu", "K + 2 * TILE * D;", 1, "K + 3 * TILE * D;"),
    "type of a register punned": (
        "attention.cuh",
        "unpack<T>(q[d][i], low, high);",
        1,
        "const T* both = reinterpret_cast<const T*>(&q[d][i]); low = to_float(both[0]), high = to_float(both[1]);",
    ),
    "distances off by one": ("attention.cu", "distances / 2 - first_query", 1, "distances / 2 - first_query + 1"),
    "distances of the other sign": (
        "attention.cuh",
        "scores[n][2 * row + i] = bias[key];",
        1,
        "scores[n][2 * row + i] = bias[-key];",
    ),
    "distances of the first tile of keys": ("attention.cu", "bias + first;", 1, "bias;"),
    "distances of the first tile of queries": ("attention.cu", "only_first ? 0 : tile.z - tile.x", 1, "0"),
    "distances of the first row in the batch": ("attention.cu", "only_first ? 0 : tile.z - tile.x", 1, "tile.z"),
    "distances from first tokens as from all": (
        "attention.cu",
        "only_first ? 0 : tile.z - tile.x",
        1,
        "tile.z - tile.x",
    ),
    "distances of another head": ("attention.cu", "distance_bias + blockIdx.y * distances", 1, "distance_bias"),
    "distances of the first warp": ("attention.cu", "WARP * 16 + row * 8 + quad()", 1, "WARP * 0 + row * 8 + quad()"),
    "distances of one row of two": ("attention.cu", "row * 8 + quad(), query", 1, "quad(), query"),
    "bias before the scale": (
        "attention.cuh",
        "scores[n][2 * row + i] = bias[key];",
        1,
        "scores[n][2 * row + i] = bias[key] / 4;",
    ),
    "bias after the factor of the exponent": (
        "attention.cuh",
        "scores[n][2 * row + i] = bias[key];",
        1,
        "scores[n][2 * row + i] = bias[key] / LOG2_E;",
    ),
    "biases of other columns": ("attention.cuh", "n * 8 + pair() + i;", 1, "n * 8 + i;"),
    "short: queries and keys not waited for": ("attention_short.cu", "wait_for_copies<1>();", 1, ""),
    "short: values not waited for": ("attention_short.cu", "wait_for_copies<0>();", 1, ""),
    "short: lanes not waited for at the keys": ("attention_short.cu", "__syncwarp();", 1, ""),
    "short: lanes not waited for at the values": ("attention_short.cu", "__syncwarp();", 2, ""),
    "short: mask dropped": ("attention_short.cu", "weigh<TILE / 8, true>", 1, "weigh<TILE / 8, false>"),
    "short: another text's tile": ("attention_short.cu", "tiles[number / heads]", 1, "tiles[blockIdx.x]"),
    "short: another head": ("attention_short.cu", "head = number % heads", 1, "head = blockIdx.x % heads"),
    "short: idle warps not left out": ("attention_short.cu", "if (number >= count * heads) return;", 1, ""),
    "short: idle tiles not passed over": ("attention_short.cu", "if (queries == 0) return;", 1, ""),
    "short: distances off by one": ("attention_short.cu", "distances / 2 - query", 1, "distances / 2 - query - 1"),
    "short: distances of the other sign": ("attention_short.cu", "distances / 2 - query", 1, "distances / 2 + query"),
    "short: distances of another head": ("attention_short.cu", "head * distances", 1, "number * distances"),
    "short: distances of one row of two": ("attention_short.cu", "row * 8 + quad(), query", 1, "quad(), query"),
    "short: keys taken for values": ("attention_short.cu", "scores[1], V);", 1, "scores[1], K);"),
    "first tokens: rows in order": ("take_rows.cu", "(size_t)rows[i / vectors]", 1, "(i / vectors)"),
    "trial: the first row only": ("trial.cu", "i / width % period * width + i % width]", 1, "i % width]"),
    "trial: the last row not compared": (
        "trial.cu",
        "i < (size_t)count * width && !same",
        1,
        "i + width < (size_t)count * width && !same",
    ),
    "general: idle tiles not passed over": ("attention_general.cu", "if (queries == 0) return;", 1, ""),
    "general: distances off by one": (
        "attention_general.cu",
        "bias[first + lane - query]",
        1,
        "bias[first + lane - query + 1]",
    ),
    "general: distances of the other sign": (
        "attention_general.cu",
        "bias[first + lane - query]",
        1,
        "bias[query - first - lane]",
    ),
    "general: bias before the scale": (
        "attention_general.cu",
        "score += bias[first + lane - query];",
        1,
        "score += bias[first + lane - query] / sqrtf(size);",
    ),
    "general: distances of the first tile of keys": ("attention_general.cu", "bias[first + lane", 1, "bias[lane"),
    "general: distances of the first tile of queries": (
        "attention_general.cu",
        "only_first ? 0 : tile.z - tile.x",
        1,
        "0",
    ),
    "general: distances from first tokens as from all": (
        "attention_general.cu",
        "only_first ? 0 : tile.z - tile.x",
        1,
        "tile.z - tile.x",
    ),
    "general: distances of another head": ("attention_general.cu", "blockIdx.y * distances", 1, "distances"),
    "general: barrier dropped": ("attention_general.cu", "__syncthreads();", 1, ""),
    "general: sums not rescaled": ("attention_general.cu", "sums[n][i] *= rescale;", 1, ";"),
    "general: mask dropped": ("attention_general.cu", "if (lane < here) {", 1, "{"),
    "layer norm: E[x^2] - E[x]^2": ("layer_norm.cuh", TWICE, 1, SINGLE),
    "layer norm: padding counted": ("layer_norm.cuh", "if (vector(c) < width / N)", 1, ""),
    "layer norm: scale of other columns": ("layer_norm.cuh", "gamma + i * N", 1, "gamma + i"),
    "layer norm: bias of other columns": ("add_layer_norm.cu", "bias + i * N", 1, "bias + i * 4"),
    "layer norm: one vector of two read": ("common.cuh", "to[i + j] = v.at[j]", 1, "to[j] = v.at[j]"),
    "gelu: not clipped": ("activations.cuh", "fminf(x * x, 36.f)", 1, "x * x"),
    "pool: prompt counted": ("pool.cu", "(float)(tokens - first)", 1, "(float)tokens"),
    "pool: barrier dropped": ("pool.cu", "__syncthreads();", 1, ""),
    "pool: second group of a warp dropped": (
        "pool.cu",
        "sum[j] += __shfl_xor_sync(ALL_LANES, sum[j], VECTORS);",
        1,
        "",
    ),
    "pool: a warp dropped": ("pool.cu", "int w = 0; w < WARPS;", 1, "int w = 1; w < WARPS;"),
    "pool: a group takes another's tokens": ("pool.cu", "t = first + group;", 1, "t = first + group / 2;"),
    "pool: another slice": ("pool.cu", "width + blockIdx.y * COLUMNS;  // 64", 1, "width;  // 64"),
    "pool: last slice not cut": (
        "pool.cu",
        "if (c >= COLUMNS || c >= columns) return;",
        1,
        "if (c >= COLUMNS) return;",
    ),
    "normalization: part of a row": ("l2_normalize.cu", "warp_sum(squares)", 1, "squares"),
    "normalization: zeros divided by zero": (
        "l2_normalize.cu",
        "fmaxf(sqrtf(warp_sum(squares)), 1e-12f)",
        1,
        "sqrtf(warp_sum(squares))",
    ),
    "normalization: rows past the end": ("l2_normalize.cu", "if (r >= rows) return;", 1, ""),
}
ATTENTION = "(test_attention or both_kernels or passed_over or biases) and float16"
#: The tests that are to catch a fault in a file.
TESTS = {
    "attention.cu": ATTENTION,
    "attention.cuh": ATTENTION,
    "attention_short.cu": ATTENTION,
    "attention_general.cu": "(test_attention or passed_over) and float32",
    "add_layer_norm.cu": "add_layer_norm",
    "common.cuh": "layer_norm",
    "layer_norm.cuh": "layer_norm or equal_values",
    "activations.cuh": "gelu",
    "l2_normalize.cu": "test_pool",
    "pool.cu": "test_pool",
    "take_rows.cu": "take_first",
    "trial.cu": "trials",
    None: "layer_norm or attention or both_kernels or passed_over or biases or pool or gelu or take_first or trials",
}


@pytest.fixture(scope="module")
def folder(request):
    """Return where libraries are kept."""
    require_compiler()
    return request.config.cache.mkdir("executor")


def run_tests(kernels, folder, order, tests):
    """Run tests of the kernels on some sources; return the exit status and the output."""
    environment = {
        **os.environ,
        "MINIBERT_TEST_KERNELS": str(kernels),
        "MINIBERT_EXECUTOR_FOLDER": str(folder),
        "EXECUTOR_ORDER": order,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / "test_kernels.py"),
    ]
    done = subprocess.run([*command, "-k", tests], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-3000:]


def plant(fault, kernels):
    """Copy the kernels, with a fault unless None."""
    shutil.copytree(KERNELS, kernels)
    if fault is not None:
        file, old, number, new = FAULTS[fault]
        path = kernels / file
        path.write_text(nth(path.read_text("utf-8"), old, number, new), "utf-8")
    return kernels


@pytest.mark.parametrize("order", ["0", "1"], ids=["forward", "backward"])
def test_without_a_fault_the_tests_pass(tmp_path, folder, order):
    """The sources as they are pass, whatever the order of the warps."""
    status, output = run_tests(plant(None, tmp_path / "kernels"), folder, order, TESTS[None])

    assert status == 0, output


@pytest.mark.parametrize("fault", some_faults(FAULTS))
def test_a_fault_is_caught(tmp_path, fault):
    """The tests fail, for a reason that is a result or the executor's own report."""
    require_compiler()
    kernels = plant(fault, tmp_path / "kernels")
    found = []
    for order in ("0", "1"):
        status, output = run_tests(kernels, tmp_path, order, TESTS[FAULTS[fault][0]])
        assert status in {0, 1} or status < 0, output  # -11: the fault read or wrote far outside
        found.append(status)
        if status:
            break

    assert any(found), "no test fails"
