"""What several test files share: the golden files, small repos made from them, and the measure of accuracy."""

import importlib
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from minibert.tokenization import TextTokenizer

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
_FILE = json.loads((Path(__file__).parent / "cards.json").read_text("utf-8"))
CARDS = _FILE["cards"]
#: A card of each family that is not BERT.
FAMILIES = {name: card for name, card in _FILE["families"].items() if "twin" in card}
#: All cards that have a twin.
MODELS = CARDS | FAMILIES
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def needs(module):
    """Return an optional package's module. Where it is not installed, skip; with ``MINIBERT_REQUIRE_EXTRAS=1``, fail.

    What it warns about while it is imported is not this project's concern.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        if os.environ.get("MINIBERT_REQUIRE_EXTRAS") == "1":
            pytest.fail(f"{module} must be installed where MINIBERT_REQUIRE_EXTRAS=1; it is not")
        pytest.skip(f"{module} is not installed", allow_module_level=True)


def flushed(xp):
    """Return below which size a float32 may become 0: CuPy compiles its own kernels so that subnormal numbers do."""
    return 0.0 if xp is np else float(np.finfo(np.float32).tiny)


def load(path):
    """Return the arrays and the metadata of a safetensors file."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def golden(card):
    """Return a card's golden arrays, and its texts."""
    arrays, metadata = load(GOLDEN / card / "golden.safetensors")
    return arrays, json.loads(metadata["texts"])


def twin(card):
    """Return the folder of a card's twin."""
    return GOLDEN / card / "repo"


def copy_twin(folder, card="BertModel-128d"):
    """Return ``folder``, made a copy of a card's twin that a test may change."""
    shutil.copytree(twin(card), folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return folder


def words_of(folder):
    """Return the tokens of a repo's tokenizer, in the order of their ids, without the marks of a word's first one."""
    vocabulary = TextTokenizer.from_folder(folder).backend.get_vocab()
    return [token.strip("▁Ġ") for token in sorted(vocabulary, key=vocabulary.get)]


def edit_json(path, **changes):
    """Change keys of a JSON file; ``...`` removes a key. A file that is absent is made."""
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), "utf-8")


def edit_weights(path, change):
    """Rewrite a safetensors file with the arrays that ``change`` makes of a dict of the present ones."""
    arrays, _ = load(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in change(arrays).items()}
    save_file(arrays, path)


def write_module(folder, config=None, **weights):
    """Write a module's folder: its config, unless None, and its weights, with ``__`` for the dots; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if weights:
        arrays = {name.replace("__", "."): np.ascontiguousarray(array) for name, array in weights.items()}
        save_file(arrays, folder / "model.safetensors")
    return folder


def some_faults(faults):
    """Return every third planted fault, or all of them where MINIBERT_ALL_FAULTS is set.

    To plant a fault takes several seconds: a library is compiled, and tests run with it. It tests the tests, so its
    result changes only with a kernel or with the tests of the kernel.
    """
    return list(faults)[:: 1 if os.environ.get("MINIBERT_ALL_FAULTS") else 3]


def split(flat, lengths):
    """Return the rows that were put one after the other."""
    return np.split(flat, np.cumsum(lengths)[:-1])


def assert_as_accurate(actual, peer, truth, *, factor=3.0):
    """Fail unless ``actual`` is as near to float64 ``truth`` as ``peer``'s float32 is, within ``factor``.

    The tolerance is transformers' own rounding error on the same input, so nobody chooses it. Non-finite values fail
    first: a comparison with NaN is never true, and never false either.
    """
    assert np.isfinite(actual).all(), "non-finite values"
    allowed = factor * np.abs(peer - truth).max()
    worst = np.abs(actual - truth).max()
    assert worst <= allowed, f"max error {worst:.1e} > {factor:g} x the peer's own {allowed / factor:.1e}"


def assert_as_accurate_on_average(actual, peer, truth, *, factor):
    """Fail unless the errors of ``actual`` are those of ``peer`` in root mean square, or less, within ``factor``.

    Where both round the same numbers, each in its own order, their errors are two draws of the same chance. Of many
    numbers, the means are nearly equal; the largest ones are not.
    """
    assert np.isfinite(actual).all(), "non-finite values"
    allowed, error = (np.sqrt(np.square(each - truth).mean()) for each in (peer, actual))
    assert error <= factor * allowed, f"RMS error {error:.2e} > {factor:g} x the peer's own {allowed:.2e}"


def texts_of_lengths(lengths):
    """Return texts of so many words, always the same ones."""
    rng = np.random.default_rng(0)
    words = ["a", "man", "is", "playing", "some", "very", "old", "music", "where", "people", "go", "by"]
    return [" ".join(rng.choice(words, length)) for length in lengths]


def assert_same_bits(encoder, rounds):
    """Fail unless the vectors of random choices of texts, in random batches, have the bits that they have alone."""
    texts = texts_of_lengths((*range(1, 40, 3), 50, 60, 70, 100))
    alone = np.stack([encoder.encode(text) for text in texts])
    for which, most_tokens, same in same_bits(encoder, texts, alone, rounds, 1500):
        different = which[~same].tolist()
        assert not different, f"texts {different} differ with max_batch_tokens = {most_tokens}"


def same_bits(encoder, texts, alone, rounds, most_tokens):
    """Yield, for random choices of texts: which, the tokens of a batch, and whether each has the bits it has alone.

    A batch has a random number of tokens, at most ``most_tokens``.
    """
    rng = np.random.default_rng(1)
    for _ in range(rounds):
        which = rng.permutation(len(texts))[: rng.integers(2, len(texts) + 1)]
        encoder.max_batch_tokens = int(rng.integers(10, most_tokens))
        vectors = encoder.encode([texts[i] for i in which])
        yield which, encoder.max_batch_tokens, (vectors == alone[which]).all(axis=1)
