"""What the commands share: consoles, one way to complain, and one way to run async work under Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.errors import CellblockError

T = TypeVar("T")

_WIDE = 200  # columns where the output goes to no terminal: one for 80 would cut every cell of a table

console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE)
errors = Console(stderr=True, highlight=False)

INTERRUPTED = 130
# All control characters but tab and line feed: a sandbox could move the cursor, rename the window or fake a prompt.
# And what is no character: half a surrogate pair cannot be written, U+FFFE and U+FFFF not read back from XML.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def complain(error: CellblockError) -> None:
    """Print what went wrong and what to do about it, on stderr."""
    errors.print(f"[bold red]cellblock:[/] {escape(plain(error.message))}")
    if error.remedy:
        errors.print(f"  {escape(plain(error.remedy))}")


def plain(text: str) -> str:
    """Return hostile text as a terminal may show it: no control characters, carriage returns as line feeds."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run async work; Ctrl-C ends it in order, and the command with status 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        errors.print("interrupted; nothing is left behind", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
