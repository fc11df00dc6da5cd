"""What the tests of the command line share: streams, the program in a process, and changes of a model repo."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import ROOT, edit_json, edit_weights, load

from minibert.cli import main

COMMAND = [sys.executable, "-m", "minibert"]
#: An environment in which Python buffers standard output, as it does for users.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

ST = "config_sentence_transformers.json"


class Terminal(io.TextIOWrapper):
    """A standard input that is a terminal, on which these bytes are typed."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))

    def isatty(self):
        """Say that it is one."""
        return True


def records(text):
    """Return the JSON lines of a text."""
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def usage_error(*argv):
    """Run the command line, which must exit with the status of wrong usage."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in argv])
    assert stop.value.code == 2


def listing(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def program(*argv, **options):
    """Run the command line in a process of its own, with pipes, and return how it ended."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, "cwd": ROOT, "env": BUFFERED}
    return subprocess.run([*COMMAND, *argv], check=False, **{**pipes, **options})


def fail_with(error):
    """Return what can take the place of any function, and raises the error."""

    def fail(*_, **__):
        raise error

    return fail


def unchanged(repo):
    """Leave the repo as it is."""


def add_module(repo, kind, config):
    """Add a module to the end of modules.json."""
    modules = json.loads((repo / "modules.json").read_text("utf-8"))
    path = f"{len(modules)}_{kind}"
    modules.append({"name": path, "path": path, "type": f"sentence_transformers.models.{kind}"})
    (repo / "modules.json").write_text(json.dumps(modules), "utf-8")
    (repo / path).mkdir()
    edit_json(repo / path / "config.json", **config)
    return repo / path


def add_dense(repo, dtype=np.float32):
    """Add a Dense module with weights of its own."""
    weight = np.random.default_rng(0).normal(0, 1, (4, 16)).astype(dtype)
    folder = add_module(repo, "Dense", {"in_features": 16, "out_features": 4, "bias": False})
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def half_weights(repo):
    """Make the weights float16."""
    edit_weights(
        repo / "model.safetensors", lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()}
    )


def renamed(arrays):
    """Return a checkpoint as BertForMaskedLM wrote it in 2018: a prefix, a head, a buffer, TensorFlow's names."""
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in arrays.items()
    }
    head = {"cls.predictions.bias": np.zeros(80, np.float32)}
    return old | head | {"bert.embeddings.position_ids": np.arange(512, dtype=np.int64)}


def shard(repo):
    """Split the weights over two files with an index."""
    arrays, _ = load(repo / "model.safetensors")
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(arrays))}
    for file in set(files.values()):
        save_file({name: arrays[name] for name in files if files[name] == file}, repo / file)
    edit_json(repo / "model.safetensors.index.json", metadata={}, weight_map=files)
    (repo / "model.safetensors").unlink()


def inspected(repo, capsys):
    """Return what ``minibert inspect --json`` prints."""
    assert main(["inspect", "--json", str(repo)]) == 0
    return json.loads(capsys.readouterr().out)
