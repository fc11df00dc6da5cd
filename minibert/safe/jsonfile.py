"""Safe reading of a model repo's JSON files, which are not trusted."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from minibert.errors import ConfigError
from minibert.safe.regular import is_there, read_regular

#: Maximum size of a configuration file in bytes. tokenizer.json has its own limit.
MAX_BYTES = 16 << 20
#: Maximum number of brackets, commas and colons in a JSON text. The values between them take at most 150 bytes each:
#: 60 MB. The text itself takes up to 9 times its size: with one rare character, Python uses 4 bytes per character.
MAX_ITEMS = 400_000
#: Maximum depth of nested arrays and objects. Files of a repo have about 10; Python's own repr fails at about 1,000.
MAX_DEPTH = 100


def read_object(path: Path, max_bytes: int = MAX_BYTES, max_items: int = MAX_ITEMS) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        ConfigError: The file is missing, not a regular file or unreadable, is larger than ``max_bytes``, has more
            than ``max_items``, is not JSON, repeats a key, or does not hold an object.
    """
    value = _read(path, max_bytes, max_items)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object; it holds {_kind(value)}.")
    return value


def read_array(path: Path, max_bytes: int = MAX_BYTES) -> list[Any]:
    """Return the JSON array in the file ``path``. Raises the errors of :func:`read_object`."""
    value = _read(path, max_bytes, MAX_ITEMS)
    if not isinstance(value, list):
        raise ConfigError(f"{path} must hold a JSON array; it holds {_kind(value)}.")
    return value


def read_optional(path: Path, max_bytes: int = MAX_BYTES, max_items: int = MAX_ITEMS) -> dict[str, Any]:
    """Return the JSON object in the file ``path``, or an empty one if the file does not exist."""
    return read_object(path, max_bytes, max_items) if is_there(path) else {}


def parse(content: bytes, max_items: int = MAX_ITEMS) -> Any:
    """Return the value of a JSON text. It takes at most 9 times the text's size, plus 150 bytes per item.

    Raises:
        ValueError: It is not JSON, repeats a key in an object, has a lone surrogate, has more than ``max_items``, or
            is nested deeper than :data:`MAX_DEPTH`.
    """
    # Count the values before creating them: "[],[],[]" takes 24 times its size.
    items = len(content) - len(content.translate(None, b"[{,:"))
    if items > max_items:
        raise ValueError(f"it has {items:,} brackets, commas and colons; at most {max_items:,} are read")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    # In JSON, a bracket directly after a quotation mark is always inside a text, such as "[unused1]".
    opened = content.count(b"{") + content.count(b"[") - content.count(b'"[')
    if opened > MAX_DEPTH:
        _require_flat(value)
    # Python accepts an escaped lone surrogate, but it cannot be encoded as UTF-8.
    if re.search(rb"\\u[dD][89a-fA-F]", content):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return ``pairs`` as a dict. A repeated key is a ValueError, because two readers could disagree about it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = sorted({key for key, _ in pairs if key in seen or seen.add(key)})  # type: ignore[func-returns-value]
        more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
        raise ValueError(f"repeated keys {repeated[:5]!r:.500}{more}")
    return found


def _read(path: Path, max_bytes: int, max_items: int) -> Any:
    try:
        content = read_regular(path, ConfigError, max_bytes)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Is {path.parent} a complete model folder?") from None
    if content.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in the repo.")
    try:
        return parse(content, max_items)
    except ValueError as error:
        raise ConfigError(f"{path} is not usable JSON: {error}.") from error


def _require_flat(value: Any) -> None:
    """Raise ValueError if arrays and objects are nested more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [inner.values() if type(inner) is dict else inner for inner in level]
        if not {list, dict} & set(map(type, itertools.chain.from_iterable(containers))):  # fast: it runs in C
            return
        level = [inner for inner in itertools.chain.from_iterable(containers) if type(inner) in {list, dict}]
    raise ValueError(f"its arrays and objects are nested more than {MAX_DEPTH} deep")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
