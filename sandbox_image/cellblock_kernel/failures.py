"""Errors of cells that IPython does not show, or takes too long to show."""

import linecache
import traceback
from pathlib import Path
from typing import Any

from IPython.core import interactiveshell

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

LONGEST_VALUE = 300  # characters of an error's text

OWN = Path(__file__).parent


def brief_traceback(error: BaseException) -> list[str]:
    """Return a traceback that shows where a cell was interrupted. IPython calls this instead of its own formatter.

    IPython's formatter takes 0.1 s of CPU and more. A cell with busy threads gets a small share of the CPU and would
    exceed its grace period. For the same reason this reads no file if it can avoid it: a thread that waits for the
    system then has to wait for the busy threads.
    """
    lines = ["Traceback (most recent call last):"]
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename != interactiveshell.__file__ and Path(code.co_filename).parent != OWN:
            lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
            if source := linecache.getline(code.co_filename, number).strip():
                lines.append(f"    {source}")
    return [*lines, type(error).__name__]


def failure(error: BaseException, count: int) -> dict[str, Any]:
    """Return the reply of a cell that ended with an error that IPython did not show."""
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - a class of the session
        said = ""
    return {"status": "error", "ename": type(error).__name__, "evalue": said[:LONGEST_VALUE], "traceback": [],
            "execution_count": count, "user_expressions": {}, "payload": []}  # fmt: skip
