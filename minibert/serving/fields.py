"""The body of a request: a JSON object whose fields are read by name, each with its rule."""

import json
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

from minibert.serving.refused import Refused

__all__ = ["Fields", "Items"]

#: The texts of a request. A text can be given as its token ids.
Items: TypeAlias = list[str | list[int]]


class Fields:
    """The fields of a JSON object. A field that is null counts as absent. Unknown fields are ignored."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    @classmethod
    def read(cls, body: bytes | bytearray) -> Self:
        """Return the fields of a body.

        Raises:
            Refused: It is not a JSON object.
        """
        try:
            values = json.loads(body)
        except RecursionError:
            raise Refused("validation", "the body must be JSON; it is nested too deeply.") from None
        except ValueError as error:
            reason = "a number has too many digits"
            if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                reason = getattr(error, "msg", "its characters are not UTF-8")
            raise Refused("validation", f"the body must be JSON; it is not: {reason}.") from None
        if type(values) is not dict:
            raise Refused("validation", f"the body must be a JSON object; it is {described(values)}.")
        return cls(values)

    def flag(self, name: str, default: bool) -> bool:
        """Return a field that is true or false."""
        value = self.values.get(name)
        return default if value is None else bool(self._of_type(name, value, bool, "true or false"))

    def text(self, name: str) -> str | None:
        """Return a field that is a text."""
        value = self.values.get(name)
        if value is not None:
            self._of_type(name, value, str, "a text")
            require_characters(name, [value])
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """Return a field that is a whole number of a range."""
        value = self.values.get(name)
        rule = f"a whole number from {least} to {most}"
        if value is not None and not least <= self._of_type(name, value, int, rule) <= most:
            raise _wrong(name, rule, value)
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Return a field that is one of some texts."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not str or value not in choices:
            raise _wrong(name, f"one of {', '.join(choices)}", value)
        return value

    def nested(self, name: str) -> "Fields":
        """Return the fields of a field that is an object. It has none if the field is absent."""
        value = self.values.get(name)
        return Fields({} if value is None else self._of_type(name, value, dict, "an object"))

    def array(self, name: str) -> list[Any] | None:
        """Return a field that is a list."""
        value = self.values.get(name)
        return None if value is None else self._of_type(name, value, list, "a list")

    def items(self, name: str, *, ids: bool = True, blank: bool = False) -> Items:
        """Return the texts of a request: a text, its token ids, or a list of these.

        Args:
            name: The name of the field.
            ids: Whether token ids can stand for a text.
            blank: Whether a text can be empty.

        Raises:
            Refused: The field is absent or empty, or an item is not a text. The message has the index of the item.
        """
        value = self.values.get(name)
        rule = "a text or a list of texts" + (", or their token ids" if ids else "")
        if value is None:
            raise Refused("validation", f"`{name}` is required: {rule}.", name)
        if type(value) is str or (ids and type(value) is list and value and type(value[0]) is int):
            value = [value]
        items: Items = self._of_type(name, value, list, rule)
        if not items:
            raise Refused("empty", f"`{name}` cannot be empty.", name)
        for index, item in enumerate(items):
            if type(item) is str:
                if not item and not blank:
                    raise Refused("empty", f"`{name}` cannot be empty; item {index} is.", name)
            elif not (ids and type(item) is list and all(type(id_) is int for id_ in item)):
                raise _wrong(f"{name}[{index}]", "a text" + (", or its token ids" if ids else ""), item, name)
        require_characters(name, [item for item in items if type(item) is str])
        return items

    def _of_type(self, name: str, value: Any, kind: type, rule: str) -> Any:
        """Return a value of a type. True is not a number."""
        if type(value) is not kind:
            raise _wrong(name, rule, value)
        return value


def require_characters(name: str, texts: Sequence[str]) -> None:
    """Refuse a lone surrogate: JSON can hold it, but it is not a character, so no tokenizer knows it."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise Refused("validation", f"`{name}` must be valid Unicode; it holds a lone surrogate.", name) from None


def described(value: Any) -> str:
    """Return what a JSON value is, in a few words. Texts and lists are not quoted: they can be long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value) if abs(value) < 1e15 else "a number of many digits"
    if isinstance(value, str):
        return ascii(value) if len(value) <= 32 else "a text"
    return "a list" if isinstance(value, list) else "an object"


def _wrong(name: str, rule: str, value: Any, field: str | None = None) -> Refused:
    """Return the error for a field that breaks a rule."""
    return Refused("validation", f"`{name}` must be {rule}; it is {described(value)}.", field or name)
