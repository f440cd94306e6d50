"""Answers a script's ``input()`` from this command's own standard input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
from collections.abc import Iterator

from rich.markup import escape

from orchestrator.cli.render import errors, plain
from orchestrator.output.events import InputRequest

_STANDARD_INPUT = 0
_LINE_FEED = 10
_READ = 4096  # bytes at once; a terminal gives a line at most


class Prompt:
    """The lines of standard input, one for each question. Its descriptor stays blocking: a terminal is shared."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    async def answer(self, request: InputRequest) -> str:
        """Show a question, as the script's own and none of this command's, and return the next line.

        Raises:
            EOFError: there is none.
        """
        if sys.stdin is None:  # it was closed, and its descriptor may be another's by now
            raise EOFError
        errors.print(f"[dim]the script asks:[/] {escape(plain(request.prompt))}", end="")
        with _unseen(_STANDARD_INPUT) if request.password else contextlib.nullcontext():
            while _LINE_FEED not in self._buffer:
                await _readable(_STANDARD_INPUT)
                data = os.read(_STANDARD_INPUT, _READ)
                if not data:
                    break
                self._buffer += data
        line, found, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        if not line and not found:
            raise EOFError
        return line.decode(errors="replace")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except OSError:  # a file and /dev/null cannot be watched, and never wait
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _unseen(descriptor: int) -> Iterator[None]:
    """Have a terminal not show what is typed, as long as the body runs."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
        errors.print()
