"""A device that is a CPU: numpy for memory and matrix products, and the kernels' own sources under tests/executor."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_list import names_of

from minibert.engine.cuda_device import CudaDevice, kernel_folder
from minibert.engine.fused_cuda import STORAGES

HERE = Path(__file__).parent
KERNELS = kernel_folder()
FLAGS = (
    "-std=c++17",
    "-Werror=strict-aliasing",  # a kernel must not read a variable as another type
    "-Wstrict-aliasing=2",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-DMINIBERT_EXECUTOR",
    "-Wno-unknown-pragmas",
)
EXPORT = """extern "C" int kernel_{number}(const unsigned* grid, const unsigned* size, size_t shared, void** arguments,
                             char* error, size_t error_size) {{
  return executor::launch(&{name}, grid, size, shared, arguments, error, error_size);
}}
"""


def require_compiler():
    """Skip, or fail under MINIBERT_REQUIRE_EXECUTOR, where the executor cannot be built."""
    if platform.machine() != "x86_64" or platform.system() != "Linux" or shutil.which("g++") is None:
        give_up = pytest.fail if "MINIBERT_REQUIRE_EXECUTOR" in os.environ else pytest.skip
        give_up("the executor of CUDA kernels needs g++ on x86-64 Linux")


def all_names(file):
    """Return the names of all kernels of a file."""
    return [name for storage in STORAGES for name in names_of(file, storage)]


def read_with_includes(name, folders, seen=None):
    """Return the text of a source, with what it includes from these folders in place of the lines that say so."""
    seen = set() if seen is None else seen
    path = next((folder / name for folder in folders if (folder / name).exists()), None)
    if path is None or name in seen:
        return ""
    seen.add(name)
    text = path.read_text("utf-8").replace("#pragma once\n", "")
    return re.sub(r'#include "(.*)"\n', lambda include: read_with_includes(include[1], folders, seen), text)


def build(file, folder, *, kernels=KERNELS, names=None, options=("-O2",)):
    """Return a library with kernels of a file, built in ``folder`` unless one of the same sources is there."""
    names = all_names(file) if names is None else names
    exports = "".join(EXPORT.format(number=number, name=name) for number, name in enumerate(names))
    folders = [HERE / "executor", kernels]
    key = hashlib.sha256(
        repr((read_with_includes(f"{file}.cu", folders), exports, FLAGS, options)).encode()
    ).hexdigest()[:20]
    library = folder / f"{file}-{key}.so"
    if not library.exists():
        source = folder / f"{file}-{key}.cpp"
        source.write_text(f'#include "{file}.cu"\n{exports}', "utf-8")
        part = library.with_suffix(f".{os.getpid()}.part")
        includes = [f"-I{each}" for each in folders]
        command = ["g++", *FLAGS, *options, *includes, "-fPIC", "-shared", str(source), "-o", str(part)]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, compiled.stderr[:4000]
        part.replace(library)
    return ctypes.CDLL(str(library))


def call(function, grid, threads, arguments, shared):
    """Launch a kernel of a library, with the calling convention of CuPy's launches; RuntimeError if it fails."""
    values = [as_ctypes(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    error = ctypes.create_string_buffer(400)
    sizes = [(ctypes.c_uint * 3)(*size, *(1,) * (3 - len(size))) for size in (grid, (threads,))]
    if function(*sizes, ctypes.c_size_t(shared), pointers, error, ctypes.c_size_t(400)):
        raise RuntimeError(error.value.decode())


def as_ctypes(argument):
    """Return an argument as a kernel gets it."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_int(int(argument)) if isinstance(argument, np.int32) else ctypes.c_float(float(argument))


class ExecutorDevice:
    """The device of minibert.engine.fused_cuda, on a CPU.

    New memory is full of NaN, so that what nobody wrote shows. ``launches`` has the kernels that ran.
    """

    shared_memory = 227 * 1024

    def __init__(self, folder, kernels=KERNELS, options=("-O2",)):
        self._functions = {}
        self._build = lambda file: build(file, folder, kernels=kernels, options=options)
        self.launches = []
        self.recording = None

    def new_stream(self):
        """Return nothing: there is one stream."""

    def on(self, _stream):
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def settle(self):
        """Do nothing: all is done at once."""

    free = settle

    def spread(self, array, rows):
        """Return some rows."""
        return array[rows]

    def finite_rows(self, array):
        """Return which rows are finite."""
        return np.isfinite(array).all(axis=1)

    def empty(self, shape, dtype):
        """Return an array of NaN."""
        assert self.recording is None
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    def upload(self, host):
        """Return a copy; behind it is nothing that a kernel could take for an index."""
        assert self.recording is None
        memory = np.full(host.nbytes + 512, 0x7F, np.uint8)
        start = -memory.ctypes.data % 16
        array = memory[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
        array[...] = host
        return array

    def download(self, array):
        """Return a copy."""
        return array.copy()

    place = upload

    def matmul(self, x, weight, out, storage, *, add):
        """Multiply in float32, as cuBLAS does, and round once."""
        if self.recording is not None:
            self.recording.append(lambda: self.matmul(x, weight, out, storage, add=add))
            return
        y = storage.widen(x) @ storage.widen(weight)
        if add:
            y += storage.widen(out)
        with np.errstate(over="ignore"):
            out[...] = y.astype(storage.dtype) if storage.name != "bfloat16" else storage.narrow(y)

    def write(self, array, host):
        """Copy."""
        array[...] = host

    def record(self, call):
        """Return what does the launches and products of a call again."""
        self.recording = []
        call()
        steps, self.recording = self.recording, None
        return lambda: [step() for step in steps]

    def launch(self, kernel, grid, threads, arguments, shared):
        """Run a kernel with the calling convention of CuPy's launches."""
        self.launches.append(kernel.name)
        assert [kind_of(argument) for argument in arguments] == parameter_types(kernel), kernel.name
        if self.recording is not None:
            self.recording.append(lambda: call(self._function(kernel), grid, threads, arguments, shared))
            return
        call(self._function(kernel), grid, threads, arguments, shared)

    def _function(self, kernel):
        if kernel not in self._functions:
            library = self._build(kernel.file)
            self._functions[kernel] = library[f"kernel_{all_names(kernel.file).index(kernel.name)}"]
        return self._functions[kernel]


class RecordingGpu(CudaDevice):
    """A GPU that keeps ``launches``, too."""

    def __init__(self, number, storage):
        super().__init__(number, storage)
        self.launches = []

    def launch(self, kernel, *arguments):
        """Run a kernel."""
        self.launches.append(kernel.name)
        super().launch(kernel, *arguments)


def kind_of(argument):
    """Return how CuPy passes an argument."""
    if isinstance(argument, np.ndarray):
        return "pointer"
    return {np.int32: "int", np.float32: "float"}.get(type(argument), "8 bytes")


@functools.cache
def parameter_types(kernel):
    """Return how each parameter of a kernel is passed: ``"pointer"``, ``"int"`` or ``"float"``."""
    source = (KERNELS / f"{kernel.file}.cu").read_text("utf-8")
    declared = re.search(rf"__global__[^(]*(?:\([^)]*\)[^(]*)?\b{kernel.name.split('<')[0]}\(([^)]*)\)", source)
    parameters = declared[1].split(",")
    return ["pointer" if "*" in parameter else parameter.split()[0] for parameter in parameters]
