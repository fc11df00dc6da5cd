"""The names of tensors in checkpoints, and how they become parameters. Only this module and families know them.

A checkpoint's names are converted to the canonical names, those of BertModel (``embeddings.word_embeddings.weight``,
``encoder.layer.0.attention.self.query.weight``, ...): the prefix of the class that saved it is removed, the renames
below are applied, and the names of other families are translated (:mod:`minibert.families`). The names and shapes must
then match the config exactly.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from minibert import params
from minibert.config import BertConfig
from minibert.families import FAMILIES, TYPES
from minibert.typing import Array

ANCHOR = "embeddings.word_embeddings.weight"

#: Renames, as (pattern, replacement): TensorFlow's names for the layer norm in checkpoints of 2018 and 2019.
RENAMES = (
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
)

#: Tensors of BertModel that hold no parameter: the buffers 0, 1, 2, ... and 0, 0, 0, ...
BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})

_RELATIVE_BIAS = "encoder.relative_attention_bias.weight"


def own_name(name: str, config: BertConfig) -> str:
    """Return what the family of ``config`` calls the tensor with the canonical name ``name``."""
    for part, own in FAMILIES[config.model_type].tensors.items():
        name = name.replace(part, own)
    return name


def prefix_of(stored: Collection[str]) -> str:
    """Return what stands before the names of the model's tensors in a checkpoint, such as ``"bert."``.

    Raises:
        ValueError: There is no word embedding table, or there are several; the message lists them.
    """
    anchors = [name for name in stored if name == ANCHOR or name.endswith("." + ANCHOR)]
    if len(anchors) != 1:
        found = f"it has {len(anchors)}: {', '.join(sorted(anchors))}" if anchors else "it has none"
        raise ValueError(f"a checkpoint of an encoder has one tensor called [prefix.]{ANCHOR}; {found}")
    return anchors[0].removesuffix(ANCHOR)


def canonical_names(stored: Collection[str], prefix: str, config: BertConfig) -> tuple[dict[str, str], list[str]]:
    """Return the canonical name of each tensor in a checkpoint, and the unexpected names.

    Args:
        stored: The names in the checkpoint.
        prefix: The result of :func:`prefix_of`.
        config: The sizes of the model.

    Returns:
        ``(names, unexpected)``. ``names`` maps canonical to stored names, without buffers and heads, which are ignored.
        ``unexpected`` has the stored names that have neither the model's prefix nor that of a known head, and those
        that collide with another name.
    """
    heads = FAMILIES[config.model_type].heads
    canonical = {own_name(name, config): name for name, _ in _shapes(config)}

    names: dict[str, str] = {}
    unexpected = []
    for name in stored:
        inner = name.removeprefix(prefix)
        for pattern, replacement in RENAMES:
            inner = pattern.sub(replacement, inner)
        is_own = name.startswith(prefix)
        if (inner in BUFFERS and is_own) or (name.startswith(heads) and not (prefix and is_own)):
            continue
        if not is_own or inner not in canonical or canonical[inner] in names:
            unexpected.append(name)
        else:
            names[canonical[inner]] = name
    return names, unexpected


def expected_shapes(config: BertConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape of every tensor of a model, as numbers and as names of config values.

    The pooler is included, if the family has one. A checkpoint may omit it.
    """
    words = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets or 0,
    }
    return {name: (tuple(words[word] for word in shape), f"= ({', '.join(shape)})") for name, shape in _shapes(config)}


def _shapes(config: BertConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    absent = FAMILIES[config.model_type].absent
    return ((name, shape) for name, shape in _all_shapes(config) if name not in absent)


def _all_shapes(config: BertConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    H, I = "hidden_size", "intermediate_size"  # noqa: E741, N806
    yield "embeddings.word_embeddings.weight", ("vocab_size", H)
    yield "embeddings.position_embeddings.weight", ("max_position_embeddings", H)
    yield TYPES, ("type_vocab_size", H)
    yield from _norm("embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        yield from _linear(f"{layer}.attention.self.query", H, H)
        yield from _linear(f"{layer}.attention.self.key", H, H)
        yield from _linear(f"{layer}.attention.self.value", H, H)
        yield from _linear(f"{layer}.attention.output.dense", H, H)
        yield from _norm(f"{layer}.attention.output.LayerNorm")
        yield from _linear(f"{layer}.intermediate.dense", I, H)
        yield from _linear(f"{layer}.output.dense", H, I)
        yield from _norm(f"{layer}.output.LayerNorm")
    if config.relative_attention_num_buckets is not None:
        yield _RELATIVE_BIAS, ("relative_attention_num_buckets", "num_attention_heads")
    yield from _linear("pooler.dense", H, H)


def _linear(name: str, out: str, into: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{name}.weight", ("hidden_size",)
    yield f"{name}.bias", ("hidden_size",)


def is_pooler(name: str) -> bool:
    """Return whether a canonical name belongs to the pooler. Sentence encoders do not need the pooler."""
    return name.startswith("pooler.")


def embeddings(tensors: Mapping[str, Array]) -> params.Embeddings:
    """Return the embeddings, from arrays by canonical name. A family without token types has one type, which is 0."""
    word = tensors["embeddings.word_embeddings.weight"]
    return params.Embeddings(
        word=word,
        position=tensors["embeddings.position_embeddings.weight"],
        token_type=tensors[TYPES] if TYPES in tensors else np.zeros((1, word.shape[1]), word.dtype),
        norm=_norm_params(tensors, "embeddings"),
    )


def layer(tensors: Mapping[str, Array], number: int) -> params.Layer:
    """Return one layer, counted from 0, from arrays by canonical name."""
    name = f"encoder.layer.{number}"
    return params.Layer(
        params.SelfAttention(
            query=_linear_params(tensors, f"{name}.attention.self.query"),
            key=_linear_params(tensors, f"{name}.attention.self.key"),
            value=_linear_params(tensors, f"{name}.attention.self.value"),
            output=_linear_params(tensors, f"{name}.attention.output.dense"),
            norm=_norm_params(tensors, f"{name}.attention.output"),
        ),
        params.FeedForward(
            intermediate=_linear_params(tensors, f"{name}.intermediate.dense"),
            output=_linear_params(tensors, f"{name}.output.dense"),
            norm=_norm_params(tensors, f"{name}.output"),
        ),
    )


def pooler(tensors: Mapping[str, Array]) -> params.Linear | None:
    """Return the pooler, if there is one, from arrays by canonical name."""
    return _linear_params(tensors, "pooler.dense") if "pooler.dense.weight" in tensors else None


def relative_bias(tensors: Mapping[str, Array]) -> Array | None:
    """Return the biases by distance, ``(buckets, h)``, if there are any, from arrays by canonical name."""
    return tensors.get(_RELATIVE_BIAS)


def _linear_params(tensors: Mapping[str, Array], name: str) -> params.Linear:
    return params.Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm_params(tensors: Mapping[str, Array], name: str) -> params.LayerNorm:
    return params.LayerNorm(tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"])
