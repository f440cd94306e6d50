"""Run a command of this host: its lines as they come, a deadline, and nothing of it left running."""

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
# Signal, seconds to wait for its effect, and whether the command's children get it too. Apt, interrupted alone, lets
# the dpkg that it runs finish.
_KINDLY = ((signal.SIGINT, 20.0, False),)
_FIRMLY = ((signal.SIGTERM, 5.0, True), (signal.SIGKILL, 5.0, True))


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: its exit status; negative: the signal that ended it.
        tail: the last lines that it printed on either stream.
        expired: it was ended because its deadline had passed.
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
    """Run a command to its end, without a terminal and without stdin.

    It has a session of its own: Ctrl-C reaches only this process, which ends the command in order and then raises.

    Args:
        command: the program and its arguments; no shell.
        seconds: its deadline.
        on_line: called in this thread with each line that it prints.
        environment: added to this process's.

    Raises:
        OSError: the program could not be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _end(process, _FIRMLY)

    timer = threading.Timer(seconds, expire)
    tail: deque[str] = deque(maxlen=_TAIL)
    try:
        timer.start()
        for line in process.stdout or ():
            tail.append(line.rstrip())
            if on_line is not None:
                on_line(line.rstrip())
        code = process.wait()
    except BaseException:
        _end(process, _KINDLY + _FIRMLY)
        raise
    finally:
        timer.cancel()
        if process.stdout is not None:
            process.stdout.close()
    return Finished(code, "\n".join(tail), expired.is_set())


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
