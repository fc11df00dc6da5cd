"""What the tests of the native kernels share: compilers, programs of tests/native, and models as files for them."""

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support import ROOT

from minibert.engine import native
from minibert.engine.packed import query_scale
from minibert.files.checkpoint import BertReader
from minibert.modules import chain, kinds

SOURCES = ROOT / "kernels" / "cpu"
PROGRAMS = Path(__file__).parent / "native"
#: If this variable is there, what a test lacks makes it fail instead of skip.
REQUIRE = "MINIBERT_REQUIRE_NATIVE"
STEPS = {kinds.Dense: 0, kinds.LayerNorm: 1, kinds.Normalize: 2}


def give_up(reason):
    """Skip, or fail under MINIBERT_REQUIRE_NATIVE."""
    (pytest.fail if os.environ.get(REQUIRE) else pytest.skip)(reason)


def require_library():
    """Give up where minibert finds no library that it can use."""
    if not native.available():
        give_up("there is no library of the native kernels: run python tools/build_kernels.py")


# ---------------------------------------------------------------- compilers


class Compiler(NamedTuple):
    """A compiler, and what runs its programs."""

    command: tuple[str, ...]
    target: str | None = None
    run: tuple[str, ...] = ()


def compiler(name):
    """Return the compiler called gcc, or clang: the one of the wheel ziglang; or neon: it, for an emulated ARM."""
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}:
        give_up("the programs of tests/native are built on x86-64 or ARM64 Linux")
    if name == "gcc":
        if shutil.which("gcc") is None:
            give_up("there is no gcc")
        return Compiler(("gcc",))
    if importlib.util.find_spec("ziglang") is None:
        give_up("there is no Clang: pip install ziglang")
    zig = (sys.executable, "-m", "ziglang", "cc")
    if name == "clang":
        return Compiler(zig, f"{platform.machine()}-linux-musl")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        give_up("there is no qemu-aarch64: it is in the package qemu-user-static")
    return Compiler(zig, "aarch64-linux-musl", (emulator,))


def flags(of, *, library=False):
    """Return the flags of a library, or of a program, as tools/build_kernels.py has them."""
    import build_kernels

    shared = {"-shared", "-fPIC", "-fvisibility=hidden"}
    chosen = [flag for flag in build_kernels.FLAGS if library or flag not in shared]
    return [*chosen, *build_kernels.FLAGS_OF[build_kernels.kind_of(of.command)]]


def build_program(folder, name, of, extra=(), sources=SOURCES):
    """Return a program of tests/native, linked with the kernels. It is compiled once for the same text and flags."""
    import build_kernels

    main = PROGRAMS / f"{name}.c"
    command = [*of.command, *(["-target", of.target] if of.target else []), *flags(of), *extra, f"-I{sources}"]
    files = [str(main), *map(str, sorted(sources.glob("*.c")))]
    text = main.read_bytes() + "\0".join(command).encode() + build_kernels.source_hash(sources).encode()
    program = Path(folder) / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not program.exists():
        part = program.with_name(f"{program.name}.{os.getpid()}")
        subprocess.run([*command, *files, "-o", str(part), "-lpthread", "-lm"], check=True)
        part.rename(program)
    return program


def build_library(folder, sources=SOURCES, extra=(), of=None):
    """Compile the kernels into a library in a folder that has no sources, and return it."""
    import build_kernels

    folder.mkdir(parents=True, exist_ok=True)
    output = folder / build_kernels.library_name()
    build_kernels.compile_library(sources, output, of.command if of else compiler("gcc").command, None, extra)
    return output


@pytest.fixture(scope="session")
def programs(request):
    """Return the folder where programs are kept."""
    return request.config.cache.mkdir("native")


@functools.cache
def fixed_addresses():
    """Return the command that runs a program at fixed addresses, which ThreadSanitizer needs; give up without it."""
    command = ("setarch", platform.machine(), "-R")
    if (
        shutil.which("setarch") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        give_up("setarch -R is not allowed here")
    return command


# ---------------------------------------------------------------- models as files


def write_model(path, encoder, texts, prompt=""):
    """Write a model and the ids of some texts to a file, as tests/native/vectors.c reads them.

    The matrices are those of the checkpoint. The chain of modules must be one that computes vectors at once.
    """
    pipeline, settings = encoder._pipeline, encoder._settings
    config, parts = pipeline.config, chain.at_once(pipeline.loaded)
    ids = pipeline.tokenizer([prompt + text for text in texts], settings.max_seq_length).ids
    prompt_length = pipeline.tokenizer.prompt_length(prompt, settings.max_seq_length) if prompt else 0
    exclude = 0 if parts.pooling.include_prompt else prompt_length
    weights = BertReader(encoder._repo.transformer_folder, config, np.float32)
    tables = weights.embeddings()
    modes = [native.POOLING_MODES[mode] for mode in parts.pooling.modes]
    numbers = [
        config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_hidden_layers,
        len(tables.word), len(tables.position), native.ACTIVATIONS[config.hidden_act],
        len(texts), len(ids.flat), chain.takes_first_token(pipeline.loaded, prompt_length), exclude, len(modes),
        parts.normalize, len(parts.rest),
    ]  # fmt: skip
    scale = query_scale(config.hidden_size, config.num_attention_heads)
    out = [np.array(numbers, np.int64), np.array([config.layer_norm_eps, scale], np.float32)]
    out += [np.array(modes, np.int64), ids.flat.astype(np.int64), np.cumsum([0, *ids.lengths], dtype=np.int64)]
    out += [tables.word, tables.position, tables.token_type[0], *tables.norm]
    for number in range(config.num_hidden_layers):
        a, f = weights.layer(number)
        out += [*a.query, a.key.weight, *a.value, *a.output, *a.norm, *f.intermediate, *f.output, *f.norm]
    for module in parts.rest:
        out += step(module)
    path.write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in out))


def step(module):
    """Return the arrays of a module on sentence vectors."""
    kind = np.array([STEPS[type(module)]], np.int64)
    if isinstance(module, kinds.Normalize):
        return [kind]
    if isinstance(module, kinds.LayerNorm):
        return [kind, np.array([module.EPS], np.float32), module.weight, module.bias]
    weight, bias = module.weights["linear.weight"], module.weights.get("linear.bias")
    about = [len(weight), native.ACTIVATIONS[module.activation], bias is not None]
    return [kind, np.array(about, np.int64), weight, *([] if bias is None else [bias])]


def run_model(program, of, path, kernels, workers):
    """Return what tests/native/vectors.c writes for a model."""
    with path.open("rb") as file:
        command = [*of.run, str(program), kernels, str(workers)]
        done = subprocess.run(command, stdin=file, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout
