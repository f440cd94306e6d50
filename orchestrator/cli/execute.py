"""`cellblock exec` and `cellblock shell`: run a command in a live session, for people who debug it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from orchestrator.cli.kernelrows import ACT, Row, find_kernel, look
from orchestrator.cli.render import errors, plain, run_async
from orchestrator.cli.terminalfilter import TerminalFilter
from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.operator.controlsocket import ControlClient
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.printable import printable_lines
from orchestrator.settings import Settings

TIMED_OUT = 124  # as of `timeout` in coreutils
_READ = 32 * 1024  # bytes of input in one message
_SHELL = ["/bin/bash", "-i"]
_TERM = "xterm-256color"

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a kernel, session or agent, or its beginning.")]
Folder = Annotated[str, typer.Option("--cwd", help="The working directory; relative to /work.")]


def execute(
    name: Id,
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The program and its arguments.")],
    cwd: Folder = "",
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(help="The time limit in seconds. Default: 12 hours.")] = None,
) -> None:
    """Run a command in the sandbox of a live session, beside its cells. The audit log records who did it.

    Its stdin is this command's, unless that is a terminal. Ctrl-C sends it SIGINT. On a terminal, control characters of
    its output are shown as escapes; in a pipe or a file the output is unchanged.

    Exit status: the command's own; 124 if it exceeded its time limit; 1 if it did not run, 137 if its kernel died.

    Example: cellblock exec agent-1 -- ls -l /work
    """
    variables = dict(_variable(each) for each in env or [])
    request = {"command": command, "cwd": cwd, "env": variables, "timeout": timeout}
    raise typer.Exit(run_async(_run(name, request, interactive=False)))


def shell(name: Id, cwd: Folder = "") -> None:
    """Open an interactive shell in the sandbox of a live session, beside its cells. The audit log records who did it.

    It needs a terminal. Titles, clipboard access and other requests of the sandbox to the terminal itself are left out.

    Exit status: the shell's own; 1 if it could not be opened.

    Example: cellblock shell agent-1
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInputError(
            "`cellblock shell` needs a terminal.", remedy="For a single command, use `cellblock exec ID -- CMD`."
        )
    request = {"command": _SHELL, "cwd": cwd, "env": {"TERM": os.environ.get("TERM", _TERM)}, "terminal": _size()}
    raise typer.Exit(run_async(_run(name, request, interactive=True)))


async def _run(name: str, request: dict[str, Any], *, interactive: bool) -> int:
    row = find_kernel(await look(Settings.load()), name)
    control = row.control
    assert isinstance(control, ControlClient)  # of this host
    try:
        async with control.talk({"do": "exec", "kernel": row.kernel_id, **request}, ACT) as (reader, writer):
            first = await asyncio.wait_for(_receive(reader), ACT)
            if "error" in first:
                raise InvalidInputError(plain(str(first["error"])))
            with _raw_terminal() if interactive else contextlib.nullcontext():
                return await _Conversation(reader, writer, interactive=interactive).run()
    except (OSError, TimeoutError, ValueError) as error:
        if isinstance(error, CellblockError):
            raise
        raise _no_answer(row) from error


class _Conversation:
    """One command, between this terminal and its manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, interactive: bool) -> None:
        self._reader, self._writer = reader, writer
        self._interactive = interactive
        self._filter = TerminalFilter()

    async def run(self) -> int:
        """Return the exit status."""
        loop = asyncio.get_running_loop()
        if self._interactive:
            loop.add_signal_handler(signal.SIGWINCH, lambda: self._say({"size": _size()}))
        else:
            loop.add_signal_handler(signal.SIGINT, lambda: self._say({"signal": int(signal.SIGINT)}))
        feeding = asyncio.create_task(self._feed())
        try:
            while True:
                message = await _receive(self._reader)
                if "result" in message:
                    return _status(CommandResult.from_dict(message["result"]))
                if "data" in message:
                    self._print(str(message.get("name")), base64.b64decode(str(message["data"]), validate=True))
                elif "error" in message:
                    raise InvalidInputError(plain(str(message["error"])))
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def _say(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _feed(self) -> None:
        """Send what this command reads."""
        if sys.stdin is None or (not self._interactive and sys.stdin.isatty()):
            self._say({"end": True})
            return
        while data := await _read(sys.stdin.fileno()):
            self._say({"data": base64.b64encode(data).decode()})
            await self._writer.drain()
        self._say({"end": True})

    def _print(self, name: str, data: bytes) -> None:
        stream = sys.stderr if name == "stderr" else sys.stdout
        if self._interactive:
            data = self._filter.feed(data)
        elif stream.isatty():
            data = printable_lines(data.decode("utf-8", "replace")).encode()
        stream.buffer.write(data)
        stream.buffer.flush()


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the next message.

    Raises:
        ValueError: the connection has ended, or the message is malformed.
    """
    message = json.loads(await reader.readline())
    if not isinstance(message, dict):
        raise ValueError("the manager sent no object")
    return message


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except OSError:  # a file or /dev/null cannot be watched, and never blocks
        return await asyncio.to_thread(os.read, descriptor, _READ)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, _READ)


def _status(result: CommandResult) -> int:
    for warning in result.warnings:
        errors.print(plain(warning), style="yellow", markup=False)
    if result.timed_out:
        errors.print("the command exceeded its time limit, and was killed", style="yellow")
        return TIMED_OUT
    if result.kernel_state == "dead":
        errors.print(f"the session's kernel is gone ({result.outcome})", style="yellow")
        return 128 + signal.SIGKILL
    return 1 if result.exit_code is None else result.exit_code


def _variable(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{plain(text)!r} is not NAME=VALUE.")
    return name, value


def _size() -> list[int]:
    size = os.get_terminal_size(sys.stdin.fileno())  # not what COLUMNS says
    return [size.lines, size.columns]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key on, unchanged, while the body runs."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _no_answer(row: Row) -> InvalidInputError:
    return InvalidInputError(
        f"the connection to {row.control} failed, or ended.",
        remedy="Its process has ended or hangs: `cellblock ps` shows whether it answers again.",
    )
