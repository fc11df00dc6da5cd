"""Models and texts with known bits: what tests/golden/native_hashes.json has the hashes of."""

import json

import numpy as np
from support import FAMILIES, GOLDEN, MODES, copy_twin, edit_json, edit_weights, twin, write_module

from minibert import SentenceEncoder
from minibert.config import BertConfig
from minibert.engine import native

WORDS = [
    "the",
    "cat",
    "and",
    "a",
    "happy",
    "man",
    "play",
    "in",
    "no",
    "little",
    "yard",
    ",",
    "they",
    "sing",
    "all",
    "day",
    ".",
    "old",
    "music",
    "is",
    "where",
    "people",
    "go",
]


def bits(count, seed):
    """Return random numbers of 64 bits (SplitMix64): numpy may change its own from one version to the next."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def normal(*shape, seed):
    """Return about normal numbers: sums of four uniform ones, which no rounding changes."""
    parts = bits(int(np.prod(shape)), seed).view(np.uint16).reshape(-1, 4).astype(np.float64)
    return ((parts.sum(axis=1) / 65536 - 2) * 1.75).reshape(shape)


def _sentence(words):
    return " ".join(WORDS[number % len(WORDS)] for number in bits(words, words).tolist())


#: Plain ASCII, so all versions of the tokenizers library give the same tokens. One is empty, one too long for a model.
TEXTS = [
    "", "a", "The cat.", "No man can play the violin, and a happy cat listens!",
    *(_sentence(words) for words in (*range(2, 30), 33, 40, 47, 48, 60, 77, 100, 130, 600)),
]  # fmt: skip
TWINS = sorted(path.parent.name for path in GOLDEN.glob("*/repo"))
SMALL = "BertModel-128d"
WIDTH = 16
DENSE = {"linear__weight": normal(24, WIDTH, seed=1), "linear__bias": normal(24, seed=2)}
NORM = {"norm__weight": normal(24, seed=3), "norm__bias": normal(24, seed=4)}
DENSE_ACTIVATIONS = (
    "linear.Identity", *(f"activation.{name}" for name in (
        "GELU", "Hardswish", "LeakyReLU", "Mish", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softplus", "Tanh")),
)  # fmt: skip
#: One name of each activation of the encoder, by its number in the kernels.
HIDDEN_ACTIVATIONS = sorted(
    {number: name for name, number in native.ACTIVATIONS.items() if name != "softplus"}.values()
)


def chain(folder, *modules, card=SMALL, **config):
    """Return the folder of a twin with these modules, pairs of kind and path, after its transformer."""
    copy_twin(folder, card)
    entries = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in (("Transformer", ""), *modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries), "utf-8")
    edit_json(folder / "config.json", **config)
    return folder


def pooled(folder, modes, *modules, card=SMALL, width=WIDTH, include_prompt=True):
    """Return the folder of a twin with these pooling modes, and the modules after them."""
    pooling = {"embedding_dimension": width, "pooling_mode": list(modes), "include_prompt": include_prompt}
    write_module(folder / "pooling", pooling)
    return chain(folder, ("Pooling", "pooling"), *modules, card=card)


def dense(folder, activation="activation.Tanh", *, bias=True):
    """Return the Dense module of 24 outputs, written to a folder."""
    config = {"in_features": WIDTH, "out_features": 24, "activation_function": f"torch.nn.modules.{activation}"}
    weights = DENSE if bias else {"linear__weight": DENSE["linear__weight"]}
    write_module(folder / "dense", config | {"bias": bias}, **weights)
    return "Dense", "dense"


def nearly_equal(folder):
    """Return a Dense module whose outputs differ by a few roundings: LayerNorm after it shows how it rounds."""
    config = {"in_features": WIDTH, "out_features": 24, "activation_function": "torch.nn.modules.linear.Identity"}
    write_module(folder / "dense", config, linear__weight=DENSE["linear__weight"] * 0.05, linear__bias=np.full(24, 1e6))
    return "Dense", "dense"


def norm(folder):
    """Return the LayerNorm module for 24 numbers, written to a folder."""
    write_module(folder / "norm", {"dimension": 24}, **NORM)
    return "LayerNorm", "norm"


def wide(folder, hidden=60, heads=3, inner=200, modes=("mean",)):
    """Return the folder of a model of odd sizes, with weights from a seed, for the vocabulary of a twin."""
    copy_twin(folder)
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads}
    edit_json(folder / "config.json", **sizes)
    write_module(folder / "1_Pooling", {"embedding_dimension": hidden, "pooling_mode": list(modes)})
    new = {16: hidden, 64: inner}

    def grow(arrays):
        def array(seed, name):
            shape = [new.get(size, size) for size in arrays[name].shape]
            scale = 1.0 if len(shape) == 1 or "embeddings" in name else 0.25
            return (normal(*shape, seed=seed) * scale).astype(np.float32)

        return {name: array(seed, name) for seed, name in enumerate(sorted(arrays))}

    edit_weights(folder / "model.safetensors", grow)
    return folder


def encoder(folder, kernels=None, **options):
    """Return an encoder with native kernels that does not warn of cut texts."""
    return SentenceEncoder(folder, kernels=kernels, on_truncate="ignore", **options)


#: By name: a function that writes a model into a folder (or returns None for the built-in one), the encoder's options,
#: and those of encode.
CASES = {
    "built-in": (lambda _: None, {}, {}),
    "built-in, 50 dimensions, normalized": (lambda _: None, {"truncate_dim": 50}, {"normalize_embeddings": True}),
    "built-in, prompt": (lambda _: None, {}, {"prompt": "query: "}),
    "built-in, token vectors": (lambda _: None, {}, {"output_value": "token_embeddings"}),
    **{card: (lambda folder, card=card: copy_twin(folder, card), {}, {}) for card in TWINS},
    **{
        f"{card}, all modes": (
            lambda folder, card=card: pooled(folder, MODES, card=card, width=hidden_size(card)), {}, {},
        )
        for card in TWINS
    },
    **{
        f"{card}, prompt with padding ids": (
            lambda folder, card=card: pooled(folder, MODES, card=card, width=hidden_size(card)),
            {}, {"prompt": "<pad> the [PAD]<pad><mask> "},
        )
        for card in FAMILIES
    },
    "all modes, normalized": (lambda folder: pooled(folder, MODES, ("Normalize", "n")), {}, {}),
    "all modes, without the prompt": (
        lambda folder: pooled(folder, MODES[1:], include_prompt=False), {}, {"prompt": "the cat: "},
    ),
    "cls and max, 20 dimensions, normalized": (
        lambda folder: pooled(folder, ["cls", "max"]), {"truncate_dim": 20}, {"normalize_embeddings": True},
    ),
    **{
        f"Dense, {activation}": (
            lambda folder, activation=activation: pooled(folder, ["mean"], dense(folder, activation)), {}, {},
        )
        for activation in DENSE_ACTIVATIONS
    },
    "Dense without a bias": (lambda folder: pooled(folder, ["mean"], dense(folder, bias=False)), {}, {}),
    "Dense, LayerNorm, Normalize": (
        lambda folder: pooled(folder, ["mean"], dense(folder), norm(folder), ("Normalize", "n")), {}, {},
    ),
    "nearly equal numbers, LayerNorm": (
        lambda folder: pooled(folder, ["mean"], nearly_equal(folder), norm(folder)), {}, {},
    ),
    "Normalize, Dense": (lambda folder: pooled(folder, ["mean"], ("Normalize", "n"), dense(folder)), {}, {}),
    **{
        f"hidden_act {name}": (
            lambda folder, name=name: chain(folder, ("Pooling", "1_Pooling"), hidden_act=name), {}, {},
        )
        for name in HIDDEN_ACTIVATIONS
    },
    "60 dimensions": (wide, {}, {}),
    "200 dimensions, 600 inside, all modes": (lambda folder: wide(folder, 200, 4, 600, MODES), {}, {}),
    "66 dimensions, cls": (lambda folder: wide(folder, 66, 1, 258, ["cls"]), {}, {}),
}  # fmt: skip


def hidden_size(card):
    """Return the hidden size of a twin."""
    return BertConfig.from_file(twin(card) / "config.json").hidden_size


def vectors(name, folder, kernels, **more):
    """Return the bytes of a case's vectors."""
    write, options, arguments = CASES[name]
    found = encoder(write(folder), kernels, **options, **more).encode(TEXTS, **arguments)
    return b"".join(np.ascontiguousarray(each).tobytes() for each in found)
