"""Shared by the tests of the CUDA kernels, on the executor and on a GPU: inputs, definitions and tolerances.

Every test uses the fixture ``device`` of conftest.py: the executor, and a GPU if CuPy finds one.
"""

import numpy as np
import pytest

from minibert import ops
from minibert.engine.fused_cuda import STORAGES, FusedCuda
from minibert.engine.packing import Packing
from minibert.engine.rows import RowRule
from minibert.params import LayerNorm

ANY_ROW = RowRule((0,), threads=False)
EPS = 1e-12
EACH_STORAGE = pytest.mark.parametrize("storage", list(STORAGES.values()), ids=list(STORAGES))
#: Lengths of the texts of a batch: close to the sizes of fragments, tiles and stages, alone and combined.
LENGTHS = {
    "1": [1],
    "2": [2],
    "15-17": [15, 16, 17],
    "63-65": [63, 64, 65],
    "127-129": [127, 128, 129],
    "512": [512],
    "many": [70, 33, 33, 17, 17, 17, 5, 2, 1, 1, 1],
}


def normal(*shape, seed=0, size=1.0):
    """Return normally distributed float32 numbers."""
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * size).astype(np.float32)


def random_norm(width):
    """Return a layer normalization with random scale and shift."""
    return LayerNorm(1 + normal(width, seed=8, size=0.1), normal(width, seed=9))


def packing_of(lengths):
    """Return the packing of texts on a device."""
    return Packing.of(lengths, [0] * len(lengths), ANY_ROW)


class Bench:
    """A device with the operations on it, and functions that copy arrays to it and back."""

    def __init__(self, device, storage):
        self.device = device
        self.storage = storage
        self.fused = FusedCuda(device, storage)

    def stored(self, numbers):
        """Return a copy on the device: matrices in the storage type, vectors in float32."""
        return self.device.upload(self.storage.narrow(numbers) if numbers.ndim == 2 else numbers)

    def rounded(self, numbers):
        """Return numbers as float32, rounded to the precision of the storage type."""
        return self.storage.widen(self.storage.narrow(numbers))

    def back(self, array):
        """Return a copy of a device array on the host, as float32."""
        host = self.device.download(array)
        return host if host.dtype == np.float32 else self.storage.widen(host)


def assert_near(actual, definition, bench, *inputs, factor=3.0):
    """Fail if the error of a result is too large, compared with the error of the definition.

    ``definition(inputs, round_)`` computes in the precision of its inputs, and calls ``round_`` where the kernel rounds
    to the storage type. The truth is the definition in float64, without rounding. The limit is ``factor`` times the
    error of the definition in float32 with rounding, and at least three units in the last place of the largest number:
    with few numbers, the definition's error may be small by luck.
    """
    truth = definition(*(each.astype(np.float64) for each in inputs), lambda x: x)
    single = bench.rounded(definition(*inputs, bench.rounded))
    digits = {"float16": 11, "bfloat16": 8, "float32": 24}[bench.storage.name]
    last_place = np.abs(truth).max() * 2.0**-digits
    allowed = max(factor * np.abs(single - truth).max(), 3 * last_place)
    worst = np.abs(actual - truth).max()

    assert actual.shape == truth.shape
    assert np.isfinite(actual).all(), "non-finite values"
    assert worst <= allowed, f"max error {worst:.1e} > {allowed:.1e}"


def attention(q, k, v, bias, *rest, heads, queries, keys):
    """Return the expected result of ``attention`` for texts with these numbers of queries and keys.

    ``rest`` is the bias by distance if there is one, and the function that rounds.
    """
    *distance_biases, round_ = rest
    results = []
    ends_q, ends_k = np.cumsum(queries), np.cumsum(keys)
    for n_q, n_k, end_q, end_k in zip(queries, keys, ends_q, ends_k, strict=True):
        if n_q == 0 or n_k == 0:
            continue
        Q = ops.split_heads(round_(q[end_q - n_q : end_q] + bias)[None], heads)  # noqa: N806
        K, V = (ops.split_heads(x[None, end_k - n_k : end_k], heads) for x in (k, v))  # noqa: N806
        scores = Q @ K.swapaxes(-2, -1)
        for distance_bias in distance_biases:
            zero = distance_bias.shape[1] // 2
            for i in range(n_q):
                scores[0, :, i] += distance_bias[:, zero - i : zero - i + n_k]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        results.append(ops.merge_heads(round_(weights) @ V / total)[0])
    return np.concatenate(results)
