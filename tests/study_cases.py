"""What the tests of ``minibert.study`` share: the reference written again in plain numpy, and chains of modules.

Nothing here uses minibert's arithmetic. It computes in float64 from the tensors in the files.
"""

import fnmatch
import json
import math

import numpy as np
from support import MODES, copy_twin, load, write_module

from minibert import SentenceEncoder

#: Both sides round in float64, each in its own order. Results are of magnitude 1 to 10.
FLOAT64 = 1e-12
#: The agreement of a float32 encoder with float64, for vectors of magnitude 1.
FLOAT32 = 2e-6

EMBEDDINGS = ("words", "types", "positions", "x")
LAYER = ("Q", "K", "V", "scores", "weights", "heads", "multihead", "attended", "inner", "outer", "x")
ACTIVATIONS = {"gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), "tanh": np.tanh}


def close(actual, expected, tolerance=FLOAT64):
    """Fail unless two arrays have the same shape and differ by rounding only."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=False)


def norm(x, weight, bias, eps):
    """Return the layer normalization of rows."""
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def transformer(tensors, config, ids, put):
    """Return the token vectors of a text after the embeddings and after each layer."""
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def linear(x, name):
        return np.einsum("sk,nk->sn", x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"]

    def layer_norm(x, name):
        return norm(x, tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"], eps)

    def in_heads(x):
        return np.stack(np.split(x, heads, axis=-1))

    tables = [tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type", "position")]
    words = put("embeddings.words", tables[0][ids])
    types = put("embeddings.types", np.stack([tables[1][0]] * len(ids)))
    positions = put("embeddings.positions", tables[2][: len(ids)])
    x = put("embeddings.x", layer_norm(words + types + positions, "embeddings"))
    states = [x]
    for number in range(config["num_hidden_layers"]):
        name, layer = f"encoder.layer.{number}", f"layers.{number}"
        Q, K, V = (  # noqa: N806
            put(f"{layer}.{letter}", in_heads(linear(x, f"{name}.attention.self.{kind}")))
            for letter, kind in (("Q", "query"), ("K", "key"), ("V", "value"))
        )
        scores = put(f"{layer}.scores", np.einsum("hid,hjd->hij", Q, K) / math.sqrt(Q.shape[-1]))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = put(f"{layer}.weights", powers / powers.sum(axis=-1, keepdims=True))
        each = put(f"{layer}.heads", np.einsum("hij,hjd->hid", weights, V))
        multihead = put(f"{layer}.multihead", linear(np.concatenate(each, axis=-1), f"{name}.attention.output.dense"))
        attended = put(f"{layer}.attended", layer_norm(x + multihead, f"{name}.attention.output"))
        inner = put(f"{layer}.inner", ACTIVATIONS[config["hidden_act"]](linear(attended, f"{name}.intermediate.dense")))
        outer = put(f"{layer}.outer", linear(inner, f"{name}.output.dense"))
        x = put(f"{layer}.x", layer_norm(attended + outer, f"{name}.output"))
        states.append(x)
    return states


def pooled(x, modes, exclude=0, total=None):
    """Return the pooled vector of a text's token vectors; ``total`` is the sum of the weights of its words."""
    kept = x[exclude:]
    place = np.arange(exclude + 1, len(x) + 1)
    count, places = (len(kept), place.sum()) if total is None else (total, total)
    modes_of = {
        "cls": lambda: kept[0],
        "lasttoken": lambda: kept[-1],
        "max": lambda: kept.max(axis=0),
        "mean": lambda: kept.sum(axis=0) / count,
        "mean_sqrt_len_tokens": lambda: kept.sum(axis=0) / math.sqrt(count),
        "weightedmean": lambda: place @ kept / places,
    }
    return np.concatenate([modes_of[mode]() for mode in modes])


def by_hand(repo, ids, prompt_length=0, edits=None):
    """Return all results for a text by name, in order, and its vector. Edits are functions by name or pattern."""
    results = {}

    def put(name, value):
        for pattern, function in (edits or {}).items():
            if fnmatch.fnmatchcase(name, pattern):
                value = function(value.copy())
        results[name] = value
        return value

    def read(folder, name, default=None):
        path = repo / folder / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else default

    tensors = {name: array.astype(np.float64) for name, array in load(repo / "model.safetensors")[0].items()}
    states = transformer(tensors, read("", "config.json"), ids, put)
    features = {"token_embeddings": states[-1]}
    for number, entry in enumerate(read("", "modules.json")[1:], 1):
        config = read(entry["path"], "config.json", {})
        weights = repo / entry["path"] / "model.safetensors"
        weights = {k: v.astype(np.float64) for k, v in load(weights)[0].items()} if weights.is_file() else {}
        changed = module(entry["type"].split(".")[-1], config, weights, features, states, ids, prompt_length)
        for name, value in changed.items():
            features[name] = put(f"modules.{number}.{name}", value)
    return results, features["sentence_embedding"]


def module(kind, config, weights, features, states, ids, prompt_length):
    """Return the features that a module changes, by name."""
    x, vector = features["token_embeddings"], features.get("sentence_embedding")
    if kind == "Pooling":
        old = [mode for mode in MODES if config.get(f"pooling_mode_{mode}_token{'s' * (mode != 'cls')}")]
        modes = config.get("pooling_mode", old)
        exclude = 0 if config.get("include_prompt", True) else prompt_length
        vector = pooled(x, modes, exclude, features.get("token_weights_sum"))
    elif kind == "Normalize":
        vector = vector / math.sqrt(vector @ vector)
    elif kind == "LayerNorm":
        vector = norm(vector, weights["norm.weight"], weights["norm.bias"], 1e-5)
    elif kind == "Dense":
        source = config.get("module_input_name", "sentence_embedding")
        return {source: np.tanh(features[source] @ weights["linear.weight"].T + weights["linear.bias"])}
    elif kind == "WordWeights":
        each = weights["emb_layer.weight"][ids]  # (S, 1)
        return {"token_embeddings": x * each, "token_weights_sum": each.sum()}
    elif kind == "WeightedLayerPooling":
        each, layers = weights["layer_weights"], states[config["layer_start"] :]
        return {"token_embeddings": sum(w * layer for w, layer in zip(each, layers, strict=True)) / each.sum()}
    return {} if kind == "Dropout" else {"sentence_embedding": vector}


def chains(width=16, words=80, layers=2):
    """Return chains of modules after the transformer, by name: the kind of each module, its config and its weights."""
    rng = np.random.default_rng(0)

    def pooling(*modes, **config):
        return ("Pooling", {"pooling_mode": list(modes), **config}, {})

    def dense(into, **names):
        weights = {"linear__weight": rng.normal(size=(8, into)) / into**0.5, "linear__bias": rng.normal(size=8)}
        return ("Dense", {"in_features": into, "out_features": 8, **names}, weights)

    scale = {"norm__weight": rng.normal(size=8), "norm__bias": rng.normal(size=8)}
    layer_norm = ("LayerNorm", {"dimension": 8}, scale)
    normalize = ("Normalize", None, {})
    dropout = ("Dropout", {"dropout": 0.5}, {})
    vocabulary = {"vocab": ["x"] * words, "word_weights": {}, "unknown_word_weight": 1}
    word_weights = ("WordWeights", vocabulary, {"emb_layer__weight": rng.uniform(0.1, 3, size=(words, 1))})
    numbers = {"embedding_dimension": width, "layer_start": 1, "num_hidden_layers": layers}
    layer_pooling = ("WeightedLayerPooling", numbers, {"layer_weights": rng.uniform(0.1, 3, size=layers)})
    return {
        **{mode: [pooling(mode)] for mode in MODES},
        "all modes": [pooling(*MODES)],
        "without the prompt": [pooling(*MODES, include_prompt=False)],
        "normalize": [pooling("mean"), normalize],
        "two modes, normalize": [pooling("max", "mean"), normalize],
        "normalize, dropout": [dropout, pooling("mean"), normalize, dropout],
        "word weights": [word_weights, pooling(*MODES)],
        "word weights without the prompt": [word_weights, pooling("mean", "max", include_prompt=False), normalize],
        "dense": [pooling("mean"), dense(width)],
        "dense, layer norm, normalize": [pooling("cls", "mean"), dense(2 * width), layer_norm, normalize],
        "dense of tokens": [dense(width, module_input_name="token_embeddings"), pooling("mean")],
        "layers": [layer_pooling, pooling("mean", "max")],
    }


#: Chains whose vector has the direction of a sum of the last layer's token vectors, and the others with the reason.
LINEAR = (
    *MODES, "all modes", "without the prompt", "normalize", "two modes, normalize", "normalize, dropout",
    "word weights", "word weights without the prompt",
)  # fmt: skip
NOT_LINEAR = {
    "dense": "a Dense module comes after the pooling",
    "dense, layer norm, normalize": "a Dense module comes after the pooling",
    "dense of tokens": "a Dense module comes before the pooling",
    "layers": "a WeightedLayerPooling module comes before the pooling",
}


def chain(folder, name, card="BertModel-128d", **options):
    """Return the encoder of a card's twin with a chain of :func:`chains` after its transformer."""
    config = json.loads((copy_twin(folder, card) / "config.json").read_text("utf-8"))
    modules = chains(config["hidden_size"], config["vocab_size"], config["num_hidden_layers"])[name]
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, settings, weights) in enumerate(modules, 1):
        write_module(folder / f"{number}_{kind}_", settings, **weights)
        entries.append({"path": f"{number}_{kind}_", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(entries), "utf-8")
    return SentenceEncoder(folder, **options)


def ids_of(encoder, text):
    """Return the token ids of a text."""
    return encoder.tokenize([text])["input_ids"][0]
