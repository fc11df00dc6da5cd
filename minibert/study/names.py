"""The names of the results on the way from a text to its vector: their dimensions, meanings and lines of code."""

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from minibert import model
from minibert.config import BertConfig

__all__ = ["in_words", "kind_of", "line_of", "meaning_of", "names_of"]

_VECTORS = ("tokens", "dimensions")
_HEADS = ("heads", "tokens", "dimensions of a head")
_PAIRS = ("heads", "tokens that attend", "tokens attended to")

#: The names of the dimensions of each result, and what it is. The order is that of computing.
_MEANINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "embeddings.words": (_VECTORS, "Each token's row of the word embedding table."),
    "embeddings.types": (_VECTORS, "The row of the type table: type 0, because there is one text."),
    "embeddings.positions": (_VECTORS, "The row of each position. Only this tells the model the order."),
    "embeddings.x": (_VECTORS, "The sum of the three, layer-normalized: the input of layer 0."),
    "layers.Q": (_HEADS, "The queries: what each token looks for. A linear map of x, in heads."),
    "layers.K": (_HEADS, "The keys: what each token is found by."),
    "layers.V": (_HEADS, "The values: what each token passes on."),
    "layers.scores": (_PAIRS, "How well each query fits each key: their dot product, divided by sqrt(d)."),
    "layers.weights": (_PAIRS, "The softmax of the scores: each row is positive and sums to 1."),
    "layers.heads": (_HEADS, "For each token, the mean of the values, weighted by its weights."),
    "layers.multihead": (_VECTORS, "All heads, mixed by W_O: what attention adds to each token."),
    "layers.attended": (_VECTORS, "The token plus what attention adds, layer-normalized."),
    "layers.inner": (("tokens", "inner dimensions"), "The inside of the feed-forward layer, after the activation."),
    "layers.outer": (_VECTORS, "What the feed-forward layer adds to each token."),
    "layers.x": (_VECTORS, "The token plus that, layer-normalized: the output of the layer."),
    "modules.sentence_embedding": (("dimensions",), "The vector of the text after this module."),
    "modules.token_embeddings": (_VECTORS, "The vectors of the tokens after this module."),
    "modules.token_weights_sum": ((), "The sum of the weights of the words."),
}


def kind_of(name: str) -> str:
    """Return a name without the number in it: ``layers.x`` for ``layers.3.x``."""
    return re.sub(r"\.\d+\.", ".", name)


def meaning_of(name: str) -> str:
    """Return what a result is, in a sentence."""
    return _MEANINGS[kind_of(name)][1]


def in_words(name: str, shape: Sequence[int]) -> str:
    """Return a shape with the names of its dimensions, such as ``2 heads x 8 tokens x 64 dimensions of a head``."""
    dimensions, _ = _MEANINGS[kind_of(name)]
    return " x ".join(f"{size} {what}" for size, what in zip(shape, dimensions, strict=True)) or "a number"


def names_of(config: BertConfig) -> list[str]:
    """Return the names of all results of the transformer, in the order of computing."""
    of = {part: [name for name in _MEANINGS if name.startswith(part)] for part in ("embeddings.", "layers.")}
    layers = range(config.num_hidden_layers)
    return of["embeddings."] + [name.replace(".", f".{number}.") for number in layers for name in of["layers."]]


def line_of(name: str) -> int | None:
    """Return the number of the line of ``model.py`` that computes a result; None for the modules after it."""
    return _lines().get(kind_of(name))


@functools.cache
def _lines() -> dict[str, int]:
    found = {}
    functions = ast.parse(Path(model.__file__).read_text("utf-8")).body
    for function in (node for node in functions if isinstance(node, ast.FunctionDef)):
        part = "embeddings" if function.name == "embed" else "layers"
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "tap":
                name = node.args[0]
                if isinstance(name, ast.Constant):  # `within` passes a name on
                    found[f"{part}.{name.value!s}"] = node.lineno
    return found
