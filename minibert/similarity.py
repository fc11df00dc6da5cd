"""Similarity functions between vectors, with the names and definitions of sentence-transformers.

Each function takes ``(n, D)`` and ``(m, D)`` and returns ``(n, m)`` scores. Larger means more similar; distances are
negated. A single vector counts as one row. Scores are float32, or float64 if one side is float64. If one side is a CuPy
array, the scores are computed on its GPU and stay there.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minibert import ops
from minibert.arrays import array_namespace
from minibert.typing import Array, Float, Num

Vectors = Num[Array, "n D"] | Num[Array, "D"] | Sequence[Num[Array, "D"]]

#: Number of elements of the largest temporary array in the distance functions.
_BLOCK = 1 << 22


def cosine(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the cosine of every row of ``a`` with every row of ``b``; a zero row gives 0."""
    return ops.l2_normalize(a) @ ops.l2_normalize(b).T


def dot(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the dot product of every row of ``a`` with every row of ``b``."""
    return a @ b.T


def euclidean(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the negative Euclidean distance of every row of ``a`` to every row of ``b``.

    It is computed from the differences. ``|a|^2 + |b|^2 - 2ab`` has cancellation: equal rows would get a distance.
    """
    return _by_difference(a, b, _negative_length)


def manhattan(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the negative Manhattan distance of every row of ``a`` to every row of ``b``."""
    return _by_difference(a, b, _negative_sum)


#: The functions by ``similarity_fn_name``.
SIMILARITY: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": euclidean,
    "manhattan": manhattan,
}


def similarity(name: str, a: Vectors, b: Vectors) -> Float[Array, "n m"]:
    """Return the similarity called ``name`` of every row of ``a`` with every row of ``b``."""
    function = SIMILARITY[check_name(name)]
    with _where(a, b):
        return function(*_same_width(a, b))


def similarity_pairwise(name: str, a: Vectors, b: Vectors) -> Float[Array, "n"]:
    """Return the similarity called ``name`` of each row of ``a`` with the same row of ``b``."""
    check_name(name)
    with _where(a, b):
        left, right = _same_width(a, b)
        if len(left) != len(right):
            raise ValueError(f"pairwise similarity needs as many rows on both sides; got {len(left)} and {len(right)}.")
        if name == "cosine":
            return _dot_products(ops.l2_normalize(left), ops.l2_normalize(right))
        if name == "dot":
            return _dot_products(left, right)
        return _negative_length(left - right) if name == "euclidean" else _negative_sum(left - right)


def check_name(name: str) -> str:
    """Return ``name`` if it names a similarity function, else raise ValueError."""
    if name not in SIMILARITY:
        raise ValueError(f"similarity_fn_name must be one of {', '.join(SIMILARITY)}; it is {name!r}.")
    return name


def _same_width(a: Vectors, b: Vectors) -> tuple[Array, Array]:
    """Return both as float32 matrices of the same width."""
    xp = array_namespace(_on_gpu(a, b))
    left, right = _matrix(a, xp), _matrix(b, xp)
    if 0 in {left.size, right.size}:  # an empty list takes the width of the other side
        left, right = _as_wide(left, right), _as_wide(right, left)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"both sides must have vectors of the same width; got {left.shape[1]} and {right.shape[1]}.")
    return left, right


def _as_wide(matrix: Array, other: Array) -> Array:
    return matrix.reshape(0, other.shape[1]) if matrix.shape == (0, 0) else matrix


def _on_gpu(*sides: Any) -> Any:
    """Return the first CuPy array among the sides, or among the first vectors of lists; None if there is none."""
    for side in sides:
        first = side[0] if isinstance(side, list | tuple) and len(side) else side
        if array_namespace(first) is not np:
            return first
    return None


def _where(*sides: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which this thread uses the GPU of the sides, if there is one."""
    array = _on_gpu(*sides)
    where: contextlib.AbstractContextManager[Any] = contextlib.nullcontext() if array is None else array.device
    return where


def _dot_products(a: Array, b: Array) -> Float[Array, "n"]:
    xp = array_namespace(a)
    return np.vecdot(a, b) if xp is np else (a * b).sum(axis=-1)


def _matrix(vectors: Vectors, xp: Any) -> Float[Array, "n D"]:
    if xp is not np and isinstance(vectors, list | tuple) and len(vectors):  # CuPy cannot convert a list of arrays
        vectors = xp.stack([xp.asarray(vector) for vector in vectors])
    matrix = xp.asarray(vectors)
    if matrix.shape == (0,):
        return xp.zeros((0, 0), np.float32)
    matrix = xp.atleast_2d(matrix)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise ValueError(f"similarity needs an array of numbers, (n, D) or (D,); got {matrix.dtype} {matrix.shape}.")
    return matrix.astype(np.float64 if matrix.dtype == np.float64 else np.float32, copy=False)


def _negative_length(difference: Array) -> Array:
    return -np.sqrt(np.square(difference).sum(axis=-1))


def _negative_sum(difference: Array) -> Array:
    return -np.abs(difference).sum(axis=-1)


def _by_difference(a: Array, b: Array, reduce: Callable[[Array], Array]) -> Array:
    """Return ``reduce`` of all differences, a block of rows at a time."""
    rows = max(1, _BLOCK // max(1, b.size))
    blocks = [reduce(a[i : i + rows, None, :] - b[None, :, :]) for i in range(0, len(a), rows)]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(b)), a.dtype)
