"""The rules of the code base: imports point down, the reference stays small, heavy things load late."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import twin

import minibert

PACKAGE = Path(minibert.__file__).parent

#: Modules by layer, the lowest first. A module imports from lower layers only.
LAYERS = (
    ("errors", "instead", "threads", "typing"),
    ("arrays", "inputs", "jsonfile", "token_ids"),
    ("special",),
    ("ops",),
    ("config", "params", "pooling", "quantization", "similarity", "tokenizer_files"),
    ("checkpoint", "fused", "model", "tokenization"),
    ("batches", "hub", "modules", "packed", "settings"),
    ("engines", "repo"),
    ("pipeline", "pretrained"),
    ("adapters", "embedding"),
    ("encoder",),
    ("index",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def own_name(path):
    """Return the name of the module or subpackage of minibert that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Return the names of minibert's modules that a file imports anywhere, the package itself as __init__."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "minibert":
            submodules = {alias.name for alias in node.names} & LAYER.keys()
            found |= {f"minibert.{name}" for name in submodules} or {"minibert"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
    parts = [name.split(".") for name in found if name.split(".")[0] == "minibert"]
    return {name[1] if len(name) > 1 else "__init__" for name in parts}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """A module imports only from layers below its own."""
    own = own_name(path)
    upward = {name for name in imported(path) - {own} if LAYER[name] >= LAYER[own]}

    assert not upward


def test_the_reference_is_short():
    """model.py can be read in one sitting: under 200 lines."""
    assert len((PACKAGE / "model.py").read_text("utf-8").splitlines()) < 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cupy_is_named_in_one_place(path):
    """Only ``arrays`` and ``fused.device`` name CuPy, so nothing else can come to depend on it."""
    names = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}

    assert "cupy" not in names or path in {PACKAGE / "arrays.py", PACKAGE / "fused" / "device.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    """A library does not print."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    prints = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)

    assert not prints or own_name(path) == "cli"


def test_import_loads_nothing_heavy():
    """``import minibert`` loads no torch, transformers, cupy, huggingface_hub or tqdm."""
    code = "import json, sys, minibert; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    loaded = {name.split(".")[0] for name in modules}

    assert "minibert" in loaded
    assert not loaded & {"torch", "transformers", "sentence_transformers", "cupy", "huggingface_hub", "tqdm", "scipy"}


def test_encoding_from_a_folder_loads_nothing_heavy():
    """A vector from a local folder needs none of them either."""
    code = (
        "import json, sys, minibert; minibert.SentenceEncoder(sys.argv[1]).encode('a');"
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(twin("BertModel-128d"))]
    modules = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    assert not {name.split(".")[0] for name in modules} & {"torch", "transformers", "cupy", "huggingface_hub", "tqdm"}


def test_every_public_name_is_documented():
    """What ``import *`` gives has a docstring."""
    for name in minibert.__all__:
        assert getattr(minibert, name).__doc__, name
