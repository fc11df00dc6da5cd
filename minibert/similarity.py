"""Similarity functions between vectors, as sentence-transformers names and defines them.

Each function takes ``(n, D)`` and ``(m, D)`` and returns ``(n, m)`` scores, larger meaning more alike; distances are
returned as their negatives. A single vector stands for one row. Scores are float32, or float64 where a side is.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minibert import ops
from minibert.typing import Array, Float, Num

Vectors = Num[Array, "n D"] | Num[Array, "D"] | Sequence[Num[Array, "D"]]

#: Elements of the largest temporary that the distance functions make at a time.
_BLOCK = 1 << 22


def cosine(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the cosine of every row of ``a`` with every row of ``b``; a zero row gives 0."""
    return ops.l2_normalize(a) @ ops.l2_normalize(b).T


def dot(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the dot product of every row of ``a`` with every row of ``b``."""
    return a @ b.T


def euclidean(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the negative Euclidean distance of every row of ``a`` to every row of ``b``.

    From the differences themselves: ``|a|^2 + |b|^2 - 2ab`` cancels, and gives equal rows a distance.
    """
    return _by_difference(a, b, _negative_length)


def manhattan(a: Array, b: Array) -> Float[Array, "n m"]:
    """Return the negative Manhattan distance of every row of ``a`` to every row of ``b``."""
    return _by_difference(a, b, _negative_sum)


#: By the names of ``similarity_fn_name``.
SIMILARITY: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": euclidean,
    "manhattan": manhattan,
}


def similarity(name: str, a: Vectors, b: Vectors) -> Float[Array, "n m"]:
    """Return the similarity called ``name`` of every row of ``a`` with every row of ``b``."""
    return SIMILARITY[check_name(name)](*_same_width(a, b))


def similarity_pairwise(name: str, a: Vectors, b: Vectors) -> Float[Array, "n"]:
    """Return the similarity called ``name`` of each row of ``a`` with the same row of ``b``."""
    a, b = _same_width(a, b)
    if len(a) != len(b):
        raise ValueError(f"pairwise similarity needs as many rows on both sides; got {len(a)} and {len(b)}.")
    if check_name(name) == "cosine":
        return np.vecdot(ops.l2_normalize(a), ops.l2_normalize(b))
    if name == "dot":
        return np.vecdot(a, b)
    return _negative_length(a - b) if name == "euclidean" else _negative_sum(a - b)


def check_name(name: str) -> str:
    """Return ``name`` if it names a similarity function, else raise ValueError."""
    if name not in SIMILARITY:
        raise ValueError(f"similarity_fn_name must be one of {', '.join(SIMILARITY)}; it is {name!r}.")
    return name


def _same_width(a: Vectors, b: Vectors) -> tuple[Array, Array]:
    """Return both as float32 matrices of the same width."""
    left, right = _matrix(a), _matrix(b)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"both sides must have vectors of the same width; got {left.shape[1]} and {right.shape[1]}.")
    return left, right


def _matrix(vectors: Vectors) -> Float[Array, "n D"]:
    matrix = np.atleast_2d(np.asarray(vectors))
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
