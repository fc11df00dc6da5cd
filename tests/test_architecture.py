"""The rules of the code base: imports go only to lower layers, the reference is small, heavy imports are late."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, twin

import minibert

PACKAGE = Path(minibert.__file__).parent

#: The layers of modules and packages, from lowest to highest. A module may import only from lower layers and from its
#: own package. docs/architecture.md has the same list.
FLOORS = (
    ("errors", "instead", "typing"),
    ("arrays", "inputs", "safe"),
    ("special",),
    ("ops",),
    ("families", "positions"),
    ("config", "params", "pooling", "quantization", "similarity"),
    ("model",),
    ("files",),
    ("engine",),
    ("tokenization",),
    ("modules",),
    ("repo",),
    ("bert_model", "pipeline", "settings"),
    ("adapters", "embedding"),
    ("study",),
    ("encoder",),
    ("index", "integrations", "jobs", "serving"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
#: The layers inside each package.
WINGS = {
    "cli": (
        ("help_texts", "terminal"),
        ("arguments", "encoder", "files", "heat_map", "opened", "outputs", "texts"),
        ("convert", "differences", "download", "embed", "encode", "index", "serve"),
        ("explain", "inspect", "search"),
        ("__init__",),
    ),
    "engine": (
        ("__init__", "cublaslt", "precisions", "threads", "token_ids"),
        ("arithmetic", "native", "rows"),
        ("packing",),
        ("fused", "tables"),
        ("batches", "packed", "recordings"),
        ("fused_cuda", "fused_numpy", "native_params"),
        ("fused_native", "products"),
        ("native_arithmetic",),
        ("cpu_engines", "cuda_device"),
        ("cuda_engine",),
        ("devices",),
    ),
    "files": (("__init__", "tokenizer_files"), ("checkpoint",), ("hub",)),
    "files.checkpoint": (("stored",), ("pickle_machine", "safetensors_file"), ("names", "torch_pickle"), ("__init__",)),
    "integrations": (
        ("__init__", "common"),
        ("bertopic", "chroma", "haystack", "keybert", "lancedb", "langchain", "llama_index", "mteb"),
    ),
    "jobs": (("lines", "tables"), ("batches", "folder", "inputs"), ("shards",), ("run",), ("__init__",)),
    "modules": (("__init__",), ("kinds",), ("chain",)),
    "serving": (
        ("__init__", "metrics", "refused"),
        ("batcher", "fields"),
        ("service",),
        ("cohere", "ollama", "openai", "tei"),
        ("app", "process"),
    ),
    "study": (("names", "reference"), ("traces",), ("similar",), ("__init__", "page")),
    "safe": (("__init__", "atomic", "escapes", "regular"), ("jsonfile",)),
}
#: Packages that must not import from some lower packages.
APART = {"engine": {"files"}}
FILES = sorted(PACKAGE.rglob("*.py"))


def address(path):
    """Return the parts of a module's name below minibert. The file of a package is its ``__init__``."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def modules_of(name):
    """Return the parts of the imported module's name below minibert."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.is_dir():
            return (*parts[:end], "__init__")
        if path.with_suffix(".py").is_file():
            return tuple(parts[:end])
    return ("__init__",)


def imported(path):
    """Return the minibert modules that a file imports, at any place in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {modules_of(name) for name in found if name.split(".")[0] == "minibert"}


def floor(floors, name):
    """Return the number of the layer of a module or package."""
    return next(number for number, names in enumerate(floors) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """A module imports only from lower layers, also inside its package."""
    own = address(path)
    for other in imported(path) - {own}:
        shared, floors = 0, FLOORS
        while len(own) > shared + 1 and len(other) > shared + 1 and own[shared] == other[shared]:
            shared += 1
            floors = WINGS[".".join(own[:shared])]
        assert floor(floors, other[shared]) < floor(floors, own[shared]), f"{own} imports {other}"
        assert other[0] not in APART.get(own[0], ()), f"{own} imports {other}"


def test_every_module_has_its_floor():
    """The lists have every module and package, and no others."""
    for wing, floors in {"": FLOORS, **WINGS}.items():
        folder = PACKAGE.joinpath(*wing.split(".")) if wing else PACKAGE
        packages = {path.parent.name for path in folder.glob("*/__init__.py")}
        there = {path.stem for path in folder.glob("*.py")} | packages
        assert {name for names in floors for name in names} == there, wing or "minibert"


def test_the_page_about_the_architecture_is_true():
    """docs/architecture.md names every layer, in order, and every module of the engine."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    house, engine = (
        [re.findall(r"`(\w+)/?`", row) for row in re.findall(r"^\| (`.+?`) \|", part, re.MULTILINE)]
        for part in page.split("## The engine")
    )

    assert [tuple(names) for names in house] == list(reversed(FLOORS))
    listed = {name for names in engine for name in names}
    assert listed == {name for names in WINGS["engine"] for name in names} - {"__init__"}


def test_the_reference_is_short():
    """model.py is short: under 200 lines."""
    assert len((PACKAGE / "model.py").read_text("utf-8").splitlines()) < 200


def names_cupy(source):
    """Return whether a source imports CuPy in any form, or uses one of its names."""
    tops = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add(node.module.split(".")[0])
        elif isinstance(node, ast.Name):
            tops.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            tops |= {node.value.split(".")[0]} if "cupy" in node.value and "import" not in node.value else set()
    return bool(tops & {"cupy", "cupyx", "cupy_backends"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cupy_is_named_in_one_place(path):
    """Only ``arrays`` and ``engine.cuda_device`` name CuPy. Nothing else may depend on it."""
    allowed = path in {PACKAGE / "arrays.py", PACKAGE / "engine" / "cuda_device.py"}

    assert allowed or not names_cupy(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import cupy",
        "import cupy as cp",
        "import cupy.cuda as c",
        "from cupy.cuda import x",
        "from cupyx import y",
        "from cupy_backends.cuda.libs import cublas",
        "def f():\n    import cupyx.profiler",
        "import sys; sys.modules['cupy']",
        "cupy.empty(3)",
    ],
)
def test_every_way_to_name_cupy_is_seen(source):
    """The test above can fail, for each form of an import."""
    assert names_cupy(source)
    assert not names_cupy("import numpy as np")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    """A library does not print."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    prints = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)

    assert not prints or address(path)[0] == "cli"


def test_import_loads_nothing_heavy():
    """``import minibert`` loads no torch, transformers, cupy, huggingface_hub or tqdm, and no minibert.study."""
    code = "import json, sys, minibert; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    loaded = {name.split(".")[0] for name in modules}

    assert "minibert" in loaded
    assert not loaded & {"torch", "transformers", "sentence_transformers", "cupy", "huggingface_hub", "tqdm", "scipy"}
    assert not any(name.startswith("minibert.study") for name in modules)


def test_encoding_from_a_folder_loads_nothing_heavy():
    """A vector from a local folder does not need them either."""
    code = (
        "import json, sys, minibert; minibert.SentenceEncoder(sys.argv[1]).encode('a');"
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(twin("BertModel-128d"))]
    modules = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    assert not {name.split(".")[0] for name in modules} & {"torch", "transformers", "cupy", "huggingface_hub", "tqdm"}
    assert not any(name.startswith("minibert.study") for name in modules)


def test_every_public_name_is_documented():
    """Every name of ``import *`` has a docstring."""
    for name in minibert.__all__:
        assert getattr(minibert, name).__doc__, name
