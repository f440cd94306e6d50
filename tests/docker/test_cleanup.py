"""Nothing is left behind: not after Ctrl-C, not after Ctrl-C twice, and after SIGKILL only until the next start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker
import pytest

from orchestrator.container.hostconfig import INSTANCE_LABEL
from tests.conftest import REPOSITORY, make_manager

PROGRAM = """
import asyncio, os
from orchestrator import AgentKernelManager

async def main():
    print("begun", flush=True)  # the imports are done: an interrupt there is Python's own affair, and may get lost
    async with AgentKernelManager(max_kernels=3) as manager:
        async with manager.acquire_kernel(f"agent-{os.getpid()}", timeout=60) as (kernel, session):
            print("running", flush=True)
            await manager.execute_code(session, "import time; time.sleep(25)")

asyncio.run(main())
"""
_ID = re.compile(r"\b[0-9a-f]{64}\b")
MOMENTS = {"while it connects": 0.02, "while a kernel starts": 0.4, "while a cell runs": None}  # seconds from "begun"


def containers(state: Path) -> set[str]:
    """Return the containers whose wire lies in this state folder: other runs on this machine are none of ours."""
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
    finally:
        client.close()
    return {c["Id"] for c in found if any(m["Source"].startswith(str(state)) for m in c["Mounts"])}


def strays() -> set[str]:
    """Return the ids of containers that still have a process (shim, gofer, sandbox), but that the engine has not."""
    table = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    seen = {name for line in table.splitlines() if "runsc" in line or "shim" in line for name in _ID.findall(line)}
    client = docker.from_env()
    try:
        return seen - {container["Id"] for container in client.api.containers(all=True)}
    finally:
        client.close()


def folders(state: Path) -> list[Path]:
    return list(state.rglob("*")) if state.exists() else []


def begin(runtime: str, state: Path, warm: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {
        "CELLBLOCK_RUNTIME": runtime,
        "CELLBLOCK_STATE_DIR": str(state),
        "CELLBLOCK_WARM_KERNELS": str(warm),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(moment: float | None, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    if moment is not None:
        time.sleep(moment)
        return
    assert process.stdout.readline() == "running\n"


@pytest.mark.parametrize("interrupts", [1, 2, 8])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.alone
def test_ctrl_c_leaves_nothing(runtime: str, moment: float | None, interrupts: int, state: Path) -> None:
    """Ctrl-C at any moment, once or again and again: no container, no process, no folder remains."""
    process = begin(runtime, state)
    wait_for(moment, process)
    for _ in range(interrupts):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert containers(state) == set()
    _settle()
    assert folders(state) == []


def test_the_next_start_sweeps_up_after_a_kill_but_spares_the_living(runtime: str, state: Path) -> None:
    """After SIGKILL the next manager removes the dead one's containers and folders, and not a live neighbour's."""
    dead, alive = begin(runtime, state, warm=0), begin(runtime, state, warm=0)
    try:
        wait_for(None, dead)
        wait_for(None, alive)
        dead.kill()
        dead.communicate(timeout=30)
        orphaned = containers(state)
        _start_a_manager(runtime, state)
        survivors = containers(state)
        assert (len(orphaned), len(survivors)) == (2, 1)
        assert survivors < orphaned
        assert alive.poll() is None
        assert len(list(state.glob("i-*"))) == 1
    finally:
        alive.send_signal(signal.SIGINT)
        alive.communicate(timeout=60)
    assert containers(state) == set()
    assert folders(state) == []


def _start_a_manager(runtime: str, state: Path) -> None:
    async def start_and_stop() -> None:
        async with make_manager(runtime, state_dir=str(state)):
            pass

    asyncio.run(start_and_stop())


def _settle() -> None:
    """The engine takes a moment to reap the processes of a container that it has removed."""
    deadline = time.monotonic() + 15
    while strays() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert strays() == set()
