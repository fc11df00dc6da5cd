"""What the tests of the packed forward pass share: row rules, and models with random parameters."""

import numpy as np
import pytest

from minibert.engine.rows import RowRule
from minibert.files.checkpoint import names
from minibert.params import BertParams


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
    if isinstance(parameters, np.ndarray):
        return parameters.astype(dtype)
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
    return BertParams(names.embeddings(tensors), layers, names.pooler(tensors))
