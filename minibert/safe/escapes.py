"""Escaping of untrusted text for a terminal."""

import re

#: Characters that move the cursor, change the terminal's state or writing direction, or end a line; and lone
#: surrogates, which cannot be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text`` with escapes, such as ``\x1b``, for the characters that control a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable_json(text: str) -> str:
    r"""Return JSON with JSON's own escapes, such as ``\u009b``, for the same characters. Its value does not change.

    JSON itself escapes only some of them. Newlines stay: in JSON, they are always between tokens.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
