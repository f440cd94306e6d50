"""Nothing is left behind: not after Ctrl-C, not after Ctrl-C twice, and after SIGKILL only until the next start."""

from __future__ import annotations

import os
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
import asyncio, sys
from orchestrator import AgentKernelManager

async def main():
    async with AgentKernelManager(max_kernels=3) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (kernel, session):
            print("running", flush=True)
            await manager.execute_code(session, "import time; time.sleep(25)")

asyncio.run(main())
"""
MOMENTS = {"while it connects": 0.4, "while a kernel starts": 0.9, "while a cell runs": None}


def containers() -> set[str]:
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
        return {container["Id"] for container in found}
    finally:
        client.close()


def shims() -> int:
    """Count processes that stand for a container: shims, gofers and sandboxes."""
    table = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return sum(
        1 for line in table.splitlines() if line.startswith(("/usr/bin/containerd-shim", "runsc-sandbox", "runsc-gofer"))
    )


def folders(state: Path) -> list[Path]:
    return list(state.rglob("*")) if state.exists() else []


def begin(runtime: str, state: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"CELLBLOCK_RUNTIME": runtime, "CELLBLOCK_STATE_DIR": str(state)}
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
    if moment is not None:
        time.sleep(moment)
        return
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"


@pytest.fixture
def state() -> Path:
    """A folder with a short path: unix socket paths end at 107 bytes."""
    return Path(f"/tmp/cb-{os.getpid()}-{time.monotonic_ns() % 10**6}")


@pytest.mark.parametrize("interrupts", [1, 2, 3])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_ctrl_c_leaves_nothing(runtime: str, moment: float | None, interrupts: int, state: Path) -> None:
    """Ctrl-C at any moment, once or again and again: no container, no process, no folder remains."""
    before, shims_before = containers(), shims()
    process = begin(runtime, state)
    wait_for(moment, process)
    for _ in range(interrupts):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert containers() <= before
    _settle(shims_before)
    assert folders(state) == []


def test_the_next_start_sweeps_up_after_a_kill_but_spares_the_living(runtime: str, state: Path) -> None:
    """After SIGKILL the next manager removes the dead one's containers and folders, and not a live neighbour's."""
    before = containers()
    dead, alive = begin(runtime, state), begin(runtime, state)
    try:
        wait_for(None, dead)
        wait_for(None, alive)
        dead.kill()
        dead.communicate(timeout=30)
        orphaned = containers() - before
        _start_a_manager(runtime, state)
        survivors = containers() - before
        assert survivors
        assert survivors < orphaned
        assert alive.poll() is None
        assert len(list(state.glob("i-*"))) == 1
    finally:
        alive.send_signal(signal.SIGINT)
        alive.communicate(timeout=60)
    assert containers() <= before
    assert folders(state) == []


def _start_a_manager(runtime: str, state: Path) -> None:
    import asyncio

    async def start_and_stop() -> None:
        async with make_manager(runtime, state_dir=str(state)):
            pass

    asyncio.run(start_and_stop())


def _settle(shims_before: int) -> None:
    """The engine takes a moment to reap the shim of a container that it has removed."""
    deadline = time.monotonic() + 10
    while shims() > shims_before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shims() <= shims_before
