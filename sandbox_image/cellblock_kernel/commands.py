"""Commands beside cells: start processes for the host, pass on what they write, and report their end.

A command runs in a process session of its own. The host allows each command so many bytes of output that it has not
acknowledged yet; a command that writes more has to wait. Everything here runs in the control thread, which never waits
for a process.

Texts of a process (arguments, variables, paths) are bytes. In JSON, each byte is one character (Latin-1).
"""

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Callable, Sequence
from os import (
    WNOHANG,
    close,
    kill,
    killpg,
    pidfd_open,
    pipe,
    read,
    set_blocking,
    waitpid,
    waitstatus_to_exitcode,
    write,
)
from signal import SIGKILL
from time import monotonic
from typing import Any

from cellblock_kernel.changedfiles import ChangedFiles
from cellblock_kernel.files import decoded
from cellblock_kernel.originals import BUILTINS
from cellblock_kernel.orphans import Orphans, parents_first, processes

__builtins__ = BUILTINS

PIECE = 256 * 1024  # bytes of output in one message
PIPE = 256 * 1024  # bytes that a pipe holds, where the system allows that
LINGER = 0.25  # seconds in which output still counts after the process has ended: of `tee`, for example
PAUSES = (0.0005, 0.05)  # seconds between two looks whether a process has ended: at first, and at most
UNREAD = 1 << 40  # bytes of output that nobody reads
MOST_ROUNDS = 10  # looks for processes to kill: one that forks all the time may escape a look

Popen = subprocess.Popen
Say = Callable[[str, dict[str, Any], Sequence[bytes]], None]


class Commands:
    """The commands that run.

    Args:
        send: sends the host a message: kind, content, the request that it belongs to, the sender of that request, and
            buffers.
    """

    def __init__(self, send: Callable[..., None], orphans: Orphans, changed_files: ChangedFiles) -> None:
        self._send = send
        self._orphans = orphans
        self._changed_files = changed_files
        self._running: dict[str, Command] = {}
        self.handlers = {
            "command_start_request": self._start,
            "command_input_request": self._input,
            "command_taken_request": self._taken,
            "command_signal_request": self._signal,
            "command_resize_request": self._resize,
            "command_reset_request": self._reset,
        }

    def _start(self, ident: Any, parent: Any) -> None:
        """Start a process.

        The request has "id", "argv", "cwd", "env" (added to the kernel's own variables at its start), "terminal" (rows
        and columns, or None), "stdin" (whether input may follow) and "window" (bytes); the first input is its buffer.
        """
        request = parent["content"]

        def say(kind: str, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
            self._send(kind, content, parent, ident, buffers)

        before = self._changed_files.begin()

        def end(exit_code: int | None) -> None:
            self._running.pop(request["id"], None)
            say("command_end", {"exit_code": exit_code, "changed_files": self._changed_files.end(before)})

        command = Command(say, request["window"], end)
        try:
            command.start(request, bytes(parent["buffers"][0]) if parent["buffers"] else b"", self._orphans)
        except OSError as error:
            command.release()
            folder = error.filename == command.folder and command.argv[:1] != [command.folder]
            reason = error.strerror or str(error)
            say("command_start_reply", {"status": "error", "errno": error.errno, "folder": folder, "reason": reason})
            return
        self._running[request["id"]] = command
        say("command_start_reply", {"status": "ok", "pid": command.pid})

    def _input(self, ident: Any, parent: Any) -> None:
        request = parent["content"]

        def answer(*, taken: bool) -> None:
            self._send("command_input_reply", {"taken": taken}, parent, ident, ())

        if (command := self._running.get(request["id"])) is None:
            answer(taken=False)
        else:
            command.feed(bytes(parent["buffers"][0]) if parent["buffers"] else b"", request["last"], answer)

    def _taken(self, _ident: Any, parent: Any) -> None:
        if (command := self._running.get(parent["content"]["id"])) is not None:
            command.allow(parent["content"]["bytes"])

    def _signal(self, ident: Any, parent: Any) -> None:
        request = parent["content"]
        if (command := self._running.get(request["id"])) is not None:
            command.signal(request["signal"])
        self._send("command_signal_reply", {"runs": command is not None}, parent, ident, ())

    def _resize(self, _ident: Any, parent: Any) -> None:
        if (command := self._running.get(parent["content"]["id"])) is not None:
            command.resize(parent["content"]["rows"], parent["content"]["columns"])

    def _reset(self, _ident: Any, _parent: Any) -> None:
        """Kill all: the process that has started them is gone."""
        for command in list(self._running.values()):
            command.signal(SIGKILL)
            command.allow(UNREAD)


class Command:
    """One command.

    Args:
        say: sends the host a message about it.
        window: bytes of output that the host takes at once.
        on_end: called once it is over, with its exit code, if that is known.
    """

    pid = 0
    _master = -1  # the host's side of a terminal

    def __init__(self, say: Say, window: int, on_end: Callable[[int | None], object]) -> None:
        self.argv: list[bytes] = []
        self.folder = b""
        self._say = say
        self._window = window
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._outputs: dict[str, int] = {}  # file descriptors, by "stdout" and "stderr"
        self._owed: dict[str, int] = {}  # bytes that were in each pipe when the process ended
        self._stdin = -1
        self._input: deque[tuple[memoryview, Callable[..., None]]] = deque()
        self._closes_input = False
        self._paused = False
        self._pause = PAUSES[0]
        self._look_timer: asyncio.TimerHandle | None = None
        self._handle = -1  # becomes readable when the process ends
        self._ended_at: float | None = None
        self._exit_code: int | None = None
        self._over = False

    # Starting

    def start(self, request: dict[str, Any], first: bytes, orphans: Orphans) -> None:
        """Start the process.

        Raises:
            OSError: it cannot be started.
        """
        self.argv, self.folder = [decoded(text) for text in request["argv"]], decoded(request["cwd"])
        environment = {**INITIAL, **{decoded(key): decoded(value) for key, value in request["env"].items()}}
        ends: list[int] = []
        try:
            given = self._terminal(request["terminal"], ends) if request["terminal"] else self._pipes(request, ends)
            argv = [*SET_TERMINAL, *self.argv] if request["terminal"] else self.argv
            process = Popen(argv, cwd=self.folder, env=environment, start_new_session=True, **given)
        finally:
            for end in ends:
                close(end)
        self.pid, process.returncode = process.pid, 0  # else its finalizer would wait for the process
        orphans.keep_session(self.pid)
        for name in self._outputs:
            self._loop.add_reader(self._outputs[name], self._read, name)
        if self._stdin >= 0:
            self.feed(first, not request["stdin"], lambda **_: None)
        try:
            self._handle = pidfd_open(self.pid)
            self._loop.add_reader(self._handle, self._look)
        except OSError:  # gVisor has no such call
            self._look_timer = self._loop.call_later(self._pause, self._look)

    def _pipes(self, request: dict[str, Any], ends: list[int]) -> dict[str, Any]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        for name in ("stdout", "stderr"):
            self._outputs[name], given[name] = pipe()
            ends.append(given[name])
            set_blocking(self._outputs[name], False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(given[name], fcntl.F_SETPIPE_SZ, PIPE)
        if request["input"]:
            given["stdin"], self._stdin = pipe()
            ends.append(given["stdin"])
            set_blocking(self._stdin, False)
        return given

    def _terminal(self, size: Sequence[int], ends: list[int]) -> dict[str, Any]:
        self._master, slave = os.openpty()
        ends.append(slave)
        self._outputs["stdout"], self._stdin = self._master, os.dup(self._master)
        for end in (self._master, self._stdin):
            set_blocking(end, False)
        self.resize(*size)
        return {"stdin": slave, "stdout": slave, "stderr": slave}

    # Input

    def feed(self, data: bytes, last: bool, answer: Callable[..., None]) -> None:
        """Write input. ``answer`` is called once the process has room for it, or takes no more."""
        if self._stdin < 0:
            answer(taken=False)
            return
        if last and self._master >= 0:
            data += b"\x04"  # what a terminal takes for the end of its input
        else:
            self._closes_input = self._closes_input or last
        self._input.append((memoryview(data), answer))
        self._write()

    def _write(self) -> None:
        while self._input:
            data, answer = self._input.popleft()
            try:
                written = write(self._stdin, data) if data else 0
            except BlockingIOError:
                written = 0
            except OSError:
                answer(taken=False)
                self._close_input()
                return
            if written < len(data):
                self._input.appendleft((data[written:], answer))
                self._loop.add_writer(self._stdin, self._write)
                return
            answer(taken=True)
        self._loop.remove_writer(self._stdin)
        if self._closes_input:
            self._close_input()

    def _close_input(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            close(self._stdin)
            self._stdin = -1
        while self._input:
            self._input.popleft()[1](taken=False)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        if self._master >= 0 and not self._over:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    # Output

    def allow(self, size: int) -> None:
        """Send the host ``size`` more bytes."""
        self._window += size
        if self._paused and self._window > 0 and not self._over:
            self._paused = False
            for name, output in self._outputs.items():
                self._loop.add_reader(output, self._read, name)

    def _read(self, name: str) -> None:
        try:
            data = read(self._outputs[name], min(PIECE, self._window))
        except BlockingIOError:
            return
        except OSError:  # a terminal that no process has open any more
            data = b""
        if not data:
            self._close_output(name)
            self._look()
            return
        self._owed[name] = max(0, self._owed.get(name, 0) - len(data))
        self._window -= len(data)
        self._say("command_output", {"stream": name}, (data,))
        if self._window <= 0:
            self._paused = True
            for output in self._outputs.values():
                self._loop.remove_reader(output)

    def _close_output(self, name: str) -> None:
        output = self._outputs.pop(name)
        self._loop.remove_reader(output)
        close(output)

    # Its end

    def signal(self, number: int) -> None:
        """Send a signal to its process group. SIGKILL goes to every process that it has started."""
        if number == SIGKILL:
            self._kill_all()
        elif self._ended_at is None:
            with contextlib.suppress(ProcessLookupError):
                killpg(self.pid, number)
        self._pause = PAUSES[0]
        self._look()

    def _kill_all(self) -> None:
        """Kill its processes. First look, then kill: without its parent, one of another session is not found.

        Parents die before their children: a shell whose child is killed goes on with its next command.
        """
        for _ in range(MOST_ROUNDS):
            killed = [_killed(pid) for pid in self._members()]
            if not any(killed):
                break

    def _members(self) -> list[int]:
        """Return the process, those of its group and of its session, and all their descendants, parents first."""
        found = processes()
        parents = {each.pid: each.parent for each in found}
        mine = {each.pid for each in found if self.pid in (each.pid, each.group, each.session)}
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return parents_first(mine, parents)

    def _look(self) -> None:
        """Look whether the process has ended, and report that once its output is complete."""
        if self._over:
            return
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._ended_at is None:
            self._find_end()
        if self._ended_at is not None and (not self._outputs or self._is_quiet()):
            self._finish()
            return
        if self._handle >= 0 and self._ended_at is None:
            return  # it will be called again
        self._look_timer = self._loop.call_later(self._pause, self._look)
        self._pause = min(2 * self._pause, PAUSES[1])

    def _find_end(self) -> None:
        try:
            ended, status = waitpid(self.pid, WNOHANG)
        except ChildProcessError:  # a cell has waited for any child, and has its status
            ended, status = self.pid, None
        if ended:
            self._close_handle()
            self._ended_at = monotonic()
            self._exit_code = None if status is None else waitstatus_to_exitcode(status)
            self._owed = {name: _waiting(output) for name, output in self._outputs.items()}

    def _close_handle(self) -> None:
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            close(self._handle)
            self._handle = -1

    def _is_quiet(self) -> bool:
        """Return whether only processes that it has left behind may still write."""
        assert self._ended_at is not None
        return monotonic() > self._ended_at + LINGER and not self._paused and not any(self._owed.values())

    def _finish(self) -> None:
        self._over = True
        for output in self._outputs.values():  # what is left behind may go on writing, to nobody
            self._loop.add_reader(output, _drain, self._loop, output)
        self._outputs.clear()
        self._close_input()
        self._on_end(self._exit_code)

    def release(self) -> None:
        """Close its file descriptors. Called when it could not be started."""
        self._close_input()
        for name in list(self._outputs):
            self._close_output(name)


# Makes its standard input its controlling terminal, then becomes the program. gVisor needs the ioctl: to open the
# terminal is not enough there.
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(f"cellblock: {sys.argv[1]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""
SET_TERMINAL = (os.fsencode(sys.executable), b"-I", b"-S", b"-c", TAKE_TERMINAL.encode())
INITIAL = {os.fsencode(key): os.fsencode(value) for key, value in os.environ.items()}


def _killed(pid: int) -> bool:
    try:
        kill(pid, SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _waiting(output: int) -> int:
    """Return how many bytes wait in a pipe."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def _drain(loop: asyncio.AbstractEventLoop, output: int) -> None:
    """Read and drop what a pipe has. Close it at its end."""
    try:
        data = read(output, PIECE)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if not data:
        loop.remove_reader(output)
        close(output)
