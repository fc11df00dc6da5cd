"""One process of tools/bench.py: it makes one measurement of one encoder, in the environment of this encoder.

    python tools/bench_peers.py '{"measure": "latency", "peer": "openvino", "model": "models/minilm", ...}'

It prints the result as one line of JSON. The top of the file imports only the standard library and numpy. Every encoder
here also loads them, so they are part of the cold start. Linux only: it reads /proc.
"""

import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Encode = Callable[[list[str]], Array]
Rows = Sequence[list[int]]

#: Kinds of texts.
WORKLOADS = ("short", "mixed", "long")

#: The text for latency and cold start: 24 tokens.
ONE_TEXT = "A man wearing a blue shirt is riding a brown horse across the open field near the river at sunset today."


class Setting(NamedTuple):
    """The settings for loading an encoder.

    Attributes:
        model: The model's folder.
        export: The exported model of this encoder.
        batch: The number of texts in a batch or, if negative, the number of padded tokens.
        threads: The number of threads.
    """

    model: Path
    export: Path
    batch: int
    threads: int


class Facts(NamedTuple):
    """The facts about a model that the loop around a raw runtime needs."""

    hidden_size: int
    max_seq_length: int
    cls_pooled: bool
    normalized: bool


def read_facts(model: Path) -> Facts:
    """Return the facts of a model folder with the files of sentence-transformers 2."""
    return Facts(
        read_json(model / "config.json")["hidden_size"],
        read_json(model / "sentence_bert_config.json")["max_seq_length"],
        read_json(model / "1_Pooling" / "config.json")["pooling_mode_cls_token"],
        any(module["type"].endswith("Normalize") for module in read_json(model / "modules.json")),
    )


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def tokenize(model: Path) -> Callable[[list[str]], Rows]:
    """Return a function that turns texts into token ids, truncated at the model's own limit."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()  # MiniLM's file sets padding and truncation to 128 tokens
    tokenizer.enable_truncation(read_facts(model).max_seq_length)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def batches(lengths: Sequence[int], batch: int) -> Iterator[slice]:
    """Yield the batches of texts, which are sorted from long to short. :class:`Setting` explains ``batch``."""
    start = 0
    while start < len(lengths):
        stop = start + (batch if batch > 0 else max(1, -batch // lengths[start]))
        yield slice(start, stop)
        start = stop


def sorted_loop(setting: Setting, hidden_states: Callable[[Rows], Array]) -> Encode:
    """Return the loop that a user writes around a raw runtime: tokenize, sort by length, batch, pool, normalize."""
    tokens = tokenize(setting.model)
    facts = read_facts(setting.model)

    def encode(texts: list[str]) -> Array:
        rows = tokens(texts)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        vectors = np.empty((len(rows), facts.hidden_size), np.float32)
        for part in batches([len(rows[i]) for i in order], setting.batch):
            chosen = order[part]
            batch = [rows[i] for i in chosen]
            vectors[chosen] = pool(hidden_states(batch), [len(row) for row in batch], facts)
        return vectors

    return encode


def pool(hidden: Array, lengths: Sequence[int], facts: Facts) -> Array:
    """Return the vectors of padded hidden states."""
    if facts.cls_pooled:
        vectors = hidden[:, 0]
    else:
        counts = np.array(lengths, np.float32)[:, None]
        mask = (np.arange(hidden.shape[1]) < counts).astype(np.float32)
        vectors = np.matmul(mask[:, None], hidden)[:, 0] / counts
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if facts.normalized else vectors


def pad(rows: Rows) -> dict[str, Array]:
    """Return the inputs of an exported BERT for ``rows``. The first row must be the longest."""
    ids = np.zeros((len(rows), len(rows[0])), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def load_minibert(setting: Setting) -> Encode:
    """Return minibert's encode, which chooses batches itself."""
    from minibert import SentenceEncoder

    return SentenceEncoder(setting.model, num_threads=setting.threads).encode


def load_minibert_full_last(setting: Setting) -> Encode:
    """Return minibert's encode with a last layer that always computes every token."""
    from minibert import SentenceEncoder
    from minibert.modules import chain

    chain.takes_first_token = lambda *_: False  # there is no setting: users do not need the slower layer
    return SentenceEncoder(setting.model, num_threads=setting.threads).encode


def load_sentence_transformers(setting: Setting) -> Encode:
    """Return sentence-transformers' encode, on torch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(setting.threads)
    model = SentenceTransformer(str(setting.model), device="cpu")
    return functools.partial(model.encode, batch_size=setting.batch, show_progress_bar=False)


def load_onnxruntime(setting: Setting) -> Encode:
    """Return the loop around ONNX Runtime. It runs the graph from its BERT optimizer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(str(setting.export), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def hidden_states(rows: Rows) -> Array:
        inputs = pad(rows)
        return session.run(None, {name: inputs[name] for name in names})[0]

    return sorted_loop(setting, hidden_states)


def load_openvino(setting: Setting) -> Encode:
    """Return the loop around OpenVINO in float32. By default, OpenVINO uses bfloat16 if the processor has it."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": setting.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(str(setting.export), "CPU", options)
    names = [node.get_any_name() for node in model.inputs]
    request = model.create_infer_request()

    def hidden_states(rows: Rows) -> Array:
        inputs = pad(rows)
        request.infer({name: inputs[name] for name in names}, share_inputs=True)
        return request.get_output_tensor(0).data

    return sorted_loop(setting, hidden_states)


def load_ctranslate2(setting: Setting) -> Encode:
    """Return the loop around CTranslate2."""
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(setting.export.parent), device="cpu", compute_type="float32", intra_threads=setting.threads
    )
    return sorted_loop(setting, lambda rows: np.array(encoder.forward_batch(rows).last_hidden_state))


def load_fastembed(setting: Setting) -> Encode:
    """Return fastembed's embed, with a local model."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    facts = read_facts(setting.model)
    TextEmbedding.add_custom_model(
        "local/model",
        pooling=PoolingType.CLS if facts.cls_pooled else PoolingType.MEAN,
        normalization=facts.normalized,
        sources=ModelSource(hf="local/model"),
        dim=facts.hidden_size,
        model_file=setting.export.name,
    )
    model = TextEmbedding("local/model", specific_model_path=str(setting.export.parent), threads=setting.threads)
    return lambda texts: np.array(list(model.embed(texts, batch_size=setting.batch)))


class Peer(NamedTuple):
    """An encoder of the benchmark.

    Attributes:
        label: Its name in tables.
        load: Loads it.
        environment: Its environment of bench.py.
        packages: The packages that a user installs for it.
        modules: The modules that are imported before the model is loaded.
        export: The file that it loads, in the model's folder of exports; "" if it reads the model's own files.
        batches: Its best batch (see :class:`Setting`) for each of :data:`WORKLOADS`, by model; "" is for all other
            models. ``bench.py run --batch`` found them. None if the encoder chooses its batches itself.
        kernels: The kernels that minibert must use; "" if it chooses them itself.
    """

    label: str
    load: Callable[[Setting], Encode]
    environment: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    export: str = ""
    batches: Mapping[str, tuple[int, int, int]] | None = None
    kernels: str = ""

    def batch(self, model: str, workload: str) -> int:
        """Return the best batch for a model and a workload; 1 if it does not matter."""
        if self.batches is None or workload not in WORKLOADS:
            return 1
        return self.batches.get(model, self.batches[""])[WORKLOADS.index(workload)]


MINIBERT = Peer(
    "minibert",
    load_minibert,
    "minibert",
    packages=("minibert", "numpy"),
    modules=("minibert", "safetensors", "tokenizers"),
)
PEERS = {
    "minibert": MINIBERT,
    "minibert-avx512": MINIBERT._replace(label="minibert (AVX-512)", kernels="avx512"),
    "minibert-avx2": MINIBERT._replace(label="minibert (AVX2)", kernels="avx2"),
    "minibert-numpy": MINIBERT._replace(label="minibert (numpy)", kernels="numpy"),
    "minibert-full-last": MINIBERT._replace(label="minibert (full last layer)", load=load_minibert_full_last),
    "sentence-transformers": Peer(
        "sentence-transformers",
        load_sentence_transformers,
        "sentence-transformers",
        packages=("sentence-transformers", "transformers", "torch"),
        modules=("sentence_transformers",),
        batches={"": (32, 8, 8), "base": (8, 8, 8), "large": (8, 8, 8)},
    ),
    "onnxruntime": Peer(
        "ONNX Runtime",
        load_onnxruntime,
        "onnxruntime",
        packages=("onnxruntime", "tokenizers", "numpy"),
        modules=("onnxruntime", "tokenizers"),
        export="onnxruntime/model.onnx",
        batches={"": (-1024, -1024, -1024), "base": (8, -512, -1024), "large": (8, -512, -1024)},
    ),
    "openvino": Peer(
        "OpenVINO",
        load_openvino,
        "openvino",
        packages=("openvino", "tokenizers", "numpy"),
        modules=("openvino", "tokenizers"),
        export="openvino/openvino/openvino_model.xml",
        batches={"": (-512, -512, -1024), "base": (8, -512, 8), "large": (8, -512, 8)},
    ),
    "ctranslate2": Peer(
        "CTranslate2",
        load_ctranslate2,
        "ctranslate2",
        packages=("ctranslate2", "tokenizers", "numpy"),
        modules=("ctranslate2", "tokenizers"),
        export="ctranslate2/model.bin",
        batches={"": (32, -1024, -1024), "base": (8, -512, -512), "large": (32, -512, -512)},
    ),
    "fastembed": Peer(
        "fastembed",
        load_fastembed,
        "fastembed",
        packages=("fastembed", "onnxruntime"),
        modules=("fastembed",),
        export="fastembed/model.onnx",
        batches={"": (32, 1, 8), "base": (4, 1, 4), "large": (4, 1, 4)},  # mixed texts one by one: it does not sort
    ),
}


def durations(call: Callable[[], object], seconds: float, fewest: int, most: int) -> list[float]:
    """Return the duration of each call. Call at least ``fewest`` times, for ``seconds`` or ``most`` calls."""
    taken: list[float] = []
    while len(taken) < fewest or (sum(taken) < seconds and len(taken) < most):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


class Clocks(NamedTuple):
    """Clocks in seconds: wall time, CPU time of all processes, CPU time of this process, time of the hypervisor."""

    wall: float
    everyone: float
    own: float
    stolen: float

    @classmethod
    def read(cls) -> "Clocks":
        """Read the clocks."""
        fields = Path("/proc/stat").read_text("utf-8").split(maxsplit=9)[1:9]
        ticks = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
        user, nice, system, _idle, _wait, irq, softirq, stolen = ticks
        return cls(time.perf_counter(), user + nice + system + irq + softirq, sum(os.times()[:4]), stolen)


def timed(call: Callable[[], object], seconds: float, fewest: int, most: int) -> dict[str, Any]:
    """Return the durations of calls, and the cores that other processes and the hypervisor used meanwhile."""
    before = Clocks.read()
    times = durations(call, seconds, fewest, most)
    wall, everyone, own, stolen = (b - a for a, b in zip(before, Clocks.read(), strict=True))
    return {
        "times": [float(f"{duration:.4g}") for duration in times],
        "other_cpu": round(max(0.0, everyone - own) / wall, 3),
        "stolen_cpu": round(stolen / wall, 3),
    }


def resident(field: str) -> int:
    """Return the memory of this process in bytes: now (``VmRSS``) or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_throughput(peer: Peer, setting: Setting, task: Mapping[str, Any]) -> tuple[dict[str, Any], Array]:
    """Return the times and the memory of passes over the texts, and the vectors.

    The first pass is not timed, because some runtimes compile code for the shapes of the batches.
    """
    texts = read_json(Path(task["texts"]))
    for module in peer.modules:
        importlib.import_module(module)
    imported = resident("VmRSS")
    encode = peer.load(setting)
    vectors = encode(texts)
    result = timed(lambda: encode(texts), task["seconds"], fewest=1, most=50)
    return {**result, "imported": imported, "peak": resident("VmHWM")}, vectors


def measure_latency(peer: Peer, setting: Setting, task: Mapping[str, Any]) -> tuple[dict[str, Any], Array]:
    """Return the times of calls with one text, and its vector."""
    encode = peer.load(setting)
    durations(lambda: encode([ONE_TEXT]), task["seconds"], fewest=5, most=20)
    return timed(lambda: encode([ONE_TEXT]), task["seconds"], fewest=20, most=100), encode([ONE_TEXT])


def measure_cold(peer: Peer, setting: Setting, _task: Mapping[str, Any]) -> tuple[dict[str, Any], Array]:
    """Return the time to the first vector, without the start of the interpreter. The parent process adds it."""
    vectors: list[Array] = []
    return timed(lambda: vectors.append(peer.load(setting)([ONE_TEXT])), 0, fewest=1, most=1), vectors[0]


MEASURES = {"throughput": measure_throughput, "latency": measure_latency, "cold": measure_cold}


def main() -> None:
    """Run the task from the command line (JSON), and print the result as JSON."""
    task = json.loads(sys.argv[1])
    setting = Setting(Path(task["model"]), Path(task["export"]), task["batch"], task["threads"])
    result, vectors = MEASURES[task["measure"]](PEERS[task["peer"]], setting, task)
    print(json.dumps(result), flush=True)
    np.save(task["vectors"], vectors)


if __name__ == "__main__":
    main()
