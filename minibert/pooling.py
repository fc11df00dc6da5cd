"""Pooling: it turns the token vectors of a text into one vector. Each mode has one function."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minibert.arrays import array_namespace
from minibert.typing import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """The token vectors of B texts, and the facts that pooling needs.

    Attributes:
        hidden: Token vectors, ``(B, S, H)``.
        mask: True at the tokens to pool, ``(B, S)``.
        start: Index of each text's first real token, ``(B,)``: 0 unless the text is padded on the left.
        weight_sum: The sum of each text's weights, ``(B,)``, if a WordWeights module weighted the tokens. It replaces
            the number of tokens.
    """

    hidden: Float[Array, "B S H"]
    mask: Bool[Array, "B S"]
    start: Int[Array, "B"]
    weight_sum: Float[Array, "B"] | None = None


PoolingFunction = Callable[[Tokens], Array]

#: Pooling modes, by their names in a Pooling config.
MODES: dict[str, PoolingFunction] = {}


def pooling(mode: str) -> Callable[[PoolingFunction], PoolingFunction]:
    """Return a decorator that registers a function as the pooling mode called ``mode``."""

    def register(function: PoolingFunction) -> PoolingFunction:
        MODES[mode] = function
        return function

    return register


def pool(
    modes: Sequence[str],
    hidden: Float[Array, "B S H"],
    mask: Bool[Array, "B S"],
    *,
    exclude: int = 0,
    weight_sum: Float[Array, "B"] | None = None,
) -> Float[Array, "B D"]:
    """Return one vector for each text: the concatenated results of ``modes``, so ``D = len(modes) * H``.

    Args:
        modes: Keys of :data:`MODES`.
        hidden: Token vectors.
        mask: True at the real tokens.
        exclude: Number of real tokens at the start of each text (a prompt) that pooling leaves out.
        weight_sum: See :class:`Tokens`.
    """
    xp = array_namespace(hidden)
    start = mask.argmax(axis=1)
    kept = mask & (xp.arange(mask.shape[1]) >= start[:, None] + exclude)
    tokens = Tokens(hidden, kept, start, weight_sum)
    return xp.concatenate([MODES[mode](tokens) for mode in modes], axis=-1)


@pooling("cls")
def cls(tokens: Tokens) -> Float[Array, "B H"]:
    """The first token: [CLS], or the first one after an excluded prompt."""
    return _at(tokens, tokens.mask.argmax(axis=1))


@pooling("lasttoken")
def lasttoken(tokens: Tokens) -> Float[Array, "B H"]:
    """The last token; zeros for a text without tokens."""
    from_end = tokens.mask[:, ::-1].argmax(axis=1)
    found = tokens.mask.any(axis=1, keepdims=True)
    return _at(tokens, tokens.mask.shape[1] - 1 - from_end) * found


@pooling("max")
def max_(tokens: Tokens) -> Float[Array, "B H"]:
    """The largest value in each dimension; -inf for a text without tokens."""
    xp = array_namespace(tokens.hidden)
    return xp.where(tokens.mask[..., None], tokens.hidden, -xp.inf).max(axis=1)


@pooling("mean")
def mean(tokens: Tokens) -> Float[Array, "B H"]:
    """Sum of the tokens divided by their number; zeros for a text without tokens."""
    return _weighted_sum(tokens, tokens.mask, lambda count: count)


@pooling("mean_sqrt_len_tokens")
def mean_sqrt_len_tokens(tokens: Tokens) -> Float[Array, "B H"]:
    """Sum of the tokens divided by the square root of their number; zeros for a text without tokens."""
    return _weighted_sum(tokens, tokens.mask, lambda count: count**0.5)


@pooling("weightedmean")
def weightedmean(tokens: Tokens) -> Float[Array, "B H"]:
    """Mean of the tokens, weighted by their positions. The first real token has position 1.

    Excluded tokens keep their position numbers. Muennighoff 2022, https://arxiv.org/abs/2202.08904.
    """
    xp = array_namespace(tokens.hidden)
    position = xp.arange(1, tokens.mask.shape[1] + 1) - tokens.start[:, None]
    return _weighted_sum(tokens, tokens.mask * position, lambda count: count)


def _weighted_sum(tokens: Tokens, weights: Array, denominator: Callable[[Array], Array]) -> Array:
    """Return the sum of the tokens times ``weights`` (B, S), divided by ``denominator`` of the sum of the weights.

    Sums are in float64. In a long text, the rounding error of a float32 sum would exceed that of the tokens.
    """
    xp = array_namespace(tokens.hidden)
    total = (tokens.hidden * weights[..., None]).sum(axis=1, dtype=xp.float64)
    count = weights.sum(axis=1) if tokens.weight_sum is None else tokens.weight_sum
    count = xp.maximum(count.astype(xp.float64), 1e-9)
    return (total / denominator(count[:, None])).astype(tokens.hidden.dtype)


def _at(tokens: Tokens, index: Array) -> Array:
    """Return one token vector for each text, at ``index`` (B,)."""
    xp = array_namespace(tokens.hidden)
    return tokens.hidden[xp.arange(tokens.hidden.shape[0]), index]
