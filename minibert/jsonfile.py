"""JSON files of a model repo, read with suspicion."""

import json
from pathlib import Path
from typing import Any

from minibert.errors import ConfigError

#: The largest configuration file that is read, in bytes; tokenizer.json has its own limit.
MAX_BYTES = 16 << 20


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        ConfigError: The file is missing or unreadable, is larger than ``max_bytes``, is not JSON, repeats a key, or
            holds something other than an object.
    """
    value = _read(path, max_bytes)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object; it holds {_kind(value)}.")
    return value


def read_array(path: Path, max_bytes: int = MAX_BYTES) -> list[Any]:
    """Return the JSON array in the file ``path``; raises as :func:`read_object` does."""
    value = _read(path, max_bytes)
    if not isinstance(value, list):
        raise ConfigError(f"{path} must hold a JSON array; it holds {_kind(value)}.")
    return value


def read_optional(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in the file ``path``, or an empty one where there is no such file."""
    return read_object(path, max_bytes) if path.is_file() else {}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return ``pairs`` as a dict; a repeated key is a ValueError (two readers could differ about it)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = sorted({key for key, _ in pairs if key in seen or seen.add(key)})  # type: ignore[func-returns-value]
        raise ValueError(f"repeated keys {repeated}")
    return found


def _read(path: Path, max_bytes: int) -> Any:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ConfigError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Is {path.parent} a complete model folder?") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    if content.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in the repo.")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not usable JSON: {error}.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
