"""Each function that kernels/cuda/common.cuh names does what the PTX manual says: on the executor, and on a GPU."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import unit_kernel_cases
from conftest import DEVICES, has_gpu
from executor_device import HERE, KERNELS, build, call, read_with_includes, require_compiler

CASES = {case.kernel: case for case in unit_kernel_cases.cases()}
SHARED = 1024


@pytest.fixture(scope="module", params=DEVICES)
def run(request):
    """Return a function that runs a case on a device, and returns what its first argument holds then."""
    if request.param == "gpu":
        return run_on_gpu
    require_compiler()
    library = build("unit_kernels", request.config.cache.mkdir("executor"), names=list(CASES))

    def run_on_executor(case):
        out = case.out.copy()
        function = library[f"kernel_{list(CASES).index(case.kernel)}"]
        call(function, (1, 1), 32, (out, *map(aligned, case.arguments)), SHARED)
        return out

    return run_on_executor


def aligned(argument):
    """Return a copy of an array in memory that begins at a multiple of 16 bytes; a number as it is."""
    if not isinstance(argument, np.ndarray):
        return argument
    memory = np.empty(argument.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + argument.nbytes].view(argument.dtype).reshape(argument.shape)
    copy[...] = argument
    return copy


def run_on_gpu(case):
    """Run a case on a GPU."""
    import cupy

    source = read_with_includes("unit_kernels.cu", [HERE / "executor", KERNELS])
    module = cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=[case.kernel])
    out = cupy.asarray(case.out)
    arguments = [cupy.asarray(each) if isinstance(each, np.ndarray) else each for each in case.arguments]
    module.get_function(case.kernel)((1,), (32,), (out, *arguments), shared_mem=SHARED)
    return out.get()


@pytest.mark.parametrize("kernel", CASES)
def test_unit_kernels(run, kernel):
    """The kernel gives what numpy gives."""
    case = CASES[kernel]
    actual, expected = run(case), case.expected
    different = actual != expected  # infinities are equal or wrong

    assert (np.abs(actual[different] - expected[different]) <= case.tolerance * np.abs(expected[different])).all()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer(tool):
    """NVIDIA's sanitizer finds no fault in the kernels."""
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "3",
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-x",
    ]
    command += [
        str(HERE / "test_kernels.py"),
        "-k",
        "gpu and float16 and (63-65 or first_tokens or pool or layer_norm)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:]
