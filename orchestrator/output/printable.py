"""Makes hostile text safe for log lines, messages and terminals. Pure.

What a terminal obeys or a reader would misread is shown as an escape: control characters (ESC and with it all ANSI and
OSC codes), line breaks, controls of the writing direction, lone surrogates.
"""

from __future__ import annotations

import re

_LONGEST = 500  # characters
# Controls other than tab and line feed. U+061C, U+200E, U+200F, U+202A to U+202E and
# U+2066 to U+2069 reorder what is shown; U+2028 and U+2029 are line breaks for some; XML allows no U+FFFE and U+FFFF.
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return hostile text as one printable line of at most ``longest`` characters of the text.

    Every character that is not printable is escaped as in a Python string, such as ``\\n`` and ``\\u202e``.
    """
    text = text[:longest]
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Return hostile text with its line breaks and tabs, and every other control character escaped.

    An escape has four digits, such as ``\\u001b``, and means the same in JSON and in Python.
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
