"""Pooling: from the token vectors of a text to one vector. One function per mode."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minibert.arrays import array_namespace
from minibert.typing import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """The token vectors of B texts and what pooling needs to know of them.

    Attributes:
        hidden: Token vectors, ``(B, S, H)``.
        mask: True at the tokens to pool, ``(B, S)``.
        start: Index of each text's first real token, ``(B,)``: 0 unless it is padded on the left.
        weight_sum: Where a WordWeights module weighted the tokens, the sum of the weights of each text,
            ``(B,)``: it stands in for the number of tokens.
    """

    hidden: Float[Array, "B S H"]
    mask: Bool[Array, "B S"]
    start: Int[Array, "B"]
    weight_sum: Float[Array, "B"] | None = None


PoolingFunction = Callable[[Tokens], Array]

#: Pooling modes by the name that a Pooling config gives them.
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
    """Return one vector a text: the results of ``modes``, side by side, so ``D = len(modes) * H``.

    Args:
        modes: Keys of :data:`MODES`.
        hidden: Token vectors.
        mask: True at the real tokens.
        exclude: How many of each text's first real tokens, a prompt, are left out of the pooling.
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
    """The last token; zeros where there is none."""
    from_end = tokens.mask[:, ::-1].argmax(axis=1)
    found = tokens.mask.any(axis=1, keepdims=True)
    return _at(tokens, tokens.mask.shape[1] - 1 - from_end) * found


@pooling("max")
def max_(tokens: Tokens) -> Float[Array, "B H"]:
    """The largest value in each dimension; -inf where there is no token."""
    xp = array_namespace(tokens.hidden)
    return xp.where(tokens.mask[..., None], tokens.hidden, -xp.inf).max(axis=1)


@pooling("mean")
def mean(tokens: Tokens) -> Float[Array, "B H"]:
    """Sum of the tokens divided by their number; zeros where there is none."""
    return _weighted_sum(tokens, tokens.mask, lambda count: count)


@pooling("mean_sqrt_len_tokens")
def mean_sqrt_len_tokens(tokens: Tokens) -> Float[Array, "B H"]:
    """Sum of the tokens divided by the square root of their number; zeros where there is none."""
    return _weighted_sum(tokens, tokens.mask, lambda count: count**0.5)


@pooling("weightedmean")
def weightedmean(tokens: Tokens) -> Float[Array, "B H"]:
    """Mean of the tokens, each weighted by its position, counted from 1 at the first real token.

    Tokens that are left out keep their position number. Muennighoff 2022, https://arxiv.org/abs/2202.08904.
    """
    xp = array_namespace(tokens.hidden)
    position = xp.arange(1, tokens.mask.shape[1] + 1) - tokens.start[:, None]
    return _weighted_sum(tokens, tokens.mask * position, lambda count: count)


def _weighted_sum(tokens: Tokens, weights: Array, denominator: Callable[[Array], Array]) -> Array:
    """Return the sum of the tokens times ``weights`` (B, S) over ``denominator`` of the sum of the weights.

    Summed in float64: over a long text the rounding of a float32 sum would exceed that of the tokens themselves.
    """
    xp = array_namespace(tokens.hidden)
    total = (tokens.hidden * weights[..., None]).sum(axis=1, dtype=xp.float64)
    count = weights.sum(axis=1) if tokens.weight_sum is None else tokens.weight_sum
    count = xp.maximum(count.astype(xp.float64), 1e-9)
    return (total / denominator(count[:, None])).astype(tokens.hidden.dtype)


def _at(tokens: Tokens, index: Array) -> Array:
    """Return the vector of one token a text, at ``index`` (B,)."""
    xp = array_namespace(tokens.hidden)
    return tokens.hidden[xp.arange(tokens.hidden.shape[0]), index]
