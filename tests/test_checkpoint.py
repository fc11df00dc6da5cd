"""Checkpoints: every layout of the same weights gives the same parameters; shards and values are checked."""

import json
import re
from functools import reduce
from pathlib import Path

import fuzz_folders
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import FAMILIES, MODELS, load, twin

from minibert import BertConfig
from minibert.errors import ConfigError, WeightsError
from minibert.files.checkpoint import WEIGHTS_FILES, find_weights, load_bert, open_weights

CARD = "BertModel-128d"
REPO = twin(CARD)
CONFIG = BertConfig.from_file(REPO / "config.json")
ANCHOR = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
INDEX = "model.safetensors.index.json"


def arrays_of(card):
    """Return a tensor of each name of a card's twin, with values that float16 and bfloat16 hold exactly."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(-64, 65, array.shape) / 64).astype(np.float32)
        for name, array in load(twin(card) / "model.safetensors")[0].items()
    }


ARRAYS = arrays_of(CARD)

#: By model_type: where the layers are, and where each tensor of a layer goes, without .weight and .bias.
LAYERS = {
    "bert": (
        "encoder.layer",
        {
            "attention.self.query": "attention.query",
            "attention.self.key": "attention.key",
            "attention.self.value": "attention.value",
            "attention.output.dense": "attention.output",
            "attention.output.LayerNorm": "attention.norm",
            "intermediate.dense": "feed_forward.intermediate",
            "output.dense": "feed_forward.output",
            "output.LayerNorm": "feed_forward.norm",
        },
    ),
    "distilbert": (
        "transformer.layer",
        {
            "attention.q_lin": "attention.query",
            "attention.k_lin": "attention.key",
            "attention.v_lin": "attention.value",
            "attention.out_lin": "attention.output",
            "sa_layer_norm": "attention.norm",
            "ffn.lin1": "feed_forward.intermediate",
            "ffn.lin2": "feed_forward.output",
            "output_layer_norm": "feed_forward.norm",
        },
    ),
    "mpnet": (
        "encoder.layer",
        {
            "attention.attn.q": "attention.query",
            "attention.attn.k": "attention.key",
            "attention.attn.v": "attention.value",
            "attention.attn.o": "attention.output",
            "attention.LayerNorm": "attention.norm",
            "intermediate.dense": "feed_forward.intermediate",
            "output.dense": "feed_forward.output",
            "output.LayerNorm": "feed_forward.norm",
        },
    ),
}
TYPES = "embeddings.token_type_embeddings.weight"


EACH_CARD = pytest.mark.parametrize("card", [CARD, *FAMILIES])


def places_of(card):
    """Return where each tensor of a card's twin goes."""
    family = MODELS[card].get("model_type", "bert")
    layers, names = LAYERS.get(family, LAYERS["bert"])
    kinds = ("weight", "bias")
    return {
        "embeddings.word_embeddings.weight": "embeddings.word",
        "embeddings.position_embeddings.weight": "embeddings.position",
        **({} if family in {"distilbert", "mpnet"} else {TYPES: "embeddings.token_type"}),
        **{f"embeddings.LayerNorm.{kind}": f"embeddings.norm.{kind}" for kind in kinds},
        **({} if family == "distilbert" else {f"pooler.dense.{kind}": f"pooler.{kind}" for kind in kinds}),
        **({"encoder.relative_attention_bias.weight": "relative_bias"} if family == "mpnet" else {}),
        **{
            f"{layers}.{i}.{name}.{kind}": f"layers.{i}.{place}.{kind}"
            for i in (0, 1)
            for name, place in names.items()
            for kind in kinds
        },
    }


PLACES = places_of(CARD)


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


def save_torch(write):
    """Return a function that writes a pytorch_model.bin by one of the writers of the fuzzer."""
    return lambda folder, arrays: (folder / "pytorch_model.bin").write_bytes(write(arrays))


HEAD = np.ones((3, 16), np.float32)
POSITIONS = np.arange(512)[None]
#: By model_type: the prefixes of a model with a head, and the names of heads.
HEADS = {
    "bert": (["bert."], ["cls.predictions.bias", "cls.seq.weight", "classifier.weight", "qa_outputs.weight"]),
    "roberta": (["roberta."], ["lm_head.bias", "lm_head.layer_norm.weight", "classifier.out_proj.bias"]),
    "xlm-roberta": (["roberta.", "xlm-roberta."], ["lm_head.dense.weight", "classifier.weight", "qa_outputs.bias"]),
    "camembert": (["roberta.", "camembert."], ["lm_head.decoder.weight", "lm_head.dense.bias", "classifier.bias"]),
    "distilbert": (
        ["distilbert."],
        [
            "vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias", "pre_classifier.weight",
            "classifier.weight", "qa_outputs.bias",
        ],
    ),
    "mpnet": (["mpnet."], ["lm_head.bias", "classifier.dense.weight", "qa_outputs.weight"]),
}  # fmt: skip
#: Ways in which the same weights lie in repos.
LAYOUTS = {
    "bert.": save_with("bert."),
    "model.": save_with("model."),
    "0.auto_model.": save_with("0.auto_model."),
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
    "zip of torch": save_torch(fuzz_folders.write_zip),
    "legacy file of torch": save_torch(fuzz_folders.write_legacy),
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


@EACH_CARD
def test_places_are_complete(card):
    """The table of this file has every tensor of a family's model."""
    assert places_of(card).keys() == arrays_of(card).keys()


def assert_read(folder, card, dtype=np.float32):
    """Fail unless the weights in a folder are those of :func:`arrays_of`."""
    params, arrays = load_bert(folder, BertConfig.from_file(twin(card) / "config.json"), dtype), arrays_of(card)

    assert len(params.layers) == 2
    for name, path in places_of(card).items():
        np.testing.assert_array_equal(place(params, path), arrays[name].astype(dtype), name, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["plain", *LAYOUTS])
@EACH_CARD
def test_layouts(folder, card, layout, dtype):
    """Every layout of the same weights gives the same parameters, in the dtype that is asked for (W2, W3, W5)."""
    {"plain": save, **LAYOUTS}[layout](folder, arrays_of(card))

    assert_read(folder, card, dtype)


@pytest.mark.parametrize(
    ("card", "prefix"),
    [
        (card, prefix)
        for card in (CARD, *FAMILIES)
        for prefix in ["", *HEADS[MODELS[card].get("model_type", "bert")][0]]
    ],
)
def test_heads_are_passed_over(folder, card, prefix):
    """The heads and buffers of a family are passed over, under each of its prefixes and without one (G5-G7)."""
    heads = dict.fromkeys(HEADS[MODELS[card].get("model_type", "bert")][1], HEAD)
    buffers = {f"{prefix}embeddings.{name}": POSITIONS for name in ("position_ids", "token_type_ids")}
    save_with(prefix, **heads, **buffers)(folder, arrays_of(card))

    assert_read(folder, card)


def test_buffer_of_another_model(folder):
    """A buffer without the model's prefix belongs to something else: it is refused by its name."""
    save_with("bert.", **{"embeddings.position_ids": POSITIONS})(folder, arrays_of(CARD))

    with pytest.raises(WeightsError, match=r"unexpected: embeddings\.position_ids"):
        load_bert(folder, BertConfig.from_file(twin(CARD) / "config.json"))


@pytest.mark.parametrize("card", [CARD, *FAMILIES])
def test_heads_of_another_family(folder, card):
    """A tensor that is no head of the family is refused by its name (W4)."""
    head = "lm_head.bias" if MODELS[card].get("model_type", "bert") in {"bert", "distilbert"} else "cls.bias"
    save(folder, arrays_of(card) | {head: HEAD})

    with pytest.raises(WeightsError, match=rf"unexpected: {head}"):
        load_bert(folder, BertConfig.from_file(twin(card) / "config.json"))


#: Pairs of families whose tensors have other names.
PAIRS = [
    (config, tensors)
    for config in (CARD, *FAMILIES)
    for tensors in (CARD, *FAMILIES)
    if places_of(config).keys() != places_of(tensors).keys()
]


@pytest.mark.parametrize(("config", "tensors"), PAIRS)
def test_config_of_another_family(folder, config, tensors):
    """Where config.json is of one family and the tensors are of another, what is missing has the config's names."""
    save(folder, arrays_of(tensors))
    with pytest.raises(WeightsError) as error:
        load_bert(folder, BertConfig.from_file(twin(config) / "config.json"))

    missing, unexpected = (places_of(a).keys() - places_of(b).keys() for a, b in ((config, tensors), (tensors, config)))
    message = str(error.value)
    assert all(f"missing: {name}" in message for name in missing if not name.startswith("pooler."))
    assert all(f"unexpected: {name}" in message for name in unexpected)


@EACH_CARD
def test_one_tensor_missing(folder, card):
    """One tensor that is missing, or of another shape, is named as in the family's files."""
    config, arrays = BertConfig.from_file(twin(card) / "config.json"), arrays_of(card)
    for name in arrays.keys() - {ANCHOR, "pooler.dense.weight", "pooler.dense.bias"}:
        save(folder, {other: array for other, array in arrays.items() if other != name})
        with pytest.raises(WeightsError, match=rf"missing: {re.escape(name)}$"):
            load_bert(folder, config)
        save(folder, arrays | {name: arrays[name][:-1]})
        with pytest.raises(WeightsError, match=rf"{re.escape(name)} must have shape"):
            load_bert(folder, config)


@pytest.mark.parametrize(
    ("card", "changes", "tensor"),
    [
        ("multilingual-e5-base", {"type_vocab_size": 2}, TYPES),
        ("sentence-camembert-base", {"vocab_size": 99}, ANCHOR),
        ("all-distilroberta-v1", {"max_position_embeddings": 512}, "embeddings.position_embeddings.weight"),
        ("msmarco-distilbert-base-v4", {"hidden_dim": 64}, "transformer.layer.0.ffn.lin1.weight"),
        ("multi-qa-mpnet-base-dot-v1", {"num_attention_heads": 2}, "encoder.relative_attention_bias.weight"),
    ],
)
def test_sizes_that_are_not_those_of_the_file(folder, card, changes, tensor):
    """A size of config.json that the weights contradict is named, with the tensor and both shapes (G3)."""
    save(folder, arrays_of(card))
    config = BertConfig.from_file(twin(card) / "config.json", changes)

    with pytest.raises(WeightsError, match=rf"{re.escape(tensor)} must have shape \(.*\) = \(.*\); it has \("):
        load_bert(folder, config)


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
