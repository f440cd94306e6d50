"""Shared by all commands: the consoles, printing an error, removing control characters, and running async work."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.errors import CellblockError
from orchestrator.output.printable import CONTROL

T = TypeVar("T")

_WIDE = 200  # columns if the output is not a terminal; 80 would truncate the tables

console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE)
errors = Console(stderr=True, highlight=False)

INTERRUPTED = 130


def complain(error: CellblockError) -> None:
    """Print an error and its remedy to stderr."""
    errors.print(f"[bold red]cellblock:[/] {escape(plain(error.message))}")
    if error.remedy:
        errors.print(f"  {escape(plain(error.remedy))}")


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
