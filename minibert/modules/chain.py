"""The analysis of a chain of modules: whether they fit together, and which of them need the hidden states."""

from collections.abc import Sequence
from typing import NamedTuple

from minibert.errors import ConfigError
from minibert.modules.kinds import Dropout, Flow, InPlace, LayerNorm, Module, Normalize, Pooling


def connect(chain: Sequence[Module], flow: Flow) -> int:
    """Connect the modules of ``chain`` in order, and return the width of their sentence vectors.

    Raises:
        ConfigError: The modules do not fit together, or they make no sentence vector.
    """
    for module in chain:
        module.connect(flow)
    if "sentence_embedding" not in flow.widths:
        raise ConfigError("modules.json must name a module that makes a sentence vector, such as Pooling; it does not.")
    return flow.widths["sentence_embedding"]


class AtOnce(NamedTuple):
    """A chain that uses the hidden states only for pooling. It can process a whole batch at once.

    Attributes:
        pooling: The pooling module.
        normalize: Whether a Normalize module follows it.
        rest: The modules after that. They use only the sentence vectors.
    """

    pooling: Pooling
    normalize: bool
    rest: tuple[Module, ...]


def at_once(chain: Sequence[Module]) -> AtOnce | None:
    """Return the parts of a chain if it begins with Pooling and the rest uses only sentence vectors; else None."""
    pooling, *rest = chain
    if not isinstance(pooling, Pooling):
        return None
    for module in rest:
        in_place = isinstance(module, InPlace) and module.source == module.target == module.SENTENCE
        if not in_place and not isinstance(module, Dropout | LayerNorm):
            return None
    normalize = bool(rest) and isinstance(rest[0], Normalize)
    return AtOnce(pooling, normalize, tuple(rest[normalize:]))


def takes_first_token(chain: Sequence[Module], prompt_length: int) -> bool:
    """Return whether the sentence vector depends only on the vector of the text's first token."""
    parts = at_once(chain)
    if parts is None:
        return False
    return set(parts.pooling.modes) == {"cls"} and (parts.pooling.include_prompt or not prompt_length)
