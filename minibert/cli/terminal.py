"""Texts of others, on a terminal: nothing in them is obeyed, and they fit a line."""

import re
import unicodedata

#: What moves a terminal's cursor, sets its state or turns its writing around; and whatever ends a line.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return ``text`` with escapes, such as ``\x1b``, for what a terminal would obey."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


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
