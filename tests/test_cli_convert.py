"""``minibert convert``: what it writes, copies and refuses, and that no folder is ever left half done."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_support import add_dense, add_module, fail_with, half_weights, inspected, listing, renamed, shard, unchanged
from support import FAMILIES, copy_twin, edit_json, edit_weights, load

from minibert import SentenceEncoder
from minibert.cli import main

TEXTS = ["the cat", "", "a man and the hat"]

SOURCES = {
    "as it is": unchanged,
    "prefix, head, buffer, gamma and beta": lambda r: edit_weights(r / "model.safetensors", renamed),
    "shards": shard,
    "dense": add_dense,
    "no modules.json": lambda r: (r / "modules.json").unlink(),
    "float16": lambda r: (half_weights(r), edit_json(r / "config.json", dtype=..., torch_dtype="float16")),
}


@pytest.mark.parametrize("change", SOURCES.values(), ids=SOURCES)
def test_converted_repo_gives_the_same_vectors(repo, here, change):
    """A converted repo has BertModel's own names and float32, and gives identical vectors."""
    names = set(load(repo / "model.safetensors")[0])
    change(repo)
    expected = SentenceEncoder(repo).encode(TEXTS)

    assert main(["convert", str(repo), "new"]) == 0

    arrays, metadata = load(here / "new" / "model.safetensors")
    assert set(arrays) == names
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert metadata == {"format": "pt"}
    np.testing.assert_array_equal(SentenceEncoder(here / "new").encode(TEXTS), expected)


@pytest.mark.parametrize("card", FAMILIES)
def test_converted_repo_of_a_family(tmp_path, here, card):
    """A converted repo of another family has this family's names, and gives identical vectors."""
    repo = copy_twin(tmp_path / "model", card)
    names = set(load(repo / "model.safetensors")[0])
    head = {"classifier.weight": np.zeros((2, 16), np.float32)}
    edit_weights(repo / "model.safetensors", lambda arrays: {f"x.{name}": arrays[name] for name in arrays} | head)
    shard(repo)
    expected = SentenceEncoder(repo).encode(TEXTS)

    assert main(["convert", str(repo), "new"]) == 0

    assert set(load(here / "new" / "model.safetensors")[0]) == names
    np.testing.assert_array_equal(SentenceEncoder(here / "new").encode(TEXTS), expected)
    assert {path.name for path in (here / "new").iterdir()} >= {
        path.name for path in repo.iterdir() if not path.name.startswith("model")
    }


def test_converted_repo_has_what_is_needed(repo, here):
    """A converted repo has all files that are read, no others, and config.json says float32."""
    shard(repo)
    (repo / "README.md").touch()
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")
    edit_json(repo / "config.json", dtype=..., torch_dtype="float16")

    assert main(["convert", str(repo), "new"]) == 0

    found = {path.relative_to("new").as_posix() for path in Path("new").rglob("*") if path.is_file()}
    assert found == {
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    config = json.loads((here / "new" / "config.json").read_text("utf-8"))
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
    assert (here / "new" / "vocab.txt").read_bytes() == (repo / "vocab.txt").read_bytes()


def in_a_cache(repo, folder):
    """Move a repo into a cache of the hub: its files are links to blobs, which have other names."""
    cache = folder / "models--organisation--model"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in repo.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(repo)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(cache / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    return snapshot


def test_links_within_a_repo_are_followed(repo, here, tmp_path):
    """The links of a hub cache, and links to other files of the same repo, become files."""
    expected = SentenceEncoder(repo).encode(TEXTS)
    snapshot = in_a_cache(repo, tmp_path / "cache")
    (snapshot / "vocab.txt").rename(snapshot / "words.txt")
    (snapshot / "vocab.txt").symlink_to("words.txt")

    assert main(["convert", str(snapshot), "new"]) == 0

    assert not any(path.is_symlink() for path in (here / "new").rglob("*"))
    np.testing.assert_array_equal(SentenceEncoder(here / "new").encode(TEXTS), expected)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "name", ["vocab.txt", "config.json", "added_tokens.json", "1_Pooling/config.json", "model.safetensors"]
)
@pytest.mark.parametrize("through_folder", [False, True])
def test_links_out_of_a_repo_are_not_followed(repo, here, tmp_path, capsys, cached, name, through_folder):
    """A file that lies elsewhere is not copied, also where it could be used: nobody sees whose it is."""
    repo = in_a_cache(repo, tmp_path / "cache") if cached else repo
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    if name == "added_tokens.json":
        secret.write_text("{}")
    else:
        secret.write_bytes((repo / name).read_bytes())
        (repo / name).unlink()
    if through_folder:
        (repo / "folder").symlink_to(secret.parent)
        (repo / name).symlink_to(repo / "folder" / "secret")
    else:
        (repo / name).symlink_to(secret)

    assert main(["convert", str(repo), "new"]) == 1

    error = capsys.readouterr().err
    assert f"{repo / name} must be a file of the repo; it is a link to {secret}. If that" in error
    assert listing(here) == []


def test_shard_outside_a_repo_is_not_followed(repo, here, tmp_path, capsys):
    """A shard of any name is held to the same rule."""
    shard(repo)
    (repo / "model-00001-of-00002.safetensors").rename(tmp_path / "secret")
    (repo / "x.safetensors").symlink_to(tmp_path / "secret")
    index = repo / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00002", "x"))

    assert main(["convert", str(repo), "new"]) == 1
    assert f"{repo / 'x.safetensors'} must be a file of the repo" in capsys.readouterr().err
    assert listing(here) == []


def test_float16_halves_the_weights(repo, here):
    """--dtype float16 stores all weights, modules' too, in float16; config.json still asks for float32."""
    add_dense(repo)
    expected = SentenceEncoder(repo).encode(TEXTS)

    assert main(["convert", str(repo), "new", "--dtype", "float16"]) == 0

    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert {array.dtype for array in load(here / "new" / name)[0].values()} == {np.dtype(np.float16)}
    assert json.loads((here / "new" / "config.json").read_text("utf-8"))["dtype"] == "float32"
    vectors = SentenceEncoder(here / "new").encode(TEXTS)
    assert vectors.dtype == np.float32
    assert 0 < np.abs(vectors - expected).max() < 1e-2


def test_float16_weights_of_a_module_become_float32(repo, here):
    """The weights of modules are converted as well."""
    add_dense(repo, np.float16)

    assert main(["convert", str(repo), "new"]) == 0
    assert load(here / "new" / "2_Dense" / "model.safetensors")[0]["linear.weight"].dtype == np.float32


def test_overflow_names_the_tensor(repo, here, capsys):
    """A value beyond float16 is an error that names file and tensor, and nothing is written."""
    name = "encoder.layer.1.output.dense.weight"
    edit_weights(repo / "model.safetensors", lambda arrays: arrays | {name: arrays[name] * 0 - 1e5})

    assert main(["convert", str(repo), "new", "--dtype", "float16"]) == 1

    error = capsys.readouterr().err
    assert (
        f"{repo / 'model.safetensors'}: {name} must fit in float16, which ends at 65504; it goes up to 100000" in error
    )
    assert listing(here) == []


def test_broken_repo_is_not_converted(repo, here, capsys):
    """What minibert cannot load it does not convert."""
    edit_json(repo / "config.json", vocab_size=90)

    assert main(["convert", str(repo), "new"]) == 1
    assert "must have shape (90, 16)" in capsys.readouterr().err
    assert listing(here) == []


@pytest.mark.parametrize(
    ("output", "overwrite", "message"),
    [
        ("full", [], "full is not empty. Give another OUTPUT_DIR, or --overwrite to replace it."),
        ("full", ["--overwrite"], "full has other files, and neither config.json nor modules.json"),
        ("file", ["--overwrite"], "file is not. Give another name."),
        ("nowhere/new", [], "there is no folder"),
        ("../model", ["--overwrite"], "OUTPUT_DIR must not hold the model itself"),
        ("..", ["--overwrite"], "OUTPUT_DIR must not hold the model itself"),
    ],
)
def test_output_folder_that_is_refused(repo, here, capsys, monkeypatch, output, overwrite, message):
    """A folder that may hold something else is refused before the model is loaded."""
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").touch()
    (here / "file").touch()
    before = listing(here), listing(repo)

    assert main(["convert", str(repo), output, *overwrite]) == 1
    assert message in capsys.readouterr().err
    assert (listing(here), listing(repo)) == before


def test_empty_folder_is_used(repo, here):
    """An OUTPUT_DIR that is there and empty is used."""
    (here / "new").mkdir()

    assert main(["convert", str(repo), "new"]) == 0
    assert listing(here) == ["new"]
    assert (here / "new" / "config.json").is_file()


def test_overwrite_replaces_a_model(repo, here):
    """--overwrite leaves nothing of the model that was there."""
    copy_twin(here / "new")
    (here / "new" / "old.txt").touch()

    assert main(["convert", str(repo), "new", "--overwrite"]) == 0
    assert listing(here) == ["new"]
    assert not (here / "new" / "old.txt").exists()


@pytest.mark.parametrize(
    ("target", "error", "status"),
    [
        ("minibert.cli.convert.convert", OSError(28, "No space left on device"), 1),
        ("minibert.cli.convert.convert", KeyboardInterrupt(), 130),
        ("os.fsync", OSError(5, "Input/output error"), 1),
    ],
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_failed_conversion_leaves_nothing(repo, here, monkeypatch, target, error, status, overwrite):
    """A conversion that fails or is interrupted leaves no folder, and an old one as it was."""
    if overwrite:
        copy_twin(here / "new")
    monkeypatch.setattr(target, fail_with(error))

    assert main(["convert", str(repo), "new", *overwrite]) == status
    assert listing(here) == (["new"] if overwrite else [])
    assert not overwrite or listing(here / "new") == listing(repo)


def test_failed_exchange_brings_the_old_folder_back(repo, here, monkeypatch):
    """If the new folder cannot take the old one's place, the old one is put back."""
    copy_twin(here / "new")
    (here / "new" / "old.txt").touch()
    rename = Path.rename

    def rename_but_the_second(path, target):
        if path.name != "new" and target.name == "new" and not (path / "old.txt").exists():
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_but_the_second)

    assert main(["convert", str(repo), "new", "--overwrite"]) == 1
    assert listing(here) == ["new"]
    assert (here / "new" / "old.txt").exists()


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_converted_repo_works_in_sentence_transformers(repo, here, capsys, dtype):
    """A repo converted from pytorch_model.bin gives sentence-transformers the vectors that it gives minibert."""
    import torch
    from sentence_transformers import SentenceTransformer

    add_module(repo, "Normalize", {})
    add_dense(repo)
    state = {name: torch.from_numpy(array) for name, array in renamed(load(repo / "model.safetensors")[0]).items()}
    torch.save(state, repo / "pytorch_model.bin")
    (repo / "model.safetensors").unlink()
    assert "`minibert convert` writes safetensors." in inspected(repo, capsys)["differences"][-1]

    assert main(["convert", str(repo), "new", "--dtype", dtype]) == 0

    peer = SentenceTransformer(str(here / "new"), device="cpu").encode(TEXTS)
    vectors = SentenceEncoder(here / "new").encode(TEXTS)
    assert peer.dtype == vectors.dtype == np.float32
    assert np.abs(peer - vectors).max() < 1e-5
    assert dtype == "float16" or np.array_equal(vectors, SentenceEncoder(repo).encode(TEXTS))
