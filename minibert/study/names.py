"""The names of the results of the reference forward pass: their dimensions, their meanings, and their lines.

S  tokens       I  intermediate size      d  head size
h  heads        H  hidden size            D  dimensions of a sentence vector
"""

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minibert import model
from minibert.config import BertConfig

__all__ = ["MEANINGS", "Meaning", "in_words", "kind_of", "line_of", "names_of"]


class Meaning(NamedTuple):
    """What a result is.

    Attributes:
        dimensions: The name of each dimension.
        function: The function of ``model.py`` that computes it.
        sentence: What it is, in a sentence.
    """

    dimensions: tuple[str, ...]
    function: str
    sentence: str


_VECTORS = ("tokens", "dimensions")
_HEADS = ("heads", "tokens", "dimensions of a head")
_PAIRS = ("heads", "tokens that attend", "tokens attended to")

#: The results of ``model.py`` in the order of computing, by their names without a layer's number.
MEANINGS: dict[str, Meaning] = {
    "embeddings.words": Meaning(_VECTORS, "embed", "Each token's row of the word embedding table."),
    "embeddings.types": Meaning(_VECTORS, "embed", "The row of the type table: type 0, because there is one text."),
    "embeddings.positions": Meaning(
        _VECTORS, "embed", "The row of each position. Only this tells the model the order."
    ),
    "embeddings.x": Meaning(_VECTORS, "embed", "The sum of the three, layer-normalized: the input of layer 0."),
    "layers.Q": Meaning(_HEADS, "attend", "The queries: what each token looks for. A linear map of x, in heads."),
    "layers.K": Meaning(_HEADS, "attend", "The keys: what each token is found by."),
    "layers.V": Meaning(_HEADS, "attend", "The values: what each token passes on."),
    "layers.scores": Meaning(
        _PAIRS,
        "scaled_dot_product_attention",
        "How well each query fits each key: their dot product, divided by the square root of the head size.",
    ),
    "layers.weights": Meaning(
        _PAIRS, "scaled_dot_product_attention", "The softmax of the scores: each row is positive and sums to 1."
    ),
    "layers.heads": Meaning(_HEADS, "attend", "For each token, the mean of the values, weighted by its weights."),
    "layers.multihead": Meaning(_VECTORS, "attend", "All heads, mixed by W_O: what attention adds to each token."),
    "layers.attended": Meaning(_VECTORS, "attend", "The token plus what attention adds, layer-normalized."),
    "layers.inner": Meaning(
        ("tokens", "inner dimensions"),
        "feed_forward",
        "The wide inside of the feed-forward layer, after the activation.",
    ),
    "layers.outer": Meaning(_VECTORS, "feed_forward", "What the feed-forward layer adds to each token."),
    "layers.x": Meaning(_VECTORS, "feed_forward", "The token plus that, layer-normalized: the output of the layer."),
}
#: The results of the modules after the transformer, which depend on the model.
_MODULES: dict[str, Meaning] = {
    "modules.sentence_embedding": Meaning(("dimensions",), "", "The vector of the text after this module."),
    "modules.token_embeddings": Meaning(_VECTORS, "", "The vectors of the tokens after this module."),
    "modules.token_weights_sum": Meaning((), "", "The sum of the weights of the words."),
}


def kind_of(name: str) -> str:
    """Return a name without the number in it: ``layers.x`` for ``layers.3.x``."""
    return re.sub(r"\.\d+\.", ".", name)


def meaning_of(name: str) -> Meaning:
    """Return what the result with this name is."""
    return {**MEANINGS, **_MODULES}[kind_of(name)]


def names_of(config: BertConfig) -> list[str]:
    """Return the names of all results of the transformer, in the order of computing."""
    names = [name for name in MEANINGS if name.startswith("embeddings")]
    of_layer = [name.removeprefix("layers.") for name in MEANINGS if name.startswith("layers")]
    return names + [f"layers.{number}.{name}" for number in range(config.num_hidden_layers) for name in of_layer]


def in_words(name: str, shape: Sequence[int]) -> str:
    """Return a shape with the names of its dimensions, such as ``2 heads x 8 tokens x 64 dimensions of a head``."""
    return (
        " x ".join(f"{size} {what}" for size, what in zip(shape, meaning_of(name).dimensions, strict=True))
        or "a number"
    )


@functools.cache
def _lines() -> dict[tuple[str, str], int]:
    """Return the line of each call of ``tap`` in ``model.py``, by its function and its name."""
    found = {}
    functions = ast.parse(Path(model.__file__).read_text("utf-8")).body
    for function in (node for node in functions if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "tap":
                name = node.args[0]
                if isinstance(name, ast.Constant):  # `within` passes a name on
                    found[function.name, str(name.value)] = node.lineno
    return found


def line_of(name: str) -> int | None:
    """Return the number of the line of ``model.py`` that computes a result; None for the modules after it."""
    return _lines().get((meaning_of(name).function, name.rpartition(".")[2]))
