"""Runs another project's suite to its end, past tests that hang and tests that end pytest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TEST = 150  # seconds of one test, after which pytest ends it
_STUCK = 60  # further seconds, after which pytest itself is ended
_POLL = 0.2  # seconds
_COLLECTION = 120  # seconds
_OURS = ("CELLBLOCK_", "JUPYTER_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a test has ended.

    Attributes:
        outcome: "passed", "failed" or "skipped"; "hung": it did not end in time; "crashed": it has ended pytest.
        failure: what pytest says of a failure.
    """

    outcome: str
    failure: str = ""


def run_suite(folder: Path, tests: Sequence[str], variables: Mapping[str, str], name: str) -> dict[str, Ending]:
    """Run a suite in this interpreter's environment, with a line on stdout for each test. Returns each test's ending.

    Args:
        folder: the root of the project.
        tests: what pytest runs.
        variables: in addition to those of this process; those of Cellblock and Jupyter are not passed on.
        name: what the lines begin with.

    Raises:
        AssertionError: pytest cannot run the suite.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | dict(variables)
    with tempfile.TemporaryDirectory() as kept:
        log, output = Path(kept) / "outcomes.jsonl", Path(kept) / "output.txt"
        log.touch()
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        environment |= {"CONFORMANCE_OUTCOMES": str(log), "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "no:cacheprovider", "-p", "outcomelog"]
        # Some suites make errors of warnings; newer versions of other projects have warnings that they do not know.
        command += ["-W", "ignore::DeprecationWarning", f"--timeout={_TEST}", "--timeout-method=signal", *tests]
        endings: dict[str, Ending] = {}
        while True:
            with output.open("wb") as file, _process(command, folder, environment, file.fileno()) as pytest:
                stopped = not _followed(pytest, log, endings, name)
            running = [test for test, ending in endings.items() if not ending.outcome]
            if not running:
                assert pytest.returncode in (0, 1, 5), output.read_text(errors="replace")[-5000:]
                return endings
            endings[running[-1]] = Ending("hung" if stopped else "crashed")
            print(f"{name}: {endings[running[-1]].outcome}: {running[-1]}", flush=True)


@contextlib.contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], output: int
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _followed(pytest: subprocess.Popen[bytes], log: Path, endings: dict[str, Ending], name: str) -> bool:
    """Read the log until pytest has ended. Returns False if a test has not ended in time."""
    deadline = time.monotonic() + _COLLECTION
    with log.open() as file:
        while True:
            ended = pytest.poll() is not None
            for line in file.read().splitlines():
                deadline = time.monotonic() + _TEST + _STUCK
                _note(json.loads(line), endings, name)
            if ended:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)


def _note(entry: Mapping[str, str], endings: dict[str, Ending], name: str) -> None:
    test, outcome = entry["test"], entry["outcome"]
    known = endings.get(test, Ending("")).outcome
    if known:  # an earlier run's
        return
    endings[test] = Ending(outcome, entry.get("failure", ""))
    if outcome:
        print(f"{name}: {outcome}: {test}", flush=True)
