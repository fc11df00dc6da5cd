"""Checkpoints: every layout of the same weights gives the same parameters; shards and values are checked."""

import json
import re
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import load, twin

from minibert import BertConfig
from minibert.errors import ConfigError, WeightsError
from minibert.files.checkpoint import WEIGHTS_FILES, find_weights, load_bert, open_weights

REPO = twin("BertModel-128d")
CONFIG = BertConfig.from_file(REPO / "config.json")
ANCHOR = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
INDEX = "model.safetensors.index.json"

RNG = np.random.default_rng(0)
#: A tensor of each name of BertModel, with values that float16 and bfloat16 hold exactly.
ARRAYS = {
    name: (RNG.integers(-64, 65, array.shape) / 64).astype(np.float32)
    for name, array in load(REPO / "model.safetensors")[0].items()
}

#: Where each tensor of a layer, an embedding table or the pooler goes, without .weight and .bias.
LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "feed_forward.intermediate",
    "output.dense": "feed_forward.output",
    "output.LayerNorm": "feed_forward.norm",
}
PLACES = {
    "embeddings.word_embeddings.weight": "embeddings.word",
    "embeddings.position_embeddings.weight": "embeddings.position",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type",
    **{f"embeddings.LayerNorm.{kind}": f"embeddings.norm.{kind}" for kind in ("weight", "bias")},
    **{f"pooler.dense.{kind}": f"pooler.{kind}" for kind in ("weight", "bias")},
    **{
        f"encoder.layer.{i}.{name}.{kind}": f"layers.{i}.{place}.{kind}"
        for i in (0, 1)
        for name, place in LAYER.items()
        for kind in ("weight", "bias")
    },
}


def save(folder, arrays, name="model.safetensors"):
    """Write a safetensors file."""
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / name)


def save_with(prefix="", **more):
    """Return a function that writes all tensors with ``prefix`` before their names, and ``more`` beside them."""
    return lambda folder, arrays: save(folder, {f"{prefix}{name}": array for name, array in arrays.items()} | more)


def save_as(dtype):
    """Return a function that writes all tensors in another dtype."""
    return lambda folder, arrays: save(folder, {name: array.astype(dtype) for name, array in arrays.items()})


def save_bfloat16(folder, arrays):
    """Write a safetensors file of bfloat16 by hand: numpy has no such dtype."""
    header, values = {}, b""
    for name, array in arrays.items():
        raw = (array.view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(values), len(values + raw)]}
        values += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)


def save_gamma_and_beta(folder, arrays):
    """Write the layer norms under TensorFlow's names."""
    for new, old in ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")):
        arrays = {name.replace(new, old): array for name, array in arrays.items()}
    save(folder, arrays)


def save_shards(folder, arrays):
    """Write two shards and their index; return the index's map from tensors to files."""
    weight_map = {}
    for i, shard in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
        part = dict(list(arrays.items())[i::2])
        save(folder, part, shard)
        weight_map |= dict.fromkeys(part, shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    """Write the index of shards."""
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), "utf-8")


def in_hub_cache(save):
    """Return ``save``, but with huggingface_hub's cache: the files are links to blobs in another folder."""

    def save_and_link(folder, arrays):
        save(folder, arrays)
        (folder.parent / "blobs").mkdir()
        for i, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder.parent / "blobs" / f"{i:064x}")
            path.symlink_to(Path("..", "blobs", f"{i:064x}"))

    return save_and_link


HEAD = np.ones((3, 16), np.float32)
POSITIONS = np.arange(512)[None]
#: Ways in which the same weights lie in repos.
LAYOUTS = {
    "bert.": save_with("bert."),
    "model.": save_with("model."),
    "0.auto_model.": save_with("0.auto_model."),
    "bert. and pre-training heads": save_with("bert.", **{"cls.predictions.bias": HEAD, "cls.seq.weight": HEAD}),
    "bert. and a classifier": save_with("bert.", **{"classifier.weight": HEAD}),
    "bert. and question answering": save_with("bert.", **{"qa_outputs.weight": HEAD}),
    "heads beside bare names": save_with("", **{"cls.x": HEAD, "classifier.bias": HEAD, "qa_outputs.bias": HEAD}),
    "position_ids": save_with("", **{"embeddings.position_ids": POSITIONS}),
    "bert. and buffers": save_with(
        "bert.",
        **{"bert.embeddings.position_ids": POSITIONS, "bert.embeddings.token_type_ids": np.zeros_like(POSITIONS)},
    ),
    "gamma and beta": save_gamma_and_beta,
    "shards": save_shards,
    "float16": save_as(np.float16),
    "bfloat16": save_bfloat16,
    "float64": save_as(np.float64),
    "hub cache": in_hub_cache(save),
    "hub cache with shards": in_hub_cache(save_shards),
}


@pytest.fixture
def folder(tmp_path):
    """Return an empty folder."""
    (tmp_path / "snapshot").mkdir()
    return tmp_path / "snapshot"


def place(params, path):
    """Return the array at a path such as ``layers.1.attention.query.weight``."""
    return reduce(
        lambda part, name: part[int(name)] if name.isdigit() else getattr(part, name), path.split("."), params
    )


# ---------------------------------------------------------------- what is read


def test_places_are_complete():
    """The table of this file has every tensor of a BertModel."""
    assert PLACES.keys() == ARRAYS.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["plain", *LAYOUTS])
def test_layouts(folder, layout, dtype):
    """Every layout of the same weights gives the same parameters, in the dtype that is asked for (W2, W3, W5)."""
    {"plain": save, **LAYOUTS}[layout](folder, ARRAYS)
    params = load_bert(folder, CONFIG, dtype)

    assert len(params.layers) == CONFIG.num_hidden_layers
    for name, path in PLACES.items():
        np.testing.assert_array_equal(place(params, path), ARRAYS[name].astype(dtype), name, strict=True)


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_layout_of_torch(folder, zipped):
    """What torch.save writes gives the same parameters, too (W2, W7)."""
    import torch

    state = {f"bert.{name}": torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    params = load_bert(folder, CONFIG)

    for name, path in PLACES.items():
        np.testing.assert_array_equal(place(params, path), ARRAYS[name], name, strict=True)


def test_pooler_is_optional(folder):
    """A checkpoint without a pooler has none (W2, W4)."""
    save(folder, {name: array for name, array in ARRAYS.items() if not name.startswith("pooler.")})

    assert load_bert(folder, CONFIG).pooler is None


def test_parameters_do_not_change_with_the_file(folder):
    """What was loaded stays as it is when the file is overwritten in place, and when it is cut short."""
    save(folder, ARRAYS)
    params = load_bert(folder, CONFIG)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(10)

    np.testing.assert_array_equal(params.embeddings.word, ARRAYS[ANCHOR])


@pytest.mark.parametrize("first", range(len(WEIGHTS_FILES)))
def test_lookup_order(folder, first):
    """Of several files the first in transformers' order is taken (W1)."""
    for name, *_ in WEIGHTS_FILES[first:]:
        (folder / name).touch()
    order = ["model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"]

    assert find_weights(folder) == folder / order[first]


def test_broken_link(folder):
    """A link to weights that are gone is an error; the next kind of weights does not stand in for them."""
    (folder / "model.safetensors").symlink_to(folder / "gone")
    (folder / "pytorch_model.bin").touch()

    with pytest.raises(WeightsError, match=r"model\.safetensors is a link to a file that does not exist"):
        find_weights(folder)


def test_no_weights(folder):
    """A folder without weights is refused, with the names that were looked for; a folder of that name is no file."""
    (folder / "model.safetensors").mkdir()
    (folder / "tf_model.h5").touch()

    with pytest.raises(WeightsError, match=rf"{re.escape(str(folder))} holds no weights: it has none of model\.safet"):
        open_weights(folder)


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize(
    "shard",
    [
        "../elsewhere.safetensors",
        "{folder}/model-00001-of-00002.safetensors",
        "a/b.safetensors",
        "config.json",
        "",
        "..",
    ],
)
def test_shard_outside_the_folder(folder, shard):
    """A shard must be the bare name of a weights file; no other path is ever opened."""
    save(folder.parent, ARRAYS, "elsewhere.safetensors")
    weight_map = save_shards(folder, ARRAYS)
    write_index(folder, weight_map | {ANCHOR: shard.format(folder=folder)})

    with pytest.raises(WeightsError, match=rf"{INDEX}: .* must be the name of a weights file in the same folder"):
        open_weights(folder)


def test_shard_missing(folder):
    """A shard that is not there is named."""
    save_shards(folder, ARRAYS)
    (folder / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(
        WeightsError, match=rf"{INDEX} names the shard model-00002-of-00002\.safetensors, which does not"
    ):
        open_weights(folder)


@pytest.mark.parametrize("lie", ["in two shards", "in the other shard", "in no shard", "in no map"])
def test_shards_that_contradict_their_index(folder, lie):
    """A tensor must be in exactly the shard that the index says, and in it alone; else it is named."""
    weight_map = save_shards(folder, ARRAYS)
    first, second = sorted(set(weight_map.values()))
    tensors, _ = load(folder / first)
    if lie == "in two shards":
        save(folder, load(folder / second)[0] | {ANCHOR: tensors.pop(ANCHOR)}, second)
    elif lie == "in the other shard":
        write_index(folder, weight_map | {ANCHOR: second})
    elif lie == "in no shard":
        tensors.pop(ANCHOR)
        save(folder, tensors, first)
    else:
        write_index(folder, {name: shard for name, shard in weight_map.items() if name != ANCHOR})

    with pytest.raises(
        WeightsError, match=rf"must hold the tensors that {INDEX} says.\s+(missing|unexpected): {ANCHOR}"
    ):
        open_weights(folder)


@pytest.mark.parametrize("weight_map", [None, [], "x", {ANCHOR: 1}, {ANCHOR: None}])
def test_index_without_a_map_of_names(folder, weight_map):
    """An index whose map is no map of names is refused by its name."""
    write_index(folder, weight_map)

    with pytest.raises(WeightsError, match=rf"{INDEX}: weight_map must map tensor names to file names"):
        open_weights(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000])
def test_index_that_is_no_object(folder, text):
    """An index that is not JSON, no object or has a key twice is refused by its name."""
    (folder / INDEX).write_text(text, "utf-8")

    with pytest.raises(ConfigError, match=INDEX):
        open_weights(folder)


def test_broken_shard_is_named(folder):
    """What is wrong with a shard is said of that shard."""
    save_shards(folder, ARRAYS)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors is a Git LFS pointer"):
        open_weights(folder)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F16", "F32", "F64", "BF16"])
def test_values_that_are_not_finite(folder, kind, value):
    """NaN and infinity are refused, with the tensor's name in the file and how many there are."""
    broken = ARRAYS[QUERY].copy()
    broken[1, 2] = broken[3, 4] = value
    arrays = {f"bert.{name}": array for name, array in ARRAYS.items()} | {f"bert.{QUERY}": broken}
    write = {"BF16": save_bfloat16, "F16": save_as(np.float16), "F32": save, "F64": save_as(np.float64)}[kind]
    write(folder, arrays)

    with pytest.raises(WeightsError, match=rf"model\.safetensors: bert\.{QUERY} must hold finite numbers; 2 of 256"):
        load_bert(folder, CONFIG)


def test_float64_beyond_float32(folder):
    """A float64 that float32 cannot hold is refused in float32, and loaded in float64 (W5)."""
    arrays = ARRAYS | {QUERY: np.full((16, 16), 1e300)}
    save(folder, arrays)

    with pytest.raises(WeightsError, match=rf"model\.safetensors: {QUERY} holds float64 values too large for float32"):
        load_bert(folder, CONFIG)
    np.testing.assert_array_equal(load_bert(folder, CONFIG, np.float64).layers[1].attention.query.weight, arrays[QUERY])
