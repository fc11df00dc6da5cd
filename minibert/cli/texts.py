"""The texts and questions that a command is given: lines, or JSON lines, each with its number in the file."""

import codecs
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path


def read_texts(source: str, kind: str) -> list[str]:
    """Return the texts in the file ``source``, or in standard input if that is ``"-"``.

    Args:
        source: The file.
        kind: ``"text"``: each line is a text, also a blank one. ``"jsonl"``: each line is a JSON object with a
            ``text`` field.

    Raises:
        ValueError: A line is not UTF-8 or, of JSON lines, has no text; the message has its number.
    """
    name, content = ("standard input", _standard_input()) if source == "-" else (source, Path(source).read_bytes())
    # Never str.splitlines: to JSON, and to every other tool, U+2028 and its like do not end a line.
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1]:
        lines.pop()
    parse = _text_field if kind == "jsonl" else _line
    return [parse(f"{name}: line {number}", line.removesuffix(b"\r")) for number, line in enumerate(lines, 1)]


def read_questions() -> Iterator[str]:
    """Yield the lines of standard input that are not blank, each as soon as it is there.

    Raises:
        ValueError: A line is not UTF-8; the message has its number.
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


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        sys.stderr.write("minibert: reading texts from the terminal, one a line; Ctrl-D ends them\n")
    return sys.stdin.buffer.read()


def _line(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} must be UTF-8; its byte {error.start + 1}, 0x{line[error.start]:02x}, is not. "
            "Convert the file, for example with iconv."
        ) from None


def _text_field(where: str, line: bytes) -> str:
    rule = f'{where} must be a JSON object with a "text" field'
    try:
        record = json.loads(_line(where, line))
    except json.JSONDecodeError as error:
        found = f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "blank"
        raise ValueError(f"{rule}; it is {found}.") from None
    except RecursionError:
        raise ValueError(f"{rule}; it is nested too deeply to be read.") from None
    match record:
        case {"text": str(text)}:
            return _without_surrogates(where, text)
        case {"text": other}:
            raise ValueError(f"{where} must have a string in its text field; it has {_shortened(other)}.")
        case dict():
            raise ValueError(f"{rule}; its fields are {', '.join(map(_shortened, record)) or 'none'}.")
        case _:
            raise ValueError(f"{rule}; it is {_shortened(record)}.")


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
    """Return ``value`` as JSON, not too long for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
