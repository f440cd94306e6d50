"""Prepares untrusted text for a terminal: text from a workbook, from a sandbox or from a file name."""

from __future__ import annotations

from rich.text import Text


def clean(text: str, longest: int = 100) -> str:
    """Return one line of at most ``longest`` characters, with a dot for each character that is not printable."""
    shown = "".join(character if character.isprintable() else "·" for character in text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def plain(text: str, style: str = "", longest: int = 100) -> Text:
    """Return cleaned text for rich, which would parse a ``str`` as markup."""
    return Text(clean(text, longest), style=style)
