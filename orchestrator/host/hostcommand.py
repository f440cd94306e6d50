"""Run a command on this host: report its lines, enforce a deadline, and leave none of its processes running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_TAIL = 15
# Each: a signal, the seconds to wait for its effect, and whether the command's children get it too. The children do not
# get SIGINT, because apt then lets its dpkg finish.
_INTERRUPT = ((signal.SIGINT, 20.0, False),)
_KILL = ((signal.SIGTERM, 5.0, True), (signal.SIGKILL, 5.0, True))


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: its exit status, or the negative number of the signal that ended it.
        tail: the last 15 lines of its stdout and stderr.
        expired: it was killed at its deadline.
    """

    code: int
    tail: str
    expired: bool


def run(
    command: Sequence[str],
    *,
    seconds: float,
    on_line: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command without a terminal and without stdin, and return how it ended.

    The command has a session of its own, so Ctrl-C reaches this process only, which then interrupts the command.

    Args:
        command: the program and its arguments. No shell is involved.
        seconds: after these the command is killed.
        on_line: called in this thread with each line that the command prints.
        environment: variables to add to those of this process.

    Raises:
        OSError: the program could not be started.
    """
    process = _start(command, environment or {})
    expired = threading.Event()
    timer = threading.Timer(seconds, _expire, (process, expired))
    tail: deque[str] = deque(maxlen=_TAIL)
    try:
        timer.start()
        _read(process, tail, on_line)
        code = process.wait()
    except BaseException:
        _end(process, _INTERRUPT + _KILL)
        raise
    finally:
        timer.cancel()
        if process.stdout is not None:
            process.stdout.close()
    return Finished(code, "\n".join(tail), expired.is_set())


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        start_new_session=True,
    )


def _read(process: subprocess.Popen[str], tail: deque[str], on_line: Callable[[str], None] | None) -> None:
    for line in process.stdout or ():
        tail.append(line.rstrip())
        if on_line is not None:
            on_line(line.rstrip())


def _expire(process: subprocess.Popen[str], expired: threading.Event) -> None:
    expired.set()
    _end(process, _KILL)


def _end(process: subprocess.Popen[str], endings: Sequence[tuple[signal.Signals, float, bool]]) -> None:
    try:
        for signum, patience, whole_group in endings:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
