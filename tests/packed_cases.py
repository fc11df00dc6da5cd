"""What the tests of the packed forward pass share: row rules, random parameters, definitions, and their accuracy."""

import math

import numpy as np
import pytest

from minibert import ops
from minibert.engine.rows import RowRule
from minibert.files.checkpoint import names
from minibert.params import BertParams, LayerNorm


def rule_of(*classes):
    """Return the rule with these classes."""
    return RowRule(classes, threads=False)


#: Rules of real kernels, made-up ones, and the one where nothing was found.
RULES = {
    "any row": rule_of(0),
    "tiles of 4": rule_of(0, 0, 0, 0),
    "Haswell": rule_of(0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1),
    "unequal classes": rule_of(0, 1, 1, 2),
    "mixed classes": rule_of(0, 1, 2, 2, 1, 2, 3),
    "one product a text": rule_of(),
}
EACH_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def cast(parameters, dtype):
    """Return an array, or a tuple of such however nested, in another precision."""
    if parameters is None or isinstance(parameters, np.ndarray):
        return None if parameters is None else parameters.astype(dtype)
    cast_all = [cast(each, dtype) for each in parameters]
    return type(parameters)(*cast_all) if hasattr(parameters, "_fields") else tuple(cast_all)


def random_tensors(config, seed=0, bias=0.1):
    """Return float32 tensors of a BertModel by name: weights that keep the size of what they multiply."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, _) in names.expected_shapes(config).items():
        values = rng.standard_normal(shape)
        if name.endswith(".bias"):
            values *= bias
        elif "LayerNorm" in name:
            values = 1 + 0.1 * values
        elif "embeddings" not in name:
            values /= shape[1] ** 0.5
        tensors[name] = values.astype(np.float32)
    return tensors


def random_model(config, seed=0, bias=0.1):
    """Return the parameters of which :func:`random_tensors` are the tensors."""
    tensors = random_tensors(config, seed, bias)
    layers = tuple(names.layer(tensors, number) for number in range(config.num_hidden_layers))
    return BertParams(names.embeddings(tensors), layers, names.pooler(tensors), names.relative_bias(tensors))


def normal(*shape, seed=0, size=1.0):
    """Return normally distributed float32 numbers."""
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * size).astype(np.float32)


def random_norm(width):
    """Return a layer normalization with random scale and shift."""
    return LayerNorm(1 + normal(width, seed=8, size=0.1), normal(width, seed=9))


def assert_is(actual, definition, dtype, *inputs):
    """Fail unless a result is as accurate as its definition: within 3 times that one's float32 error.

    The truth is the definition in float64. A float64 result has to be nearer, by as much as its precision is higher.
    None need be nearer than 4 units in the last place: among few numbers, the definition's error may be less by luck.
    """
    single, truth = (definition(*cast(inputs, kind)) for kind in ("float32", "float64"))
    precision = np.finfo(dtype).eps / np.finfo(np.float32).eps
    last_place = np.spacing(np.abs(truth).max(), dtype=np.float32)
    allowed = precision * max(3 * np.abs(single - truth).max(), 4 * last_place)
    worst = np.abs(actual - truth).max()

    assert single.dtype == np.float32
    assert actual.dtype == dtype
    assert actual.shape == truth.shape
    assert worst <= allowed, f"max error {worst:.1e} > {allowed:.1e}"


def attention(q, k, v, heads, lengths, queries=None):
    """Return what ``attention`` is to return: of the first few ``queries`` of each text, or of all."""
    results = []
    starts = np.cumsum([0, *lengths[:-1]])
    for start, length in ((start, length) for start, length in zip(starts, lengths, strict=True) if length):
        Q, K, V = (ops.split_heads(x[None, start : start + length], heads) for x in (q, k, v))  # noqa: N806
        weights = ops.softmax(Q[:, :, :queries] @ K.swapaxes(-2, -1))
        results.append(ops.merge_heads(weights @ V)[0])
    return np.concatenate(results)


def exact_gelu(x):
    """Return gelu in float64: ``erfc`` keeps the precision of the lower tail."""
    return np.array([0.5 * value * math.erfc(-value * math.sqrt(0.5)) for value in x.tolist()])


def scored(low, high, tokens=20, heads=2):
    """Return queries, keys and values of a text whose scores, in each head, go from ``low`` to ``high``."""
    q, k = np.zeros((2, tokens, heads, 4), np.float32)
    q[..., 0] = 1
    q[..., 1] = np.linspace(-1, 1, tokens)[:, None] / 8
    k[..., 0] = np.linspace(low, high, tokens)[:, None]
    k[..., 1] = 1
    return q.reshape(tokens, -1), k.reshape(tokens, -1), normal(tokens, heads * 4)


#: Lowest and highest score of a text: in float32, exp(89) is infinite and exp(-104) is 0; in float64, exp(710) is.
SCORES = pytest.mark.parametrize(
    ("low", "high"),
    [
        (-5, 5), (30, 36), (-36, -30), (33, 34), (-34, -33), (80, 88), (85, 95), (-90, -85), (-110, -100), (-300, 300),
        (88, 88.7), (-1e4, -1e3), (1e3, 1e4), (1e4, 1e4), (-1e4, -1e4), (-1e5, 1e5),
    ],
)  # fmt: skip
