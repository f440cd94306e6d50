"""Runs a process whose wall clock steps while it runs, with Debian's libfaketime and a file that sets the clock.

Only that process's wall clock steps; its monotonic clock, file times and the engine's clock do not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.debian import of_package

HOUR = 3600.0
_STEP_FILE = "FAKETIME_TIMESTAMP_FILE"
_LIBRARY = "faketime/libfaketimeMT.so.1"
_WALL = 100.0  # time limit of a process, in seconds


def run_stepping(module: str, *arguments: str, folder: Path) -> None:
    """Run a module of the tests in such a process. An exception in it fails the test."""
    steps = folder / "step"
    steps.write_text("+0s")
    faked = {
        "LD_PRELOAD": str(of_package("libfaketime", _library)),
        _STEP_FILE: str(steps),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", module, *arguments],
        cwd=REPOSITORY, env=os.environ | faked, capture_output=True, text=True, timeout=_WALL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def step_to(offset: float) -> None:
    """Set this process's wall clock to an offset from the true time, in seconds. Call it in such a process."""
    file = Path(os.environ[_STEP_FILE])
    whole = file.with_suffix(".new")
    wall, monotonic = time.time(), time.monotonic()
    before = offset_of_now()
    whole.write_text(f"{offset:+.0f}s")
    whole.replace(file)
    stepped = time.time() - wall - (time.monotonic() - monotonic)
    assert abs(stepped - (offset - before)) < 5, f"the clock made a step of {stepped} s"


def offset_of_now() -> float:
    return float(Path(os.environ[_STEP_FILE]).read_text().rstrip("s"))


def _library() -> Path | None:
    return next(Path("/usr/lib").glob(f"*/{_LIBRARY}"), None)
