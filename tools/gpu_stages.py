"""The stages of tools/gpu_check.py, with their measurements and checks. Each runs in its own process."""

import csv
import functools
import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_minibert as inside
import gpu_pack
import gpu_peers as peers
import numpy as np
from bench import commit, count_flops, processor
from bench_peers import durations, read_json
from gpu_minibert import ROOT, Gpu
from gpu_peers import median
from sts import read_pairs, score

from minibert import BUILTIN_MODEL, SentenceEncoder, __version__
from minibert.typing import Array

Row = Mapping[str, Any]

#: Measure one text in this many, so that a pass is short.
EVERY = {"minilm": 1, "base": 2, "large": 4}
DTYPES = ("float16", "bfloat16", "float32")
#: Approximate numbers of tokens of the single texts for the latency.
ONE_TEXT = (8, 32, 128)
#: Numbers of rows of the products to time; and of the products whose bits are compared, as in small batches.
ROWS, FEW_ROWS = (4096, 16384, 65536), (1, *(16 << n for n in range(11)))
#: Rows, inputs and outputs of float32 products whose long sums are split into parts, from base and large.
LONG_SUMS = ((8192, 3072, 768), (8192, 4096, 1024))
BUDGETS = (4096, 8192, 16384, 32768, 65536, 131072)
PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "sentence-transformers", "transformers", "tokenizers")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: The tests that run under a sanitizer: every unit kernel, and small cases of each kernel.
SANITIZED = "gpu and not sanitizer and (unit_kernels or (float16 and (63-65 or first_tokens or pool or layer_norm)))"
_COUNTERS = "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed"
_COUNTERS += ",sm__throughput.avg.pct_of_peak_sustained_elapsed"


class Stage:
    """A running stage.

    Attributes:
        pack: The packed folder.
        models: Names of the models to measure.
        quick: Whether to use few repetitions.
        dry: Whether to run without a GPU, with small models.
        gpu: The GPU.
    """

    def __init__(self, out: Path, pack: Path, models: Sequence[str], seconds: float, *, quick: bool, dry: bool) -> None:
        """Begin the stage. Rows go to the file ``out``. No measurement begins after ``seconds``."""
        self.out, self.pack, self.models, self.quick, self.dry = out, pack, models, quick, dry
        self.seconds = seconds
        self.began = time.monotonic()
        self.rows: list[Row] = []
        if dry:
            inside.stand_in()

    @functools.cached_property
    def gpu(self) -> Gpu:
        """Return the GPU. It is opened at the first access."""
        return Gpu()

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        """Return the packed texts."""
        return gpu_pack.read_texts(self.pack)

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.seconds - (time.monotonic() - self.began)

    def add(self, row: Row) -> None:
        """Record a row, also in the file."""
        self.rows.append(row)
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.rows), "utf-8")
        part.replace(self.out)

    def attempt(self, where: Row, measure: Callable[[], Iterable[Row]]) -> None:
        """Record the rows of a measurement. If it fails, record the earlier rows and the exception.

        The time is checked before each row. If no time is left, this is recorded, and the measurement ends.
        """
        try:
            if self.left() > 0:
                for row in measure():
                    self.add({**where, **row})
                    if self.left() <= 0:
                        break
            if self.left() <= 0:
                self.add({**where, "skipped": f"the stage's {self.seconds:g} s are over"})
        except Exception as error:  # noqa: BLE001 - after any error, the next measurement can succeed
            traceback.print_exc()
            self.add({**where, "error": f"{type(error).__name__}: {error}"[:2000]})

    def attempt_each(self, measure: Callable[["Stage", str], Iterable[Row]], reason: str = "", **where: str) -> None:
        """Record the rows of each model, or the reason why it is not measured, if there is one."""
        for model in self.models:
            if reason:
                self.add({"model": model, **where, "skipped": reason})
            else:
                self.attempt({"model": model, **where}, functools.partial(measure, self, model))

    def model(self, name: str) -> Path:
        """Return a model's folder."""
        return self.pack / "minilm" if name == "minilm" else gpu_pack.seeded_model(self.pack, name, dry=self.dry)

    def encoder(self, name: str, dtype: str = "float16") -> SentenceEncoder:
        """Return minibert's encoder on the GPU."""
        return SentenceEncoder(self.model(name), device="cuda", dtype=dtype, on_truncate="ignore")

    def some(self, model: str, kind: str) -> list[str]:
        """Return the texts of a kind for the measurements of a model."""
        every = EVERY[model] * (4 if self.quick else 1)
        texts = self.texts[kind][::every]
        return texts[:6] if self.dry else texts

    @functools.cached_property
    def single(self) -> dict[int, str]:
        """Return the texts for the latency, by their approximate number of tokens."""
        encoder = SentenceEncoder(self.pack / "minilm", on_truncate="ignore")
        texts = self.texts["mixed"]
        lengths = np.array([len(row) for row in inside.token_rows(encoder, texts)])
        return {about: texts[int(np.abs(lengths - about).argmin())] for about in ONE_TEXT}

    def latency(self, call: Callable[[], object]) -> Row:
        """Return the median of many calls, without the first ones."""
        times = durations(call, 0, *[5 if self.dry else 200] * 2)
        return {"measure": "latency", "seconds": median(times[len(times) // 10 :]), "times": times}

    def ahead(self, copies: int) -> Callable[[], object]:
        """Return a call that keeps the GPU busy: about 2 ms per copy on an H200."""
        copy = self.gpu.copy(1 << 16 if self.dry else 4 << 30)
        copy()
        return lambda: [copy() for _ in range(1 if self.dry else copies)]


def cosines(a: Array, b: Array) -> Array:
    """Return the cosine of each vector with the corresponding vector of the others, in float64."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    return (a * b).sum(axis=1)


def call(command: Sequence[str], seconds: float, **environment: str) -> tuple[int | None, str]:
    """Return the exit status of a command (None after a timeout) and the end of its output."""
    done = {**os.environ, **environment}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            run = subprocess.run(
                command, env=done, cwd=ROOT, stdout=said, stderr=said, timeout=max(seconds, 1), check=False
            )
            status: int | None = run.returncode
        except subprocess.TimeoutExpired:
            status = None
        said.seek(0)
        return status, said.read()[-200_000:]


# ---------------------------------------------------------------- the machine, and the tests


def versions(stage: Stage) -> None:
    """Record the machine and the versions of the software."""

    def packages() -> Iterator[Row]:
        yield {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "minibert": __version__,
            "commit": commit() or read_json(stage.pack / "manifest.json")["commit"],
            **{name: importlib.metadata.version(name) for name in PACKAGES if peers.installed(name)},
        }

    def gpu() -> Iterator[Row]:
        fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total"
        status, said = call(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 30)
        if status:
            raise RuntimeError(said.strip())
        yield dict(zip(fields.split(","), map(str.strip, said.split("\n")[0].split(",")), strict=True))

    def cuda() -> Iterator[Row]:
        import cupy
        from cupy_backends.cuda.libs import cublas

        yield {
            "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
            "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
            "cublas": cublas.getVersion(cupy.cuda.device.get_cublas_handle()),
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        }

    def pack() -> Iterator[Row]:
        gpu_pack.check(stage.pack)
        yield {"packed": read_json(stage.pack / "manifest.json")["date"]}

    for name, measure in (("pack", pack), ("packages", packages), ("gpu", gpu), ("cuda", cuda)):
        if stage.dry and name in {"gpu", "cuda"}:
            stage.add({"what": name, "skipped": "a dry run has no GPU"})
        else:
            stage.attempt({"what": name}, measure)


def pytest_row(stage: Stage, arguments: Sequence[str], before: Sequence[str] = (), limit: float = 0) -> Iterator[Row]:
    """Yield the summary and the failures of a test run. Failed tests do not count as a failed measurement."""
    command = [*before, sys.executable, "-m", "pytest", "-n", "0", "-q", "--tb=short", *arguments]
    status, said = call(command, min(stage.left(), limit or stage.left()))
    lines = said.strip().splitlines() or [""]
    (stage.out.parent / f"{stage.out.stem}-{len(stage.rows)}.log").write_text(said, "utf-8")
    yield {
        "summary": lines[-1][:200] if status is not None else "timed out",
        "ok": status == 0,
        "status": status,
        "failures": [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))][:50],
        **({} if status == 0 else {"end": "\n".join(lines[-40:])}),
    }


def tests(stage: Stage) -> None:
    """Record a run of all tests that need a GPU: tests of kernels, encoder and CuPy arrays."""
    both = {"gpu": ["-m", "gpu and not slow"], "cupy": ["-k", "cupy and not fake"]}
    if stage.dry:
        both = {"executor": ["tests/test_unit_kernels.py", "-k", "executor and copy_rows"]}
    for name, arguments in both.items():
        measure = functools.partial(pytest_row, stage, [*arguments, "--continue-on-collection-errors"])
        stage.attempt({"tests": name}, measure)


def sanitizer(stage: Stage) -> None:
    """Record the findings of each tool of NVIDIA's sanitizer in the kernels."""
    for number, tool in enumerate(SANITIZERS):
        if shutil.which("compute-sanitizer") is None:
            stage.add({"tool": tool, "skipped": "compute-sanitizer is not on the PATH"})
            continue
        before = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "3"]
        arguments = ["-x", "tests/test_unit_kernels.py", "tests/test_kernels.py", "-k", SANITIZED]
        share = stage.left() / (len(SANITIZERS) - number)
        stage.attempt({"tool": tool}, functools.partial(pytest_row, stage, arguments, before, share))


# ---------------------------------------------------------------- correctness


def accuracy(stage: Stage) -> None:
    """Record the difference between GPU and CPU vectors, the STS score, and the errors on the golden files."""
    pairs = read_pairs(stage.pack / "sts.csv")
    published = np.load(stage.pack / "sts.npy")
    count = len(pairs.scores)
    if stage.dry:
        keep = [*range(6), *range(count, count + 6)]
        pairs, published = type(pairs)(pairs.left[:6], pairs.right[:6], pairs.scores[:6]), published[keep]
    sentences = [*pairs.left, *pairs.right]
    same: list[Array] = []

    def compare(encoder: SentenceEncoder) -> Iterator[Row]:
        start = time.perf_counter()
        vectors = encoder.encode(sentences)
        taken = time.perf_counter() - start
        same.append(vectors)
        # Compare with the published float32 weights on another machine, and the packed float16 weights on this CPU.
        row: dict[str, Any] = {"finite": bool(np.isfinite(vectors).all()), "seconds": round(taken, 3)}
        for name, reference in (("published", published), ("packed", same[0])):
            cosine = cosines(vectors, reference)
            row[f"min_cosine_{name}"] = float(cosine.min())
            row[f"mean_cosine_{name}"] = float(cosine.mean())
            row[f"largest_{name}"] = float(np.abs(vectors - reference).max())
        yield {**row, "spearman": score(vectors, pairs), "spearman_published": score(published, pairs)}

    def on_gpu(dtype: str) -> Iterator[Row]:
        return compare(stage.encoder("minilm", dtype))

    on_cpu = SentenceEncoder(stage.pack / "minilm", on_truncate="ignore")
    stage.attempt({"device": "cpu", "dtype": "float32"}, functools.partial(compare, on_cpu))
    for dtype in DTYPES:
        stage.attempt({"device": "cuda", "dtype": dtype}, functools.partial(on_gpu, dtype))
    for dtype in DTYPES:
        stage.attempt({"golden": dtype}, functools.partial(golden_errors, dtype))
    for dtype in DTYPES:
        stage.attempt({"bits": dtype}, functools.partial(compare_bits, stage, dtype))


def from_tests() -> Any:
    """Return tests/support.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("support")


def compare_bits(stage: Stage, dtype: str) -> Iterator[Row]:
    """Yield the number of vectors whose bits change in random batches, or alone from CUDA graphs."""
    encoder = stage.encoder("minilm", dtype)
    texts = np.random.default_rng(0).permutation(stage.texts["mixed"])[:64].tolist()
    before = []
    for graphs in (False, True):
        with inside.graphs(encoder, wanted=graphs):
            for _ in range(2 if graphs else 1):  # in the second pass, nearly all come from graphs
                alone = np.stack([encoder.encode(text) for text in texts])
            before.append(alone)
            rounds = from_tests().same_bits(encoder, texts, alone, 3 if stage.dry else 30, 4096)
            together = sum(int((~same).sum()) for _, _, same in rounds)
            made = inside.count_graphs(encoder)
        unlike = int((alone != before[0]).any(axis=1).sum())
        row = {"texts": len(texts), "graphs": made, "together": together, "unlike_unrecorded": unlike}
        yield {**row, "ok": not together and not unlike and (made > 0) == graphs}


def golden_errors(dtype: str) -> Iterator[Row]:
    """Yield the error of the vectors of each golden file, relative to their size, and transformers' float32 error."""
    support = from_tests()
    cases = {}
    for card, facts in support.CARDS.items():
        arrays, texts = support.golden(card)
        truth = arrays[f"pooled.{facts['pooling_mode']}.float64"]
        cases[card] = (support.twin(card), texts, truth, arrays["embeddings"])
    arrays, metadata = support.load(support.GOLDEN / "builtin.safetensors")
    texts = json.loads(metadata["texts"])
    cases["builtin"] = (BUILTIN_MODEL, texts, arrays["embeddings.float64"], arrays["embeddings.float32"])
    for card, (folder, texts, truth, peer) in cases.items():
        vectors = SentenceEncoder(folder, device="cuda", dtype=dtype, on_truncate="ignore").encode(texts)
        yield {
            "card": card,
            "rms": inside.relative_rms(vectors, truth),
            "transformers_float32": inside.relative_rms(peer, truth),
        }


# ---------------------------------------------------------------- how fast


def compare_peers(stage: Stage) -> None:
    """Record the throughput of minibert and sentence-transformers from strings to vectors, alternately."""
    for variant in peers.ATTENTION:
        if reason := peers.missing(variant):
            stage.add({"peer": variant, "skipped": reason})
    stage.attempt_each(alternate)


def alternate(stage: Stage, model: str) -> Iterator[Row]:
    """Yield the times of each encoder on each kind of texts. Each round begins with another encoder."""
    encoder = stage.encoder(model)
    others = {}
    for name in peers.ATTENTION:
        if not peers.missing(name):
            try:
                others[name] = peers.load(stage.model(model), name, dry=stage.dry)
            except Exception as error:  # noqa: BLE001 - flash attention may ask the hub for its kernels
                yield {"peer": name, "skipped": f"{type(error).__name__}: {error}"[:2000]}
    for kind in stage.texts:
        texts = stage.some(model, kind)
        tokens = sum(map(len, inside.token_rows(encoder, texts)))
        calls: dict[str, Callable[[], Array]] = {"minibert": functools.partial(encoder.encode, texts)}
        batches: dict[str, int] = {}
        for name, peer in others.items():
            batches[name] = peers.DEFAULT_BATCH
            if name != peers.AS_CALLED:
                batches[name], _ = peers.best_batch(functools.partial(peers.encode, peer, texts), dry=stage.dry)
            calls[name] = functools.partial(peers.encode, peer, texts, batches[name])
        vectors = {name: encode() for name, encode in calls.items()}  # also the warm-up
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for number in range(3 if stage.quick or stage.dry else 5):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                times[name] += durations(calls[name], 0, 1, 1)
        for name in names:
            yield {
                "kind": kind,
                "peer": name,
                "texts": len(texts),
                "tokens": tokens,
                "batch": batches.get(name),
                "seconds": median(times[name]),
                "tokens_s": round(tokens / median(times[name])),
                "min_cosine": float(cosines(vectors["minibert"], vectors[name]).min()),
                "times": times[name],
            }


def throughput(stage: Stage) -> None:
    """Record throughput at 128 tokens per text, compared with the GPU's peak, and latency and start-up."""
    rates: list[float] = []

    def ceiling() -> Iterator[Row]:
        size, much = (256, 1 << 22) if stage.dry else (8192, 4 << 30)
        rates.append(2 * size**3 / median(stage.gpu.timed(stage.gpu.product(size), 10)))
        copy = median(stage.gpu.timed(stage.gpu.copy(much), 10))
        yield {"tflops": round(rates[0] / 1e12, 4), "gb_s": round(2e-9 * much / copy, 2)}

    stage.attempt({"measure": "ceilings"}, ceiling)
    own, best = (functools.partial(measure, rates=rates) for measure in (own_throughput, peer_throughput))
    stage.attempt_each(own, peer="minibert")
    stage.attempt_each(best, peers.missing(peers.AT_BEST), peer="sentence-transformers")
    for peer in ("minibert", "sentence-transformers"):
        stage.attempt({"measure": "start", "peer": peer}, functools.partial(starts, stage, peer))


def device_row(lengths: Sequence[int], config: Row, times: Sequence[float], rates: Sequence[float]) -> dict[str, Any]:
    """Return the tokens per second of a pass over texts of these lengths, and its share of the peak."""
    tokens, seconds = sum(lengths), median(times)
    flops = count_flops(config, lengths) / seconds
    share = round(flops / rates[0], 4) if rates else None
    tokens_s = round(tokens / seconds)
    return {"tokens": tokens, "seconds": seconds, "tokens_s": tokens_s, "tflops": flops / 1e12, "share": share}


def own_throughput(stage: Stage, model: str, rates: Sequence[float]) -> Iterator[Row]:
    """Yield minibert's rows of a model."""
    stage.gpu.release()
    free = stage.gpu.free()
    encoder = stage.encoder(model)
    loaded = free - stage.gpu.free()
    texts, config = stage.some(model, "tokens128"), read_json(stage.model(model) / "config.json")
    encoder.encode(texts)
    yield {"measure": "memory", "loaded": loaded, "after": free - stage.gpu.free()}
    lengths = [len(row) for row in inside.token_rows(encoder, texts)]
    batches = inside.prepare(encoder, texts, encoder.max_batch_tokens)
    for streams in (1, encoder.num_threads):
        times = device_times(stage, encoder, batches, streams)
        yield {"measure": "device", "streams": streams, **device_row(lengths, config, times, rates), "times": times}
    for graphs in (False, True):
        with inside.graphs(encoder, wanted=graphs):
            for about, text in stage.single.items():
                yield {"about": about, "graphs": graphs, **stage.latency(functools.partial(encoder.encode, text))}


def device_times(
    stage: Stage, encoder: SentenceEncoder, batches: Sequence[inside.Prepared], streams: int
) -> list[float]:
    """Return the seconds of passes over prepared batches. In each pass, every stream has several batches."""
    passes = 1 if stage.dry else max(1, -(-4 * streams // len(batches)))
    once = functools.partial(inside.pass_seconds, encoder, batches, streams, stage.gpu, passes)
    once()
    return [once() / passes for _ in range(3 if stage.quick or stage.dry else 7)]


def peer_throughput(stage: Stage, model: str, rates: Sequence[float]) -> Iterator[Row]:
    """Yield the same rows for sentence-transformers with its best settings."""
    peers.release()
    free = stage.gpu.free()
    peer = peers.load(stage.model(model), peers.AT_BEST, dry=stage.dry)
    loaded = free - stage.gpu.free()
    texts, config = stage.some(model, "tokens128"), read_json(stage.model(model) / "config.json")
    yield best_device_row(stage, peer, texts, functools.partial(device_row, config=config, rates=rates))
    memory = {"loaded": loaded, "after": free - stage.gpu.free(), "reserved": peers.memory()}
    yield {"measure": "memory", **memory}
    for about, text in stage.single.items():
        yield {"about": about, **stage.latency(functools.partial(peers.encode, peer, [text], 1))}


def best_device_row(
    stage: Stage, peer: Any, texts: Sequence[str], row: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Return the row of the device alone, with the fastest batch size."""
    lengths, found = peers.lengths(peer, texts), {}
    for size in peers.DRY_BATCHES if stage.dry else peers.BATCHES:
        batches = peers.prepare(peer, texts, size)
        found[size] = stage.gpu.timed(functools.partial(peers.forward, peer, batches), 3 if stage.quick else 7)
    best = min(found, key=lambda size: median(found[size]))
    sizes = {str(size): median(times) for size, times in found.items()}
    return {"measure": "device", "batch": best, "sizes": sizes, **row(lengths, times=found[best]), "times": found[best]}


def compiled(stage: Stage) -> None:
    """Record the device alone with sentence-transformers' transformer compiled by torch."""
    stage.attempt_each(compiled_rows, peers.missing(peers.AT_BEST))


def compiled_rows(stage: Stage, model: str) -> Iterator[Row]:
    """Yield the row of a model."""
    peer = peers.compiled(peers.load(stage.model(model), peers.AT_BEST, dry=stage.dry))
    texts, config = stage.some(model, "tokens128"), read_json(stage.model(model) / "config.json")
    start = time.perf_counter()
    peers.forward(peer, peers.prepare(peer, texts[:64], 32))
    stage.gpu.wait()
    taken = round(time.perf_counter() - start, 2)
    found = best_device_row(stage, peer, texts, functools.partial(device_row, config=config, rates=[]))
    if not peers.graphs():
        raise RuntimeError("torch compiled nothing: the times are those of the model as it was")
    yield {"compile_seconds": taken, "graphs": peers.graphs(), **found}


#: Programs from a new process to the first vector.
_FIRST = {
    "minibert": "from minibert import SentenceEncoder\nSentenceEncoder({model!r}, device='cuda').encode('A text.')",
    "sentence-transformers": "import torch\nfrom sentence_transformers import SentenceTransformer\n"
    "SentenceTransformer({model!r}, device={device!r}, model_kwargs=dict(dtype=torch.{dtype})).encode('A text.')",
}


def starts(stage: Stage, peer: str) -> Iterator[Row]:
    """Yield the seconds from a new process to its first vector, without and with kernels compiled before."""
    if peer != "minibert" and (reason := peers.missing(peers.AS_CALLED)):
        yield {"skipped": reason}
        return
    device, dtype = ("cpu", "float32") if stage.dry else ("cuda", "float16")
    program = _FIRST[peer].format(model=str(stage.model("minilm")), device=device, dtype=dtype)
    if stage.dry:
        program = f"import gpu_minibert\ngpu_minibert.stand_in()\n{program}"
    with tempfile.TemporaryDirectory() as cache:
        for cached in (False, True):
            times = []
            for _ in range(3 if cached and peer == "minibert" and not stage.dry else 1):
                start = time.perf_counter()
                status, said = call([sys.executable, "-c", program], stage.left(), CUPY_CACHE_DIR=cache)
                if status != 0:
                    raise RuntimeError(said[-1500:] or f"exit status {status}")
                times.append(round(time.perf_counter() - start, 3))
            yield {"cached": cached, "seconds": median(times), "times": times}


def products(stage: Stage) -> None:
    """Record the speed of a layer's products, the number of algorithms with equal bits, and errors of long sums."""
    timed, counts = ((64, 128), (1, 16, 64, 128)) if stage.dry else (ROWS, FEW_ROWS)
    ahead = stage.ahead(1)
    for model in stage.models:
        config = read_json(stage.model(model) / "config.json")
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        shapes = {
            "qkv": (hidden, 3 * hidden),
            "output": (hidden, hidden),
            "up": (hidden, inner),
            "down": (inner, hidden),
        }
        for name, shape in shapes.items():
            measure = functools.partial(inside.try_products, *shape, timed, counts, stage.gpu, ahead)
            stage.attempt({"model": model, "product": name}, measure)
    for rows, inputs, outputs in LONG_SUMS:
        of = 32 if stage.dry else rows
        measure = functools.partial(inside.sum_in_parts, inputs, outputs, of, stage.gpu, ahead)
        stage.attempt({"float32": f"{of}x{inputs} @ {inputs}x{outputs}"}, measure)


def sweep(stage: Stage) -> None:
    """Record minibert's speed for each token budget and number of streams, on the device alone and from strings."""
    stage.attempt_each(sweep_model)


def sweep_model(stage: Stage, model: str) -> Iterator[Row]:
    """Yield the rows of a model."""
    encoder = stage.encoder(model)
    texts = stage.some(model, "tokens128")
    tokens = sum(map(len, inside.token_rows(encoder, texts)))
    for budget in BUDGETS[:2] if stage.dry else BUDGETS:
        batches = inside.prepare(encoder, texts, budget)
        for streams in (1, 2) if stage.dry else (1, 2, 3):
            encoder.max_batch_tokens, encoder.num_threads = budget, streams
            device = median(device_times(stage, encoder, batches, streams))
            encoder.encode(texts)
            strings = median(durations(lambda: encoder.encode(texts), 0, 3, 3))
            yield {
                "budget": budget,
                "streams": streams,
                "device_tokens_s": round(tokens / device),
                "strings_tokens_s": round(tokens / strings),
            }


# ---------------------------------------------------------------- profiles


def profile(stage: Stage) -> None:
    """Record the time of each kernel and product in one forward pass, with marks and with Nsight Compute."""
    stage.attempt_each(profile_marks, by="marks")
    stage.attempt_each(profile_counters, "" if shutil.which("ncu") else "ncu is not on the PATH", by="ncu")


def profile_marks(stage: Stage, model: str) -> Iterator[Row]:
    """Yield the rows of a model. The first is the whole pass, measured without marks."""
    encoder = stage.encoder(model)
    batch = inside.prepare(encoder, stage.some(model, "tokens128"), encoder.max_batch_tokens)[0]
    ahead = stage.ahead(15)  # the host submits a pass of BERT-large in less time
    times = [inside.pass_seconds(encoder, [batch], 1, stage.gpu, passes=4) / 4 for _ in range(3)]
    tokens, rows = sum(batch.lengths), batch.packing.rows
    yield {"op": "pass", "tokens": tokens, "rows": rows, "us": round(1e6 * median(times), 1)}
    yield from inside.profile(encoder, batch, stage.gpu, ahead)


def profile_counters(stage: Stage, model: str) -> Iterator[Row]:
    """Yield time and throughputs of each kernel from Nsight Compute, summed by name."""
    program = f"import gpu_stages\ngpu_stages.one_pass({str(stage.pack)!r}, {model!r}, dry={stage.dry})"
    share = min(stage.left(), 120)
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--metrics", _COUNTERS]
    status, said = call([*command, sys.executable, "-c", program], share)
    if status != 0:
        raise RuntimeError(f"ncu ended with {'no answer in time' if status is None else status}: {said[-1500:]}")
    yield from read_counters(said)


def one_pass(pack: str, model: str, *, dry: bool) -> None:
    """Compute a batch twice, the second time with the profiler on."""
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(Path(scratch) / "rows.json", Path(pack), [model], 600, quick=True, dry=dry)
        import cupy  # in a dry run, the replacement

        encoder = stage.encoder(model)
        batch = inside.prepare(encoder, stage.some(model, "tokens128"), encoder.max_batch_tokens)
        inside.pass_seconds(encoder, batch[:1], 1, stage.gpu)
        cupy.cuda.runtime.profilerStart()
        inside.pass_seconds(encoder, batch[:1], 1, stage.gpu)
        stage.gpu.wait()
        cupy.cuda.runtime.profilerStop()


def read_counters(said: str) -> list[Row]:
    """Return rows from the output of ``ncu --csv``: sums of times, and means of shares weighted by time."""
    lines = [line for line in said.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, dict[str, float]]] = {}
    for line in csv.DictReader(io.StringIO("\n".join(lines))):
        value = float(line["Metric Value"].replace(",", ""))
        to_us = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
        metric = line["Metric Name"].split("_", maxsplit=1)[0]
        name = re.sub(r"\(.*", "", line["Kernel Name"])[:100]
        call_of = kernels.setdefault(name, {}).setdefault(line["ID"], {})
        call_of[metric] = value * (to_us[line["Metric Unit"]] if metric == "gpu" else 1)
    if not kernels:
        raise RuntimeError(f"ncu printed no counters: {said[-1500:]}")
    rows = []
    for name, calls in kernels.items():
        us = sum(each["gpu"] for each in calls.values())
        means = {key: sum(each[key] * each["gpu"] for each in calls.values()) / us for key in ("dram", "sm")}
        rows.append({"op": name, "calls": len(calls), "us": us, **{f"{key}_pct": means[key] for key in means}})
    return sorted(rows, key=lambda row: -float(row["us"]))


STAGES: dict[str, Callable[[Stage], None]] = {
    "versions": versions,
    "tests": tests,
    "accuracy": accuracy,
    "throughput": throughput,
    "products": products,
    "peers": compare_peers,
    "profile": profile,
    "sweep": sweep,
    "compiled": compiled,
    "sanitizer": sanitizer,
}


def main() -> None:
    """Run a stage with arguments in JSON."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    pack, out, models = Path(options["pack"]), Path(options["out"]), options["models"]
    stage = Stage(out, pack, models, options["seconds"], quick=options["quick"], dry=options["dry"])
    try:
        STAGES[name](stage)
    except Exception as error:
        stage.add({"error": f"{type(error).__name__}: {error}"[:2000]})
        raise


if __name__ == "__main__":
    main()
