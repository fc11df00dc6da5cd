"""The rarer modules, chains of modules in whole repos against float64 by hand, and sentence-transformers' own."""

import json
import re

import numpy as np
import pytest
from support import FAMILIES, assert_as_accurate, copy_twin, twin, write_module

from minibert import BertModel, SentenceEncoder
from minibert.errors import ConfigError, WeightsError
from minibert.modules import kinds as modules

RNG = np.random.default_rng(0)
CARD = "BertModel-128d"
REPO = twin(CARD)
#: The cards whose twins have the sizes of this file: one of each family.
EACH_FAMILY = pytest.mark.parametrize("card", [CARD, *FAMILIES])
TEXTS = ["The cat.", "No man can play the violin, and a happy cat listens!"]
WORDS, WIDTH, LAYERS = 80, 16, 2  # of the twin

DENSE = {"in_features": WIDTH, "out_features": 8}
WEIGHT, BIAS = RNG.normal(size=(8, WIDTH)), RNG.normal(size=8)
SCALE, SHIFT = RNG.normal(size=(2, 8))
NORM = {"norm__weight": SCALE, "norm__bias": SHIFT}
VOCABULARY = {"vocab": ["x"] * WORDS, "word_weights": {}, "unknown_word_weight": 1}
IDF = RNG.uniform(0.1, 3, size=(WORDS, 1))
MEAN = {"embedding_dimension": WIDTH, "pooling_mode": "mean"}
LAYERED = {"embedding_dimension": WIDTH, "layer_start": 1, "num_hidden_layers": LAYERS}
LAYER_WEIGHTS = np.array([0.25, 2.0])


def encoder(repo, *chain, dtype="float64", card=CARD):
    """Return the encoder of a twin with these modules, pairs of kind and folder, after its transformer."""
    chain = [("Transformer", ""), *chain]
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in chain]
    (copy_twin(repo, card) / "modules.json").write_text(json.dumps(entries), "utf-8")
    return SentenceEncoder(repo, dtype=dtype)


def transformer(card=CARD):
    """Return the token ids of each text, and its token vectors after each layer, in float64."""
    model = BertModel.from_pretrained(twin(card), dtype="float64")
    for text in TEXTS:
        ids = SentenceEncoder(twin(card)).tokenize([text])["input_ids"]
        yield ids[0], [states[0] for states in model(ids, output_hidden_states=True).hidden_states]


def assert_close(actual, expected, dtype="float64"):
    """Fail unless results are equal but for the rounding of their dtype, which must be ``dtype``."""
    assert actual.dtype == dtype
    tolerance = {"float64": 1e-13, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=False)


def layer_norm(x, eps):
    """Return the layer normalization of rows by SCALE and SHIFT."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * SCALE + SHIFT


# ---------------------------------------------------------------- one module


def test_layer_norm(tmp_path):
    """The epsilon is torch's default 1e-5, not the transformer's 1e-12: rows of little variance show it (M3)."""
    x = 1 + 1e-3 * RNG.normal(size=(4, 8))
    features = {"sentence_embedding": x}
    modules.load("LayerNorm", write_module(tmp_path, {"dimension": 8}, **NORM), np.float64)(features)

    np.testing.assert_allclose(features["sentence_embedding"], layer_norm(x, 1e-5), rtol=0, atol=1e-12)
    assert np.abs(layer_norm(x, 1e-5) - layer_norm(x, 1e-12)).max() > 0.1


def test_dropout(tmp_path):
    """Dropout changes nothing (M6)."""
    write_module(tmp_path / "dropout", {"dropout": 0.5})
    mine = encoder(tmp_path, ("Pooling", "1_Pooling"), ("Dropout", "dropout"))

    np.testing.assert_array_equal(mine.encode(TEXTS), SentenceEncoder(REPO, dtype="float64").encode(TEXTS))


MALFORMED = {
    "LayerNorm": [
        ({}, {}, ConfigError, "dimension must be a whole number of at least 1; it is None"),
        ({"dimension": "8"}, {}, ConfigError, "dimension must be a whole number"),
        ({"dimension": 8}, {"norm__weight": SCALE}, WeightsError, "missing: norm.bias"),
        ({"dimension": 4}, NORM, WeightsError, r"norm.bias must have shape \(4,\) .*; it has \(8,\)"),
    ],
    "WordWeights": [
        ({"word_weights": {}}, {}, ConfigError, "vocab must be the list of the tokenizer's words"),
        ({"vocab": {"x": 0}}, {}, ConfigError, "vocab must be the list"),
        (
            {"vocab": ["x"]},
            {"emb_layer__weight": IDF},
            WeightsError,
            r"must have shape \(1, 1\) .*; it has \(80, 1\)",
        ),
        (VOCABULARY, {"emb_layer__weight": IDF[:, 0]}, WeightsError, r"must have shape \(80, 1\)"),
    ],
    "WeightedLayerPooling": [
        ({"layer_start": 13}, {}, ConfigError, "layer_start must be from 0 to num_hidden_layers = 12; it is 13"),
        ({"layer_start": -1}, {}, ConfigError, "layer_start must be from 0 to num_hidden_layers = 12; it is -1"),
        ({"layer_start": 1.0}, {}, ConfigError, "layer_start must be"),
        ({"num_hidden_layers": 0}, {}, ConfigError, "num_hidden_layers must be a whole number of at least 1; it is 0"),
        ({}, {"layer_weights": LAYER_WEIGHTS}, WeightsError, r"must have shape \(9,\) .*; it has \(2,\)"),
        (LAYERED, {"layer_weights": np.array([1.0, -1.0])}, WeightsError, "layer_weights must not sum to 0"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "config", "weights", "error", "reason"), [(kind, *row) for kind, rows in MALFORMED.items() for row in rows]
)
def test_malformed_module(tmp_path, kind, config, weights, error, reason):
    """A config or weights that cannot be used are refused by file and field (M3-M5)."""
    with pytest.raises(error, match=rf"(?s){re.escape(str(tmp_path))}.*{reason}"):
        modules.load(kind, write_module(tmp_path, config, **weights), np.float32)


# ---------------------------------------------------------------- chains in a repo


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalize_after_pooling(tmp_path, dtype):
    """Of the chain that most repos have, vectors are those of pooling, divided by their lengths (M1)."""
    pooled = encoder(tmp_path / "pooled", ("Pooling", "1_Pooling"), dtype=dtype).encode(TEXTS)
    chain = [("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    vectors = encoder(tmp_path / "all", *chain, dtype=dtype).encode(TEXTS)
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)

    assert np.abs(lengths - 1).min() > 0.01
    assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)), dtype)
    assert_close(vectors, pooled / lengths, dtype)


@EACH_FAMILY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dense_layer_norm_normalize(tmp_path, dtype, card):
    """Dense, LayerNorm and Normalize work on the sentence vector, one after the other (M1-M3)."""
    write_module(tmp_path / "2_Dense", DENSE, linear__weight=WEIGHT, linear__bias=BIAS)
    write_module(tmp_path / "norm", {"dimension": 8}, **NORM)
    write_module(tmp_path / "mean", MEAN)
    chain = [("Pooling", "mean"), ("Dense", "2_Dense"), ("LayerNorm", "norm"), ("Normalize", "nowhere")]
    mine = encoder(tmp_path, *chain, dtype=dtype, card=card)
    pooled = np.array([states[-1].mean(axis=0) for _, states in transformer(card)])
    expected = layer_norm(np.tanh(pooled @ WEIGHT.T + BIAS), 1e-5)

    assert mine.get_embedding_dimension() == 8
    assert_close(mine.encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_word_weights_before_pooling(tmp_path, dtype):
    """Token vectors are weighted by their words, and the mean divides by the weights' sum (M4, P8)."""
    write_module(tmp_path / "words", VOCABULARY, emb_layer__weight=IDF)
    mine = encoder(tmp_path, ("WordWeights", "words"), ("Pooling", "1_Pooling"), dtype=dtype)
    expected = [np.average(states[-1], axis=0, weights=IDF[ids, 0]) for ids, states in transformer()]

    assert_close(mine.encode(TEXTS), expected, dtype)


@pytest.mark.parametrize("start", range(LAYERS + 1))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EACH_FAMILY
def test_weighted_layer_pooling_before_pooling(tmp_path, card, dtype, start):
    """The token vectors are the weighted mean of the layers from layer_start on, 0 the embeddings (M5)."""
    weights = np.array([3.0, 0.25, 2.0])[start:]
    write_module(tmp_path / "layers", LAYERED | {"layer_start": start}, layer_weights=weights)
    write_module(tmp_path / "mean", MEAN)
    mine = encoder(tmp_path, ("WeightedLayerPooling", "layers"), ("Pooling", "mean"), dtype=dtype, card=card)
    expected = [np.average(states[start:], axis=0, weights=weights).mean(axis=0) for _, states in transformer(card)]

    assert_close(mine.encode(TEXTS), expected, dtype)


def test_dense_on_token_vectors(tmp_path):
    """A Dense before the Pooling may work on the token vectors, and pooling keeps its width (M2)."""
    names = {"module_input_name": "token_embeddings"}
    write_module(tmp_path / "dense", DENSE | names, linear__weight=WEIGHT, linear__bias=BIAS)
    mine = encoder(tmp_path, ("Dense", "dense"), ("Pooling", "1_Pooling"))

    assert mine.get_embedding_dimension() == 8
    assert_close(
        mine.encode(TEXTS), [np.tanh(states[-1] @ WEIGHT.T + BIAS).mean(axis=0) for _, states in transformer()]
    )


def test_several_modes_widen_what_follows(tmp_path):
    """Two pooling modes give vectors of twice the width, which the next module must expect (P1)."""
    write_module(tmp_path / "pooling", {"pooling_mode": ["cls", "mean"]})
    write_module(
        tmp_path / "dense",
        {"in_features": 32, "out_features": 1},
        linear__weight=np.ones((1, 32)),
        linear__bias=BIAS[:1],
    )
    mine = encoder(tmp_path, ("Pooling", "pooling"), ("Dense", "dense"))
    sums = [states[-1][0].sum() + states[-1].mean(axis=0).sum() for _, states in transformer()]

    assert_close(mine.encode(TEXTS), np.tanh(np.array(sums) + BIAS[0])[:, None])


@pytest.mark.parametrize(
    ("kind", "config", "weights", "reason"),
    [
        ("Dense", DENSE | {"in_features": 8}, {"linear__weight": WEIGHT[:, :8], "linear__bias": BIAS}, "in_features"),
        ("LayerNorm", {"dimension": 8}, NORM, "dimension"),
    ],
)
def test_width_that_does_not_fit(tmp_path, kind, config, weights, reason):
    """A module that expects another width is refused at load, with both numbers (M2, M3)."""
    write_module(tmp_path / "module", config, **weights)

    with pytest.raises(
        ConfigError, match=rf"module.config\.json: {reason} must be the width of the vectors that enter, 16; it is 8"
    ):
        encoder(tmp_path, ("Pooling", "1_Pooling"), (kind, "module"))


def test_word_weights_that_are_too_few(tmp_path):
    """A token without a weight is refused at load, instead of taking another token's (M4)."""
    write_module(tmp_path / "words", {"vocab": ["x"] * 66}, emb_layer__weight=IDF[:66])

    with pytest.raises(ConfigError, match=r"words.config\.json: vocab must have a weight .* 80 tokens; it has 66"):
        encoder(tmp_path, ("WordWeights", "words"), ("Pooling", "1_Pooling"))


def test_layers_of_another_model(tmp_path):
    """WeightedLayerPooling must be made for the transformer's number of layers (M5)."""
    write_module(tmp_path / "layers", {"num_hidden_layers": 3, "layer_start": 2}, layer_weights=LAYER_WEIGHTS)

    with pytest.raises(
        ConfigError, match=r"layers.config\.json: num_hidden_layers must be the transformer's, 2; it is 3"
    ):
        encoder(tmp_path, ("WeightedLayerPooling", "layers"), ("Pooling", "1_Pooling"))


def test_module_before_what_it_reads(tmp_path):
    """A module that reads the sentence vector must come after one that makes it."""
    with pytest.raises(ConfigError, match=r"needs a sentence_embedding, which no module before it makes"):
        encoder(tmp_path, ("Normalize", "2_Normalize"), ("Pooling", "1_Pooling"))


def test_chain_without_a_sentence_vector(tmp_path):
    """A chain that ends with token vectors is refused at load, not at the first text."""
    with pytest.raises(ConfigError, match=r"modules\.json must name a module that makes a sentence vector"):
        encoder(tmp_path, ("Dropout", "1_Dropout"))


# ---------------------------------------------------------------- sentence-transformers' own

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PEERS = {
    "Pooling": {"embedding_dimension": WIDTH, "pooling_mode": MODES},
    "Normalize": {},
    "Dense": DENSE,
    "Dense with GELU": DENSE | {"bias": False, "activation_function": "GELU"},
    "Dense with residual": DENSE | {"out_features": WIDTH, "use_residual": True},
    "Dense with projection": DENSE | {"use_residual": True},
    "LayerNorm": {"dimension": WIDTH},
    "WordWeights": {"vocab": ["a", "b", "c", "d"], "word_weights": {"a": 0.5, "c": 2.5}, "unknown_word_weight": 0.75},
    "WeightedLayerPooling": LAYERED,
    "Dropout": {"dropout": 0.5},
}


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", PEERS)
def test_module_is_that_of_sentence_transformers(tmp_path, name, safe):
    """What sentence-transformers saves of a module is loaded, and computes the same features (M1-M6, P1-P8)."""
    import torch
    from sentence_transformers.sentence_transformer import modules as peers

    torch.manual_seed(0)
    kind, arguments = name.split()[0], dict(PEERS[name])
    if "activation_function" in arguments:
        arguments["activation_function"] = getattr(torch.nn, arguments["activation_function"])()
    peer = getattr(peers, kind)(**arguments).eval()
    for parameter in peer.parameters():
        torch.nn.init.uniform_(parameter.data, 0.2, 1.5)
    peer.save(str(tmp_path), safe_serialization=safe)
    rng = np.random.default_rng(1)
    layers = rng.normal(size=(LAYERS + 1, 3, 5, WIDTH)).astype(np.float32)
    features = {
        "input_ids": rng.integers(0, 4, (3, 5)),
        "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
        "token_embeddings": layers[-1],
        "all_layer_embeddings": tuple(layers),
        "sentence_embedding": layers[0, :, 0],
    }

    def run(dtype):
        """Return what the peer makes of the features in float32 or float64."""
        given = {key: torch.from_numpy(value) for key, value in features.items() if key != "all_layer_embeddings"}
        given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
        given["all_layer_embeddings"] = [torch.from_numpy(layer).to(dtype) for layer in layers]
        with torch.no_grad():
            return {key: value for key, value in peer.to(dtype)(given).items() if key != "all_layer_embeddings"}

    single, double = run(torch.float32), run(torch.float64)
    mine = dict(features)
    modules.load(kind, tmp_path, np.float32)(mine)

    assert mine.keys() == single.keys() | {"all_layer_embeddings"}
    for key, value in single.items():
        assert mine[key].dtype == value.numpy().dtype
        assert_as_accurate(mine[key], value.numpy(), double[key].numpy())
