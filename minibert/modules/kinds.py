"""The modules after the transformer in a sentence-transformers repo.

``modules.json`` names them. Each module has a folder with its configuration and its weights, if it has weights. A
module reads some features of a batch and writes others. ``token_embeddings`` comes from the transformer. ``encode``
returns ``sentence_embedding``.
"""

import copy
import dataclasses
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from minibert import pooling
from minibert.engine.arithmetic import Arithmetic, ArrayArithmetic
from minibert.errors import ConfigError, UnsupportedModuleError, WeightsError
from minibert.files.checkpoint import load_module
from minibert.safe.escapes import printable
from minibert.safe.jsonfile import read_object, read_optional
from minibert.typing import Array, DType

logger = logging.getLogger("minibert")

_NUMPY = ArrayArithmetic()

#: The features of a batch, with sentence-transformers' names: input_ids, attention_mask, token_embeddings,
#: all_layer_embeddings, prompt_length, token_weights_sum, sentence_embedding.
Features = dict[str, Any]


@dataclasses.dataclass
class Flow:
    """The features at one point of a chain of modules.

    Attributes:
        widths: The existing features and the widths of their vectors.
        num_hidden_layers: Number of layers of the transformer.
        tokens: Number of ids that the tokenizer can return.
    """

    widths: dict[str, int]
    num_hidden_layers: int
    tokens: int


class Module(Protocol):
    """One step after the transformer."""

    needs_all_layers: ClassVar[bool] = False

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:
        """Load the module from ``folder``, with weights in ``dtype``."""
        ...

    def connect(self, flow: Flow) -> None:
        """Check the features that the module reads, and add the features that it writes to ``flow``.

        Raises:
            ConfigError: A feature that it reads is missing or has another width.
        """
        ...

    def on(self, arithmetic: Arithmetic) -> Self:  # noqa: ARG002
        """Return the module with this arithmetic, and with its weights where the arithmetic needs them."""
        return self

    def __call__(self, features: Features) -> None:
        """Add or replace the module's results in ``features``."""
        ...


def _moved(module: Any, arithmetic: Arithmetic) -> Any:
    """Return a copy of a module with another arithmetic."""
    moved = copy.copy(module)
    moved.arithmetic = arithmetic
    return moved


class Pooling(Module):
    """From token vectors to one vector per text, with one or several modes of :mod:`minibert.pooling`."""

    #: The flags of older configs, in the order in which their results are concatenated.
    LEGACY: ClassVar[Mapping[str, str]] = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    KEYS: ClassVar[frozenset[str]] = frozenset(
        {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *LEGACY}
    )

    def __init__(self, modes: str | list[str] | tuple[str, ...] = "mean", *, include_prompt: bool = True) -> None:
        self.arithmetic: Arithmetic = _NUMPY
        self.modes = (modes,) if isinstance(modes, str) else tuple(modes)
        self.include_prompt = include_prompt
        for mode in self.modes:
            if mode not in pooling.MODES:
                raise ConfigError(f"pooling_mode {mode!r} is not one of {', '.join(sorted(pooling.MODES))}.")
        if not self.modes:
            raise ConfigError("pooling_mode must name at least one mode; it is empty.")

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:  # noqa: ARG003
        path = folder / "config.json"
        config = read_object(path)
        if unknown := sorted(config.keys() - cls.KEYS):
            raise ConfigError(f"{path}: a Pooling config has no key {', '.join(unknown)}.")
        legacy = [mode for key, mode in cls.LEGACY.items() if _flag(path, config, key, default=False)]
        modes = config.get("pooling_mode", legacy or "mean")
        if not (isinstance(modes, str) or (isinstance(modes, list) and all(isinstance(m, str) for m in modes))):
            raise ConfigError(f"{path}: pooling_mode must be a name or a list of names; it is {modes!r}.")
        try:
            return cls(modes, include_prompt=_flag(path, config, "include_prompt", default=True))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def with_prompt(self, include_prompt: bool) -> Self:
        """Return the module with another ``include_prompt``."""
        module = copy.copy(self)
        module.include_prompt = include_prompt
        return module

    def on(self, arithmetic: Arithmetic) -> Self:
        return _moved(self, arithmetic)

    def connect(self, flow: Flow) -> None:
        flow.widths["sentence_embedding"] = len(self.modes) * flow.widths["token_embeddings"]

    def __call__(self, features: Features) -> None:
        features["sentence_embedding"] = self.arithmetic.pool(
            self.modes,
            features["token_embeddings"],
            features["attention_mask"].astype(bool),
            exclude=0 if self.include_prompt else features.get("prompt_length", 0),
            weight_sum=features.get("token_weights_sum"),
        )


class InPlace:
    """Common code of Normalize and Dense: which feature they read, and which they write."""

    SENTENCE: ClassVar[str] = "sentence_embedding"
    NAMES: ClassVar[tuple[str, ...]] = (SENTENCE, "token_embeddings")

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.arithmetic: Arithmetic = _NUMPY
        self.path = path
        self.source = config.get("module_input_name") or self.SENTENCE
        self.target = config.get("module_output_name") or self.source
        for name in (self.source, self.target):
            if name not in self.NAMES:
                raise ConfigError(
                    f"{path}: module_input_name and module_output_name must be one of {self.NAMES}; found {name!r}."
                )


class Normalize(InPlace, Module):
    """Scales vectors to length 1."""

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:  # noqa: ARG003
        path = folder / "config.json"  # written since sentence-transformers 6
        return cls(path, read_optional(path))

    def connect(self, flow: Flow) -> None:
        flow.widths[self.target] = _width(self.path, flow, self.source)

    def on(self, arithmetic: Arithmetic) -> Self:
        return _moved(self, arithmetic)

    def __call__(self, features: Features) -> None:
        features[self.target] = self.arithmetic.l2_normalize(features[self.source])


class Dense(InPlace, Module):
    """A linear layer with an activation and an optional residual connection."""

    KEYS: ClassVar[frozenset[str]] = frozenset(
        (
            "in_features",
            "out_features",
            "bias",
            "activation_function",
            "module_input_name",
            "module_output_name",
            "use_residual",
        )
    )
    #: torch's activation classes without parameters, by their names in a config, and the names of the same functions
    #: in an arithmetic.
    ACTIVATIONS: ClassVar[Mapping[str, str]] = {
        "torch.nn.modules.linear.Identity": "linear",
        **{
            f"torch.nn.modules.activation.{name}": function
            for name, function in {
                "GELU": "gelu",
                "Hardswish": "hardswish",
                "LeakyReLU": "leaky_relu",
                "Mish": "mish",
                "ReLU": "relu",
                "ReLU6": "relu6",
                "SiLU": "silu",
                "Sigmoid": "sigmoid",
                "Softplus": "softplus",
                "Tanh": "tanh",
            }.items()
        },
    }

    DEFAULT_ACTIVATION: ClassVar[str] = "torch.nn.modules.activation.Tanh"

    def __init__(self, folder: Path, config: Mapping[str, Any], dtype: DType) -> None:
        path = folder / "config.json"
        super().__init__(path, config)
        self.in_features, self.out_features = (_size(path, config, key) for key in ("in_features", "out_features"))
        self.activation = self._activation(path, config.get("activation_function", self.DEFAULT_ACTIVATION))
        self.use_residual = _flag(path, config, "use_residual", default=False)
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (self.out_features, self.in_features)}
        if _flag(path, config, "bias", default=True):
            shapes["linear.bias"] = (self.out_features,)
        if self.use_residual and self.in_features != self.out_features:
            shapes["residual.weight"] = (self.out_features, self.in_features)
        self.weights = load_module(folder, shapes, dtype)

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:
        config = read_object(folder / "config.json")
        if unknown := sorted(config.keys() - cls.KEYS):
            keys = printable(", ".join(unknown))
            logger.warning("%s: ignoring the keys %s, which a Dense config does not have", folder, keys)
        return cls(folder, config, dtype)

    @classmethod
    def _activation(cls, path: Path, name: object) -> str:
        """Return the activation's name. A class outside torch is replaced by Tanh, as in sentence-transformers."""
        if isinstance(name, str) and not name.startswith("torch."):
            warnings.warn(
                f"{path}: activation_function {name!r} is not torch's own, and never run; Tanh stands in for it.",
                stacklevel=2,
            )
            return "tanh"
        if not isinstance(name, str) or name not in cls.ACTIVATIONS:
            raise ConfigError(
                f"{path}: activation_function {name!r} is not implemented; minibert knows {', '.join(cls.ACTIVATIONS)}."
            )
        return cls.ACTIVATIONS[name]

    def connect(self, flow: Flow) -> None:
        width = _width(self.path, flow, self.source)
        _require_equal(self.path, "in_features", self.in_features, "the width of the vectors that enter", width)
        flow.widths[self.target] = self.out_features

    def on(self, arithmetic: Arithmetic) -> Self:
        module = _moved(self, arithmetic)
        module.weights = {
            name: arithmetic.matrix(weight) if weight.ndim == 2 else arithmetic.vector(weight)
            for name, weight in self.weights.items()
        }
        return module

    def __call__(self, features: Features) -> None:
        x, weights, linear = features[self.source], self.weights, self.arithmetic.linear
        y = linear(x, weights["linear.weight"], weights.get("linear.bias"), self.activation)
        if self.use_residual:
            y = y + (linear(x, weights["residual.weight"], None, "linear") if "residual.weight" in weights else x)
        features[self.target] = y


class LayerNorm(Module):
    """Layer normalization of the sentence vector, with torch's default eps."""

    EPS: ClassVar[float] = 1e-5

    def __init__(self, path: Path, weights: Mapping[str, Any]) -> None:
        self.arithmetic: Arithmetic = _NUMPY
        self.path = path
        self.weight, self.bias = weights["norm.weight"], weights["norm.bias"]

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:
        path = folder / "config.json"
        dimension = _size(path, read_object(path), "dimension")
        return cls(path, load_module(folder, {"norm.weight": (dimension,), "norm.bias": (dimension,)}, dtype))

    def connect(self, flow: Flow) -> None:
        width = _width(self.path, flow, "sentence_embedding")
        _require_equal(self.path, "dimension", len(self.weight), "the width of the vectors that enter", width)

    def on(self, arithmetic: Arithmetic) -> Self:
        module = _moved(self, arithmetic)
        module.weight, module.bias = arithmetic.vector(self.weight), arithmetic.vector(self.bias)
        return module

    def __call__(self, features: Features) -> None:
        features["sentence_embedding"] = self.arithmetic.layer_norm(
            features["sentence_embedding"], self.weight, self.bias, self.EPS
        )


class WordWeights(Module):
    """Multiplies each token vector by a weight of its word, for example its idf."""

    def __init__(self, path: Path, weights: Array) -> None:
        self.path = path
        self.weights = weights

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:
        path = folder / "config.json"
        vocabulary = read_object(path).get("vocab")
        if not isinstance(vocabulary, list):
            raise ConfigError(f"{path}: vocab must be the list of the tokenizer's words.")
        loaded = load_module(folder, {"emb_layer.weight": (len(vocabulary), 1)}, dtype)
        return cls(path, loaded["emb_layer.weight"][:, 0])

    def connect(self, flow: Flow) -> None:
        if len(self.weights) < flow.tokens:
            raise ConfigError(
                f"{self.path}: vocab must have a weight for each of the tokenizer's {flow.tokens} tokens; "
                f"it has {len(self.weights)}."
            )

    def __call__(self, features: Features) -> None:
        weights = self.weights[features["input_ids"]] * features["attention_mask"].astype(self.weights.dtype)
        features["token_embeddings"] = features["token_embeddings"] * weights[..., None]
        # In the order of the tokens: np.sum does not say in which order it adds.
        features["token_weights_sum"] = weights.cumsum(axis=1, dtype=np.float64)[:, -1].astype(weights.dtype)


class WeightedLayerPooling(Module):
    """Replaces the last layer's token vectors by a weighted mean of several layers."""

    needs_all_layers: ClassVar[bool] = True

    def __init__(self, path: Path, layer_start: int, num_hidden_layers: int, weights: Array) -> None:
        self.path = path
        self.layer_start = layer_start
        self.num_hidden_layers = num_hidden_layers
        self.weights = weights

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:
        path = folder / "config.json"
        config = {"layer_start": 4, "num_hidden_layers": 12, **read_object(path)}
        start, layers = config["layer_start"], _size(path, config, "num_hidden_layers")
        if type(start) is not int or not 0 <= start <= layers:
            raise ConfigError(f"{path}: layer_start must be from 0 to num_hidden_layers = {layers}; it is {start!r}.")
        loaded = load_module(folder, {"layer_weights": (layers + 1 - start,)}, dtype)
        if loaded["layer_weights"].sum() == 0:
            raise WeightsError(f"{folder}: layer_weights must not sum to 0, by which their mean is divided.")
        return cls(path, start, layers, loaded["layer_weights"])

    def connect(self, flow: Flow) -> None:
        layers = flow.num_hidden_layers
        _require_equal(self.path, "num_hidden_layers", self.num_hidden_layers, "the transformer's", layers)

    def __call__(self, features: Features) -> None:
        layers = features["all_layer_embeddings"][self.layer_start :]
        total = np.zeros_like(layers[0])
        for weight, layer in zip(self.weights, layers, strict=True):  # in order: the bits do not depend on BLAS
            total += weight * layer
        features["token_embeddings"] = total / self.weights.dtype.type(math.fsum(self.weights))


class Dropout(Module):
    """Does nothing: dropout acts only in training."""

    @classmethod
    def from_folder(cls, folder: Path, dtype: DType) -> Self:  # noqa: ARG003
        return cls()

    def connect(self, flow: Flow) -> None:
        pass

    def __call__(self, features: Features) -> None:
        pass


#: The implemented modules, by the class name at the end of ``type`` in modules.json.
MODULES: Mapping[str, type[Module]] = {
    "Dense": Dense,
    "Dropout": Dropout,
    "LayerNorm": LayerNorm,
    "Normalize": Normalize,
    "Pooling": Pooling,
    "WeightedLayerPooling": WeightedLayerPooling,
    "WordWeights": WordWeights,
}


def load(kind: str, folder: Path | None, dtype: DType) -> Module:
    """Return the module of class ``kind`` in ``folder``; without a folder, with the constructor's defaults.

    Raises:
        UnsupportedModuleError: minibert does not implement ``kind``.
        ModelFileError: The module's files cannot be used.
    """
    if kind not in MODULES:
        raise UnsupportedModuleError(
            f"{folder}: the module {kind} is not implemented; minibert knows {', '.join(MODULES)}."
        )
    return MODULES[kind]() if folder is None else MODULES[kind].from_folder(folder, dtype)


def _size(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{path}: {key} must be a whole number of at least 1; it is {value!r}.")
    return value


def _flag(path: Path, config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a flag of a config. A text is refused: "false" would count as true."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key} must be true or false; it is {value!r}.")
    return value


def _width(path: Path, flow: Flow, feature: str) -> int:
    """Return the width of a feature that a module reads."""
    if feature not in flow.widths:
        raise ConfigError(f"{path}: the module needs a {feature}, which no module before it makes. Put Pooling first.")
    return flow.widths[feature]


def _require_equal(path: Path, key: str, value: int, rule: str, expected: int) -> None:
    if value != expected:
        raise ConfigError(f"{path}: {key} must be {rule}, {expected}; it is {value}.")
