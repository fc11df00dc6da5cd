"""Checks of the inputs and arguments of an encoder."""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from minibert.typing import Array, Int

#: Number of values of an Arrow column that are converted to Python objects at a time.
_ARROW_AT_ONCE = 1024

#: Arguments of sentence-transformers that need PyTorch: what to use instead.
_INSTEAD = {
    "backend": "minibert computes in numpy; leave it out",
    "chunk_size": "there are no process pools; call encode itself",
    "config_kwargs": "edit the repo's config.json",
    "convert_to_tensor": "use torch.from_numpy(encoder.encode(...))",
    "model_card_data": "minibert writes no model cards",
    "model_kwargs": "use dtype= for the precision",
    "modules": "name a folder or a repo that has a modules.json",
    "pool": "there are no process pools; call encode itself, from several threads if you like",
    "processor_kwargs": "edit the repo's tokenizer_config.json",
    "tokenizer_kwargs": "edit the repo's tokenizer_config.json",
    "trust_remote_code": "minibert never runs code from a repo",
    "use_auth_token": "use token=",
}


def as_texts(inputs: Any) -> tuple[list[str], bool]:
    """Return ``inputs`` as a list of texts, and whether it was a single text.

    A text is a ``str``. Many texts are any ordered iterable: list, tuple, generator, numpy array, pandas or Arrow
    column.

    Raises:
        TypeError: ``inputs`` or an item of it is not a text. The message has the index of the item.
        ValueError: A text has a lone surrogate, which is not a character. The message has the index of the text.
    """
    if isinstance(inputs, np.ndarray) and inputs.ndim == 0:
        inputs = inputs.item()
    if isinstance(inputs, str):
        return checked([inputs]), True
    return checked(list(iterate(inputs))), False


def as_id_arrays(inputs: Any) -> tuple[list[Int[Array, "tokens"]], bool]:
    """Return token ids as one array for each text, and whether there was a single text. The values are not checked.

    A text is a sequence of whole numbers. Many texts are an ordered iterable of such sequences.

    Raises:
        TypeError: ``inputs`` or an item of it is neither. The message has the index of the item.
    """
    if isinstance(inputs, str | bytes | bytearray | Mapping | AbstractSet) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"encode_ids takes the token ids of a text, or an iterable of the token ids of many; got "
            f"{_describe(inputs)}. For texts, use encode."
        )
    items = inputs if isinstance(inputs, np.ndarray) else list(inputs)
    if len(items) and np.ndim(items[0]) == 0 and not isinstance(items[0], str):
        return [_id_array(items, "the text")], True
    return [_id_array(item, f"item {index}") for index, item in enumerate(items)], False


def _id_array(item: Any, name: str) -> Int[Array, "tokens"]:
    """Return the token ids of a text as an array, or raise TypeError."""
    try:
        ids = np.asarray(item)
    except (OverflowError, ValueError):  # a nested list with rows of different lengths
        ids = np.empty((0, 0))
    if ids.shape == (0,):
        return np.zeros(0, np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(
            f"the token ids of a text must be a sequence of whole numbers; {name} is a {type(item).__name__}"
            f"{f' of {ids.dtype}' if ids.ndim == 1 else ''}. For texts, use encode."
        )
    return ids.astype(np.int64) if ids.dtype.kind == "u" else ids  # int32 and uint64 together would be floats


def iterate(inputs: Any) -> Iterator[Any]:
    """Return an iterator over the inputs. Items are not checked. Raise TypeError if it is not an ordered iterable."""
    if isinstance(inputs, str):
        raise TypeError("encode_stream takes an iterable of texts in order; got a str. Use encode for a single one.")
    if isinstance(inputs, bytes | bytearray | Mapping | AbstractSet) or not isinstance(inputs, Iterable):
        raise TypeError(f"encode takes a text (str) or an iterable of texts in order; got {_describe(inputs)}.")
    if getattr(inputs, "ndim", 1) != 1:  # iterating a pandas DataFrame gives its column names
        raise TypeError(
            f"encode takes an array or a column of texts in one dimension; got {_describe(inputs)} of shape "
            f"{getattr(inputs, 'shape', None)}."
        )
    return _arrow_values(inputs) if callable(getattr(inputs, "to_pylist", None)) else iter(inputs)


def _arrow_values(column: Any) -> Iterator[Any]:
    """Yield the values of an Arrow column in chunks. Its own iterator gives Arrow scalars, not Python objects."""
    if not callable(getattr(column, "slice", None)):
        yield from column.to_pylist()
        return
    for start in range(0, len(column), _ARROW_AT_ONCE):
        yield from column.slice(start, _ARROW_AT_ONCE).to_pylist()


def checked(items: list[Any], start: int = 0) -> list[str]:
    """Return ``items`` if all are texts, else raise as :func:`as_texts`. Messages count items from ``start``."""
    for index, item in enumerate(items, start):
        if not isinstance(item, str):
            raise TypeError(f"every input must be a text (str); item {index} is {_describe(item)}.")
        try:
            item.isascii() or item.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"every input must be valid Unicode; item {index} holds a lone surrogate, "
                f"{item[error.start]!r}, at position {error.start}. Was it decoded with errors='surrogateescape'?"
            ) from None
    return items


def _describe(item: object) -> str:
    """Describe an unusable input for an error message, with a hint."""
    name = type(item).__name__
    is_nan = isinstance(item, float | np.floating) and math.isnan(item)
    if item is None or is_nan or name in {"NAType", "NaTType"}:  # the last two are pandas'
        return f"a missing value ({item}); drop it, or replace it by an empty text"
    if isinstance(item, bytes | bytearray):
        return f"{name}; decode it first"
    named = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if isinstance(item, list | tuple):
        return f"{named}; text pairs and nested lists are not supported"
    return named


def refuse_torch_only(where: str, arguments: Mapping[str, Any], unknown: type[Exception]) -> None:
    """Raise ValueError for arguments that need PyTorch, and ``unknown`` for unknown arguments."""
    for name, value in arguments.items():
        if name not in _INSTEAD:
            raise unknown(f"{where}() has no argument {name!r}.")
        if value is not None and value is not False and value != {}:
            raise ValueError(f"{where}({name}={value!r}) needs PyTorch: {_INSTEAD[name]}.")


def require_choice(name: str, value: object, choices: Sequence[str | None]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; it is {value!r}.")


def require_int(name: str, value: Any) -> int:
    """Return ``value`` as an int, or raise ValueError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number; it is {value!r}.")
    return operator.index(value)


def require_bool(name: str, value: object) -> bool:
    """Return ``value`` as a bool, or raise ValueError. A text such as "false" is an error: it would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; it is {value!r}.")  # noqa: TRY004
    return bool(value)


def at_least_one(name: str, value: Any) -> int:
    """Return ``value`` as an int of at least 1, or raise ValueError."""
    number = require_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1; it is {number}.")
    return number


def require_text(name: str, value: object) -> None:
    """Raise TypeError if ``value`` is not a str, and ValueError if it has a lone surrogate."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text (str); it is {_describe(value)}.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} must be valid Unicode; it holds a lone surrogate: {value!r}.")
