"""The modules after the transformer: what their files say, and what they compute, against float64 by hand."""

import logging
import math
import pickle
import pickletools
import re
import zipfile

import numpy as np
import pytest
from support import write_module

from minibert.errors import ConfigError, UnsupportedModuleError, WeightsError
from minibert.modules import kinds as modules

RNG = np.random.default_rng(0)
TORCH = "torch.nn.modules.activation"

X = RNG.normal(size=(5, 3))
WEIGHT, BIAS, RESIDUAL = RNG.normal(size=(2, 3)), RNG.normal(size=2), RNG.normal(size=(2, 3))
SQUARE = RNG.normal(size=(3, 3))

erf = np.vectorize(math.erf)
#: torch's activations, by hand.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    f"{TORCH}.GELU": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    f"{TORCH}.Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    f"{TORCH}.LeakyReLU": lambda x: np.where(x > 0, x, x / 100),
    f"{TORCH}.Mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    f"{TORCH}.ReLU": lambda x: np.maximum(x, 0),
    f"{TORCH}.ReLU6": lambda x: np.clip(x, 0, 6),
    f"{TORCH}.SiLU": lambda x: x / (1 + np.exp(-x)),
    f"{TORCH}.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    f"{TORCH}.Softplus": lambda x: np.log1p(np.exp(x)),
    f"{TORCH}.Tanh": np.tanh,
}


def write_torch(path, arrays):
    """Write the pytorch_model.bin that torch.save would make of float64 arrays, opcode by opcode."""

    def push(value):
        return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]

    pickled = b"\x80\x02}"
    for key, (name, array) in enumerate(arrays.items()):
        storage = b"(" + push("storage") + b"ctorch\nDoubleStorage\n" + push(str(key)) + push("cpu") + push(array.size)
        strides = tuple(stride // 8 for stride in array.strides)
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + push(0) + push(array.shape) + push(strides)
        pickled += push(name) + tensor + b"\x89ccollections\nOrderedDict\n)RtRs"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled + b".")
        file.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            file.writestr(f"archive/data/{key}", array.astype("<f8").tobytes())


def run(kind, folder, dtype=np.float64, **features):
    """Return the features after a module, loaded from ``folder``, has seen those given."""
    module = modules.load(kind, folder, dtype)
    module(features)
    return features


def dense(folder, x=X, **changes):
    """Return what a Dense of WEIGHT and BIAS, its config changed, makes of ``x``."""
    config = {"in_features": 3, "out_features": 2, "bias": True, "activation_function": f"{TORCH}.Tanh"} | changes
    config = {key: value for key, value in config.items() if value is not ...}
    if not (folder / "model.safetensors").exists():
        write_module(folder, linear__weight=WEIGHT, linear__bias=BIAS)
    return run("Dense", write_module(folder, config), sentence_embedding=x)["sentence_embedding"]


def assert_close(actual, expected):
    """Fail unless float64 results are equal but for rounding."""
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13, equal_nan=False)


# ---------------------------------------------------------------- Pooling

LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        *[({key: True}, (mode,)) for key, mode in LEGACY.items()],
        (dict.fromkeys(reversed(LEGACY), True), tuple(LEGACY.values())),
        (dict.fromkeys(LEGACY, False), ("mean",)),
        ({}, ("mean",)),
        ({"word_embedding_dimension": 16, "include_prompt": False}, ("mean",)),
        ({"embedding_dimension": 999, "pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["max", "cls"]}, ("max", "cls")),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, ("cls",)),
    ],
)
def test_pooling_modes(tmp_path, config, modes):
    """Modes are read from the newer key or the older booleans, which have a fixed order; mean by default (P1)."""
    pooling = modules.load("Pooling", write_module(tmp_path, config), np.float32)

    assert pooling.modes == modes
    flow = modules.Flow({"token_embeddings": 16}, num_hidden_layers=2, tokens=80)
    pooling.connect(flow)

    assert flow.widths["sentence_embedding"] == 16 * len(modes)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"pooling_mode": "average"}, "pooling_mode 'average' is not one of cls, lasttoken, max, mean"),
        ({"pooling_mode": ["mean", "nope"]}, "pooling_mode 'nope' is not one of"),
        ({"pooling_mode": []}, "pooling_mode must name at least one mode"),
        ({"pooling_mode": None}, "pooling_mode must be a name or a list of names; it is None"),
        ({"pooling_mode": [1]}, "pooling_mode must be a name or a list"),
        ({"pooling_mode": {"mean": True}}, "pooling_mode must be a name or a list"),
        ({"pooling_mode_mean": True, "dropout": 0.1}, "a Pooling config has no key dropout, pooling_mode_mean"),
    ],
    ids=str,
)
def test_malformed_pooling(tmp_path, config, reason):
    """An unknown mode or key is refused by file and name (P1, L7)."""
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(tmp_path / 'config.json'))}: {reason}"):
        modules.load("Pooling", write_module(tmp_path, config), np.float32)


@pytest.mark.parametrize(("include_prompt", "expected"), [(True, [2.0, 3.0]), (False, [3.5, 4.5]), (..., [2.0, 3.0])])
def test_pooling_without_the_prompt(tmp_path, include_prompt, expected):
    """With include_prompt off, the tokens of the prompt are not pooled (P9)."""
    config = {"pooling_mode": "mean"} | ({} if include_prompt is ... else {"include_prompt": include_prompt})
    tokens = np.float64([[[0, 1], [1, 2], [3, 4], [4, 5], [9, 9]]])
    mask = np.array([[1, 1, 1, 1, 0]])
    features = run(
        "Pooling", write_module(tmp_path, config), token_embeddings=tokens, attention_mask=mask, prompt_length=2
    )

    assert_close(features["sentence_embedding"], [expected])


def test_pooling_without_any_prompt(tmp_path):
    """With include_prompt off and no prompt given, all tokens are pooled (P9)."""
    module = write_module(tmp_path, {"include_prompt": False})
    features = run("Pooling", module, token_embeddings=X[None], attention_mask=np.ones((1, len(X))))

    assert_close(features["sentence_embedding"], X.mean(axis=0)[None])


# ---------------------------------------------------------------- Normalize


@pytest.mark.parametrize("config", [None, {}, {"module_input_name": "sentence_embedding", "module_output_name": None}])
def test_normalize(tmp_path, config):
    """Vectors get length 1, and zero stays zero; older repos have no config (M1, L12)."""
    x = np.array([[3.0, 4.0], [0.0, 0.0]])

    assert_close(
        run("Normalize", write_module(tmp_path, config), sentence_embedding=x)["sentence_embedding"],
        [[0.6, 0.8], [0, 0]],
    )


@pytest.mark.parametrize("kind", ["Normalize", "Dense"])
def test_feature_names(tmp_path, kind):
    """Normalize and Dense read and write the features that their config names (M1, M2)."""
    names = {"module_input_name": "token_embeddings", "module_output_name": "sentence_embedding"}
    config = {"in_features": 3, "out_features": 2, **names}
    features = run(
        kind, write_module(tmp_path, config, linear__weight=WEIGHT, linear__bias=BIAS), token_embeddings=X[None] * 2
    )
    expected = X / np.linalg.norm(X, axis=1, keepdims=True) if kind == "Normalize" else np.tanh(2 * X @ WEIGHT.T + BIAS)

    assert_close(features["sentence_embedding"], expected[None])
    assert_close(features["token_embeddings"], X[None] * 2)


@pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
@pytest.mark.parametrize("name", ["cls_embeddings", ["sentence_embedding"], 1])
def test_unknown_feature(tmp_path, key, name):
    """Another feature is refused by file and name (M1)."""
    with pytest.raises(ConfigError, match=r"config\.json: module_input_name and module_output_name must be one of"):
        modules.load("Normalize", write_module(tmp_path, {key: name}), np.float32)


# ---------------------------------------------------------------- Dense


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense(tmp_path, name):
    """A linear layer with each of torch's activations (M2)."""
    assert_close(dense(tmp_path, activation_function=name), ACTIVATIONS[name](X @ WEIGHT.T + BIAS))


def test_dense_knows_no_other_activations():
    """The table of this file has every activation that Dense knows."""
    assert modules.Dense.ACTIVATIONS.keys() == ACTIVATIONS.keys()


def test_dense_defaults(tmp_path):
    """Without a word about them, there is a bias, and the activation is Tanh (M2)."""
    assert_close(dense(tmp_path, bias=..., activation_function=...), np.tanh(X @ WEIGHT.T + BIAS))


def test_dense_without_bias(tmp_path):
    """With bias off there is none, in the file neither (M2)."""
    write_module(tmp_path, linear__weight=WEIGHT)

    assert_close(dense(tmp_path, bias=False), np.tanh(X @ WEIGHT.T))


def test_dense_with_residual(tmp_path):
    """The residual is the input itself where the widths agree, added after the activation (M2)."""
    write_module(tmp_path, linear__weight=SQUARE, linear__bias=SQUARE[0])

    assert_close(dense(tmp_path, use_residual=True, out_features=3), np.tanh(X @ SQUARE.T + SQUARE[0]) + X)


def test_dense_with_projected_residual(tmp_path):
    """Where the widths differ, the residual is projected by a matrix of its own (M2)."""
    write_module(tmp_path, linear__weight=WEIGHT, linear__bias=BIAS, residual__weight=RESIDUAL)

    assert_close(dense(tmp_path, use_residual=True), np.tanh(X @ WEIGHT.T + BIAS) + X @ RESIDUAL.T)


def test_dense_weights_of_torch(tmp_path):
    """The weights may lie in a pytorch_model.bin (M2)."""
    write_torch(tmp_path / "pytorch_model.bin", {"linear.weight": WEIGHT, "linear.bias": BIAS})
    config = {"in_features": 3, "out_features": 2}

    features = run("Dense", write_module(tmp_path, config), sentence_embedding=X)
    assert_close(features["sentence_embedding"], np.tanh(X @ WEIGHT.T + BIAS))


def test_dense_ignores_unknown_keys(tmp_path, caplog):
    """Keys of newer versions are passed over, and named in the log, with no escape of a terminal (M2, L7)."""
    with caplog.at_level(logging.WARNING, "minibert"):
        result = dense(tmp_path, **{"zeta\x1b[2J": 1, "alpha": 2})

    assert_close(result, np.tanh(X @ WEIGHT.T + BIAS))
    assert r"ignoring the keys alpha, zeta\x1b[2J, which a Dense config does not have" in caplog.text


def test_dense_never_runs_foreign_code(tmp_path):
    """An activation that is not torch's own is Tanh instead, with a warning that names it (M2)."""
    with pytest.warns(UserWarning, match=r"config\.json: activation_function 'os\.system' .* Tanh stands in for it"):
        result = dense(tmp_path, activation_function="os.system")

    assert_close(result, np.tanh(X @ WEIGHT.T + BIAS))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activation_function": f"{TORCH}.PReLU"}, rf"activation_function '{TORCH}\.PReLU' is not implemented"),
        ({"activation_function": "torch.hub.load"}, "activation_function 'torch.hub.load' is not implemented"),
        ({"activation_function": None}, "activation_function None is not implemented; minibert knows torch"),
        ({"activation_function": [f"{TORCH}.Tanh"]}, r"activation_function \[.* is not implemented"),
        ({"in_features": ...}, "in_features must be a whole number of at least 1; it is None"),
        ({"out_features": "2"}, "out_features must be a whole number of at least 1; it is '2'"),
        ({"out_features": 0}, "out_features must be a whole number of at least 1; it is 0"),
        ({"bias": "false"}, "bias must be true or false; it is 'false'"),
        ({"use_residual": "no"}, "use_residual must be true or false; it is 'no'"),
    ],
    ids=str,
)
def test_malformed_dense(tmp_path, changes, reason):
    """A config that cannot be used is refused by file and field (M2)."""
    with pytest.raises(ConfigError, match=rf"config\.json: {reason}"):
        dense(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": False}, "unexpected: linear.bias"),
        ({"use_residual": True}, "missing: residual.weight"),
        ({"out_features": 4}, r"linear.weight must have shape \(4, 3\).* it has \(2, 3\)"),
    ],
    ids=str,
)
def test_dense_weights_must_fit(tmp_path, changes, reason):
    """The weights must be exactly those that the config describes (M2)."""
    with pytest.raises(WeightsError, match=rf"(?s)model\.safetensors.*{reason}"):
        dense(tmp_path, **changes)


def test_module_without_weights(tmp_path):
    """A module whose weights are not there is refused by its folder."""
    with pytest.raises(WeightsError, match=rf"{re.escape(str(tmp_path))} holds no weights"):
        modules.load("Dense", write_module(tmp_path, {"in_features": 3, "out_features": 2}), np.float32)


@pytest.mark.parametrize("value", ["false", "", 0, 1, None], ids=repr)
@pytest.mark.parametrize("key", ["include_prompt", "pooling_mode_cls_token", "pooling_mode_mean_tokens"])
def test_flag_of_pooling_that_is_none(tmp_path, key, value):
    """A flag must be true or false: the text "false" would count as true."""
    folder = write_module(tmp_path, {"embedding_dimension": 16, key: value})
    with pytest.raises(ConfigError, match=rf"config\.json: {key} must be true or false; it is {value!r}"):
        modules.load("Pooling", folder, np.float32)


# ---------------------------------------------------------------- load


def test_unknown_module():
    """A module that is not implemented is refused by its name."""
    with pytest.raises(
        UnsupportedModuleError, match="the module LSTM is not implemented; minibert knows Dense, Dropout"
    ):
        modules.load("LSTM", None, np.float32)


def test_pooling_without_a_folder():
    """The Pooling of a repo without modules.json is the mean, prompt included (L3)."""
    pooling = modules.load("Pooling", None, np.float32)

    assert (pooling.modes, pooling.include_prompt) == (("mean",), True)
