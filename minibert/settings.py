"""The settings of an encoder: one object that is checked and copied as a whole."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, overload

from minibert.inputs import at_least_one, require_bool, require_choice, require_int, require_text
from minibert.similarity import check_name
from minibert.typing import OnTruncate

logger = logging.getLogger("minibert")

#: The prompt names that models use for each kind of text. The first name that a model has is used.
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

_Value = TypeVar("_Value")


class Prompts(dict[str, str]):
    """Prompt texts by name. Every new name and text is checked. None becomes an empty text.

    Raises:
        TypeError: A name or a prompt is not a text (str).
        ValueError: A prompt holds a lone surrogate.
    """

    def __init__(self, prompts: Any = ()) -> None:
        super().__init__()
        self.update(prompts)

    def __setitem__(self, name: str, text: str | None) -> None:
        self.update({name: text})

    def setdefault(self, name: str, text: str | None = "") -> str:
        """Return the prompt with this name. If there is none, set it to ``text`` first."""
        if name not in self:
            self[name] = text
        return self[name]

    def update(self, *prompts: Any, **named: Any) -> None:
        """Add prompts. If one of them is refused, none is added."""
        if prompts and not isinstance(prompts[0], Mapping | tuple | list):
            raise TypeError(f"prompts must map names to texts; it is {prompts[0]!r}.")
        super().update({name: _prompt(name, text) for name, text in dict(*prompts, **named).items()})

    def __ior__(self, prompts: Any) -> Self:  # type: ignore[override,misc]
        self.update(prompts)
        return self


def _prompt(name: object, text: str | None) -> str:
    """Check a prompt and its name; return the prompt's text."""
    require_text("the name of a prompt", name)
    text = "" if text is None else text
    require_text(f"prompts[{name!r}]", text)
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a loaded encoder. The constructor checks all of them.

    Only :attr:`prompts` can change in place.

    Attributes:
        prompts: Prompt texts by name.
        default_prompt_name: Name of the prompt that ``encode`` uses by default, or None.
        similarity_fn_name: The function that compares vectors.
        truncate_dim: Number of dimensions that vectors are truncated to, or None.
        on_truncate: What happens if texts are longer than ``max_seq_length``.
        num_threads: Number of threads of ``encode``.
        max_batch_tokens: Number of tokens that each thread computes at a time.
        max_seq_length: Maximum number of tokens of a text, with special tokens.
        include_prompt: Whether pooling includes the tokens of the prompt.
        lengths: The smallest and the largest ``max_seq_length`` that the model allows. It is not a setting.

    Raises:
        TypeError: A prompt is not a text (str).
        ValueError: A setting has an invalid value.
    """

    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str
    truncate_dim: int | None
    on_truncate: OnTruncate
    num_threads: int
    max_batch_tokens: int
    max_seq_length: int
    include_prompt: bool
    lengths: tuple[int, int]

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "prompts": self.prompts if isinstance(self.prompts, Prompts) else Prompts(self.prompts),
            "truncate_dim": None if self.truncate_dim is None else require_int("truncate_dim", self.truncate_dim),
            "num_threads": at_least_one("num_threads", self.num_threads),
            "max_batch_tokens": at_least_one("max_batch_tokens", self.max_batch_tokens),
            "max_seq_length": self._checked_length(),
            "include_prompt": require_bool("include_prompt", self.include_prompt),
        }
        check_name(self.similarity_fn_name)
        require_choice("on_truncate", self.on_truncate, ("warn", "ignore", "error"))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_default_prompt()

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values. Raises the errors of the constructor."""
        return dataclasses.replace(self, **values)

    def copied(self) -> Self:
        """Return a copy. Its prompts are a copy too."""
        return dataclasses.replace(self, prompts=dict(self.prompts))

    def different(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that differ from ``values``, by name."""
        own = {name: getattr(self, name) for name in NAMES}
        return {name: copy.copy(value) for name, value in own.items() if value != values[name]}

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text before each input: ``prompt``, or else the named prompt, the default prompt, or ``""``."""
        if prompt is not None:
            require_text("prompt", prompt)
            if prompt_name is not None:
                logger.warning("encode was given both prompt and prompt_name: prompt is used")
            return prompt
        if prompt_name is not None:
            self._require_prompt("prompt_name", prompt_name)
            return self.prompts[prompt_name]
        if self.default_prompt_name is None:
            return ""
        self._check_default_prompt()  # again: a prompt can be removed
        return self.prompts[self.default_prompt_name]

    def prompt_name(self, kind: Literal["query", "document"]) -> str | None:
        """Return the name of the prompt for a kind of text, or None."""
        return next((name for name in _PROMPT_NAMES[kind] if name in self.prompts), None)

    def _check_default_prompt(self) -> None:
        if self.default_prompt_name is not None:
            self._require_prompt("default_prompt_name", self.default_prompt_name)

    def _require_prompt(self, argument: str, name: str) -> None:
        """Raise ValueError if there is no prompt with this name."""
        if not isinstance(name, str) or name not in self.prompts:
            raise ValueError(f"{argument} must be one of {', '.join(self.prompts)}; it is {name!r}.")

    def _checked_length(self) -> int:
        least, most = self.lengths
        try:
            length = require_int("max_seq_length", self.max_seq_length)
        except ValueError:
            length = least - 1
        if not least <= length <= most:
            raise ValueError(
                f"max_seq_length must be a whole number from {least}, the special tokens, to "
                f"{most}, the positions of the model; it is {self.max_seq_length!r}."
            )
        return length


#: The names of all settings.
NAMES = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "lengths")


def chosen(arguments: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among the arguments of the constructor, by name.

    Args:
        arguments: The arguments, by name. Arguments that are not settings are ignored.
        own: The model's own settings. They replace arguments that are None. If prompts are given, the model's other
            prompts are kept.
    """
    values = {name: arguments[name] for name in NAMES if name in arguments}
    values = {name: own[name] if value is None else value for name, value in values.items()}
    if arguments.get("prompts") is not None:
        values["prompts"] = Prompts(own["prompts"]) | Prompts(arguments["prompts"])
    return values


class HasSettings(Protocol):
    """A class that can have :class:`Setting` attributes."""

    _settings: Settings


class Setting(Generic[_Value]):
    """An attribute that reads and writes the setting with its name. A refused value changes nothing."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: HasSettings, owner: type) -> _Value: ...
    def __get__(self, instance: HasSettings | None, owner: type) -> Any:
        return self if instance is None else getattr(instance._settings, self._name)  # noqa: SLF001

    def __set__(self, instance: HasSettings, value: _Value) -> None:
        changed = instance._settings.changed(**{self._name: copy.copy(value)})  # noqa: SLF001
        instance._settings = changed  # noqa: SLF001
