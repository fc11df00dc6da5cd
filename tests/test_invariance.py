"""The same bits in any company: a text's vector does not depend on what else is in the call, nor on how it is made."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from invariance import FORMS, Comparison, differing_bits, draw
from repos import made_up_texts
from support import FAMILIES, MODELS, MODES, ROOT, copy_twin, edit_json, edit_weights, twin, words_of, write_module

from minibert import SentenceEncoder
from minibert.engine import rows, threads

TWIN = twin("BertModel-128d")  # the one whose tokens fit on one hand: its sizes are 16, 64 and 80
WIDTHS = {384: 12, 768: 12, 1024: 16}  # hidden sizes of real models, and their heads
BATCHINGS = {384: 60, 768: 30, 1024: 20}  # fewer where they take longer

#: What each of OpenBLAS's kernels needs of a processor.
KERNELS = {"Haswell": "avx2", "SkylakeX": "avx512f"}
PROCESSOR = Path("/proc/cpuinfo")


def texts_for(repo):
    """Return texts for the vocabulary of a repo: mostly short ones, a few long ones, and an empty one."""
    vocabulary = words_of(repo)
    long = [" ".join(made_up_texts(vocabulary, count, 10, seed=count)) for count in (10, 20, 40, 60)]
    return ["", *made_up_texts(vocabulary, 24, 10), *long]


def widen(repo, width, heads):
    """Give a copy of the twin another width, and seeded weights of about the sizes that training gives."""
    rng = np.random.default_rng(0)
    sizes = {16: width, 64: 4 * width}

    def grow(name, array):
        weights = rng.standard_normal([sizes.get(size, size) for size in array.shape], np.float32)
        if weights.ndim == 1:
            return (name.endswith("LayerNorm.weight") + 0.1 * weights).astype(np.float32)
        return weights if "embeddings" in name else weights * np.float32(weights.shape[1] ** -0.5)

    edit_json(repo / "config.json", hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads)
    edit_weights(repo / "model.safetensors", lambda arrays: {name: grow(name, arrays[name]) for name in arrays})


def set_modules(repo, *chain):
    """Let a chain of modules, pairs of kind and folder, follow the transformer of a repo."""
    entries = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in [("Transformer", ""), *chain]
    ]
    (repo / "modules.json").write_text(json.dumps(entries), "utf-8")


def write_pooling(repo, mode, width=16):
    """Write the Pooling module of a repo."""
    write_module(repo / "1_Pooling", {"embedding_dimension": width, "pooling_mode": mode})


def write_dense(repo, inputs, outputs, **config):
    """Write a Dense module."""
    rng = np.random.default_rng(1)
    config = {"in_features": inputs, "out_features": outputs, **config}
    weight, bias = rng.standard_normal((outputs, inputs), np.float32), rng.standard_normal(outputs, np.float32)
    write_module(repo / "dense", config, linear__weight=weight * np.float32(inputs**-0.5), linear__bias=bias)


def compare(encoder, repo, batchings, *more_texts):
    """Return the comparison of so many random batchings, after a check that it can tell texts apart."""
    encoder.on_truncate = "ignore"
    encoder.max_seq_length = min(encoder.max_seq_length, 130 if encoder.get_embedding_dimension() > 100 else 512)
    comparison = Comparison(encoder, [*texts_for(repo), *more_texts])
    for number in range(batchings):
        comparison.add(number)
    vectors = np.stack(list(comparison.alone.values()))

    assert len(np.unique(vectors, axis=0)) > len(vectors) // 2
    return comparison


# ---------------------------------------------------------------- what is compared


def test_batchings_cover_the_choices():
    """Among some dozen batchings are all forms, 1 to 4 threads, one text and many, and a text that comes twice."""
    batchings = [draw(28, number) for number in range(BATCHINGS[384])]
    sizes = {len(batching.rows) for batching in batchings}

    assert {batching.form for batching in batchings} == set(FORMS)
    assert {batching.num_threads for batching in batchings} == {1, 2, 3, 4}
    assert {batching.max_batch_tokens for batching in batchings} == {1, 16, 64, 256, 1024, 4096}
    assert min(sizes) == 1
    assert max(sizes) > 8
    assert any(len(set(batching.rows)) < len(batching.rows) for batching in batchings)


def test_batchings_follow_from_their_number():
    """A batching is the same in every run, and another one for another number or seed."""
    assert draw(1000, 7) == draw(1000, 7)
    assert len({str(draw(1000, *seeds)) for seeds in [(7,), (8,), (7, 1)]}) == 3


@pytest.mark.parametrize(
    ("a", "b", "bits"),
    [([1, 2], [1, 2], 0), ([1, 0.0], [1, -0.0], 1), ([1, 2], [np.nextafter(np.float32(1), np.float32(2)), 2], 1)],
)
def test_differing_bits(a, b, bits):
    """Floats are compared by their bits: the sign of zero counts, and so does the last place."""
    assert differing_bits(np.array(a, np.float32), np.array(b, np.float32)) == bits


def test_a_difference_is_seen(monkeypatch):
    """An encoder whose vectors depend on their batch in the last place is caught, and the text is named."""
    encoder = SentenceEncoder(TWIN)
    encode, nudge = encoder.encode, np.float32(1 + 2**-23)
    monkeypatch.setattr(encoder, "encode", lambda texts, **_: encode(texts) * (1 if isinstance(texts, str) else nudge))
    comparison = Comparison(encoder, ["the cat", "a man"])
    number = next(number for number in range(100) if draw(2, number).form == "encode")
    comparison.add(number)

    assert {difference.batching for difference in comparison.differences} == {number}
    assert {difference.text for difference in comparison.differences} <= {"the cat", "a man"}
    assert all(difference.bits for difference in comparison.differences)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("card", MODELS)
def test_twins(card):
    """The twin of every card gives the same bits in all of 100 batchings."""
    assert compare(SentenceEncoder(twin(card)), twin(card), 100).differences == []


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("engine", ["numpy", None], ids=["numpy", "best"])
@pytest.mark.parametrize("card", FAMILIES)
def test_families(repo_of, card, engine, mode):
    """So does a model of each family, pooled by the mean or by the first token, with texts that hold padding ids."""
    repo = repo_of(card)
    write_pooling(repo, mode)
    comparison = compare(SentenceEncoder(repo, kernels=engine), repo, 30, "<pad>", "[PAD] a <pad><pad> <mask> b <pad>")

    assert comparison.differences == []


@pytest.fixture(scope="module", params=WIDTHS)
def wide(request):
    """Return a repo of two layers at a real model's width, which the test may give other modules; and the width."""
    with tempfile.TemporaryDirectory() as folder:
        repo = copy_twin(Path(folder))
        widen(repo, request.param, WIDTHS[request.param])
        yield repo, request.param


@pytest.mark.parametrize("mode", ["mean", pytest.param("cls", marks=pytest.mark.slow)])
def test_real_widths(wide, mode):
    """So does a model of a real width, pooled by the mean or by the first token, which is then the last layer's all."""
    repo, width = wide
    write_pooling(repo, mode, width)
    set_modules(repo, ("Pooling", "1_Pooling"))

    assert compare(SentenceEncoder(repo), repo, BATCHINGS[width]).differences == []


def test_dense(wide):
    """So does a real width with a Dense module after pooling, whose product has one row a text."""
    repo, width = wide
    write_pooling(repo, "mean", width)
    write_dense(repo, width, width // 2)
    set_modules(repo, ("Pooling", "1_Pooling"), ("Dense", "dense"))

    assert compare(SentenceEncoder(repo), repo, BATCHINGS[width] // 2).differences == []


@pytest.fixture
def repo_of(tmp_path):
    """Return a function that makes a copy of a card's twin."""
    return lambda card: copy_twin(tmp_path, card)


@pytest.fixture
def repo(tmp_path):
    """Return a small repo of the test's own."""
    return copy_twin(tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_pooling_modes(repo, mode):
    """So does every mode of pooling."""
    write_pooling(repo, mode)

    assert compare(SentenceEncoder(repo), repo, 30).differences == []


def test_dense_on_tokens(repo):
    """So does a Dense module on the token vectors."""
    write_pooling(repo, "mean", 24)
    write_dense(repo, 16, 24, module_input_name="token_embeddings")
    set_modules(repo, ("Dense", "dense"), ("Pooling", "1_Pooling"))

    assert compare(SentenceEncoder(repo), repo, 30).differences == []


def test_several_layers_pooled(repo):
    """So does a weighted mean over the layers, which is a product with all tokens of a group."""
    config = {"embedding_dimension": 16, "layer_start": 0, "num_hidden_layers": 2}
    write_module(repo / "layers", config, layer_weights=np.array([0.3, 1.7, 0.9], np.float32))
    set_modules(repo, ("WeightedLayerPooling", "layers"), ("Pooling", "1_Pooling"))

    assert compare(SentenceEncoder(repo), repo, 30).differences == []


@pytest.mark.parametrize("factor", [12, 40], ids=["shifted", "overflowing"])
def test_large_scores(repo, factor):
    """So does a model in which some texts' attention scores are so large that they are shifted before the exp."""

    def enlarge(arrays):
        return {name: array * np.float32(factor if "query" in name else 1) for name, array in arrays.items()}

    widen(repo, 16, 2)
    edit_weights(repo / "model.safetensors", enlarge)

    assert compare(SentenceEncoder(repo), repo, 50).differences == []


def test_without_a_row_rule(repo):
    """So does a BLAS for which no rule about rows was found: each text has products of its own."""
    encoder = SentenceEncoder(repo)
    rule = encoder._pipeline.row_rule._replace(classes=())
    object.__setattr__(encoder._pipeline, "row_rule", rule)

    assert compare(encoder, repo, 50).differences == []


def test_token_vectors(repo):
    """The token vectors of a text have the same bits alone and among others."""
    encoder = SentenceEncoder(repo)
    texts = texts_for(repo)
    together = encoder.encode(texts[::-1], output_value="token_embeddings", batch_size=5)[::-1]
    alone = [encoder.encode(text, output_value="token_embeddings") for text in texts]

    assert sum(map(differing_bits, together, alone)) == 0


def test_float64(repo):
    """A float64 encoder keeps to the same."""
    assert compare(SentenceEncoder(repo, dtype="float64"), repo, 30).differences == []


# ---------------------------------------------------------------- BLAS's own threads


@pytest.fixture
def blas_threads():
    """Return a function that sets on how many threads numpy's BLAS computes, or skip where it cannot be set."""
    libraries = [library for some in threads._libraries() for library in some]
    if not libraries:
        pytest.skip("numpy's BLAS takes no limit on its threads")
    before = libraries[0].num_threads
    yield lambda count: threads._set_threads(libraries[0], count)
    threads._set_threads(libraries[0], before)


@pytest.mark.parametrize("wide", [384], indirect=True)
def test_more_threads_for_blas(wide, blas_threads):
    """A BLAS that has four threads outside of minibert changes nothing, not even for a text alone."""
    repo, width = wide
    write_pooling(repo, "mean", width)
    set_modules(repo, ("Pooling", "1_Pooling"))
    blas_threads(4)

    assert compare(SentenceEncoder(repo, num_threads=4), repo, BATCHINGS[width] // 2).differences == []


@pytest.mark.parametrize("wide", [384], indirect=True)
def test_loaded_while_blas_has_one_thread(wide, blas_threads):
    """Nor does it matter that BLAS had one thread when the model was loaded, as where another model is at work."""
    repo, width = wide
    write_pooling(repo, "mean", width)
    set_modules(repo, ("Pooling", "1_Pooling"))
    blas_threads(1)
    rows._rule_of_shape.cache_clear()
    encoder = SentenceEncoder(repo, num_threads=4)
    blas_threads(4)
    differences = compare(encoder, repo, BATCHINGS[width] // 2).differences
    rows._rule_of_shape.cache_clear()

    assert differences == []


# ---------------------------------------------------------------- kernels


def kernels(core):
    """Return a parameter for OpenBLAS's kernels for a processor, skipped where this one cannot run them."""
    flags = PROCESSOR.read_text("utf-8").split() if PROCESSOR.exists() else []
    reason = (
        f"OpenBLAS's {core} kernels need {KERNELS[core]}, which this processor does not show: without it the process "
        "dies of an illegal instruction"
    )
    return pytest.param(core, marks=pytest.mark.skipif(KERNELS[core] not in flags, reason=reason))


@pytest.mark.slow
@pytest.mark.parametrize("core", [kernels(core) for core in KERNELS])
def test_other_kernels(core):
    """All of this holds with other kernels of OpenBLAS, which are chosen when a process starts."""
    environment = {**os.environ, "OPENBLAS_CORETYPE": core}
    name = [sys.executable, "-c", "from minibert.engine.threads import blas_name; print(blas_name())"]
    blas = subprocess.run(name, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    if not blas.startswith("openblas"):
        pytest.skip(f"numpy's BLAS is {blas.strip()}: its kernels cannot be chosen so")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-p",
        "no:cacheprovider",
        f"tests/{Path(__file__).name}",
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert core in blas
    assert run.returncode == 0, run.stdout + run.stderr


# ---------------------------------------------------------------- the recorded run

LINUX = pytest.mark.skipif(not PROCESSOR.exists(), reason="the record has the processor's name from Linux' /proc")


@pytest.fixture
def record(tmp_path):
    """Return a function that runs tools/invariance.py with some more arguments, and returns the process and results."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(texts_for(TWIN)), "utf-8")
    out = tmp_path / "results.json"

    def run(*arguments):
        out.unlink(missing_ok=True)
        command = [sys.executable, "tools/invariance.py", TWIN, texts, "--out", out, "--batchings", "20", *arguments]
        process = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True, check=False)
        return process, json.loads(out.read_text("utf-8")) if out.exists() else None

    return run


@LINUX
def test_recorded_run(record):
    """A run records what was compared, with what, and that nothing differs; it shows no folder of the machine."""
    process, results = record()

    assert process.returncode == 0, process.stderr
    assert results["batchings"] == 20
    assert results["vectors"] >= results["texts"] > 10
    assert results["differing_vectors"] == results["differing_bits"] == 0
    assert results["model"] == "repo"
    assert results["numpy"] == np.__version__
    assert {"blas", "processor", "minibert", "date", "command", "seed", "commit"} <= set(results)
    assert str(ROOT) not in json.dumps(results)
    assert "20 of 20 batchings" in process.stdout


def test_run_with_kernels_that_there_are_not(record):
    """A run whose BLAS did not take the kernels that were asked for is refused, and records nothing."""
    process, results = record("--core", "Nonesuch")

    assert process.returncode == 1
    assert "must have its kernels for Nonesuch" in process.stderr
    assert results is None
