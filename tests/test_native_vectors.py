"""A C program computes a model's vectors: they have the bits that the encoder gives, whatever compiled or runs it.

Each build runs with each instruction set that it has here, with one to three workers. An emulator runs the build for
ARM processors.
"""

import platform

import pytest
from native_cases import MODES, SMALL, TEXTS, chain, dense, encoder, norm, pooled, wide
from native_support import build_program, compiler, programs, require_library, run_model, write_model

from minibert.engine import native

__all__ = ["programs"]
pytestmark = pytest.mark.slow

HERE = {"x86_64": ("avx512", "avx2"), "aarch64": ("neon",)}.get(platform.machine(), ())
RUNS = [*((build, name) for build in ("gcc", "clang") for name in HERE), ("neon", "neon")]
#: By name: a function that writes a model into a folder, a prompt, and how many of TEXTS.
MODELS = {
    "built-in": (lambda _: None, "", 20),
    "mean": (lambda folder: chain(folder, ("Pooling", "1_Pooling")), "", 30),
    "first tokens": (lambda folder: wide(folder, 66, 1, 258, ["cls"]), "", 16),
    "all modes without the prompt": (
        lambda folder: pooled(folder, MODES, ("Normalize", "n"), include_prompt=False), "the cat: ", 30,
    ),
    "modules": (
        lambda folder: pooled(folder, ["mean"], ("Normalize", "n"), dense(folder), norm(folder), ("Normalize", "n")),
        "", 30,
    ),
    "Dense without a bias": (
        lambda folder: pooled(folder, ["max"], dense(folder, "activation.Mish", bias=False)), "", 30,
    ),
    "another activation": (
        lambda folder: chain(folder, ("Pooling", "1_Pooling"), card=SMALL, hidden_act="gelu_new"), "", 30,
    ),
}  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("build", "instructions"), RUNS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_bits(tmp_path, programs, model, build, instructions, workers):
    """The final vectors of the program are those of the encoder, bit for bit."""
    require_library()
    of = compiler(build)
    if not of.run and instructions not in native.available():
        pytest.skip(f"this processor does not have {instructions}")
    write, prompt, texts = MODELS[model]
    mine = encoder(write(tmp_path / "model"))
    file = tmp_path / "model.bin"
    write_model(file, mine, TEXTS[:texts], prompt)
    program = build_program(programs, "vectors", of)

    assert run_model(program, of, file, instructions, workers) == mine.encode(TEXTS[:texts], prompt=prompt).tobytes()
