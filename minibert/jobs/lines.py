"""The rows of text files, JSON lines and CSV. Each file is read from a byte offset, one row at a time."""

import contextlib
import csv
import functools
import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Never, cast

from minibert.errors import JobError

#: The largest field of a CSV file, in characters. An open quotation mark would put the rest of the file in one field.
_LARGEST_FIELD = 1 << 24
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: The largest whole number up to which all whole numbers are floats.
_EXACT = 1 << 53
#: The kinds of JSON values by their type, but for int.
_KINDS = {type(None): "null", bool: "bool", float: "double", str: "string", dict: "json", list: "json"}


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        offset: The offset of its first byte. A later call can begin there.
        fields: Its fields by name, or None if it cannot be used.
        reason: Why it cannot be used.
    """

    offset: int
    fields: Mapping[str, Any] | None
    reason: str = ""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Give the content of a file, decompressed if its name ends in ``.gz``. Damage to a ``.gz`` file is a JobError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast("BinaryIO", file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise JobError(f"{path} must be a whole gzip file; it is not: {error}. Get it again.") from error


def read_rows(path: Path, file: BinaryIO, kind: str, offset: int, names: list[str]) -> Iterator[Row]:
    """Yield the rows of a file from ``offset`` on.

    Args:
        path: The file's name, for messages and for the delimiter of a CSV file.
        file: The file.
        kind: ``"text"``, ``"jsonl"`` or ``"csv"``.
        offset: 0, or the offset of a row.
        names: For CSV, the names of the columns. If ``offset`` is 0, the header of the file replaces the content of
            this list.

    Raises:
        JobError: The file is not CSV, or it has no header.
    """
    file.seek(offset)
    lines = _Lines(file, offset)
    if kind == "csv":
        yield from _csv_rows(path, lines, offset, names)
        return
    parse = _text if kind == "text" else _record
    before = offset
    for line in lines:
        try:
            row = Row(before, parse(line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")))
        except UnicodeDecodeError as error:
            row = Row(before, None, f"it must be UTF-8; its byte {error.start + 1}, 0x{line[error.start]:02x}, is not")
        except (ValueError, RecursionError) as error:
            row = Row(before, None, str(error))
        yield row
        before = lines.offset


class _Lines:
    """The lines of a file, without a byte order mark. ``offset`` is the offset after the last line that was taken."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self.offset = offset

    def __iter__(self) -> Iterator[bytes]:
        # Use the file's own lines: in JSON and in other tools, U+2028 and similar do not end a line.
        for line in self._file:
            first, self.offset = self.offset == 0, self.offset + len(line)
            content = line.removeprefix(_BOM) if first else line
            if content:
                yield content


def _text(line: str) -> dict[str, str]:
    return {"text": line}


def _record(line: str) -> dict[str, Any]:
    """Return the JSON object of a line, or raise ValueError with the reason."""
    rule = "it must be a JSON object"
    try:
        try:
            record, end = _scan(line, 0)
        except StopIteration:  # no value begins here
            end = -1
        if end != len(line):  # there are spaces around it, or it is not JSON
            record = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        found = f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "blank"
        raise ValueError(f"{rule}; it is {found}") from None
    except RecursionError:
        raise ValueError(f"{rule}; it is nested too deeply to be read") from None
    except ValueError as error:  # NaN; a number with thousands of digits
        raise ValueError(f"{rule}; {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{rule}; it is {shortened(record)}")  # noqa: TRY004
    if "\\u" in line and _SURROGATE.search(line):
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("its fields must be valid Unicode; one of them has a lone surrogate") from None
    return record


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"it has {name}, which is not JSON")


#: json.loads would make a new decoder for each line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
#: Reads a value that begins at an index, and returns its end. It takes less time than ``decode`` for a short line.
_scan = _DECODER.scan_once  # type: ignore[attr-defined]


def _csv_rows(path: Path, lines: _Lines, offset: int, names: list[str]) -> Iterator[Row]:
    csv.field_size_limit(_LARGEST_FIELD)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    # A byte that is not UTF-8 becomes a surrogate. It is found below, so it makes only its own row unusable.
    records = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), delimiter=delimiter, strict=True)
    try:
        if offset == 0:
            names[:] = next(filter(None, records), [])
            if not names or not _is_unicode("".join(names)):
                raise JobError(f"{path} must have a first line in UTF-8 with the names of the columns; it has not.")
        while True:
            before = lines.offset
            fields = next(records, None)
            if fields is None:
                return
            if not fields:  # a blank line is no row in CSV
                continue
            if len(fields) != len(names):
                yield Row(
                    before, None, f"it must have {len(names)} fields, as the first line has; it has {len(fields)}"
                )
            elif not _is_unicode("".join(fields)):
                yield Row(before, None, "it must be UTF-8; it is not")
            else:
                yield Row(before, dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise JobError(
            f"{path} must be CSV; the row that begins at byte {before if names else 0} is not: {error}. Is a quotation "
            "mark open?"
        ) from error


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value: one of the names in :data:`minibert.jobs.inputs.TYPES`."""
    kind = _KINDS.get(type(value))
    if kind is None:
        size = abs(value)
        kind = "int" if size <= _EXACT else "long" if size < 1 << 63 else "json"
    return kind


def common_kind(kinds: Collection[str]) -> str:
    """Return the kind that can hold values of all these kinds. ``"json"`` is the JSON text of any value."""
    found = set(kinds) - {"null"}
    if len(found) < 2:
        return next(iter(found), "null")
    return "long" if found == {"int", "long"} else "double" if found == {"int", "double"} else "json"


def stored(values: Iterable[Any]) -> list[str | None]:
    """Return JSON values as a column of the kind ``"json"`` has them: as JSON text, but for null."""
    dumps = functools.partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    return [None if value is None else dumps(value) for value in values]


def shortened(value: object) -> str:
    """Return ``value`` as JSON, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
