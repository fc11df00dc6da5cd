"""Texts of others on a terminal: nothing in them is obeyed."""

import re

#: What moves a terminal's cursor, sets its state or turns its writing around; what ends a line; and lone surrogates,
#: which no encoding has.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text`` with escapes, such as ``\x1b``, for what a terminal would obey."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable_json(text: str) -> str:
    r"""Return JSON with JSON's own escapes, such as ``\u009b``, for the same characters: it means what it meant.

    JSON itself escapes only some of them. Ends of lines stay: they can only be between its tokens.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
