"""Lines that fit a terminal."""

import unicodedata


def cut(line: str, width: int) -> str:
    """Return ``line``, shortened with an ellipsis to ``width`` columns of a terminal."""
    columns = end = 0
    for position, character in enumerate(line, 1):
        columns += _columns(character)
        if columns > width:
            return f"{line[:end]}…"
        if columns < width:  # there is space for an ellipsis
            end = position
    return line


def columns_of(text: str) -> int:
    """Return the number of terminal columns of a text."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    """Return the number of terminal columns of a character."""
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
