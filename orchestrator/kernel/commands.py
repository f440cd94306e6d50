"""A process that a kernel runs for the host, beside its cells. The kernel reports it, so all of it is a claim.

Output travels on the control channel, at most ``WINDOW`` bytes ahead of what the host has taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import text
from orchestrator.output.fileinfo import ChangedFile, parse_changes
from orchestrator.output.outputs import StreamName
from orchestrator.output.printable import printable

WINDOW = 1024 * 1024  # bytes of output that the kernel may send before the host has taken any
INPUT_PIECE = 256 * 1024  # bytes
_LARGEST_PIECE = 512 * 1024  # bytes of output in one message; an honest kernel sends half of that
_LONGEST_REASON = 200  # characters
_LONGEST_MESSAGE = 16 * 1024  # bytes of a message's JSON in memory
_LONGEST_END = 2 * 1024 * 1024  # bytes of the JSON in memory of a message that names changed files


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """What to run.

    Attributes:
        argv: the program and its arguments.
        cwd: absolute path of its working directory.
        env: variables that are added to those of the sandbox.
        input: what it reads from stdin first.
        keeps_stdin: whether more input may follow; otherwise stdin ends after ``input``.
        terminal: rows and columns of a terminal for it; None for pipes.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    input: bytes = b""
    keeps_stdin: bool = False
    terminal: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StartRefused:
    """Why a process could not be started.

    Attributes:
        errno: the system's number; 0 where the kernel named none.
        folder: whether its working directory is the cause.
        reason: the system's text.
    """

    errno: int
    folder: bool
    reason: str


class RemoteProcess:
    """One process. Used once.

    Args:
        on_start: called once, with its process id in the sandbox, or with why it could not be started.
        on_output: called with each piece of output. Call ``take`` once it is used.
        on_end: called once, with the exit code (negative for a signal), or None if the kernel does not know it; with
            the changed files; and with how many more there are.
    """

    def __init__(
        self,
        kernel: Kernel,
        on_start: Callable[[int | StartRefused], None],
        on_output: Callable[[StreamName, bytes], None],
        on_end: Callable[[int | None, tuple[ChangedFile, ...], int], None],
    ) -> None:
        self._kernel = kernel
        self._on_start = on_start
        self._on_output = on_output
        self._on_end = on_end
        self._token = secrets.token_hex(8)
        self._message_id = ""
        self._room = WINDOW  # bytes that the kernel may still send
        self._owed = 0  # bytes that are taken, and that the kernel does not know of
        self._started = self._ended = False

    def send(self, spec: CommandSpec) -> None:
        """Ask the kernel to start the process.

        Raises:
            KernelDiedError: the kernel is gone.
        """
        content = {
            "id": self._token,
            "argv": [_coded(each) for each in spec.argv],
            "cwd": _coded(spec.cwd),
            "env": {_coded(key): _coded(value) for key, value in spec.env.items()},
            "terminal": spec.terminal,
            "input": bool(spec.input) or spec.keeps_stdin,
            "stdin": spec.keeps_stdin or len(spec.input) > INPUT_PIECE,
            "window": WINDOW,
        }
        first = (spec.input[:INPUT_PIECE],) if spec.input else ()
        kind = "command_start_request"
        self._message_id = self._kernel.send("control", kind, content, self._receive, first, accept=_accept)

    def take(self, size: int) -> None:
        """Let the kernel send ``size`` more bytes. It is told once half of the window is taken."""
        self._owed += size
        self._room += size
        if self._owed >= WINDOW // 2 and not self._ended:
            self._say("command_taken_request", {"bytes": self._owed})
            self._owed = 0

    async def write(self, data: bytes, *, last: bool) -> bool:
        """Write to its stdin, and wait until it has room for that. The caller bounds the wait.

        Returns:
            False if it has closed its stdin, or has ended.

        Raises:
            KernelDiedError: the kernel died.
        """
        pieces = [data[start : start + INPUT_PIECE] for start in range(0, len(data), INPUT_PIECE)] or [b""]
        for number, piece in enumerate(pieces, start=1):
            content = {"id": self._token, "last": last and number == len(pieces)}
            reply = await self._kernel.request(
                "control", "command_input_request", content, timeout=None, buffers=(piece,)
            )
            if reply.content.get("taken") is not True:
                return False
        return True

    def signal(self, number: int) -> None:
        """Send it a signal, and its process group; SIGKILL to every process that it has started."""
        self._say("command_signal_request", {"signal": number})

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        self._say("command_resize_request", {"rows": rows, "columns": columns})

    def forget(self) -> None:
        """Listen to nothing more of it."""
        self._ended = True
        self._kernel.forget(self._message_id)

    def _say(self, kind: str, content: dict[str, Any]) -> None:
        if self._kernel.is_alive:
            sent = self._kernel.send("control", kind, {"id": self._token, **content}, lambda _message: None)
            self._kernel.forget(sent)

    def _receive(self, message: Message) -> None:
        if message.channel != "control" or self._ended:
            return
        if message.kind == "command_start_reply":
            self._note_start(message.content)
        elif message.kind == "command_output":
            self._note_output(message)
        elif message.kind == "command_end":
            self.forget()
            self._on_end(
                _exit_code(message.content.get("exit_code")), *parse_changes(message.content.get("changed_files"))
            )

    def _note_start(self, content: dict[str, Any]) -> None:
        if self._started:
            return
        self._started = True
        number = content.get("pid")
        if content.get("status") == "ok" and isinstance(number, int):
            self._on_start(number)
            return
        errno = content.get("errno")
        reason = printable(text(content.get("reason")), _LONGEST_REASON) or "no reason given"
        self._on_start(StartRefused(errno if isinstance(errno, int) else 0, content.get("folder") is True, reason))

    def _note_output(self, message: Message) -> None:
        """Take a piece of output. What a kernel sends beyond its window is dropped: an honest one waits."""
        name = message.content.get("stream")
        piece = bytes(message.buffers[0]) if message.buffers else b""
        if name not in ("stdout", "stderr") or not 0 < len(piece) <= min(_LARGEST_PIECE, self._room):
            return
        self._room -= len(piece)
        self._on_output(name, piece)


def _accept(kind: str, size: int) -> bool:
    """Return whether to parse a message. Output is a buffer; only changed files may take many bytes."""
    return size <= (_LONGEST_END if kind == "command_end" else _LONGEST_MESSAGE)


def stop_all_commands(kernel: Kernel) -> None:
    """Have a kernel kill the commands that another process has started."""
    if kernel.is_alive:
        kernel.forget(kernel.send("control", "command_reset_request", {}, lambda _message: None))


def _coded(value: str) -> str:
    """Return a text of a process for JSON: each byte of it as one character."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _exit_code(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and -64 <= value <= 255 else None
