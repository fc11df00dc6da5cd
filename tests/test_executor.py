"""The executor of CUDA kernels reports what a GPU might let pass: each of these kernels has one fault."""

import ctypes
import subprocess

import numpy as np
import pytest
from executor_device import FLAGS, HERE, KERNELS, call, require_compiler

#: Kernels with one fault, by what the executor says of it.
FAULTS = {
    "divergent": ("lanes of a warp meet in different collectives", "if (t % 2) warp_sum(1.f); else __syncwarp();"),
    "lane ended": ("a collective after a lane of the warp has ended", "if (t == 0) return; warp_sum(1.f);"),
    "lane leaves": ("a lane ends while its warp waits in a collective", "if (t < 31) warp_sum(1.f);"),
    "deadlock": ("deadlock", "if (t % 2) __syncthreads(); else __syncwarp();"),
    "copy left": (
        "a thread ends with copies under way",
        "DYNAMIC_SHARED(m); copy_async(m + 16 * t, x); end_copy_group();",
    ),
    "misaligned copy": ("copy_async: an address is not a multiple of 16", "DYNAMIC_SHARED(m); copy_async(m + 4, x);"),
    "misaligned load": (
        "load_matrices: an address is not a multiple of 16",
        "DYNAMIC_SHARED(m); unsigned f[4]; load_matrices(f, m + 2 * t);",
    ),
    "beyond shared memory": ("a write beyond shared memory", "DYNAMIC_SHARED(m); m[2048] = 1;"),
}
COPY_ROWS = "DYNAMIC_SHARED(m); float* s = reinterpret_cast<float*>(m) + 8 * t;"
WAIT_TWICE = (
    "end_copy_group(); wait_for_copies<1>(); const float a = s[1], b = s[5]; wait_for_copies<0>();x[t] = t % 2 ? a : b;"
)
#: Kernels that write what they see to x[t], and what that must be.
SEEN = {
    "shared memory begins as NaN": (
        "DYNAMIC_SHARED(m); x[t] = reinterpret_cast<float*>(m)[t];",
        np.full(64, np.nan),
    ),
    "a copy has not arrived before the wait": (
        f"{COPY_ROWS} copy_async(s, x); end_copy_group(); x[t] = s[0]; wait_for_copies<0>();",
        np.full(64, np.nan),
    ),
    "a copy has arrived after the wait": (
        f"{COPY_ROWS} copy_async(s, x + 64); end_copy_group(); wait_for_copies<0>(); x[t] = s[1];",
        np.full(64, 65.0),
    ),
    "the last group is not waited for": (
        f"{COPY_ROWS} copy_async(s, x + 64); end_copy_group(); copy_async(s + 4, x + 64); {WAIT_TWICE}",
        np.where(np.arange(64) % 2, 65.0, np.nan),
    ),
    "warp_sum": ("x[t] = warp_sum((float)t);", np.repeat([496.0, 1520.0], 32)),
    "warp_max": ("x[t] = warp_max((float)(t % 7));", np.full(64, 6.0)),
    "__shfl_sync": ("x[t] = __shfl_sync(ALL_LANES, (float)t, 5);", np.repeat([5.0, 37.0], 32)),
    "a barrier orders warps": (
        "DYNAMIC_SHARED(m); float* s = reinterpret_cast<float*>(m); s[t] = t; __syncthreads(); x[t] = s[63 - t];",
        np.arange(63.0, -1, -1),
    ),
}
NO_BARRIER = "DYNAMIC_SHARED(m); float* s = reinterpret_cast<float*>(m); s[t] = t; __syncwarp(); x[t] = s[63 - t];"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs one of the kernels above on x, of 64 threads with 2,048 bytes of shared memory."""
    require_compiler()
    folder = tmp_path_factory.mktemp("faults")
    bodies = [*(body for _, body in FAULTS.values()), *(body for body, _ in SEEN.values()), NO_BARRIER]
    kernels = "".join(
        f"void kernel_{i}(float* x) {{ const int t = threadIdx.x; (void)t; {body} }}\n" for i, body in enumerate(bodies)
    )
    exports = "".join(
        f'extern "C" int run_{i}(const unsigned* g, const unsigned* b, size_t s, void** a, char* e, size_t n) '
        f"{{ return executor::launch(&kernel_{i}, g, b, s, a, e, n); }}\n"
        for i in range(len(bodies))
    )
    (folder / "faults.cpp").write_text(f'#include "common.cuh"\n{kernels}{exports}', "utf-8")
    command = ["g++", *FLAGS, "-O2", f"-I{HERE / 'executor'}", f"-I{KERNELS}", "-fPIC", "-shared", "faults.cpp"]
    subprocess.run([*command, "-o", "faults.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "faults.so"))
    numbers = {name: number for number, name in enumerate([*FAULTS, *SEEN, "no barrier"])}

    def launch(name, x):
        call(library[f"run_{numbers[name]}"], (1, 1), 64, (x,), 2048)

    return launch


@pytest.fixture
def x():
    """Return 0, 1, 2, ..., in memory aligned to 16 bytes."""
    memory = np.zeros(260, np.float32)
    start = -memory.ctypes.data // 4 % 4
    memory[start : start + 256] = np.arange(256)
    return memory[start : start + 256]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(run, x, name):
    """A launch with a fault fails, and says which."""
    with pytest.raises(RuntimeError, match=f"^{FAULTS[name][0]}"):
        run(name, x)


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("order", ["0", "1"], ids=["forward", "backward"])
def test_what_a_kernel_sees(run, x, monkeypatch, name, order):
    """Memory and collectives are as on a GPU, in whatever order warps run."""
    monkeypatch.setenv("EXECUTOR_ORDER", order)

    run(name, x)
    np.testing.assert_array_equal(x[:64], SEEN[name][1])


def test_a_launch_after_a_failed_one_works(run, x):
    """A fault leaves nothing behind."""
    with pytest.raises(RuntimeError, match="deadlock"):
        run("deadlock", x)
    run("warp_max", x)

    assert (x[:64] == 6).all()


@pytest.mark.parametrize(
    ("order", "expected"),
    [("0", [*[np.nan] * 32, *range(31, -1, -1)]), ("1", [*range(63, 31, -1), *[np.nan] * 32])],
    ids=["forward", "backward"],
)
def test_a_missing_barrier_shows(run, x, monkeypatch, order, expected):
    """Without a barrier, the warp that runs first does not see what the other writes."""
    monkeypatch.setenv("EXECUTOR_ORDER", order)

    run("no barrier", x)
    np.testing.assert_array_equal(x[:64], expected)
