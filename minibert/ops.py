"""The arithmetic of the reference forward pass, for numpy and CuPy arrays.

Every function keeps the dtype of its input, float32 or float64. No function changes its input.
"""

import math
from collections.abc import Callable

from minibert.arrays import array_namespace
from minibert.errors import ConfigError
from minibert.special import erf
from minibert.typing import Array, Bool, Float

__all__ = [
    "ACTIVATIONS",
    "activation",
    "gelu",
    "gelu_tanh",
    "l2_normalize",
    "layer_norm",
    "linear",
    "merge_heads",
    "quick_gelu",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "split_heads",
]


def linear(
    x: Float[Array, "*rows K"], weight: Float[Array, "N K"], bias: Float[Array, "N"] | None = None
) -> Float[Array, "*rows N"]:
    """Return ``x @ weight.T + bias``. The weight has the shape that checkpoints store: ``(out, in)``.

    All rows are one matrix product. On a stack of matrices, ``matmul`` would call BLAS once for each matrix.
    """
    y = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def layer_norm(
    x: Float[Array, "*rows H"], weight: Float[Array, "H"], bias: Float[Array, "H"], eps: float
) -> Float[Array, "*rows H"]:
    """Normalize each row to mean 0 and variance 1, then multiply by ``weight`` and add ``bias``.

    The variance is the population variance. It is computed from the centred values, because E[x^2] - E[x]^2 loses
    digits when the mean is large. Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450, equation 4.
    """
    xp = array_namespace(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    centred -= centred.mean(axis=-1, keepdims=True)  # rounding leaves part of a large mean; now equal values become 0
    variance = xp.square(centred).mean(axis=-1, keepdims=True)
    centred /= xp.sqrt(variance + eps)
    centred *= weight
    centred += bias
    return centred


def softmax(scores: Float[Array, "*rows S"], mask: Bool[Array, "..."] | None = None) -> Float[Array, "*rows S"]:
    """Return the softmax along the last axis. Weights are 0 where ``mask`` is False.

    ``mask`` broadcasts against ``scores``. A row without any True gets equal weights, never NaN.
    """
    xp = array_namespace(scores)
    if mask is not None:  # adding -10000 instead would not hide very large scores
        scores = xp.where(mask, scores, xp.finfo(scores.dtype).min)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def split_heads(x: Float[Array, "B S H"], heads: int) -> Float[Array, "B h S d"]:
    """Split the hidden dimension into ``heads`` heads, one matrix for each head (a view)."""
    texts, tokens, hidden = x.shape
    return x.reshape(texts, tokens, heads, hidden // heads).swapaxes(1, 2)


def merge_heads(x: Float[Array, "B h S d"]) -> Float[Array, "B S H"]:
    """Concatenate the heads in one hidden dimension: the inverse of :func:`split_heads`."""
    texts, heads, tokens, size = x.shape
    return x.swapaxes(1, 2).reshape(texts, tokens, heads * size)


def l2_normalize(x: Float[Array, "*rows D"], eps: float = 1e-12) -> Float[Array, "*rows D"]:
    """Scale each row to length 1. A row shorter than ``eps`` is divided by ``eps``, so zeros stay zeros.

    The squares are summed in float64 for every dtype.
    """
    xp = array_namespace(x)
    length = xp.sqrt(xp.square(x, dtype=xp.float64).sum(axis=-1, keepdims=True))
    return (x / xp.maximum(length, eps)).astype(x.dtype)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x * Phi(x)``, BERT's activation. Phi is the normal distribution function.

    This is the exact form with erf. Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
    """
    y = erf(x * math.sqrt(0.5))
    y += 1.0
    y *= x
    y *= 0.5
    return y


def gelu_tanh(x: Float[Array, "*shape"], root: float = math.sqrt(2 / math.pi)) -> Float[Array, "*shape"]:
    """Return the tanh approximation of :func:`gelu`, from the same paper. Its error is up to 4.8e-4."""
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(root * (x + 0.044715 * x * x * x)))


def gelu_fast(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return :func:`gelu_tanh` with sqrt(2 / pi) rounded to ten digits, as in transformers' ``gelu_fast``."""
    return gelu_tanh(x, root=0.7978845608)


def gelu_10(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return :func:`gelu` clipped to [-10, 10]."""
    return gelu(x).clip(-10.0, 10.0)


def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``1 / (1 + exp(-x))``, without overflow at large negative ``x``."""
    xp = array_namespace(x)
    z = xp.exp(-xp.abs(x))
    return xp.where(x < 0, z, 1.0) / (1.0 + z)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x * sigmoid(1.702 x)``, the sigmoid approximation of :func:`gelu`."""
    return x * sigmoid(1.702 * x)


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x * sigmoid(x)``, also called swish."""
    return x * sigmoid(x)


def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``log(1 + exp(x))``, without overflow."""
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def sqrt_softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the square root of :func:`softplus`."""
    return array_namespace(x).sqrt(softplus(x))


def mish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x * tanh(softplus(x))``. Misra 2019, https://arxiv.org/abs/1908.08681."""
    return x * array_namespace(x).tanh(softplus(x))


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``max(x, 0)``."""
    return array_namespace(x).maximum(x, 0.0)


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x`` clipped to [0, 6]."""
    return x.clip(0.0, 6.0)


def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``max(x, 0)`` squared."""
    return array_namespace(x).square(relu(x))


def leaky_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x`` where it is positive and ``x / 100`` elsewhere."""
    return array_namespace(x).where(x > 0, x, 0.01 * x)


def hardswish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x * relu6(x + 3) / 6``."""
    return x * relu6(x + 3.0) / 6.0


def laplace(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the normal distribution function with mean 0.707107 and deviation 0.282095."""
    return 0.5 * (1.0 + erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


def tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the hyperbolic tangent."""
    return array_namespace(x).tanh(x)


def identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``x`` itself."""
    return x


#: The possible values of ``hidden_act``: transformers' activations without parameters, with transformers' names.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": identity,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu_squared,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrt_softplus,
    "swish": silu,
    "tanh": tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """Return the activation with the name ``name`` in ``hidden_act``. Raise ConfigError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act {name!r} is not implemented; minibert knows {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]
