"""Detached processes: they outlive who started them, are found again, run once, and end when they are told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.detached import Detached
from tests.conftest import REPOSITORY

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
_IGNORE = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
_DEAF = [sys.executable, "-c", _IGNORE]
_STARTER = """
import os, sys, time
from pathlib import Path
from orchestrator.cluster.detached import Detached
Detached(Path(sys.argv[1]), "server").start(sys.argv[2:], os.environ)
print("started", flush=True)
time.sleep(600)
"""


def found(process: Detached) -> int:
    """Wait until the process has left its parent, and return its id."""
    end = time.monotonic() + 30
    while not process.pid:
        assert time.monotonic() < end, process.last_lines()
        time.sleep(0.02)
    return process.pid


async def test_it_outlives_its_starter_with_its_group_and_is_found_again(tmp_path: Path) -> None:
    """Ray kills an actor with its children and its process group."""
    starter = subprocess.Popen(  # noqa: ASYNC220 - it is the process that ends
        [sys.executable, "-c", _STARTER, str(tmp_path), *_SLEEP],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=ENVIRONMENT,
    )
    assert starter.stdout is not None
    starter.stdout.readline()
    process = Detached(tmp_path, "server")
    pid = found(process)
    assert not psutil.Process(starter.pid).children()
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert process.runs
    assert process.pid == pid
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert await process.stop(30)
    assert not process.runs


async def test_it_runs_once(tmp_path: Path) -> None:
    """A second start, of another supervisor, finds it and starts nothing."""
    process, other = Detached(tmp_path, "server"), Detached(tmp_path, "server")
    assert process.start(_SLEEP, ENVIRONMENT)
    try:
        pid = found(process)
        assert not other.start(_SLEEP, ENVIRONMENT)
        assert other.pid == pid
    finally:
        await process.stop(30)
    assert process.start(_SLEEP, ENVIRONMENT)
    await process.stop(30)


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = Detached(tmp_path, "server")
    process.start(_DEAF, ENVIRONMENT)
    while "deaf" not in process.last_lines():
        await asyncio.sleep(0.02)
    assert await process.stop(0.2)
    assert not process.runs
    assert not await process.stop(0.2)


@pytest.mark.parametrize("record", ["", "[]", '{"pid": "x", "started": 1}', "own"])
async def test_a_record_of_another_process_names_none(tmp_path: Path, record: str) -> None:
    """What is not the lock's holder is never signalled, whatever the file says."""
    process = Detached(tmp_path, "server")
    process.start(_SLEEP, ENVIRONMENT)
    pid = found(process)
    kept = (tmp_path / "server.json").read_text()
    own = json.dumps({"pid": os.getpid(), "started": 1})
    (tmp_path / "server.json").write_text(own if record == "own" else record)
    assert process.runs
    assert process.pid == 0
    (tmp_path / "server.json").write_text(kept)
    assert process.pid == pid
    await process.stop(30)
