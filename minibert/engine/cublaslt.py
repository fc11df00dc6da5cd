"""NVIDIA's cuBLASLt through ctypes: it lists the algorithms for a matrix product, and computes the product.

CuPy has no binding of it, and CuPy's cuBLAS cannot be recorded in a CUDA graph. A handle of cuBLASLt belongs to one
GPU. All threads can use it, because each call has the stream and the workspace as arguments.

The constants are those of ``cublasLt.h``. https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api describes them.
"""

import ctypes
from typing import Any, NamedTuple

from minibert.errors import DeviceError

#: cublasComputeType_t and cudaDataType_t: sums and factors are float32 for all types of matrices.
_COMPUTE_32F, _TYPE_32F = 68, 0
#: cublasLtMatmulPreferenceAttributes_t: bytes of workspace, kinds of reduction, and the alignment of A, B, C and D.
_WORKSPACE, _REDUCTION, _ALIGNMENTS = 1, 3, (5, 6, 7, 8)
#: cublasLtReductionScheme_t: no output's sum is split over blocks.
_NO_REDUCTION = 0
#: The largest alignment that an algorithm may require, in bytes.
MOST_ALIGNMENT = 256

#: The scratch memory of a product, in bytes.
WORKSPACE_BYTES = 32 << 20


class Product(NamedTuple):
    """A product of matrices that are stored by columns: ``C (m, n) = A (m, k) B (k, n)``, or the same added to C.

    Attributes:
        m: Rows of A and C.
        n: Columns of B and C.
        k: Columns of A, rows of B.
        lda: Distance between columns of A, in numbers.
        ldb: The same for B.
        ldc: The same for C.
        kind: The cudaDataType_t of all three.
        alignment: The alignment of all three addresses, in bytes, at most :data:`MOST_ALIGNMENT`.
        add: Whether the product is added to C.
    """

    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    kind: int
    alignment: int
    add: bool


class Algorithm(ctypes.Structure):
    """A cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Found(ctypes.Structure):
    """A cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class _Described(NamedTuple):
    """The library's descriptors of a product: of the operation, and of A, B and C."""

    operation: ctypes.c_void_p
    a: ctypes.c_void_p
    b: ctypes.c_void_p
    c: ctypes.c_void_p


class CublasLt:
    """The library on one GPU. Threads may share it."""

    def __init__(self) -> None:
        """Open the library on the current GPU.

        Raises:
            DeviceError: The library is missing or cannot be used.
        """
        self._library = open_library()
        self._handle = ctypes.c_void_p()
        self._described: dict[Product, _Described] = {}
        self._one, self._zero = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))
        self._matmul = self._library.cublasLtMatmul
        self._call("cublasLtCreate", ctypes.byref(self._handle))

    def algorithms(self, product: Product, most: int) -> list[Algorithm]:
        """Return up to ``most`` algorithms for a product. The library's estimate of the fastest one is first.

        None of them splits a sum and adds the parts in a random order.

        Raises:
            DeviceError: The library has no algorithm.
        """
        described = self._describe(product)
        preference = self._new("cublasLtMatmulPreferenceCreate")
        attributes: dict[int, Any] = {_WORKSPACE: ctypes.c_size_t(WORKSPACE_BYTES)}
        attributes[_REDUCTION] = ctypes.c_uint32(_NO_REDUCTION)
        attributes |= {key: ctypes.c_uint32(product.alignment) for key in _ALIGNMENTS}
        for key, value in attributes.items():
            size = ctypes.c_size_t(ctypes.sizeof(value))
            self._call("cublasLtMatmulPreferenceSetAttribute", preference, key, ctypes.byref(value), size)
        found, count = (_Found * most)(), ctypes.c_int()
        layouts = (described.a, described.b, described.c, described.c)
        results = (most, ctypes.byref(found), ctypes.byref(count))
        status = self._library.cublasLtMatmulAlgoGetHeuristic(
            self._handle, described.operation, *layouts, preference, *results
        )
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        if status or not count.value:
            raise DeviceError(f"cuBLASLt has no algorithm for {product}; cublasLtMatmulAlgoGetHeuristic gave {status}.")
        return [Algorithm.from_buffer_copy(each.algorithm) for each in found[: count.value] if not each.state]

    def multiply(
        self, product: Product, algorithm: Algorithm, pointers: tuple[int, int, int], stream: int, workspace: int
    ) -> None:
        """Launch a product on a stream.

        Args:
            product: The product.
            algorithm: One of :meth:`algorithms`.
            pointers: The addresses of A, B and C.
            stream: The stream's address.
            workspace: The address of :data:`WORKSPACE_BYTES` of scratch memory for this stream.

        Raises:
            DeviceError: The library reports an error.
        """
        operation, a, b, c = self._described.get(product) or self._describe(product)
        of_a, of_b, of_c = map(ctypes.c_void_p, pointers)
        factors = self._one, self._one if product.add else self._zero
        scratch = ctypes.c_void_p(workspace), ctypes.c_size_t(WORKSPACE_BYTES)
        operands = (factors[0], of_a, a, of_b, b, factors[1], of_c, c, of_c, c)
        chosen = ctypes.byref(algorithm)
        status = self._matmul(self._handle, operation, *operands, chosen, *scratch, ctypes.c_void_p(stream))
        if status:
            raise DeviceError(f"cublasLtMatmul failed with status {status} (a cublasStatus_t) on {product}.")

    def _describe(self, product: Product) -> _Described:
        """Return a product's descriptors. They are never freed: a program has a few hundred of some hundred bytes."""
        described = self._described.get(product)
        if described is None:
            types = ctypes.c_int(_COMPUTE_32F), ctypes.c_int(_TYPE_32F)
            described = self._described[product] = _Described(
                self._new("cublasLtMatmulDescCreate", *types),
                self._layout(product.kind, product.m, product.k, product.lda),
                self._layout(product.kind, product.k, product.n, product.ldb),
                self._layout(product.kind, product.m, product.n, product.ldc),
            )
        return described

    def _layout(self, kind: int, rows: int, columns: int, leading: int) -> ctypes.c_void_p:
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(leading)
        return self._new("cublasLtMatrixLayoutCreate", ctypes.c_int(kind), *sizes)

    def _new(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """Return the object that a function of the library creates."""
        made = ctypes.c_void_p()
        self._call(function, ctypes.byref(made), *arguments)
        return made

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise DeviceError(f"{function} failed with status {status} (a cublasStatus_t).")


def open_library() -> Any:
    """Return the shared library. It is searched where CuPy searches its libraries: wheels, conda, the system.

    Raises:
        DeviceError: There is no such library.
    """
    try:
        from cuda import pathfinder

        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f'device="cuda" needs NVIDIA\'s cuBLASLt, which cannot be loaded: {error}. It comes with '
            'pip install "minibert[cuda13]" or "minibert[cuda12]". Or use device="cpu".'
        ) from error
