"""A CuPy whose GPU is the executor: what minibert.fused.device calls, with the meanings that CuPy documents.

It shows that arrays, pointers, leading dimensions, launches and streams are put together right. It cannot show that
CuPy does what it is taken to do.
"""

import ctypes
import sys
import threading
import types
import weakref

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
        """Ask for a copy of the host's memory, which is to be pinned, and kept until the stream gets to the copy."""
        assert type(host) is np.ndarray
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        assert host.flags.c_contiguous
        stream.asked_for.append((self, weakref.ref(pinned_memory_of(host))))


def new(shape, dtype):
    """Return an array full of NaN, aligned as CuPy's are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 512, 0xFF, np.uint8)
    start = -memory.ctypes.data % 512
    return memory[start : start + size].view(dtype).reshape(shape).view(Array)


class PinnedMemory(bytearray):
    """Memory of the host from which a stream can copy."""


def pinned_memory_of(host):
    """Return the pinned memory that an array begins at; any other memory is an error."""
    base = host
    while isinstance(base, np.ndarray):
        base = base.base
    memory = base.obj if isinstance(base, memoryview) else base
    assert type(memory) is PinnedMemory, "an asynchronous copy must be from pinned memory"
    assert host.ctypes.data == np.frombuffer(memory, np.uint8).ctypes.data
    return memory


class Stream:
    """A stream, which is this thread's while it is entered.

    Copies to the device wait until the stream has something else to do, or is waited for: as late as they may be.
    """

    of_thread = threading.local()

    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking
        self.asked_for = []

    @classmethod
    def current(cls):
        """Return this thread's, or None."""
        entered = getattr(cls.of_thread, "entered", [])
        return entered[-1] if entered else None

    def __enter__(self):
        self.of_thread.entered = [*getattr(self.of_thread, "entered", []), self]
        return self

    def __exit__(self, *_):
        self.of_thread.entered.pop()

    def synchronize(self):
        """Make the copies that were asked for."""
        for array, reference in self.asked_for:
            memory = reference()
            assert memory is not None, "pinned memory was given back before it was copied from"
            array[...] = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        self.asked_for.clear()


def catch_up():
    """Let this thread's stream do all that it was asked for, before what it is asked for now."""
    if Stream.current() is not None:
        Stream.current().synchronize()


def take(x, rows, axis, out):
    """Write rows of an array to another one."""
    catch_up()
    out[...] = x[rows.view(np.ndarray)]


def as_numpy(array):
    """Return a copy on the host, once the stream has come so far."""
    catch_up()
    return np.array(array.view(np.ndarray))


class Function:
    """A kernel that can be launched."""

    shared_size_bytes = 0
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, executor, kernel):
        self.executor, self.kernel = executor, kernel

    def __call__(self, grid, block, arguments, shared_mem):
        """Launch it."""
        assert Stream.current() is not None, "not on a stream of its own"
        catch_up()
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
    catch_up()
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
        get_current_stream=lambda: Stream.current() or null_stream,
        alloc_pinned_memory=PinnedMemory,
        device=types.SimpleNamespace(get_cublas_handle=lambda: 7),
        nvrtc=nvrtc,
    )

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
    cupy.asnumpy = as_numpy
    for name in ("sqrt", "square", "maximum", "float64", "concatenate"):
        setattr(cupy, name, getattr(np, name))
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = types.SimpleNamespace(gemmEx=gemm_ex)
    modules = {"cupy": cupy, "cupy.cuda": cuda, "cupy_backends": types.ModuleType("cupy_backends")}
    modules |= {"cupy_backends.cuda": types.ModuleType("cupy_backends.cuda"), "cupy_backends.cuda.libs": libs}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cupy
