"""Reading of texts and questions from lines or JSON lines. Each has its line number in the file."""

import codecs
import contextlib
import itertools
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

#: The characters between the tokens of JSON.
_SPACE = " \t\r\n"


class Line(NamedTuple):
    """A text from a line of the input.

    Attributes:
        text: The text.
        fields: The JSON object of a JSON line as it is written, without the closing brace and without an ``embedding``
            field. None for a line of a text file, or if fields were not requested.
    """

    text: str
    fields: str | None = None


def as_fields(line: Line) -> str:
    """Return the fields of a line, or else its text, as a JSON object without the closing brace."""
    return f'{{"text":{json.dumps(line.text, ensure_ascii=False)}' if line.fields is None else line.fields


def read_texts(source: str, kind: str) -> list[str]:
    """Return the texts in the file ``source``. ``"-"`` is standard input.

    Args:
        source: The file.
        kind: ``"text"``: each line is a text, even a blank line. ``"jsonl"``: each line is a JSON object with a
            ``text`` field.

    Raises:
        ValueError: A line is not UTF-8, or a JSON line has no text; the message has the line number.
    """
    with _open(source) as (name, file):
        return [line.text for line in _lines(name, file, kind)]


@contextlib.contextmanager
def open_lines(source: str, kind: str, *, with_fields: bool) -> Iterator[tuple[Iterator[Line], int | None]]:
    """Give the lines of the input one by one, and their number. It is None for a pipe, because its end is unknown.

    A regular file is read twice: all lines are checked before the first line is given. A line from a pipe is checked
    when it is read.

    Args:
        source: As in :func:`read_texts`.
        kind: As in :func:`read_texts`.
        with_fields: Whether to give the fields of JSON lines.

    Raises:
        ValueError: As in :func:`read_texts`.
    """
    with _open(source) as (name, file):
        count = None
        if _is_regular(file):
            start = file.tell()
            count = sum(1 for _ in _lines(name, file, kind))
            file.seek(start)
        yield _lines(name, file, kind, with_fields=with_fields), count


def read_questions() -> Iterator[str]:
    """Yield the lines of standard input that are not blank, each as soon as it arrives.

    Raises:
        ValueError: A line is not UTF-8; the message has the line number.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        sys.stderr.write("minibert: reading questions from the terminal, one a line; Ctrl-D ends them\n")
    for number in itertools.count(1):
        if is_terminal:
            sys.stderr.write("? ")
            sys.stderr.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            break
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        question = _line(f"standard input: line {number}", line.removesuffix(b"\n").removesuffix(b"\r"))
        if question.strip():
            yield question
    if is_terminal:
        sys.stderr.write("\n")


@contextlib.contextmanager
def _open(source: str) -> Iterator[tuple[str, BinaryIO]]:
    """Give the name of the input for messages, and the input."""
    if source == "-":
        if sys.stdin.isatty():
            sys.stderr.write("minibert: reading texts from the terminal, one a line; Ctrl-D ends them\n")
        yield "standard input", sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield source, file


def _is_regular(file: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # a stream in memory has no file descriptor
        return False


def _lines(name: str, file: BinaryIO, kind: str, *, with_fields: bool = False) -> Iterator[Line]:
    """Yield the lines of a file."""
    # Use the file's own lines, not str.splitlines: in JSON and in other tools, U+2028 and similar do not end a line.
    for number, line in enumerate(file, 1):
        content = line
        if number == 1:
            content = line.removeprefix(codecs.BOM_UTF8)
            if not content:  # only the byte order mark
                continue
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        where = f"{name}: line {number}"
        yield _record(where, content, with_fields=with_fields) if kind == "jsonl" else Line(_line(where, content))


def _line(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} must be UTF-8; its byte {error.start + 1}, 0x{line[error.start]:02x}, is not. "
            "Convert the file, for example with iconv."
        ) from None


def _record(where: str, line: bytes, *, with_fields: bool) -> Line:
    rule = f'{where} must be a JSON object with a "text" field'
    content = _line(where, line)
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        found = f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "blank"
        raise ValueError(f"{rule}; it is {found}.") from None
    except RecursionError:
        raise ValueError(f"{rule}; it is nested too deeply to be read.") from None
    match record:
        case {"text": str(text)}:
            fields = _without_embedding(content, record) if with_fields else None
            return Line(_without_surrogates(where, text), fields)
        case {"text": other}:
            raise ValueError(f"{where} must have a string in its text field; it has {_shortened(other)}.")
        case dict():
            raise ValueError(f"{rule}; its fields are {', '.join(map(_shortened, record)) or 'none'}.")
        case _:
            raise ValueError(f"{rule}; it is {_shortened(record)}.")


def _without_embedding(content: str, record: Mapping[str, Any]) -> str:
    """Return a JSON object as it is written, without the closing brace and without the field ``embedding``."""
    if "embedding" not in record:
        return content.strip(_SPACE)[:-1].rstrip(_SPACE)
    return "{" + ",".join(field for name, field in _fields(content) if name != "embedding")


def _fields(content: str) -> Iterator[tuple[str, str]]:
    """Yield each field of a valid JSON object that is not empty: its name and its JSON text."""
    decoder = json.JSONDecoder()
    end = content.index("{")
    while content[end] != "}":
        start = _after_space(content, end + 1)
        name, end = decoder.raw_decode(content, start)
        _, end = decoder.raw_decode(content, _after_space(content, content.index(":", end) + 1))
        yield name, content[start:end]
        end = _after_space(content, end)


def _after_space(content: str, start: int) -> int:
    while content[start] in _SPACE:
        start += 1
    return start


def _without_surrogates(where: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} must have valid Unicode in its text field; character {error.start + 1} is a lone "
            f"surrogate, {text[error.start]!r}."
        ) from None
    return text


def _shortened(value: object) -> str:
    """Return ``value`` as JSON, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
