"""An NVIDIA GPU through CuPy: memory, matrix products, and kernels that are compiled once and cached."""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert.engine.cublaslt import MOST_ALIGNMENT, WORKSPACE_BYTES, CublasLt, Product
from minibert.engine.fused_cuda import Kernel, Storage
from minibert.engine.products import Products
from minibert.errors import DeviceError
from minibert.typing import Array, Bool, Int

logger = logging.getLogger("minibert")

#: The oldest compute capabilities: Turing is the first with the tensor-core instructions of attention.cu, and Ampere is
#: the first with bfloat16.
_OLDEST, _OLDEST_FOR_BFLOAT16 = 75, 80
#: The cudaDataType_t of each storage type.
_CUDA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
#: cudaErrorMemoryAllocation, and CUDA_ERROR_OUT_OF_MEMORY.
_OUT_OF_MEMORY = 2

#: The folder of the kernels' sources, in the wheel and in a checkout.
_FOLDERS = (Path(__file__).parents[1] / "_kernels" / "cuda", Path(__file__).parents[2] / "kernels" / "cuda")
#: The default --fmad=true is kept: a product and a sum are rounded once.
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


def kernel_folder() -> Path:
    """Return the folder of the kernels' sources."""
    return next(folder for folder in _FOLDERS if folder.is_dir())


def read_source(file: str) -> str:
    """Return a kernel's source. The text of each of our own headers replaces its first ``#include``."""
    folder = kernel_folder()
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (folder / name).read_text("utf-8").replace("#pragma once\n", "")
        return re.sub(r'#include "(\w+\.cuh)"\n', lambda include: expand(include[1]), text)

    return expand(f"{file}.cu")


class Target(NamedTuple):
    """A compilation target.

    Attributes:
        option: NVRTC's name of the target, such as ``sm_90`` or ``compute_90``.
        kind: ``"cubin"`` (machine code), or ``"ptx"``, which the driver compiles to machine code.
    """

    option: str
    kind: str


def target_for(architecture: int) -> Target:
    """Return the target for a GPU's compute capability, such as 90. It is PTX if the GPU is newer than NVRTC.

    Raises:
        DeviceError: NVRTC can compile neither for this compute capability nor for an older one.
    """
    from cupy.cuda import nvrtc

    known = nvrtc.getSupportedArchs()
    if architecture in known:
        return Target(f"sm_{architecture}", "cubin")
    older = [each for each in known if each < architecture]
    if not older:
        version = ".".join(map(str, nvrtc.getVersion()))
        raise DeviceError(
            f"NVRTC {version} must compile for sm_{architecture} or older; it knows sm_{min(known)} to "
            f'sm_{max(known)}. Install an older CUDA, such as pip install "minibert[cuda12]".'
        )
    return Target(f"compute_{max(older)}", "ptx")


def compile_kernels(
    file: str, names: Sequence[str], architecture: int, options: tuple[str, ...] = ()
) -> tuple[list[str], bytes, str]:
    """Compile kernels of a file, and return their linker names, their code, and NVRTC's log.

    It needs CuPy and NVRTC, but no GPU.

    Args:
        file: The file in kernels/, without the suffix.
        names: The names of the kernels, with template arguments.
        architecture: The compute capability to compile for, such as 90; see :func:`target_for`.
        options: More options of NVRTC.

    Raises:
        DeviceError: NVRTC cannot compile the kernels, or not for this architecture.
    """
    from cupy.cuda import nvrtc

    target = target_for(architecture)
    program = nvrtc.createProgram(read_source(file), f"{file}.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture={target.option}", *_OPTIONS, *options))
        except nvrtc.NVRTCError as error:
            raise DeviceError(
                f"NVRTC {'.'.join(map(str, nvrtc.getVersion()))} cannot compile {', '.join(names)} for "
                f"{target.option}: {error}. {nvrtc.getProgramLog(program)}"
            ) from error
        lowered = [nvrtc.getLoweredName(program, name) for name in names]
        code = nvrtc.getCUBIN(program) if target.kind == "cubin" else nvrtc.getPTX(program)
        return lowered, code, nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def cached_kernel(kernel: Kernel, architecture: int, folder: Path) -> tuple[str, Path]:
    """Return a kernel's linker name and the file of its code. Compile the kernel only if there is no such file."""
    from cupy.cuda import nvrtc

    target = target_for(architecture)
    key = (read_source(kernel.file), kernel.name, target, _OPTIONS, nvrtc.getVersion())
    stem = f"minibert-{hashlib.sha256(repr(key).encode()).hexdigest()[:40]}"
    known = sorted(folder.glob(f"{stem}.*.{target.kind}"))
    if known:
        return known[0].name.split(".")[1], known[0]
    (lowered,), code, _ = compile_kernels(kernel.file, [kernel.name], architecture)
    path = folder / f"{stem}.{lowered}.{target.kind}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="minibert-part-") as part:  # always deleted at the end
        (Path(part) / path.name).write_bytes(code)
        (Path(part) / path.name).replace(path)  # atomic: another process may read it
    return lowered, path


def cache_folder() -> Path:
    """Return CuPy's folder of compiled kernels. minibert uses it, too."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


class Stream(NamedTuple):
    """A stream of a GPU, and the scratch memory of its matrix products.

    Attributes:
        stream: CuPy's stream.
        workspace: Scratch memory for the products on this stream.
    """

    stream: Any
    workspace: Any


class CudaDevice:
    """A GPU.

    It raises MemoryError when memory runs out, and :class:`~minibert.errors.DeviceError` for other CUDA errors.

    Attributes:
        number: The GPU's number.
        architecture: Its compute capability, as in ``sm_90``.
        shared_memory: The largest shared memory of a block, in bytes.
    """

    def __init__(self, number: int, storage: Storage) -> None:
        """Open a GPU.

        Raises:
            DeviceError: The GPU, CuPy or the driver is missing, or the GPU is too old for ``storage``.
        """
        try:
            import cupy
        except ImportError as error:
            raise DeviceError(
                f'device="cuda" needs CuPy, which cannot be imported ({error}). Install it for your CUDA version, the '
                'one that nvidia-smi shows: pip install "minibert[cuda13]" or "minibert[cuda12]". Or use device="cpu".'
            ) from error
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(
                f'device="cuda" needs an NVIDIA GPU and its driver; CuPy finds none: {error}. Does nvidia-smi show '
                'one? Is CuPy for a newer CUDA than the driver? Or use device="cpu".'
            ) from error
        if number >= count:
            raise DeviceError(f'device="cuda:{number}" must be one of the {count} GPUs here, from cuda:0 on.')
        self.number = number
        self._cupy = cupy
        self.architecture = int(cupy.cuda.Device(number).compute_capability)
        oldest = _OLDEST_FOR_BFLOAT16 if storage.name == "bfloat16" else _OLDEST
        if self.architecture < oldest:
            raise DeviceError(
                f'{storage.name} needs a GPU of compute capability {oldest / 10} or higher; "cuda:{number}" has '
                f"{self.architecture / 10}. {'Use float16.' if oldest > _OLDEST else 'Use the CPU.'}"
            )
        self.shared_memory = int(cupy.cuda.Device(number).attributes["MaxSharedMemoryPerBlockOptin"])
        self._functions: dict[Kernel, Any] = {}
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        with self._context():
            self._products = Products(CublasLt(), self)

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        """Make this GPU the current device of this thread, and convert CUDA's errors to minibert's."""
        cuda = self._cupy.cuda
        try:
            with cuda.Device(self.number):
                yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if error.status == _OUT_OF_MEMORY:
                raise MemoryError(f"cuda:{self.number} has no more memory: {error}") from error
            raise DeviceError(
                f'"cuda:{self.number}" failed: {error}. After such an error a process cannot use the GPU any more: '
                "start a new one."
            ) from error

    def new_stream(self) -> Stream:
        """Return a new stream. Reuse streams: CuPy reserves freed memory for the stream that had it."""
        with self._context():
            stream = self._cupy.cuda.Stream(non_blocking=True)
            with stream:
                return Stream(stream, self._cupy.empty(WORKSPACE_BYTES, np.uint8))

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Make ``stream`` the current stream of this thread. Wait for it at the end."""
        with self._context(), stream.stream:
            self._of_thread.stream, self._of_thread.pinned = stream, []
            try:
                yield
            finally:
                stream.stream.synchronize()
                self._of_thread.stream, self._of_thread.pinned = None, []

    def settle(self) -> None:
        """Wait until the work of this thread is done, so that other streams may use its results."""
        with self._context():
            self._cupy.cuda.get_current_stream().synchronize()

    def free(self) -> None:
        """Return unused memory to the GPU."""
        with self._context():
            self._cupy.get_default_memory_pool().free_all_blocks()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a new array. Raise MemoryError if it does not fit (CuPy's OutOfMemoryError is a MemoryError)."""
        with self._context():
            return self._cupy.empty(shape, dtype)

    def upload(self, host: Array) -> Any:
        """Return a copy of a host array on the GPU. The host array may change when this returns."""
        array = self._cupy.empty(host.shape, host.dtype)
        self.write(array, host)
        return array

    def write(self, array: Any, host: Array) -> None:
        """Copy a host array to an array on the GPU. The host array may change when this returns.

        The copy uses pinned memory, which the GPU reads without the host.
        """
        pinned = self._cupy.cuda.alloc_pinned_memory(max(host.nbytes, 1))
        staged = np.frombuffer(pinned, host.dtype, host.size).reshape(host.shape)
        staged[...] = host
        self._of_thread.pinned.append(pinned)  # keep it until the copy is done
        array.set(staged, stream=self._of_thread.stream.stream)

    def place(self, host: Array) -> Any:
        """Return a copy of a host array on the GPU. After :meth:`settle`, all streams may use it."""
        with self._context():
            return self._cupy.asarray(host)

    def download(self, array: Any) -> Array:
        """Wait for the stream, and return a copy of an array on the host."""
        with self._context():
            host: Array = self._cupy.asnumpy(array)
        self._of_thread.pinned = []
        return host

    def spread(self, array: Any, rows: Int[Array, "n"]) -> Any:
        """Return the rows of an array with these numbers. A number may occur several times."""
        with self._context():
            spread = self._cupy.take(array, self._cupy.asarray(rows), axis=0)
            self._cupy.cuda.get_current_stream().synchronize()
            return spread

    def finite_rows(self, array: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array have neither NaN nor infinity."""
        with self._context():
            finite: Array = self._cupy.asnumpy(self._cupy.isfinite(array).all(axis=1))
            return finite

    def launch(
        self, kernel: Kernel, grid: tuple[int, int], threads: int, arguments: tuple[Any, ...], shared: int
    ) -> None:
        """Run a kernel."""
        self._function(kernel)(grid, (threads,), arguments, shared_mem=shared)

    def seconds(self, call: Callable[[], None]) -> float:
        """Return the time in seconds that the GPU needs for the work of ``call`` on this thread's stream."""
        cuda = self._cupy.cuda
        start, end = cuda.Event(), cuda.Event()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) / 1e3

    def matmul(self, x: Any, weight: Any, out: Any, storage: Storage, *, add: bool) -> None:
        """Write ``x @ weight`` to ``out``, or add it to ``out``. Sums are in float32.

        cuBLASLt stores matrices by columns, so it sees transposed matrices: ``out^T = weight^T x^T``.
        """
        itemsize = storage.dtype.itemsize
        (rows, inner), outputs = x.shape, weight.shape[1]
        pointers = weight.data.ptr, x.data.ptr, out.data.ptr
        together = pointers[0] | pointers[1] | pointers[2]
        product = Product(
            m=outputs,
            n=rows,
            k=inner,
            lda=weight.strides[0] // itemsize,
            ldb=x.strides[0] // itemsize,
            ldc=out.strides[0] // itemsize,
            kind=_CUDA_TYPES[storage.name],
            alignment=min(together & -together, MOST_ALIGNMENT),  # the lowest set bit
            add=add,
        )
        stream, workspace = self._of_thread.stream
        self._products.multiply(product, storage, pointers, stream.ptr, workspace.data.ptr)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record ``call`` as a CUDA graph, and return a function that launches this graph on this thread's stream.

        ``call`` may launch kernels and multiply matrices, in memory that stays allocated. It must not allocate or copy
        arrays.
        """
        stream = self._of_thread.stream.stream
        stream.begin_capture()
        try:
            call()
        finally:
            graph = stream.end_capture()
        return lambda: graph.launch(stream)

    def _function(self, kernel: Kernel) -> Any:
        """Return the loaded function of a kernel."""
        function = self._functions.get(kernel)
        if function is None:
            with self._lock:
                function = self._functions.get(kernel) or self._load(kernel)
                self._functions[kernel] = function
        return function

    def _load(self, kernel: Kernel) -> Any:
        try:
            lowered, path = cached_kernel(kernel, self.architecture, cache_folder())
        except OSError as error:
            logger.warning("compiled kernels are not kept: %s", error)
            with tempfile.TemporaryDirectory() as folder:
                lowered, path = cached_kernel(kernel, self.architecture, Path(folder))
                return self._function_of(path, lowered)
        return self._function_of(path, lowered)

    def _function_of(self, path: Path, lowered: str) -> Any:
        function = self._cupy.RawModule(path=str(path)).get_function(lowered)
        # The largest tile of attention.cu needs all of it. Kernels that need less are not slower with this limit.
        function.max_dynamic_shared_size_bytes = self.shared_memory - function.shared_size_bytes
        return function
