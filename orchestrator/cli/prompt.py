"""Answers a script's ``input()`` from the standard input of `cellblock run`."""

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
_READ = 4096  # bytes per read; a terminal returns at most one line


class Prompt:
    """Answers each question with the next line of standard input.

    The descriptor stays blocking, because other processes may share the terminal.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    async def answer(self, request: InputRequest) -> str:
        """Show the question, marked as the script's, and return the next line of standard input.

        Raises:
            EOFError: standard input has no more lines.
        """
        if sys.stdin is None:  # closed at startup: another file may have its descriptor by now
            raise EOFError
        errors.print(f"[dim]the script asks:[/] {escape(plain(request.prompt))}", end="")
        with _echo_off(_STANDARD_INPUT) if request.password else contextlib.nullcontext():
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
    except OSError:  # a file or /dev/null cannot be watched, and never blocks
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _echo_off(descriptor: int) -> Iterator[None]:
    """Turn a terminal's echo off while the body runs."""
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
