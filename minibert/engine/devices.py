"""The engines: the threads of a CPU, or the streams of a GPU."""

import contextlib
import logging
import os
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from minibert.config import BertConfig
from minibert.engine import native
from minibert.engine.arithmetic import Arithmetic
from minibert.engine.batches import Batch
from minibert.engine.cpu_engines import CpuEngine, NativeEngine
from minibert.engine.fused import Fused
from minibert.engine.packed import PackedParams, Weights
from minibert.engine.precisions import compute_dtype
from minibert.engine.rows import RowRule
from minibert.errors import DeviceError
from minibert.typing import Array, Bool, DType, Int

logger = logging.getLogger("minibert")

#: The environment variable that names the kernels of a CPU.
_KERNELS = "MINIBERT_KERNELS"


class Engine(Protocol):
    """An engine computes the vectors of an encoder.

    Attributes:
        name: The user's name of the device.
        kernels: What computes: ``"numpy"``, the instruction set of native kernels, or ``"cuda"``.
        dtype: The precision of results.
        precision: The name of the precision of weights and hidden states.
        threads: The default number of threads.
        efficient_tokens: Number of tokens of an efficient batch.
        arithmetic: The arithmetic of modules on vectors of :meth:`empty`.
        host_arithmetic: The arithmetic of modules on features in host memory.
    """

    name: str
    kernels: str
    dtype: np.dtype[Any]
    precision: str
    threads: int
    efficient_tokens: int

    @property
    def arithmetic(self) -> Arithmetic: ...  # noqa: D102
    @property
    def host_arithmetic(self) -> Arithmetic: ...  # noqa: D102

    def load(self, weights: Weights, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the parameters of a BertModel on the device, in its storage types, and the row rule for packing.

        Raises:
            ModelFileError: The parameters cannot be used.
        """
        ...

    def portable(self, params: PackedParams, config: BertConfig) -> PackedParams:
        """Return parameters from :meth:`load` as numpy arrays, which another machine can use after unpickling.

        Raises:
            TypeError: The parameters cannot leave the device.
        """
        ...

    def adopt(self, params: PackedParams, config: BertConfig) -> tuple[PackedParams, RowRule]:
        """Return the results of :meth:`load` for parameters from :meth:`portable`."""
        ...

    def empty(self, texts: int, width: int) -> Any:
        """Return an array for vectors on the device."""
        ...

    def spread(self, vectors: Any, rows: Int[Array, "n"]) -> Any:
        """Return the rows of an array with these numbers. A number may occur several times."""
        ...

    def finite_rows(self, vectors: Any) -> Bool[Array, "n"]:
        """Return, on the host, which rows of an array of :meth:`empty` have neither NaN nor infinity."""
        ...

    def batch_tokens(self, config: BertConfig) -> int:
        """Return the default number of tokens that a thread computes at a time."""
        ...

    def threads_for(self, batch: Batch, rule: RowRule, most: int) -> int:
        """Return how many threads, at most ``most``, each operation shall use on a batch that is computed alone."""
        ...

    def worker(
        self, cancelled: Callable[[], bool] = lambda: False, *, threads: int = 1
    ) -> contextlib.AbstractContextManager[Fused]:
        """Provide the operations and the memory for one thread.

        Args:
            cancelled: When it returns true, the operations raise InterruptedError.
            threads: The number of threads that one operation uses.
        """
        ...

    def close(self) -> None:
        """Release the resources that are kept between calls. The next call creates them again."""
        ...


def open_engine(device: object, dtype: DType | str, kernels: str | None = None) -> Engine:
    """Return the engine for ``device``: ``"cpu"`` or None, ``"cuda"``, or ``"cuda:1"``.

    None means the CPU, with or without a GPU. So the results of a program do not depend on whether there is a GPU.
    Reduced precision is a GPU's default, so a program has it only if it asks for the GPU.

    Args:
        device: The device.
        dtype: The precision.
        kernels: What computes on a CPU: ``"numpy"``, or the instruction set of native kernels. None is the value of
            ``MINIBERT_KERNELS``, or else the best that this machine has.

    Raises:
        DeviceError: The device or the kernels are unknown or cannot be used.
        ValueError: The device or the kernels cannot compute in ``dtype``, or there are kernels for a GPU.
    """
    if device is None or device == "cpu":
        return _open_cpu(dtype, kernels)
    number = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if number is None:
        raise DeviceError(f'device must be "cpu", "cuda", "cuda:" and a number, or None; it is {device!r}.')
    if kernels is not None:
        raise ValueError(f"kernels must be None on a GPU, which has its own; it is {kernels!r}. Leave it out.")
    from minibert.engine.cuda_engine import CudaEngine

    return CudaEngine(int(number[1] or 0), dtype)


def _open_cpu(dtype: DType | str, kernels: str | None) -> Engine:
    """Return the engine of the CPU. Only numpy computes in float64."""
    chosen = kernels if kernels is not None else os.environ.get(_KERNELS) or None
    if chosen is not None and (not isinstance(chosen, str) or chosen not in {native.NUMPY, *native.NAMES}):
        source = _KERNELS if kernels is None else "kernels"
        raise DeviceError(
            f"{source} must be one of {', '.join((native.NUMPY, *native.NAMES))}; it is {chosen!r}. "
            "Leave it out for the best that this machine has."
        )
    precision = compute_dtype(dtype)
    if precision == np.float64 and kernels not in {None, native.NUMPY}:
        raise ValueError(f'kernels must be "numpy" for float64: native kernels have float32; it is {kernels!r}.')
    library = None
    if chosen != native.NUMPY and precision == np.float32:
        library = native.open_library(chosen)
    engine = CpuEngine(precision) if library is None else NativeEngine(library)
    logger.debug("the CPU computes in %s, by %s", engine.precision, described(engine.kernels))
    return engine


def described(kernels: str) -> str:
    """Return the name of a CPU's kernels for people."""
    return kernels if kernels == native.NUMPY else f"native kernels ({kernels})"
