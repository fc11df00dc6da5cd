"""The analysis of a chain of modules: whether they fit together, and how much of it needs the hidden states."""

from collections.abc import Sequence
from typing import NamedTuple

from minibert.errors import ConfigError
from minibert.modules.kinds import Dropout, Flow, InPlace, LayerNorm, Module, Normalize, Pooling


def connect(chain: Sequence[Module], flow: Flow) -> int:
    """Return the width of the sentence vectors that the modules of ``chain`` make, one after the other.

    Raises:
        ConfigError: They do not fit together, or make no sentence vector.
    """
    for module in chain:
        module.connect(flow)
    if "sentence_embedding" not in flow.widths:
        raise ConfigError("modules.json must name a module that makes a sentence vector, such as Pooling; it does not.")
    return flow.widths["sentence_embedding"]


class AtOnce(NamedTuple):
    """A chain that needs the hidden states for nothing but pooling: whole batches go through it at once.

    Attributes:
        pooling: The pooling.
        normalize: Whether a Normalize follows it.
        rest: What comes then, and works on the vectors alone.
    """

    pooling: Pooling
    normalize: bool
    rest: tuple[Module, ...]


def at_once(chain: Sequence[Module]) -> AtOnce | None:
    """Return the parts of a chain that begins with Pooling, and works on its vectors alone then; of others, None."""
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
    """Return whether the sentence vector depends on the vector of each text's first token alone."""
    parts = at_once(chain)
    if parts is None:
        return False
    return set(parts.pooling.modes) == {"cls"} and (parts.pooling.include_prompt or not prompt_length)
