"""What can be set on an encoder: one object, which is checked as a whole and copied as a whole."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, overload

from minibert.inputs import at_least_one, require_bool, require_choice, require_int, require_text
from minibert.similarity import check_name
from minibert.typing import OnTruncate

logger = logging.getLogger("minibert")

#: The prompts for each kind of text, by the names that models give them; of several, the first is used.
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

_Value = TypeVar("_Value")


class Prompts(dict[str, str]):
    """Prompt texts by name. Every name and every text is checked when it is put in; None becomes an empty text.

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
        """Return the prompt of this name; where there is none, put in ``text`` first."""
        if name not in self:
            self[name] = text
        return self[name]

    def update(self, *prompts: Any, **named: Any) -> None:
        """Put in prompts; where one of them is refused, none is put in."""
        if prompts and not isinstance(prompts[0], Mapping | tuple | list):
            raise TypeError(f"prompts must map names to texts; it is {prompts[0]!r}.")
        super().update({name: _prompt(name, text) for name, text in dict(*prompts, **named).items()})

    def __ior__(self, prompts: Any) -> Self:  # type: ignore[override,misc]
        self.update(prompts)
        return self


def _prompt(name: object, text: str | None) -> str:
    """Return the text of a prompt, which is checked together with its name."""
    require_text("the name of a prompt", name)
    text = "" if text is None else text
    require_text(f"prompts[{name!r}]", text)
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be set on a loaded encoder. To make one checks all of it.

    Only :attr:`prompts` can change in place.

    Attributes:
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that ``encode`` uses when it is given none, or None.
        similarity_fn_name: The function that compares vectors.
        truncate_dim: To how many dimensions vectors are cut, or None.
        on_truncate: What happens when texts are longer than ``max_seq_length``.
        num_threads: On how many threads ``encode`` computes.
        max_batch_tokens: How many tokens each of them computes at a time.
        max_seq_length: The most tokens of a text, special tokens included.
        include_prompt: Whether the tokens of a prompt are pooled together with the text's own.
        lengths: The smallest and the largest ``max_seq_length`` that the model allows. It cannot be set.

    Raises:
        TypeError: A prompt is not a text (str).
        ValueError: A setting has a value that it cannot have.
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
        """Return the settings with other values; raises as the class does."""
        return dataclasses.replace(self, **values)

    def copied(self) -> Self:
        """Return the same settings, with prompts of their own."""
        return dataclasses.replace(self, prompts=dict(self.prompts))

    def different(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those settings, by name, that are not equal to the value of their name."""
        own = {name: getattr(self, name) for name in NAMES}
        return {name: copy.copy(value) for name, value in own.items() if value != values[name]}

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return what goes before each text: the given prompt, or the named one, or the default one, or nothing."""
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
        self._check_default_prompt()  # again: prompts can be removed
        return self.prompts[self.default_prompt_name]

    def prompt_name(self, kind: Literal["query", "document"]) -> str | None:
        """Return the name of the prompt for a kind of text; None where there is none."""
        return next((name for name in _PROMPT_NAMES[kind] if name in self.prompts), None)

    def _check_default_prompt(self) -> None:
        if self.default_prompt_name is not None:
            self._require_prompt("default_prompt_name", self.default_prompt_name)

    def _require_prompt(self, argument: str, name: str) -> None:
        """Raise ValueError unless there is a prompt of this name."""
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
                f"max_position_embeddings = {most}; it is {self.max_seq_length!r}."
            )
        return length


#: The names of all that can be set.
NAMES = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "lengths")


def chosen(arguments: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of those settings that arguments of the constructor name.

    Args:
        arguments: The arguments, by name; those that are no settings are left out.
        own: The model's own settings. They stand where an argument is None; its prompts are added to the given ones.
    """
    values = {name: arguments[name] for name in NAMES if name in arguments}
    values = {name: own[name] if value is None else value for name, value in values.items()}
    if arguments.get("prompts") is not None:
        values["prompts"] = Prompts(own["prompts"]) | Prompts(arguments["prompts"])
    return values


class HasSettings(Protocol):
    """What :class:`Setting` needs of the class that it is in."""

    _settings: Settings


class Setting(Generic[_Value]):
    """An attribute that reads and writes the setting of its name; a value that is refused changes nothing."""

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
