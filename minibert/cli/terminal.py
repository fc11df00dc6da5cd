"""Lines that fit a terminal."""

import unicodedata


def cut(line: str, width: int) -> str:
    """Return ``line``, cut with an ellipsis to what fits in ``width`` columns of a terminal."""
    columns = end = 0
    for position, character in enumerate(line, 1):
        columns += _columns(character)
        if columns > width:
            return f"{line[:end]}…"
        if columns < width:  # an ellipsis would fit as well
            end = position
    return line


def _columns(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
