"""What each function of kernels/cuda/device.cuh does, as cases for the kernels in tests/executor/unit_kernels.cu."""

from typing import NamedTuple

import numpy as np

from minibert.engine.fused_cuda import STORAGES


class Case(NamedTuple):
    """A launch of one warp.

    Attributes:
        kernel: The kernel.
        out: What its first argument holds before the launch.
        arguments: The others.
        expected: What its first argument must hold afterwards.
        tolerance: By how much each may differ, relative to its size.
    """

    kernel: str
    out: np.ndarray
    arguments: tuple
    expected: np.ndarray
    tolerance: float = 0.0


def every_number(storage):
    """Return every number of a 16-bit type but NaN, as stored."""
    stored = np.arange(2**16, dtype=np.uint16).view(storage.dtype)
    return stored[~np.isnan(storage.widen(stored))]


def conversions(name):
    """Return the cases of a 16-bit type."""
    storage = STORAGES[name]
    rng = np.random.default_rng(0)
    stored = every_number(storage)
    numbers = storage.widen(stored)
    finite = np.sort(numbers[np.isfinite(numbers)])
    between = np.concatenate([finite[:-1] / 2 + finite[1:] / 2, finite, rng.standard_normal(1000)]).astype(np.float32)
    rounded = storage.widen(storage.narrow(between))
    pairs = rng.standard_normal(64).astype(np.float32)
    halves = storage.narrow(pairs).view(np.uint16).astype(np.uint32)
    both = (halves[::2] | halves[1::2] << 16).astype(np.uint32)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    columns = storage.narrow(np.ascontiguousarray(b.T))
    yield Case(f"widen<{name}>", np.zeros_like(numbers), (stored, np.int32(len(stored))), numbers)
    yield Case(f"round_trip<{name}>", np.zeros_like(between), (between, np.int32(len(between))), rounded)
    yield Case(f"pack_pairs<{name}>", np.zeros(32, np.uint32), (pairs,), both)
    yield Case(f"unpack_pairs<{name}>", np.zeros(64, np.float32), (both,), storage.widen(storage.narrow(pairs)))
    yield Case(f"store_pairs<{name}>", np.zeros(64, storage.dtype), (both,), storage.narrow(pairs))
    yield Case(f"add_product<{name}>", c.copy(), (storage.narrow(a), columns), c + a @ b)  # exact: small integers


def cases():
    """Return all cases."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((32, 4)).astype(np.float32)
    matrices = rng.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    fast = np.concatenate([rng.uniform(-20, 20, 2000), 2.0 ** np.arange(-20, 7)]).astype(np.float32)
    lanes = rng.integers(-100, 100, 32).astype(np.float32)
    yield from conversions("float16")
    yield from conversions("bfloat16")
    yield Case("copy_rows", np.zeros((64, 4), np.float32), (rows,), np.concatenate([rows, rows[::-1]]))
    some = np.concatenate([rows[:20], np.zeros((12, 4), np.float32)])
    yield Case("copy_some_rows", np.ones((32, 4), np.float32), (rows[:20], np.int32(20)), some)
    for transposed in (False, True):
        each = matrices.swapaxes(1, 2) if transposed else matrices
        pairs = np.ascontiguousarray(each).view(np.uint32)  # (matrix, row, pair); lane l has row l / 4, pair l % 4
        name = f"load_four<{str(transposed).lower()}>"
        yield Case(name, np.zeros((32, 4), np.uint32), (matrices,), pairs.reshape(4, 32).T)
    exact = np.stack([np.exp2(fast.astype(np.float64)), 1 / fast.astype(np.float64)])
    yield Case("fast_functions", np.zeros(exact.shape, np.float32), (fast, np.int32(len(fast))), exact, 2.0**-21)
    shuffled = np.stack([np.full(32, each) for each in (lanes.sum(), lanes.max(), lanes[5])])
    yield Case("across_lanes", np.zeros((3, 32), np.float32), (lanes,), shuffled)
