"""The choice of a CPU's kernels, and encoders with native ones: as accurate as numpy, and the same bits everywhere."""

import copy
import functools
import importlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from invariance import Comparison
from packed_cases import cast, random_model
from repos import made_up_texts
from support import (
    MODELS,
    MODES,
    ROOT,
    assert_as_accurate,
    copy_twin,
    edit_json,
    edit_weights,
    twin,
    words_of,
    write_module,
)

from minibert import BertModel, SentenceEncoder, ops
from minibert.config import BertConfig
from minibert.engine import fused_native, native, native_params, packed
from minibert.engine.fused_native import ROW_RULE, FusedNative
from minibert.engine.packing import Packing
from minibert.errors import DeviceError, VectorError

TWIN = twin("BertModel-128d")
TEXTS = ["The cat.", "", "No man can play the violin, and a happy cat listens!", "a man", "the cat " * 40]
BEST = (*native.available(), "numpy")[0]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Let no environment variable choose the kernels."""
    monkeypatch.delenv("MINIBERT_KERNELS", raising=False)


def assert_same_bits(a, b):
    """Fail unless float32 arrays have the same bits."""
    np.testing.assert_array_equal(np.asarray(a).view(np.int32), np.asarray(b).view(np.int32))


# ---------------------------------------------------------------- the choice


def test_default():
    """The best kernels of the machine are the default, and numpy is where there are none."""
    assert SentenceEncoder(TWIN).kernels == BEST


def test_kernels_by_argument(kernels):
    """The argument chooses the kernels. The encoder says which it has, and so does its repr."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)

    assert encoder.kernels == encoder.get_params()["kernels"] == kernels
    assert f"kernels={kernels!r}" in repr(encoder)


def test_kernels_by_environment(kernels, monkeypatch):
    """So does the environment variable."""
    monkeypatch.setenv("MINIBERT_KERNELS", kernels)

    assert SentenceEncoder(TWIN).kernels == kernels


def test_numpy_by_environment(monkeypatch):
    """Numpy can be chosen on every machine."""
    monkeypatch.setenv("MINIBERT_KERNELS", "numpy")

    assert SentenceEncoder(TWIN).kernels == SentenceEncoder(TWIN, kernels="numpy").kernels == "numpy"


def test_argument_before_environment(kernels, monkeypatch):
    """The argument comes before the environment, whatever that says."""
    for variable, argument in (("numpy", kernels), (kernels, "numpy"), ("mmx", kernels)):
        monkeypatch.setenv("MINIBERT_KERNELS", variable)

        assert SentenceEncoder(TWIN, kernels=argument).kernels == argument


def test_empty_environment(monkeypatch):
    """An empty variable is none."""
    monkeypatch.setenv("MINIBERT_KERNELS", "")

    assert SentenceEncoder(TWIN).kernels == BEST


@pytest.mark.parametrize("kernels_named", ["mmx", "", "AVX2", "cuda", 5, ["avx2"], True], ids=repr)
def test_unknown_argument(kernels_named):
    """Unknown kernels are refused, with those that there are."""
    with pytest.raises(DeviceError, match=r"^kernels must be one of numpy, avx512, avx2, neon; it is "):
        SentenceEncoder(TWIN, kernels=kernels_named)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unknown_environment(monkeypatch, dtype):
    """An unknown name in the environment is refused in every precision, and the message names the variable."""
    monkeypatch.setenv("MINIBERT_KERNELS", "mmx")

    with pytest.raises(DeviceError, match=r"^MINIBERT_KERNELS must be one of .*; it is 'mmx'"):
        SentenceEncoder(TWIN, dtype=dtype)


def test_kernels_of_another_processor(kernels):
    """Kernels that this processor cannot run are refused, with those that it can."""
    foreign = next(name for name in ("neon", "avx512") if name not in native.available())

    with pytest.raises(DeviceError, match=rf'{", ".join(native.available())}, numpy on this .*"{foreign}"\. This proc'):
        SentenceEncoder(TWIN, kernels=foreign)


@pytest.mark.parametrize("dtype", ["float64", float])
def test_float64_is_computed_by_numpy(kernels, monkeypatch, dtype):
    """The environment's choice is for float32: float64 has numpy."""
    monkeypatch.setenv("MINIBERT_KERNELS", kernels)
    encoder = SentenceEncoder(TWIN, dtype=dtype)

    assert encoder.kernels == "numpy"
    assert encoder.encode("the cat").dtype == np.float64


def test_native_float64_is_refused(kernels):
    """Who asks for native kernels in float64 is told that there are none."""
    with pytest.raises(ValueError, match=rf'kernels must be "numpy" for float64.* it is {kernels!r}'):
        SentenceEncoder(TWIN, dtype="float64", kernels=kernels)


@pytest.mark.parametrize("name", ["numpy", "avx2"])
def test_kernels_of_a_cpu_on_a_gpu(name):
    """A GPU has its own kernels."""
    with pytest.raises(ValueError, match=rf"kernels must be None on a GPU, which has its own; it is {name!r}"):
        SentenceEncoder(TWIN, device="cuda", kernels=name)


def test_log(caplog):
    """A line of the log, for those who ask for it, tells the choice."""
    caplog.set_level(logging.DEBUG, "minibert")
    SentenceEncoder(TWIN)
    SentenceEncoder(TWIN, dtype="float64")
    by = "numpy" if BEST == "numpy" else f"native kernels ({BEST})"

    assert [record.getMessage() for record in caplog.records if "the CPU computes" in record.getMessage()] == [
        f"the CPU computes in float32, by {by}",
        "the CPU computes in float64, by numpy",
    ]


# ---------------------------------------------------------------- the library's file


@pytest.fixture
def installed(monkeypatch):
    """Return a function that makes a folder the only place of the library."""

    def install(folder):
        monkeypatch.setattr(native, "_FOLDERS", (folder,))
        native.library_path.cache_clear()

    yield install
    monkeypatch.undo()
    native.library_path.cache_clear()


@pytest.fixture
def checkout(kernels, tmp_path):
    """Return a copy of the sources and the library, or skip if the library does not fit the sources of the checkout."""
    folder, library = tmp_path / "cpu", native.library_path()
    sources = ROOT / "kernels" / "cpu"
    if native._load(library).mb_source().decode() != native.source_hash(sources):
        pytest.skip("the library is of other sources than the checkout's")
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns(native._FILE))
    shutil.copyfile(library, folder / native._FILE)
    return folder


def test_without_a_library(installed, tmp_path, caplog):
    """Without the library, numpy computes, and nothing is said about it."""
    installed(tmp_path)

    assert native.available() == ()
    assert SentenceEncoder(TWIN).kernels == "numpy"
    assert not caplog.records
    with pytest.raises(
        DeviceError, match=r'numpy on this machine; they are "avx2"\. This installation has no native li'
    ):
        SentenceEncoder(TWIN, kernels="avx2")


def test_library_of_a_checkout(installed, checkout):
    """A library in a checkout is used if its sources are those beside it."""
    installed(checkout)

    assert SentenceEncoder(TWIN).kernels == native.available()[0]


@pytest.mark.parametrize("change", ["another line", "another file"])
def test_library_of_other_sources(installed, checkout, caplog, change):
    """If the sources beside it are others, numpy computes, and a warning says what to do."""
    file = checkout / ("pool.h" if change == "another line" else "new.h")
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b"\n")
    installed(checkout)

    assert SentenceEncoder(TWIN).kernels == "numpy"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is older than its sources, so numpy computes. Run: python tools/build_kernels.py" in caplog.text
    with pytest.raises(DeviceError, match="cannot be used; the log says why"):
        SentenceEncoder(TWIN, kernels="avx2")


def test_library_of_a_wheel(installed, checkout):
    """In a wheel there are no sources to compare with."""
    for path in checkout.glob("*.[ch]"):
        path.unlink()
    installed(checkout)

    assert SentenceEncoder(TWIN).kernels == native.available()[0]


@pytest.mark.parametrize("file", ["no library", "another library"])
def test_library_that_cannot_be_used(installed, tmp_path, caplog, file):
    """A file that is no library, or one without the functions, leaves the work to numpy, with one warning."""
    if file == "no library":
        (tmp_path / native._FILE).write_bytes(b"\x7fELF" + bytes(100))
    else:
        shutil.copyfile(importlib.import_module("numpy.fft._pocketfft_umath").__file__, tmp_path / native._FILE)
    installed(tmp_path)

    assert SentenceEncoder(TWIN).kernels == SentenceEncoder(TWIN).kernels == "numpy"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{native._FILE} cannot be loaded, so numpy computes: " in caplog.text
    assert ("mb_source" in caplog.text) == (file == "another library")


def test_source_hash():
    """The tool that builds the library hashes the sources as the package does."""
    from build_kernels import source_hash

    folder = ROOT / "kernels" / "cpu"

    assert source_hash(folder) == native.source_hash(folder)


def test_source_hash_changes(tmp_path):
    """Each name and content of a C source counts, and nothing else in the folder does."""
    (tmp_path / "a.c").write_text("x")
    hashes = [native.source_hash(tmp_path)]
    (tmp_path / "README.md").write_text("x")
    assert native.source_hash(tmp_path) == hashes[0]

    (tmp_path / "a.c").write_text("y")
    hashes.append(native.source_hash(tmp_path))
    (tmp_path / "b.h").write_text("")
    hashes.append(native.source_hash(tmp_path))
    (tmp_path / "b.h").rename(tmp_path / "c.h")
    hashes.append(native.source_hash(tmp_path))

    assert len(set(hashes)) == 4


# ---------------------------------------------------------------- copies and pickles


def pickled(encoder):
    """Return an encoder after pickling."""
    return pickle.loads(pickle.dumps(encoder))  # noqa: S301


def test_pickle(kernels):
    """An encoder with native kernels is the same after pickling, to the bit."""
    encoder = SentenceEncoder(TWIN, kernels=kernels, num_threads=3)
    again = pickled(encoder)

    assert (again.kernels, again.num_threads, repr(again)) == (kernels, 3, repr(encoder))
    assert_same_bits(again.encode(TEXTS), encoder.encode(TEXTS))


def test_pickle_for_a_machine_without_the_library(kernels, installed, tmp_path):
    """Where it is loaded without a library, numpy computes what it computes there from the model's files."""
    data = pickle.dumps(SentenceEncoder(TWIN))
    installed(tmp_path)
    again, own = pickle.loads(data), SentenceEncoder(TWIN)  # noqa: S301

    assert again.kernels == own.kernels == "numpy"
    assert again.max_batch_tokens == own.max_batch_tokens
    assert_same_bits(again.encode(TEXTS), own.encode(TEXTS))


def test_pickle_from_a_machine_without_the_library(kernels, installed, tmp_path):
    """A pickle that numpy made has native kernels where there are some, and their bits."""
    folders = native._FOLDERS
    installed(tmp_path)
    encoder = SentenceEncoder(TWIN)
    data = pickle.dumps(encoder)
    installed(folders[0])
    native.library_path.cache_clear()
    native._FOLDERS = folders
    again, own = pickle.loads(data), SentenceEncoder(TWIN)  # noqa: S301

    assert (encoder.kernels, again.kernels) == ("numpy", BEST)
    assert again.max_batch_tokens == own.max_batch_tokens
    assert_same_bits(again.encode(TEXTS), own.encode(TEXTS))


def test_pickle_of_numpy_stays_numpy(kernels):
    """Who has chosen numpy keeps it."""
    assert pickled(SentenceEncoder(TWIN, kernels="numpy")).kernels == "numpy"


def test_pickle_of_chosen_kernels(kernels, installed, tmp_path):
    """Who has chosen an instruction set is told that another machine does not have it."""
    data = pickle.dumps(SentenceEncoder(TWIN, kernels=kernels))
    installed(tmp_path)

    with pytest.raises(DeviceError, match=f'they are "{kernels}"'):
        pickle.loads(data)  # noqa: S301


def test_pickle_with_modules(kernels, tmp_path):
    """The modules after the transformer come along, with their packed weights made again."""
    encoder = SentenceEncoder(chained(tmp_path, CHAINS["dense, layer norm, normalize"]), kernels=kernels)

    assert_same_bits(pickled(encoder).encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_copy(kernels, how):
    """A copy has the same kernels, and the same packed weights."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    other = how(encoder)

    assert other.kernels == kernels
    assert other._pipeline is encoder._pipeline
    assert_same_bits(other.encode(TEXTS), encoder.encode(TEXTS))


# ---------------------------------------------------------------- as accurate as numpy

RNG = np.random.default_rng(0)
DENSE = {"in_features": 16, "out_features": 8}
LINEAR = {"linear__weight": RNG.normal(size=(8, 16)).astype("f4"), "linear__bias": RNG.normal(size=8).astype("f4")}
POOLING = ("Pooling", {"pooling_mode": "mean"}, {})
#: Chains of modules after the transformer: kind, config and weights of each.
CHAINS = {
    "normalize": [POOLING, ("Normalize", {}, {})],
    "dropout": [POOLING, ("Dropout", {"dropout": 0.5}, {})],
    "all modes": [("Pooling", {"pooling_mode": list(MODES)}, {})],
    "dense": [POOLING, ("Dense", DENSE, LINEAR)],
    "dense without bias": [POOLING, ("Dense", DENSE | {"bias": False}, {"linear__weight": LINEAR["linear__weight"]})],
    "dense, layer norm, normalize": [
        POOLING,
        ("Dense", DENSE, LINEAR),
        ("LayerNorm", {"dimension": 8}, {"norm__weight": LINEAR["linear__bias"], "norm__bias": np.ones(8, "f4")}),
        ("Normalize", {}, {}),
    ],
    "dense on tokens": [("Dense", DENSE | {"module_input_name": "token_embeddings"}, LINEAR), POOLING],
    "word weights": [
        (
            "WordWeights",
            {"vocab": ["x"] * 80, "word_weights": {}, "unknown_word_weight": 1},
            {"emb_layer__weight": RNG.uniform(0.1, 3, (80, 1)).astype("f4")},
        ),
        POOLING,
    ],
    "layers": [
        (
            "WeightedLayerPooling",
            {"embedding_dimension": 16, "layer_start": 0, "num_hidden_layers": 2},
            {"layer_weights": np.array([0.3, 1.7, 0.9], "f4")},
        ),
        POOLING,
    ],
}


def chained(folder, chain):
    """Return a copy of a twin with these modules after its transformer."""
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    copy_twin(folder)
    for number, (kind, config, weights) in enumerate(chain, 1):
        write_module(folder / f"{number}_module", config, **weights)
        entries.append({"path": f"{number}_module", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(entries), "utf-8")
    return folder


def assert_accurate(folder, kernels, texts=TEXTS, *, prepare=lambda _: None, parts=1, **options):
    """Fail unless native vectors are as near to those of float64 as numpy's are, within a factor of 3.

    ``parts``: The vectors consist of so many parts, and each is compared alone.
    """
    vectors = []
    for chosen in ({"kernels": kernels}, {"kernels": "numpy"}, {"dtype": "float64"}):
        encoder = SentenceEncoder(folder, on_truncate="ignore", **chosen)
        prepare(encoder)
        found = encoder.encode(texts, **options)
        vectors.append(np.concatenate(found) if isinstance(found, list) else found)

    assert vectors[0].dtype == np.float32
    for each in zip(*(np.split(array, parts, axis=1) for array in vectors), strict=True):
        assert_as_accurate(*each)


def write_all_modes(repo, width):
    """Let a repo pool in all modes, side by side."""
    write_module(repo / "1_Pooling", {"embedding_dimension": width, "pooling_mode": list(MODES)})


@pytest.mark.parametrize("card", MODELS)
def test_vectors_of_each_card(kernels, tmp_path, card):
    """The vectors of every card, in every pooling mode, are as accurate as those of numpy."""
    write_all_modes(copy_twin(tmp_path, card), BertConfig.from_file(twin(card) / "config.json").hidden_size)

    assert_accurate(tmp_path, kernels, texts_for(tmp_path), parts=len(MODES))


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_vectors_of_each_chain(kernels, tmp_path, chain):
    """So are those of every chain of modules."""
    assert_accurate(chained(tmp_path, chain), kernels)


@pytest.mark.parametrize("hidden_act", sorted(ops.ACTIVATIONS))
def test_vectors_by_each_activation(kernels, tmp_path, hidden_act):
    """So are those of the tokens by every activation."""
    edit_json(copy_twin(tmp_path) / "config.json", hidden_act=hidden_act)

    assert_accurate(tmp_path, kernels, texts_for(TWIN), output_value="token_embeddings")


@pytest.mark.parametrize("include_prompt", [True, False])
def test_vectors_with_a_prompt(kernels, tmp_path, include_prompt):
    """So are those with a prompt in every pooling mode, whether its tokens are pooled or not."""
    write_all_modes(copy_twin(tmp_path), 16)
    texts = ["the cat", "a man", "no man can play"]

    def prepare(encoder):
        encoder.include_prompt = include_prompt

    assert_accurate(tmp_path, kernels, texts, prepare=prepare, parts=len(MODES), prompt="the happy man ")


def test_token_vectors(kernels):
    """So are the vectors of tokens."""
    assert_accurate(TWIN, kernels, output_value="token_embeddings")


def test_vectors_of_the_builtin_model(kernels):
    """So are those of the built-in model."""
    assert_accurate(None, kernels)


def test_other_options(kernels):
    """What follows the vectors is the same as with numpy: cut, normalized, and quantized."""
    for options in ({"truncate_dim": 5}, {"normalize_embeddings": True}, {"truncate_dim": 3, "precision": "binary"}):
        mine, peer = (SentenceEncoder(TWIN, kernels=each).encode(TEXTS, **options) for each in (kernels, "numpy"))

        assert mine.dtype == peer.dtype
        np.testing.assert_allclose(mine, peer, rtol=0, atol=2e-6)


def test_features(kernels):
    """All features of a text have the bits of its vector and of its token vectors alone; ids are whole numbers."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    vectors, tokens = encoder.encode(TEXTS), encoder.encode(TEXTS, output_value="token_embeddings")
    for features, vector, rows in zip(encoder.encode(TEXTS, output_value=None), vectors, tokens, strict=True):
        assert_same_bits(features["sentence_embedding"], vector)
        assert_same_bits(features["token_embeddings"], rows)
        assert features["input_ids"].dtype == features["attention_mask"].dtype == np.int64


def test_results_are_kept(kernels):
    """Vectors and token vectors are in memory of their own: the next call changes none."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    results = [encoder.encode("the cat"), encoder.encode("the cat", output_value="token_embeddings")]
    before = copy.deepcopy(results)
    encoder.encode(TEXTS)

    for result, copied in zip(results, before, strict=True):
        assert_same_bits(result, copied)


# ---------------------------------------------------------------- the same bits


@functools.cache
def texts_for(repo):
    """Return texts for the vocabulary of a repo: mostly short ones, a few long ones, and an empty one."""
    vocabulary = words_of(repo)
    long = [" ".join(made_up_texts(vocabulary, count, 10, seed=count)) for count in (10, 20, 40, 60)]
    return ["", *made_up_texts(vocabulary, 24, 10), *long]


def encode_on(kernels, folder, texts):
    """Return the vectors of texts by some kernels."""
    return SentenceEncoder(folder, kernels=kernels, on_truncate="ignore").encode(texts)


@pytest.mark.parametrize("card", MODELS)
def test_batchings(kernels, card):
    """The twin of every card gives the same bits in random batchings, with 1 to 4 threads and any size of batches."""
    encoder = SentenceEncoder(twin(card), kernels=kernels, on_truncate="ignore")
    comparison = Comparison(encoder, texts_for(twin(card)))
    for number in range(40):
        comparison.add(number)

    assert comparison.vectors > 100
    assert comparison.differences == []


def test_batchings_of_the_builtin_model(kernels):
    """So does the built-in model, which is as wide as a real one."""
    encoder = SentenceEncoder(kernels=kernels, on_truncate="ignore", max_seq_length=130)
    comparison = Comparison(encoder, texts_for(TWIN))
    for number in range(25):
        comparison.add(number)

    assert comparison.differences == []


@pytest.mark.slow
@pytest.mark.parametrize("card", MODELS)
def test_many_batchings(kernels, card):
    """So do many more batchings."""
    encoder = SentenceEncoder(twin(card), kernels=kernels, on_truncate="ignore")
    comparison = Comparison(encoder, texts_for(twin(card)), seed=1)
    for number in range(1000):
        comparison.add(number)

    assert comparison.differences == []


@pytest.mark.parametrize("folder", [*map(twin, MODELS), None], ids=[*MODELS, "built-in"])
def test_every_instruction_set_has_the_same_bits(kernels, folder):
    """All kernels of the machine give the same bits."""
    texts = texts_for(folder or TWIN)

    assert_same_bits(encode_on(kernels, folder, texts), encode_on(BEST, folder, texts))


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_every_instruction_set_has_the_same_bits_in_modules(kernels, tmp_path, chain):
    """So they do in every module after the transformer."""
    repo = chained(tmp_path, chain)

    assert_same_bits(encode_on(kernels, repo, TEXTS), encode_on(BEST, repo, TEXTS))


@pytest.mark.parametrize("max_batch_tokens", [1, 13, 14, 15, 100, 4096])
def test_sizes_of_batches(kernels, max_batch_tokens):
    """Any size of batches, on any number of threads, gives the same bits."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    expected = encoder.encode(TEXTS)
    encoder.max_batch_tokens = max_batch_tokens
    for encoder.num_threads in (1, 2, 3, 4):
        assert_same_bits(encoder.encode(TEXTS), expected)


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[-1]], ids=["short", "long"])
def test_threads_of_one_text(kernels, text):
    """The team of threads that computes a single text gives the bits of one thread."""
    encoder = SentenceEncoder(kernels=kernels, num_threads=1)
    expected = encoder.encode(text)
    for encoder.num_threads in (2, 3, 4, 40):
        assert_same_bits(encoder.encode(text), expected)


def test_calls_at_the_same_time(kernels):
    """The team works for one call at a time; others go on without it, to the same bits."""
    encoder = SentenceEncoder(kernels=kernels, num_threads=2)
    expected = [encoder.encode(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as threads:
        for vectors, vector in zip(threads.map(encoder.encode, TEXTS * 20), expected * 20, strict=True):
            assert_same_bits(vectors, vector)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork(kernels):
    """A forked child, which has no thread of the team, makes another one, and computes the same."""
    code = """if True:
        import os, sys
        from minibert import SentenceEncoder
        from minibert.engine.native import _the_team
        encoder = SentenceEncoder(kernels=sys.argv[1], num_threads=2)
        before = encoder.encode("a man plays")
        made = _the_team.made
        child = os.fork()
        same = made and _the_team.made == bool(child)
        same &= (encoder.encode("a man plays") == before).all() and encoder.encode(["a", "b"]).shape == (2, 128)
        if not child:
            os._exit(0 if same else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
    """
    command = [sys.executable, "-W", "ignore", "-c", code, kernels]

    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


# ---------------------------------------------------------------- errors


@pytest.fixture
def overflowing(tmp_path, kernels):
    """Return a model with finite weights, whose vectors of texts with "man" are not finite."""
    row = SentenceEncoder(TWIN).tokenizer.token_to_id("man")

    def enlarge(arrays):
        arrays["embeddings.word_embeddings.weight"][row] = np.where(np.arange(16) % 2, 3e38, -1e38)
        return arrays

    edit_weights(copy_twin(tmp_path) / "model.safetensors", enlarge)
    return SentenceEncoder(tmp_path, kernels=kernels)


@pytest.mark.parametrize("options", [{}, {"output_value": "token_embeddings"}, {"normalize_embeddings": True}], ids=str)
def test_overflow(overflowing, options):
    """Where weights overflow, the error names the text, and the vectors of all others are finite."""
    assert len(overflowing.encode(["the cat", "", "no"], **options)) == 3
    with pytest.raises(VectorError, match=r"item 2 has NaN or infinity.*too large for float32.*float64"):
        overflowing.encode(["the cat", "", "a man", "a man"], **options)


def small_model(library):
    """Return a small model for the library, and its config."""
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    model = random_model(config)
    layers = tuple(packed.pack_layer(layer, 2) for layer in cast(model.layers, "float32"))
    return native_params.adopt(library, packed.PackedParams(model.embeddings, layers), config), config


def test_cancelled_between_layers(library):
    """Giving up is noticed before each layer: the next one is not begun."""
    params, config = small_model(library)
    answers, states = iter([False, True]), []
    fused = FusedNative(library, cancelled=lambda: next(answers))

    with pytest.raises(InterruptedError):
        packed.bert(params, config, np.arange(5), Packing.of([5], None, ROW_RULE), fused, None, states.append)
    assert len(states) == 2  # the embeddings, and one layer
    assert next(answers, None) is None


class Memory:
    """Memory of which there is only so much at a time: no array of more numbers can be made."""

    def __init__(self, most, aligned=fused_native.aligned):
        self.most, self.aligned, self.refused = most, aligned, 0

    def __call__(self, count):
        """Return an array of so many numbers."""
        if count > self.most:
            self.refused += 1
            raise MemoryError(f"no room for {count} numbers")
        return self.aligned(count)


def test_short_of_memory(kernels, monkeypatch, caplog):
    """A batch that does not fit in memory is computed in halves, to the same bits, and a warning says so."""
    encoder = SentenceEncoder(TWIN, kernels=kernels, num_threads=1)
    texts = texts_for(TWIN)
    expected = encoder.encode(texts)
    encoder.close()  # it keeps no memory
    memory = Memory(80_000)  # enough for the longest text
    monkeypatch.setattr(fused_native, "aligned", memory)

    assert_same_bits(encoder.encode(texts), expected)
    assert memory.refused > 0
    assert "did not fit in memory" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_while_memory_grows(kernels, monkeypatch, error):
    """An interruption between new memory and its address leaves no address of old memory to a later call."""
    encoder, long = SentenceEncoder(TWIN, kernels=kernels, num_threads=1), "the cat " * 100
    expected = encoder.encode(long)
    encoder.close()
    encoder.encode("the cat")
    real, calls = fused_native.address, []

    def interrupted(array):
        if array is not None and array.size > 2000 and not calls:
            calls.append(array)
            raise error
        return real(array)

    monkeypatch.setattr(fused_native, "address", interrupted)
    with pytest.raises(error):
        encoder.encode(long)
    assert calls
    monkeypatch.setattr(fused_native, "address", real)
    assert_same_bits(encoder.encode(long), expected)


def test_memory_between_calls(kernels, monkeypatch):
    """An encoder keeps a little memory between calls, and gives up what is large. It keeps no text."""
    encoder = SentenceEncoder(TWIN, kernels=kernels, num_threads=1)
    encoder.encode("the cat " * 20)
    (kept,) = encoder._engine._idle
    assert kept._hidden.size > 0
    assert kept._batch is None
    monkeypatch.setattr(fused_native, "_MOST_KEPT", 10)
    encoder.encode("the cat")
    assert kept._hidden.size + kept._workspace.size == 0
    encoder.close()
    assert not encoder._engine._idle


def test_many_threads_for_one_text(kernels):
    """More threads than the team has need no more memory."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    expected = encoder.encode("the cat")
    encoder.num_threads = 10**12

    assert_same_bits(encoder.encode("the cat"), expected)


def test_no_dimensions(kernels):
    """Vectors without dimensions can be normalized, as with numpy."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)

    assert encoder.encode(["the cat", "a"], truncate_dim=0, normalize_embeddings=True).shape == (2, 0)


def test_short_of_memory_for_one_text(kernels, monkeypatch):
    """A single text that does not fit is an error that says how long it is, before a layer is computed."""
    encoder = SentenceEncoder(TWIN, kernels=kernels)
    monkeypatch.setattr(fused_native, "aligned", Memory(0))

    with pytest.raises(MemoryError, match=r"not enough memory for a single text, of \d+ tokens: no room for"):
        encoder.encode("the cat")


def test_short_of_memory_while_loading(library, monkeypatch):
    """Without memory for all layers, none is read."""
    monkeypatch.setattr(native_params, "aligned", Memory(10))

    class Unread:
        def layer(self, number):
            pytest.fail(f"layer {number} was read")

    with pytest.raises(MemoryError, match="no room"):
        native_params.load(library, Unread(), BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=2))


# ---------------------------------------------------------------- the reference


def test_reference_does_not_use_them(kernels, monkeypatch):
    """BertModel computes with numpy: it asks for no kernels, and the environment's choice means nothing to it."""
    ids = np.arange(1, 9)[None]
    before = BertModel.from_pretrained(TWIN)(ids).last_hidden_state
    monkeypatch.setenv("MINIBERT_KERNELS", "mmx")
    for name in ("available", "open_library", "library_path", "_load"):
        monkeypatch.setattr(native, name, lambda *_: pytest.fail("the native library was asked for"))

    assert_same_bits(BertModel.from_pretrained(TWIN)(ids).last_hidden_state, before)
