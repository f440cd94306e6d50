"""`cellblock serve` whose wall clock a test sets, and which stops itself at a step of a cell or checkpoint.

``python -m tests.cluster.faultyserver FOLDER serve …``. The file ``clock`` in the folder is an offset in seconds; a
file that is named as a step stops the process there, as a debugger would, once. Only Python's ``time.time`` is set.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cli.entry import main
from orchestrator.execution import Cell
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History

CLOCK = "clock"
# The points of a cell and of a checkpoint: the class, its method, and whether the point is before its call.
STEPS: dict[str, tuple[type, str, bool]] = {
    "begin-write": (History, "begin_cell", True),
    "send-to-kernel": (Cell, "send", True),
    "sent": (Cell, "send", False),
    "kernel-reply": (KernelSession, "keep_result", True),
    "end-written": (History, "end_cell", False),
    "blob-written": (History, "add_checkpoint", True),
    "checkpoint-recorded": (History, "add_checkpoint", False),
}


def set_clock(folder: Path) -> None:
    """Add the offset in the folder's file to the wall clock."""
    true_time, file = time.time, folder / CLOCK

    def shifted() -> float:
        return true_time() + float(file.read_text() or 0)

    time.time = shifted


def stop_at(folder: Path, step: str) -> None:
    """Make the process stop at a step once the folder has a file of its name."""
    owner, name, before = STEPS[step]
    method: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(method)
    def stopping(*args: Any, **kwargs: Any) -> Any:
        if before:
            _stop(folder / step)
        answer = method(*args, **kwargs)
        if not before:
            _stop(folder / step)
        return answer

    setattr(owner, name, stopping)


def _stop(file: Path) -> None:
    if file.exists():
        file.unlink()
        signal.raise_signal(signal.SIGSTOP)  # at once: to the process, it may reach another thread first


if __name__ == "__main__":
    controls = Path(sys.argv.pop(1))
    set_clock(controls)
    for each in STEPS:
        stop_at(controls, each)
    main()
