"""Shared by all commands: the consoles, tables, JSON, errors, removing control characters, and running async work."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.errors import CellblockError
from orchestrator.output.printable import CONTROL

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False)

INTERRUPTED = 130


def complain(error: CellblockError) -> None:
    """Print an error and its remedy to stderr."""
    errors.print(f"[bold red]cellblock:[/] {escape(plain(error.message))}")
    if error.remedy:
        errors.print(f"  {escape(plain(error.remedy))}")


def show_table(table: Table) -> None:
    """Print a table: with lines on a terminal, elsewhere as plain columns that are never wrapped or truncated."""
    if console.is_terminal:
        console.print(table)
        return
    if table.title:
        typer.echo(_cell(table.title))
    rows = [[_cell(column.header), *map(_cell, column.cells)] for column in table.columns]
    widths = [max(map(len, column)) for column in rows]
    for row in zip(*rows, strict=True):
        typer.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(cell: Any) -> str:
    text = cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    return " ".join(plain(text.plain).split())


def shorten(text: str, length: int) -> str:
    """Return at most ``length`` characters of ``text`` for a table on a terminal, and all of it elsewhere."""
    return text if len(text) <= length or not console.is_terminal else text[: length - 1] + "…"


def show_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))


def plain(text: str) -> str:
    """Return hostile text without control characters, and with carriage returns replaced by line feeds.

    The controls of the writing direction are removed too: with them, text can look like other text.
    """
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run async work and return its result. Ctrl-C cancels it, waits for its cleanup, and exits with status 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        errors.print("interrupted; everything was cleaned up", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
