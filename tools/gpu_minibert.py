"""All use of minibert's internals and of the GPU by tools/gpu_check.py.

The encoder itself is public: ``SentenceEncoder(folder, device="cuda", dtype=...)``. Internal are the forward pass
without the tokenizer, the streams, the choice among cuBLASLt's algorithms, and the single calls of the device. A dry
run has no GPU: it uses the tests' replacement of CuPy, whose kernels run on the CPU, and wall-clock times.
"""

import contextlib
import gc
import importlib
import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert import SentenceEncoder
from minibert.engine import packed
from minibert.engine.cublaslt import MOST_ALIGNMENT, Algorithm, Product
from minibert.engine.cuda_device import _CUDA_TYPES, CudaDevice
from minibert.engine.fused import partial_sums
from minibert.engine.fused_cuda import STORAGES, Storage
from minibert.engine.packing import Packing
from minibert.engine.products import _CANDIDATES, _PERIOD, _Trial
from minibert.modules import chain
from minibert.typing import Array

ROOT = Path(__file__).resolve().parent.parent

#: Memory traffic of each kernel, in numbers per token: multiples of H and of I. See kernels/README.md.
TRAFFIC = {
    "attention": (4, 0),
    "add_layer_norm": (3, 0),
    "bias_activation": (0, 2),
    "embed_layer_norm": (4, 0),
    "pool": (1, 0),
}
#: The environment variable that turns CUDA graphs on.
_GRAPHS = "MINIBERT_CUDA_GRAPHS"
#: The methods of the device that take time in a forward pass.
_TIMED = ("launch", "matmul", "upload")


def stand_in() -> None:
    """Replace CuPy by that of the tests in this process. It needs g++."""
    sys.path.insert(0, str(ROOT / "tests"))
    folder = Path(os.environ.get("MINIBERT_EXECUTOR_FOLDER") or Path(tempfile.gettempdir()) / "minibert-executor")
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("CUPY_CACHE_DIR", tempfile.mkdtemp())
    patch = importlib.import_module("pytest").MonkeyPatch()
    executor = importlib.import_module("executor_device").ExecutorDevice(folder)
    importlib.import_module("fake_cupy").install(patch, executor)


class Gpu:
    """The first GPU: its clock, its memory and its two peak rates."""

    def __init__(self) -> None:
        """Create the GPU's context, so that later measurements do not include its memory."""
        import cupy

        self.cupy = cupy
        cupy.zeros(1)
        self.wait()

    def wait(self) -> None:
        """Wait until the GPU has finished all work."""
        self.cupy.cuda.runtime.deviceSynchronize()

    def mark(self) -> Any:
        """Return a mark in this thread's stream."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Wait for the second mark and return the seconds between two marks."""
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) / 1e3

    def release(self) -> None:
        """Free the unused memory that CuPy keeps, for example of an earlier encoder."""
        gc.collect()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def free(self) -> int:
        """Return the number of free bytes. Memory that CuPy keeps counts as used."""
        return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def product(self, size: int) -> Callable[[], object]:
        """Return a call that multiplies two square matrices of random float16."""
        rng = np.random.default_rng(0)
        a, b = (self.cupy.asarray(rng.standard_normal((size, size), np.float32).astype(np.float16)) for _ in range(2))
        out = self.cupy.empty_like(a)
        return lambda: self.cupy.matmul(a, b, out=out)

    def copy(self, size: int) -> Callable[[], object]:
        """Return a call that copies this number of bytes inside the GPU's memory."""
        source, target = (self.cupy.empty(size, np.uint8) for _ in range(2))
        source.data.memset(1, size)
        current = self.cupy.cuda.get_current_stream
        return lambda: target.data.copy_from_device_async(source.data, size, current())

    def timed(self, call: Callable[[], object], times: int) -> list[float]:
        """Return the GPU time of each call, after one warm-up call."""
        call()
        marks = [self.mark()]
        for _ in range(times):
            call()
            marks.append(self.mark())
        return [self.between(a, b) for a, b in itertools.pairwise(marks)]

    def mean(self, call: Callable[[], object], times: int, ahead: Callable[[], object]) -> float:
        """Return the mean GPU time of a call.

        ``ahead`` keeps the GPU busy until the host has submitted all calls. So the time is that of the GPU, not of the
        host.
        """
        call()
        self.wait()
        ahead()
        start = self.mark()
        for _ in range(times):
            call()
        return self.between(start, self.mark()) / times


class Prepared(NamedTuple):
    """A tokenized and packed batch. Only the GPU's work is left.

    Attributes:
        ids: The ids of all tokens, text after text.
        packing: The positions of the tokens.
        first: The position of each text's first token, if the last layer computes only this token.
        lengths: Number of tokens of each text.
    """

    ids: Array
    packing: Packing
    first: Packing | None
    lengths: list[int]


def token_rows(encoder: SentenceEncoder, texts: Sequence[str]) -> list[Array]:
    """Return the token ids of each text, truncated as in the encoder."""
    inputs = encoder.tokenize(texts)
    lengths = inputs["attention_mask"].sum(axis=1).tolist()
    return [row[:length] for row, length in zip(inputs["input_ids"], lengths, strict=True)]


def prepare(encoder: SentenceEncoder, texts: Sequence[str], budget: int) -> list[Prepared]:
    """Return batches of the texts, longest first. Each has at most ``budget`` tokens, but at least one text."""
    pipeline = encoder._pipeline  # noqa: SLF001
    batches: list[list[Array]] = []
    left = 0
    for row in sorted(token_rows(encoder, texts), key=len, reverse=True):
        if not batches or len(row) > left:
            batches.append([])
            left = budget
        batches[-1].append(row)
        left -= len(row)
    prepared = []
    for rows in batches:
        lengths, offsets = [len(row) for row in rows], [int(row.sum()) for row in rows]
        packing = Packing.of(lengths, offsets, pipeline.row_rule)
        first = None
        if chain.takes_first_token(pipeline.modules, 0):
            first = packing.first_tokens(offsets, pipeline.row_rule)
        prepared.append(Prepared(np.concatenate(rows).astype(np.intp), packing, first, lengths))
    return prepared


def forward(encoder: SentenceEncoder, batch: Prepared, fused: Any) -> Any:
    """Return the vectors of a batch on the GPU, without waiting for them."""
    pipeline = encoder._pipeline  # noqa: SLF001
    assert pipeline.at_once is not None, "the model must pool at once"  # noqa: S101
    pooling, normalize, _ = pipeline.at_once
    hidden = packed.bert(pipeline.params, pipeline.config, batch.ids, batch.packing, fused, batch.first)
    return fused.pool(pooling.modes, hidden, batch.first or batch.packing, 0, normalize=normalize)


def pass_seconds(
    encoder: SentenceEncoder, batches: Sequence[Prepared], streams: int, gpu: Gpu, passes: int = 1
) -> float:
    """Return the seconds of some passes over prepared batches on this number of streams, by the GPU's clock.

    The streams take the batches in turns. The time is the maximum from any stream's first mark to any stream's last.
    """
    work = iter([batch for _ in range(passes) for batch in batches])
    lock, ready = threading.Lock(), threading.Barrier(streams)
    marks: list[tuple[Any, Any]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with encoder._engine.worker() as fused:  # noqa: SLF001
                ready.wait()
                start = gpu.mark()
                while True:
                    with lock:
                        batch = next(work, None)
                    if batch is None:
                        break
                    forward(encoder, batch, fused)
                marks.append((start, gpu.mark()))
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=run) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return max(gpu.between(start, end) for start, _ in marks for _, end in marks)


@contextlib.contextmanager
def graphs(encoder: SentenceEncoder, *, wanted: bool) -> Iterator[None]:
    """In the block, switch recording of small batches as CUDA graphs on or off. The encoder gets new streams."""
    before = os.environ.get(_GRAPHS, "0")
    try:
        os.environ[_GRAPHS] = str(int(wanted))
        encoder.close()
        yield
    finally:
        os.environ[_GRAPHS] = before
        encoder.close()


def count_graphs(encoder: SentenceEncoder) -> int:
    """Return the number of CUDA graphs of the encoder's streams."""
    idle = encoder._engine._idle  # type: ignore[attr-defined]  # noqa: SLF001
    return sum(len(fused._recordings._recordings) for _, fused in idle)  # noqa: SLF001


@contextlib.contextmanager
def stream_of(storage: Storage) -> Iterator[tuple[CudaDevice, tuple[int, int]]]:
    """Use a new stream of the first GPU in this thread; give the addresses of the stream and its workspace."""
    device = CudaDevice(0, storage)
    stream = device.new_stream()
    with device.on(stream):
        yield device, (stream.stream.ptr, stream.workspace.data.ptr)


def try_products(
    inputs: int, outputs: int, timed: Sequence[int], counts: Sequence[int], gpu: Gpu, ahead: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Yield the speed of float16 products with weights of a shape, and last, which of them have the same bits.

    Args:
        inputs: Number of rows of the weights.
        outputs: Number of columns of the weights.
        timed: Numbers of rows to measure; each yields a row.
        counts: Numbers of rows whose bits are compared in the last row.
        gpu: The GPU.
        ahead: See :meth:`Gpu.mean`.
    """
    storage = STORAGES["float16"]
    normal = np.random.default_rng(0).standard_normal
    with stream_of(storage) as (device, at):
        ours = device._products  # noqa: SLF001
        library = ours._library  # noqa: SLF001
        shapes = (_PERIOD, inputs), (inputs, outputs)  # not the trial's numbers: a GPU is faster with simple numbers
        different, weight = (device.upload(storage.narrow(normal(shape, np.float32))) for shape in shapes)
        same_bits = {}
        for rows in sorted({*timed, *counts}):
            sizes = {"m": outputs, "n": rows, "k": inputs, "lda": outputs, "ldb": inputs, "ldc": outputs}
            product = Product(**sizes, kind=_CUDA_TYPES[storage.name], alignment=MOST_ALIGNMENT, add=False)
            reference = ours._reference(product, storage, *at)  # noqa: SLF001
            trial = _Trial(library, device, product, storage, reference.weight, *at)
            candidates, repeated = library.algorithms(product, _CANDIDATES), trial.repeated(reference.x)
            same = [each for each in candidates if trial.repeats(each, repeated, reference.y)]
            same_bits[rows] = len(same), len(candidates)
            if rows in timed:
                trial = trial._replace(weight=weight)
                x, y = trial.repeated(different), device.empty((rows, outputs), storage.dtype)

                def us(one: Algorithm, trial: _Trial = trial, x: Any = x, y: Any = y) -> float:
                    return 1e6 * gpu.mean(lambda: trial._multiply(one, x, y), 20, ahead)  # noqa: SLF001

                chosen = ours._choose(product, storage, *at)  # noqa: SLF001
                times = {
                    "first": us(candidates[0]),
                    "chosen": us(chosen),
                    "fastest_same": min(map(us, same), default=0),
                }
                found = {f"{name}_us": digits(time) for name, time in times.items()}
                for name in ("first", "chosen"):
                    found[f"{name}_tflops"] = digits(2e-6 * rows * inputs * outputs / times[name])
                yield {"rows": rows, **found, "tried": len(candidates), "same_bits": len(same)}
        of_rows = {str(rows): same_bits[rows] for rows in counts}
        agree, pairs = map(sum, zip(*of_rows.values(), strict=True))
        yield {"pairs": pairs, "same_bits": agree, "share": round(agree / pairs, 4), "of_rows": of_rows}


def sum_in_parts(
    inputs: int, outputs: int, rows: int, gpu: Gpu, ahead: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Yield the time and the relative error of a float32 product, with one sum and with partial sums."""
    storage = STORAGES["float32"]
    normal = np.random.default_rng(0).standard_normal
    x, weight = normal((rows, inputs), np.float32), normal((inputs, outputs), np.float32)
    truth = x[:512].astype(np.float64) @ weight.astype(np.float64)
    with stream_of(storage) as (device, _):
        left, right, y = device.upload(x), device.upload(weight), device.empty((rows, outputs), storage.dtype)
        for longest in (inputs, 1024, 384):
            parts = partial_sums(inputs, longest)

            def multiply(parts: list[slice] = parts) -> None:
                for number, k in enumerate(parts):
                    device.matmul(left[:, k], right[k], y, storage, add=number > 0)

            us = digits(1e6 * gpu.mean(multiply, 20, ahead))
            yield {
                "longest": longest,
                "parts": len(parts),
                "us": us,
                "rms": relative_rms(device.download(y[:512]), truth),
            }


def relative_rms(vectors: Array, truth: Array) -> float:
    """Return the root mean square of the errors, relative to that of the numbers."""
    return digits(np.sqrt(np.square(vectors - truth).mean() / np.square(truth).mean()))


def digits(number: float) -> float:
    """Return a number with four digits."""
    return float(f"{number:.4g}")


class Op(NamedTuple):
    """An operation of the device.

    Attributes:
        name: A kernel with its template arguments, a product with its shapes, or a method of the device.
        flops: The operations of a product; 0 for others.
        numbers: How many numbers a product reads and writes.
        mark: The mark after it.
    """

    name: str
    flops: int
    numbers: int
    mark: Any


@contextlib.contextmanager
def recorded(encoder: SentenceEncoder, gpu: Gpu) -> Iterator[list[Op]]:
    """Give a list that collects all operations of the encoder's device in the block, with a mark after each."""
    device = encoder._engine.device  # type: ignore[attr-defined]  # noqa: SLF001
    ops: list[Op] = []

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            ops.append(Op(*describe(name, arguments), gpu.mark()))
            return result

        return call

    for name in _TIMED:
        setattr(device, name, wrap(name, getattr(device, name)))
    try:
        yield ops
    finally:
        for name in _TIMED:
            delattr(device, name)


def describe(name: str, arguments: Sequence[Any]) -> tuple[str, int, int]:
    """Return the name of an operation, its floating-point operations, and the numbers that a product moves."""
    if name == "launch":
        return str(arguments[0].name), 0, 0
    shapes = [argument.shape for argument in arguments if hasattr(argument, "shape")]
    if name != "matmul":
        return name, 0, 0
    rows, inner = shapes[0]
    outputs = shapes[1][0] * shapes[1][1] // inner
    numbers = rows * inner + inner * outputs + rows * outputs
    return f"matmul {rows}x{inner} @ {inner}x{outputs}", 2 * rows * inner * outputs, numbers


def profile(encoder: SentenceEncoder, batch: Prepared, gpu: Gpu, ahead: Callable[[], object]) -> list[dict[str, Any]]:
    """Return the time of each kernel and product in one forward pass, summed by name, longest first.

    Args:
        encoder: The encoder.
        batch: The batch.
        gpu: The GPU.
        ahead: Keeps the GPU busy until the host has submitted the whole pass. So the time between two marks is that of
            the GPU, not of the host.
    """
    config = encoder._pipeline.config  # noqa: SLF001
    itemsize = encoder._engine.storage.dtype.itemsize  # type: ignore[attr-defined]  # noqa: SLF001
    with encoder._engine.worker() as fused:  # noqa: SLF001
        forward(encoder, batch, fused)  # the next pass reuses its pinned memory: an allocation waits for the GPU
    gpu.wait()
    with encoder._engine.worker() as fused:  # noqa: SLF001
        with recorded(encoder, gpu) as ops:
            ahead()
            start = gpu.mark()
            forward(encoder, batch, fused)
        gpu.wait()
    tokens, pairs = sum(batch.lengths), sum(length**2 for length in batch.lengths)
    found: dict[str, dict[str, Any]] = {}
    for op, before in zip(ops, [start, *(op.mark for op in ops)], strict=False):
        of_hidden, of_inner = traffic_of(op.name)
        numbers = op.numbers or tokens * (of_hidden * config.hidden_size + of_inner * config.intermediate_size)
        flops = 4 * config.hidden_size * pairs if op.name.startswith("attention") else op.flops
        row = found.setdefault(op.name, {"op": op.name, "calls": 0, "us": 0.0, "flops": 0, "bytes": 0})
        row["calls"] += 1
        row["us"] += 1e6 * gpu.between(before, op.mark)
        row["flops"] += flops
        row["bytes"] += numbers * itemsize
    total = sum(row["us"] for row in found.values())
    return [rates(row, total) for row in sorted(found.values(), key=lambda row: -row["us"])]


def traffic_of(name: str) -> tuple[int, int]:
    """Return the memory traffic of a kernel in :data:`TRAFFIC`; 0 if it is not listed."""
    return next((counts for kernel, counts in TRAFFIC.items() if name.startswith(kernel)), (0, 0))


def rates(row: Mapping[str, Any], total: float) -> dict[str, Any]:
    """Return an operation's time, its share of the pass, and its speed; None if the speed is unknown."""
    seconds = max(row["us"], 1e-3) / 1e6
    return {
        "op": row["op"],
        "calls": row["calls"],
        "us": round(row["us"], 1),
        "share": round(row["us"] / total, 4),
        "tflops": round(row["flops"] / seconds / 1e12, 2) if row["flops"] else None,
        "gb_s": round(row["bytes"] / seconds / 1e9, 1) if row["bytes"] else None,
    }
