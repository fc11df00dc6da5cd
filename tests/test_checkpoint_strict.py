"""Checkpoints are strict: names and shapes that are not exactly the config's are refused, all in one message."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import load, twin

from minibert import BertConfig
from minibert.errors import WeightsError
from minibert.files.checkpoint import load_bert, load_module

REPO = twin("BertModel-128d")
CONFIG = BertConfig.from_file(REPO / "config.json")
ARRAYS, _ = load(REPO / "model.safetensors")
ANCHOR = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
HEAD = np.ones((3, 16), np.float32)


def save(folder, arrays):
    """Write a safetensors file."""
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / "model.safetensors")


def refusal(folder, config=CONFIG):
    """Return the lines of what is said when the weights in ``folder`` are refused."""
    with pytest.raises(WeightsError) as caught:
        load_bert(folder, config)
    return str(caught.value).split("\n  ")


def test_everything_that_does_not_fit_is_listed(tmp_path):
    """One message names each missing, unexpected and mis-shaped tensor, sorted, and the sizes (W4)."""
    arrays = {f"bert.{name}": array for name, array in ARRAYS.items()}
    del arrays[f"bert.{QUERY}"], arrays["bert.embeddings.LayerNorm.bias"], arrays["bert.pooler.dense.bias"]
    arrays |= {"bert.extra": HEAD, "bert.cls.x": HEAD, "lm_head.weight": HEAD}
    arrays[POSITIONS] = HEAD
    arrays["bert.encoder.layer.0.intermediate.dense.bias"] = np.ones(63, np.float32)
    save(tmp_path, arrays)

    assert refusal(tmp_path) == [
        f"{tmp_path / 'model.safetensors'} does not fit its config.json. Is the config from another checkpoint?",
        "missing: embeddings.LayerNorm.bias",
        f"missing: {QUERY}",
        "missing: pooler.dense.bias",
        "unexpected: bert.cls.x",
        "unexpected: bert.extra",
        "unexpected: lm_head.weight",
        f"{POSITIONS} must have shape (512, 16) = (max_position_embeddings, hidden_size); it has (3, 16)",
        "bert.encoder.layer.0.intermediate.dense.bias must have shape (64,) = (intermediate_size); it has (63,)",
    ]


@pytest.mark.parametrize("name", ARRAYS)
def test_each_tensor_is_needed(tmp_path, name):
    """A checkpoint that lacks a tensor, the pooler's two together excepted, is refused (W4)."""
    save(tmp_path, {key: array for key, array in ARRAYS.items() if key != name})

    lines = refusal(tmp_path)
    assert lines[1:] == [f"missing: {name}"] or ANCHOR in lines[0]


@pytest.mark.parametrize(
    ("change", "tensor", "shape"),
    [
        ({"vocab_size": 40000}, ANCHOR, "(40000, 16) = (vocab_size, hidden_size); it has (80, 16)"),
        ({"max_position_embeddings": 1024}, "embeddings.position_embeddings.weight", "(1024, 16) = (max_position_em"),
        ({"type_vocab_size": 1}, "embeddings.token_type_embeddings.weight", "(1, 16) = (type_vocab_size, hidden_size"),
        ({"intermediate_size": 32}, "encoder.layer.1.output.dense.weight", "(16, 32) = (hidden_size, intermediate_si"),
        ({"hidden_size": 32}, QUERY, "(32, 32) = (hidden_size, hidden_size); it has (16, 16)"),
    ],
)
def test_sizes_of_another_config(tmp_path, change, tensor, shape):
    """Each size of the config is checked against the tensors that have it (W3)."""
    save(tmp_path, ARRAYS)

    lines = refusal(tmp_path, dataclasses.replace(CONFIG, **change))
    assert any(line.startswith(f"{tensor} must have shape {shape}") for line in lines)


def test_fewer_layers_than_the_file(tmp_path):
    """A config with too few layers is refused: the others would be dropped (W4)."""
    save(tmp_path, ARRAYS)
    expected = sorted(name for name in ARRAYS if name.startswith("encoder.layer.1."))

    assert refusal(tmp_path, dataclasses.replace(CONFIG, num_hidden_layers=1))[1:] == [
        f"unexpected: {name}" for name in expected
    ]


def test_more_layers_than_the_file(tmp_path):
    """A config with too many layers is refused: nothing is made up (W4)."""
    save(tmp_path, ARRAYS)
    expected = sorted(name.replace(".1.", ".2.") for name in ARRAYS if name.startswith("encoder.layer.1."))

    assert refusal(tmp_path, dataclasses.replace(CONFIG, num_hidden_layers=3))[1:] == [
        f"missing: {name}" for name in expected
    ]


def test_a_billion_layers(tmp_path):
    """An absurd number of layers is refused at once, in one line (W4)."""
    save(tmp_path, ARRAYS)

    (line,) = refusal(tmp_path, dataclasses.replace(CONFIG, num_hidden_layers=10**9))
    assert line.endswith("must hold the tensors of num_hidden_layers = 1000000000 layers; it holds 39 in all.")


@pytest.mark.parametrize(
    ("prefixes", "found"),
    [
        ([], "it has none"),
        (["query_model.", "doc_model."], f"it has 2: doc_model.{ANCHOR}, query_model.{ANCHOR}"),
        (["", "bert."], f"it has 2: bert.{ANCHOR}, {ANCHOR}"),
    ],
)
def test_one_tower(tmp_path, prefixes, found):
    """A checkpoint must hold one BertModel: which of two is meant cannot be known (W3)."""
    save(tmp_path, {f"{prefix}{name}": array for prefix in prefixes for name, array in ARRAYS.items()} | {"x": HEAD})

    assert refusal(tmp_path) == [
        f"{tmp_path}/model.safetensors: a checkpoint of an encoder has one tensor called [prefix.]{ANCHOR}; {found}."
    ]


def test_both_names_of_a_layer_norm(tmp_path):
    """A layer norm under TensorFlow's name and the present one is refused: they could differ."""
    save(tmp_path, ARRAYS | {"embeddings.LayerNorm.gamma": ARRAYS["embeddings.LayerNorm.weight"]})

    assert refusal(tmp_path)[1:] in (
        ["unexpected: embeddings.LayerNorm.gamma"],
        ["unexpected: embeddings.LayerNorm.weight"],
    )


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_whole_numbers_for_a_parameter(tmp_path, dtype):
    """A parameter must be stored as floating-point numbers: a quantized one would need its scale."""
    save(tmp_path, ARRAYS | {QUERY: np.ones((16, 16), dtype)})

    assert re.fullmatch(rf"{QUERY} must hold floating-point numbers; it holds (I64|I32|U8|BOOL)", refusal(tmp_path)[1])


# ---------------------------------------------------------------- a module's weights

SHAPES = {"linear.weight": (2, 3), "linear.bias": (2,)}
LINEAR = {name: np.ones(shape, np.float16) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_module(tmp_path, dtype):
    """A module's tensors are returned by name, in the dtype that is asked for."""
    save(tmp_path, LINEAR)

    for name, array in load_module(tmp_path, SHAPES, dtype).items():
        np.testing.assert_array_equal(array, LINEAR[name].astype(dtype), strict=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"linear.bias": None}, "missing: linear.bias"),
        ({"norm.weight": np.ones(2, np.float32)}, "unexpected: norm.weight"),
        ({"linear.bias": np.ones(3, np.float32)}, r"linear.bias must have shape \(2,\) .*; it has \(3,\)"),
        ({"linear.weight": np.ones((3, 2), np.float32)}, r"linear.weight must have shape \(2, 3\).*has \(3, 2\)"),
        ({"linear.bias": np.ones(2, np.int8)}, "linear.bias must hold floating-point numbers; it holds I8"),
        ({"linear.bias": np.float32([1, np.nan])}, "linear.bias must hold finite numbers; 1 of 2 are NaN or infinite"),
        ({"linear.bias": np.full(2, 1e300)}, "linear.bias holds float64 values too large for float32"),
    ],
)
def test_module_is_strict(tmp_path, change, reason):
    """A module's weights must be exactly those of its config, and finite."""
    save(tmp_path, {name: array for name, array in (LINEAR | change).items() if array is not None})

    with pytest.raises(WeightsError, match=rf"(?s){re.escape(str(tmp_path / 'model.safetensors'))}.*{reason}"):
        load_module(tmp_path, SHAPES, np.float32)
