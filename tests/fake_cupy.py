"""A CuPy with two GPUs, each of which is the executor: what minibert.engine.cuda_device calls, as CuPy documents it.

It shows that arrays, pointers, leading dimensions, launches, streams and devices are put together right: an array of
one GPU in a call on the other is an error, and so is a stream. CuPy's own cuBLAS handles belong to threads; whoever
makes one is counted. It cannot show that CuPy and cuBLASLt do what they are taken to do.
"""

import ctypes
import sys
import threading
import time
import types
import weakref

import numpy as np

from minibert.engine import cublaslt, products
from minibert.engine.fused_cuda import STORAGES, Kernel

TYPES = {0: STORAGES["float32"], 2: STORAGES["float16"], 14: STORAGES["bfloat16"]}
GPUS = 2
#: What is current in a thread: a GPU, and a stream on each.
current = threading.local()


def current_device():
    """Return the number of this thread's GPU."""
    return getattr(current, "device", 0)


def require_here(*arrays):
    """Fail unless arrays are on the current GPU."""
    for array in arrays:
        if isinstance(array, Array):
            assert array.gpu == current_device(), f"an array of GPU {array.gpu}, used on GPU {current_device()}"


class Array(np.ndarray):
    """An array on a GPU. Whoever takes it for one of the host's is found out: numpy gets no data from it."""

    gpu = None

    def __array_finalize__(self, source):
        """Be where the array is that this one was made from."""
        self.gpu = getattr(source, "gpu", None)

    @property
    def data(self):
        """The memory, of which only the address is known to the host."""
        return MemoryPointer(self)

    @property
    def device(self):
        """The GPU that the array is on."""
        return DEVICES[self.gpu]

    def __getitem__(self, index):
        """Return a view, or run a kernel."""
        if not isinstance(index, int | slice | tuple):
            require_here(self)
        return super().__getitem__(index)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        """Run a kernel; a product of matrices takes CuPy's own cuBLAS."""
        require_here(*inputs, *out)
        if ufunc is np.matmul:
            get_cublas_handle()
        plain = [each.view(np.ndarray) if isinstance(each, Array) else each for each in inputs]
        targets = {"out": tuple(each.view(np.ndarray) for each in out)} if out else {}
        result = getattr(ufunc, method)(*plain, **targets, **options)
        return out[0] if out else on_gpu(result)

    def __array_function__(self, function, kinds, arguments, options):
        """Do as numpy does; the result stays on the GPU, and a view of memory stays one."""
        result = super().__array_function__(function, kinds, arguments, options)
        return [on_gpu(each) for each in result] if isinstance(result, list) else on_gpu(result)

    def set(self, host, stream):
        """Ask for a copy of the host's memory, which is to be pinned, and kept until the stream gets to the copy."""
        require_here(self)
        assert type(host) is np.ndarray
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        assert host.flags.c_contiguous
        stream.asked_for.append((self, weakref.ref(pinned_memory_of(host))))


class MemoryPointer:
    """The address of an array."""

    def __init__(self, array):
        self.array, self.ptr = array, array.ctypes.data

    def memset(self, value, size):
        """Fill the first bytes."""
        ctypes.memset(self.ptr, value, size)

    def copy_from_device_async(self, source, size, stream):
        """Copy bytes of another array."""
        require_here(self.array, source.array)
        assert stream.gpu == current_device()
        ctypes.memmove(self.ptr, source.ptr, size)


def on_gpu(array):
    """Return an array, as one of the current GPU."""
    there = np.asarray(array).view(Array)
    there.gpu = current_device()
    return there


def new(shape, dtype):
    """Return an array full of NaN, aligned as CuPy's are."""
    stream = Stream.current()
    assert stream is None or stream.recorded is None, "memory must not be asked for while a graph is recorded"
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 512, 0xFF, np.uint8)
    start = -memory.ctypes.data % 512
    return on_gpu(memory[start : start + size].view(dtype).reshape(shape))


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
    """A stream, which is this thread's while it is entered. It belongs to the GPU that was current when it was made.

    Copies to the device wait until the stream has something else to do, or is waited for: as late as they may be.
    """

    by_address = weakref.WeakValueDictionary()  # noqa: RUF012

    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking
        self.gpu = current_device()
        self.asked_for = []
        self.recorded = None
        self.ptr = id(self)
        self.by_address[self.ptr] = self

    @staticmethod
    def entered():
        """Return the streams that this thread has entered."""
        if not hasattr(current, "streams"):
            current.streams = []
        return current.streams

    @classmethod
    def current(cls):
        """Return this thread's on the current GPU, or None."""
        return next((each for each in reversed(cls.entered()) if each.gpu == current_device()), None)

    def __enter__(self):
        assert self.gpu == current_device(), "a stream of another GPU"
        self.entered().append(self)
        return self

    def __exit__(self, *_):
        self.entered().pop()

    def begin_capture(self):
        """Record what is asked for from now on, instead of doing it. The copies before are not among it."""
        self.synchronize()
        self.recorded = []

    def end_capture(self):
        """Return what was recorded."""
        graph, self.recorded = Graph(self.recorded), None
        return graph

    def synchronize(self):
        """Make the copies that were asked for."""
        assert self.recorded is None, "a stream that records cannot be waited for"
        for array, reference in self.asked_for:
            memory = reference()
            assert memory is not None, "pinned memory was given back before it was copied from"
            array[...] = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        self.asked_for.clear()


class Graph:
    """What a stream recorded."""

    def __init__(self, steps):
        self.steps = steps

    def launch(self, stream):
        """Do it."""
        assert stream is Stream.current()
        catch_up()
        for step in self.steps:
            step()


def do_or_record(step):
    """Do what this thread's stream is asked for, or record it."""
    stream = Stream.current()
    if stream is not None and stream.recorded is not None:
        stream.recorded.append(step)
    else:
        catch_up()
        step()


class Event:
    """An event. Its time is the host's, once this thread's stream has come so far."""

    def record(self):
        """Look at the clock."""
        catch_up()
        self.time = time.perf_counter()

    def synchronize(self):
        """Let this thread's stream do all that it was asked for."""
        catch_up()


def catch_up():
    """Let this thread's stream do all that it was asked for, before what it is asked for now."""
    if Stream.current() is not None:
        Stream.current().synchronize()


def take(x, rows, axis, out=None):
    """Return rows of an array, or write them to another one."""
    catch_up()
    require_here(x, rows, out)
    taken = x.view(np.ndarray)[rows.view(np.ndarray)]
    if out is None:
        return on_gpu(taken)
    out[...] = taken
    return out


def as_numpy(array):
    """Return a copy on the host, once the stream has come so far."""
    catch_up()
    require_here(array)
    return np.array(array.view(np.ndarray))


def get_cublas_handle():
    """Return CuPy's handle of cuBLAS for this thread and GPU, and count it if it is new."""
    handles = getattr(current, "handles", None)
    if handles is None:
        handles = current.handles = set()
    if current_device() not in handles:
        handles.add(current_device())
        HANDLES_MADE.append(current_device())
    return 7


HANDLES_MADE = []
#: The GPUs, once the fake is installed.
DEVICES = []


class Function:
    """A kernel that can be launched."""

    shared_size_bytes = 0
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, executor, kernel):
        self.executor, self.kernel = executor, kernel

    def __call__(self, grid, block, arguments, shared_mem):
        """Launch it."""
        assert Stream.current() is not None, "not on a stream of its own"
        require_here(*arguments)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        (threads,) = block
        plain = tuple(each.view(np.ndarray) if isinstance(each, Array) else each for each in arguments)
        do_or_record(lambda: self.executor.launch(self.kernel, grid, threads, plain, shared_mem))


class Nvrtc:
    """The compiler: its machine code says which kernel it is of."""

    class NVRTCError(Exception):
        """What it raises."""

    def __init__(self):
        self.programs, self.compiled = {}, []

    known = (80, 90)

    def getSupportedArchs(self):  # noqa: N802
        """Return what it compiles for."""
        return self.known

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
        target = "sm_90" if 90 in self.known else f"compute_{self.known[-1]}"
        assert f"--gpu-architecture={target}" in options
        self.compiled.append(self.programs[program][1])

    def getLoweredName(self, _program, name):  # noqa: N802
        """Return a name without the characters that a file's cannot have."""
        return "_Z" + name.encode().hex()

    def getCUBIN(self, program):  # noqa: N802
        """Return the machine code."""
        assert 90 in self.known
        return self.programs[program][0].encode()

    def getPTX(self, program):  # noqa: N802
        """Return the PTX."""
        assert 90 not in self.known
        return self.programs[program][0].encode()

    def getProgramLog(self, _program):  # noqa: N802
        """Return nothing."""
        return ""

    def destroyProgram(self, program):  # noqa: N802
        """Forget a program."""
        del self.programs[program]
        self.programs[program] = None


class CublasLt:
    """cuBLASLt. Descriptors are kept by number, as the library keeps them by address.

    It has three algorithms for every product. The first, which it takes for the best, sums in two halves where there
    are few columns: its bits are others there. ``used`` has the algorithms of the products that were asked for.
    """

    FEW = 64

    def __init__(self):
        self.made, self.used, self.handles = [None], [], {}

    def _new(self, made, *facts):
        self.made.append(facts)
        made._obj.value = len(self.made) - 1
        return 0

    def cublasLtCreate(self, made):  # noqa: N802
        """Make a handle for the current GPU."""
        return self._new(made, "handle", current_device())

    def cublasLtMatmulDescCreate(self, made, compute, scale):  # noqa: N802
        """Describe an operation."""
        assert (compute.value, scale.value) == (68, 0)
        return self._new(made, "operation")

    def cublasLtMatrixLayoutCreate(self, made, kind, rows, columns, leading):  # noqa: N802
        """Describe a matrix."""
        assert leading.value >= rows.value
        return self._new(made, kind.value, rows.value, columns.value, leading.value)

    def cublasLtMatmulPreferenceCreate(self, made):  # noqa: N802
        """Make a preference."""
        return self._new(made, {})

    def cublasLtMatmulPreferenceSetAttribute(self, preference, key, value, size):  # noqa: N802
        """Set what is preferred."""
        assert size.value == ctypes.sizeof(value._obj)
        self.made[preference.value][0][key] = value._obj.value
        return 0

    def cublasLtMatmulPreferenceDestroy(self, preference):  # noqa: N802
        """Forget a preference."""
        self.made[preference.value] = None
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, _a, _b, c, d, preference, most, found, count):  # noqa: N802
        """Return all algorithms."""
        assert self.made[handle.value] == ("handle", current_device())
        assert self.made[operation.value] == ("operation",)
        assert self.made[c.value] == self.made[d.value]
        preferred = self.made[preference.value][0]
        assert preferred[1] == cublaslt.WORKSPACE_BYTES
        assert preferred[3] == 0
        assert {preferred[key] for key in (5, 6, 7, 8)} <= {2**i for i in range(9)}
        count._obj.value = min(3, most)
        for number in range(min(3, most)):
            found._obj[number].algorithm.data[0] = number + 1
        return 0

    def cublasLtMatmul(self, handle, operation, alpha, a_at, a, b_at, b, beta, c_at, c, d_at, d, algorithm, *rest):  # noqa: N802
        """Compute D = alpha A B + beta C."""
        workspace, size, stream = rest
        assert self.made[handle.value] == ("handle", current_device())
        assert self.made[operation.value] == ("operation",)
        assert Stream.by_address[stream.value] is Stream.current()
        assert workspace.value
        assert size.value == cublaslt.WORKSPACE_BYTES
        assert (c_at.value, c.value) == (d_at.value, d.value)
        a, b, c = (self._matrix(where, self.made[what.value]) for where, what in ((a_at, a), (b_at, b), (c_at, c)))
        storage = TYPES[self.made[d.value][0]]
        number = algorithm._obj.data[0]
        factors = alpha._obj.value, beta._obj.value
        do_or_record(lambda: self._multiply(number, *factors, a, b, c, storage))
        return 0

    def _multiply(self, number, alpha, beta, a, b, c, storage):
        self.used.append(number)
        left, right = storage.widen(a), storage.widen(b)
        if number == 1 and b.shape[1] < self.FEW:
            middle = len(b) // 2
            y = left[:, :middle] @ right[:middle] + left[:, middle:] @ right[middle:]
        else:
            y = (left.astype(np.float64) @ right).astype(np.float32)
        y *= alpha
        if beta:  # C may be NaN otherwise
            y += beta * storage.widen(c)
        with np.errstate(over="ignore", invalid="ignore"):
            c[...] = storage.narrow(y) if storage.name == "bfloat16" else y.astype(storage.dtype)

    @staticmethod
    def _matrix(pointer, facts):
        kind, rows, columns, leading = facts
        storage = TYPES[kind]
        count = (columns - 1) * leading + rows
        numbers = (ctypes.c_char * (count * storage.dtype.itemsize)).from_address(pointer.value)
        flat = np.frombuffer(numbers, storage.dtype)
        strides = (storage.dtype.itemsize, leading * storage.dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)


def install(monkeypatch, executor):
    """Put the fake in the place of CuPy, and of cuBLASLt; return it."""
    nvrtc = Nvrtc()
    library = CublasLt()
    monkeypatch.setattr(cublaslt, "open_library", lambda: library)
    monkeypatch.setattr(products, "_REFERENCE_ROWS", 128)  # the executor takes long for 4,096
    HANDLES_MADE.clear()

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": 227 * 1024}  # noqa: RUF012
        compute_capability = "90"

        def __init__(self, number):
            assert 0 <= number < GPUS
            self.number, self.before = number, []

        def __enter__(self):
            self.before.append(current_device())
            current.device = self.number
            return self

        def __exit__(self, *_):
            current.device = self.before.pop()

    class RawModule:
        def __init__(self, path):
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                self.file = file.read()

        def get_function(self, name):
            return Function(executor, Kernel(self.file, bytes.fromhex(name.removeprefix("_Z")).decode()))

    class CudaError(RuntimeError):
        status = 700

    DEVICES[:] = map(Device, range(GPUS))
    null_streams = [Stream() for _ in range(GPUS)]
    cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: GPUS,
            CUDARuntimeError=CudaError,
            deviceSynchronize=lambda: None,
            memGetInfo=lambda: (1 << 30, 2 << 30),
            profilerStart=lambda: None,
            profilerStop=lambda: None,
        ),
        driver=types.SimpleNamespace(CUDADriverError=CudaError),
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
        get_current_stream=lambda: Stream.current() or null_streams[current_device()],
        alloc_pinned_memory=PinnedMemory,
        device=types.SimpleNamespace(get_cublas_handle=get_cublas_handle),
        nvrtc=nvrtc,
    )

    def as_array(host):
        host = np.asarray(host)
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
    cupy.asnumpy, cupy.cublaslt = as_numpy, library
    cupy.zeros = lambda shape: as_array(np.zeros(shape))
    cupy.empty_like, cupy.matmul = (lambda array: new(array.shape, array.dtype)), np.matmul
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    cupy.get_default_memory_pool = lambda: pool
    for name in ("sqrt", "square", "maximum", "float64", "concatenate", "stack", "atleast_2d", "isfinite"):
        setattr(cupy, name, getattr(np, name))
    for name, module in {"cupy": cupy, "cupy.cuda": cuda}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cupy
