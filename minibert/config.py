"""``config.json``: the sizes and settings of a BertModel or of a model of a related family."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from minibert import ops
from minibert.errors import ConfigError
from minibert.families import FAMILIES
from minibert.positions import BUCKETS
from minibert.safe.jsonfile import read_object

_KNOWN = ", ".join(FAMILIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The keys of ``config.json`` that change the forward pass, with Hugging Face's names and defaults.

    The constructor checks every field. A value that minibert does not implement raises
    :class:`~minibert.errors.ConfigError`.

    Attributes:
        model_type: The family: a key of :data:`minibert.families.FAMILIES`.
        vocab_size: Rows of the word embedding table.
        hidden_size: Width of a token vector, a multiple of ``num_attention_heads``.
        num_hidden_layers: Number of encoder layers.
        num_attention_heads: Number of attention heads in each layer.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: A key of :data:`minibert.ops.ACTIVATIONS`.
        max_position_embeddings: Rows of the position table.
        type_vocab_size: Rows of the token type table.
        layer_norm_eps: Added to the variance in every layer normalization.
        pad_token_id: The id that pads shorter texts. It never changes the vector of a real token.
        relative_attention_num_buckets: Rows of MPNet's table of biases by distance; None in other families.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    relative_attention_num_buckets: int | None = None

    def __post_init__(self) -> None:
        if self.model_type not in list(FAMILIES):  # a list: the value of a file may have no hash
            raise ConfigError(f"model_type must be one of {_KNOWN}; it is {self.model_type!r}.")
        for field in dataclasses.fields(self):
            if field.type is int and field.name != "pad_token_id":
                _require_int(field.name, getattr(self, field.name), minimum=1)
        _require_int("pad_token_id", self.pad_token_id, minimum=0)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size must be a multiple of num_attention_heads; "
                f"{self.hidden_size} is not a multiple of {self.num_attention_heads}."
            )
        if self.pad_token_id >= self.vocab_size:
            raise ConfigError(f"pad_token_id must be below vocab_size = {self.vocab_size}; it is {self.pad_token_id}.")
        if self.max_tokens < 1:
            raise ConfigError(
                f"max_position_embeddings must leave room for a token after the padding id {self.position_padding_id}; "
                f"it is {self.max_position_embeddings}."
            )
        buckets = BUCKETS if "relative_attention_num_buckets" in FAMILIES[self.model_type].defaults else None
        found = self.relative_attention_num_buckets
        if found != buckets or type(found) is not type(buckets):
            raise ConfigError(
                f"relative_attention_num_buckets must be {'absent' if buckets is None else buckets} "
                f"for {self.model_type}; it is {found!r}."
            )
        eps = self.layer_norm_eps
        if type(eps) not in {int, float} or not 0 < eps <= sys.float_info.max:
            raise ConfigError(f"layer_norm_eps must be a positive number; it is {eps!r}.")
        if not isinstance(self.hidden_act, str):
            raise ConfigError(f"hidden_act must be the name of an activation; it is {self.hidden_act!r}.")
        ops.activation(self.hidden_act)

    @classmethod
    def from_file(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Return the config in the file ``path``. ``overrides`` replace keys of the file."""
        try:
            return cls.from_dict({**read_object(path), **(overrides or {})})
        except ConfigError as error:
            if str(path) in str(error):
                raise
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config from the keys of a ``config.json``. Keys without effect are ignored.

        Raises:
            ConfigError: A value is not valid, or minibert does not implement the architecture.
        """
        _refuse_other_architectures(values)
        family = FAMILIES[values.get("model_type", "bert")]
        fields = [field.name for field in dataclasses.fields(cls) if field.name not in family.keys.values()]
        keys = {**dict(zip(fields, fields, strict=True)), **family.keys}
        found = {field: values[key] for key, field in keys.items() if key in values}
        if found.get("pad_token_id", 0) is None and family.positions_after != "pad_token_id":
            del found["pad_token_id"]  # transformers writes null for "no padding token": the default id pads texts
        return cls(**{**family.defaults, **found, **family.fixed})

    @property
    def position_padding_id(self) -> int | None:
        """The id after which positions begin; None if they begin at 0. It is the padding id in RoBERTa's family."""
        after = FAMILIES[self.model_type].positions_after
        return getattr(self, after) if isinstance(after, str) else after

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a text: the rows of the position table from the first position on."""
        return self.max_position_embeddings - (0 if self.position_padding_id is None else self.position_padding_id + 1)


def _refuse_other_architectures(values: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ``values`` describe a plain bidirectional encoder of a known family."""
    model_type = values.get("model_type", "bert")
    if model_type not in list(FAMILIES):  # a list: the value of a file may have no hash
        raise ConfigError(
            f"model_type must be one of {_KNOWN}; it is {model_type!r}, which minibert does not implement."
        )
    architectures, classes = values.get("architectures") or [], FAMILIES[model_type].classes
    if not isinstance(architectures, list) or not all(str(name).startswith(classes) for name in architectures):
        raise ConfigError(f"architectures must be a list of {classes} classes; it is {architectures!r}.")
    position = values.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise ConfigError(
            f'position_embedding_type must be "absolute"; it is {position!r}, which would change every vector.'
        )
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise ConfigError("is_decoder and add_cross_attention must be false: minibert implements the encoder only.")
    embedding_size = values.get("embedding_size")
    if embedding_size is not None and embedding_size != values.get("hidden_size", 768):
        raise ConfigError(f"embedding_size = {embedding_size!r} differs from hidden_size: this is not a BertModel.")


def _require_int(name: str, value: object, minimum: int) -> None:
    if type(value) is not int or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}; it is {value!r}.")
