"""A CuPy whose GPU is the executor: what minibert.fused.device calls, with the meanings that CuPy documents.

It shows that arrays, pointers, leading dimensions, launches and streams are put together right. It cannot show that
CuPy does what it is taken to do.
"""

import ctypes
import sys
import types

import numpy as np

from minibert.fused.cuda import STORAGES, Kernel

TYPES = {0: STORAGES["float32"], 2: STORAGES["float16"], 14: STORAGES["bfloat16"]}


class Array(np.ndarray):
    """An array on the device. Whoever takes it for one of the host's is found out: numpy gets no data from it."""

    @property
    def data(self):
        """The memory, of which only the address is known to the host."""
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def set(self, host, stream):
        """Copy from the host's memory."""
        assert type(host) is np.ndarray
        assert stream is not None
        self[...] = host


def new(shape, dtype):
    """Return an array full of NaN, aligned as CuPy's are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 512, 0xFF, np.uint8)
    start = -memory.ctypes.data % 512
    return memory[start : start + size].view(dtype).reshape(shape).view(Array)


class Stream:
    """A stream, which is this thread's while it is entered."""

    current = [None]  # noqa: RUF012

    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking
        self.synchronized = 0

    def __enter__(self):
        self.current.append(self)
        return self

    def __exit__(self, *_):
        self.current.pop()

    def synchronize(self):
        """Wait for it."""
        self.synchronized += 1


class Function:
    """A kernel that can be launched."""

    shared_size_bytes = 0
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, executor, kernel):
        self.executor, self.kernel = executor, kernel

    def __call__(self, grid, block, arguments, shared_mem):
        """Launch it."""
        assert Stream.current[-1] is not None, "not on a stream of its own"
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        (threads,) = block
        plain = tuple(each.view(np.ndarray) if isinstance(each, Array) else each for each in arguments)
        self.executor.launch(self.kernel, grid, threads, plain, shared_mem)


class Nvrtc:
    """The compiler: its machine code says which kernel it is of."""

    class NVRTCError(Exception):
        """What it raises."""

    def __init__(self):
        self.programs, self.compiled = {}, []

    def getVersion(self):  # noqa: N802
        """Return its version."""
        return 13, 0

    def createProgram(self, source, name, _headers, _include_names):  # noqa: N802
        """Return a new program."""
        assert isinstance(source, str)
        assert "#include" not in source.replace('#include "executor.h"', "")
        self.programs[len(self.programs)] = [name.removesuffix(".cu")]
        return len(self.programs) - 1

    def addNameExpression(self, program, name):  # noqa: N802
        """Ask for a kernel."""
        self.programs[program].append(name)

    def compileProgram(self, program, options):  # noqa: N802
        """Compile."""
        assert "--gpu-architecture=sm_90" in options
        self.compiled.append(self.programs[program][1])

    def getLoweredName(self, _program, name):  # noqa: N802
        """Return a name without the characters that a file's cannot have."""
        return "_Z" + name.encode().hex()

    def getCUBIN(self, program):  # noqa: N802
        """Return the machine code."""
        return self.programs[program][0].encode()

    def getProgramLog(self, _program):  # noqa: N802
        """Return nothing."""
        return ""

    def destroyProgram(self, program):  # noqa: N802
        """Forget a program."""
        del self.programs[program]
        self.programs[program] = None


def gemm_ex(handle, trans_a, trans_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, _):
    """Do as cublasGemmEx: C = alpha A B + beta C, of matrices by columns."""
    assert (handle, trans_a, trans_b, compute) == (7, 0, 0, 68)
    assert a_type == b_type == c_type
    storage = TYPES[a_type]
    scale = [ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta)]

    def by_columns(pointer, rows, columns, leading):
        assert leading >= rows
        numbers = (ctypes.c_char * (((columns - 1) * leading + rows) * storage.dtype.itemsize)).from_address(pointer)
        flat = np.frombuffer(numbers, storage.dtype)
        strides = (storage.dtype.itemsize, leading * storage.dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

    out = by_columns(c, m, n, ldc)
    y = scale[0] * (storage.widen(by_columns(a, m, k, lda)) @ storage.widen(by_columns(b, k, n, ldb)))
    if scale[1]:  # C may be NaN otherwise
        y += scale[1] * storage.widen(out)
    out[...] = storage.narrow(y)


def install(monkeypatch, executor):
    """Put the fake in the place of CuPy; return it."""
    nvrtc = Nvrtc()

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": 227 * 1024}  # noqa: RUF012
        compute_capability = "90"

        def __init__(self, number):
            assert number == 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class RawModule:
        def __init__(self, path):
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                self.file = file.read()

        def get_function(self, name):
            return Function(executor, Kernel(self.file, bytes.fromhex(name.removeprefix("_Z")).decode()))

    null_stream = Stream()
    cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError),
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: Stream.current[-1] or null_stream,
        alloc_pinned_memory=bytearray,
        device=types.SimpleNamespace(get_cublas_handle=lambda: 7),
        nvrtc=nvrtc,
    )

    def take(x, rows, axis, out):
        out[...] = x[rows.view(np.ndarray)]

    def as_array(host):
        array = new(host.shape, host.dtype)
        array[...] = host
        return array

    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.asarray, cupy.take, cupy.RawModule, cupy.cuda = (
        Array,
        new,
        as_array,
        take,
        RawModule,
        cuda,
    )
    cupy.asnumpy = lambda array: np.array(array.view(np.ndarray))
    for name in ("sqrt", "square", "maximum", "float64", "concatenate"):
        setattr(cupy, name, getattr(np, name))
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = types.SimpleNamespace(gemmEx=gemm_ex)
    modules = {"cupy": cupy, "cupy.cuda": cuda, "cupy_backends": types.ModuleType("cupy_backends")}
    modules |= {"cupy_backends.cuda": types.ModuleType("cupy_backends.cuda"), "cupy_backends.cuda.libs": libs}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cupy
