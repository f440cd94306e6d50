"""Showing text that nobody vouches for: from a workbook, from a sandbox, or from a file's name."""

from __future__ import annotations

from rich.text import Text


def clean(text: str, longest: int = 100) -> str:
    """One line of printable characters; a dot stands for each escape code, line break or mark that turns the text."""
    shown = "".join(character if character.isprintable() else "·" for character in text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def plain(text: str, style: str = "", longest: int = 100) -> Text:
    """The same for rich, which would take a ``str`` for markup."""
    return Text(clean(text, longest), style=style)
