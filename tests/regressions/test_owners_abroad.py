"""Real kernels of an orchestrator in another network namespace: left alone while it lives, continued when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import SessionElsewhereError
from orchestrator.container.engine import connect
from tests.conftest import REPOSITORY, make_manager

_PROGRAM = """
import asyncio, sys
from orchestrator import AgentKernelManager

async def main():
    async with AgentKernelManager(max_kernels=2) as manager:
        async with manager.acquire_kernel("agent") as (_, session):
            await manager.execute(session, "x = 41")
            print(manager.instance_id, flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                if line == "leave\\n":
                    break
                print((await manager.execute(session, "x += 1; x")).result, flush=True)
        print("left", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


_START = """
import asyncio
from orchestrator import AgentKernelManager, SettingsError
try:
    asyncio.run(AgentKernelManager(max_kernels=1).start())
except SettingsError as error:
    print(error)
"""


class Program:
    """The orchestrator abroad.

    Attributes:
        instance: its instance.
    """

    def __init__(self, runtime: str) -> None:
        self.process = subprocess.Popen(
            ["unshare", "-n", sys.executable, "-c", _PROGRAM],
            cwd=REPOSITORY,
            env=os.environ | {"CELLBLOCK_RUNTIME": runtime, "CELLBLOCK_WARM_KERNELS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.instance = self._line()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def containers(self) -> int:
        client = connect(30)
        try:
            label = f"org.cellblock.instance={self.instance}"
            return len(client.containers.list(all=True, filters={"label": label}))
        finally:
            client.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def program(runtime: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))
    running = Program(runtime)
    yield running
    running.kill()


@pytest.mark.one_runtime
def test_a_state_folder_that_the_engine_does_not_see_is_refused_at_start(runtime: str, state: Path) -> None:
    """A process whose folder is its own, as in a container without the mount."""
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o mode=0700 none "$0" && exec "$1" -c "$2"']
    said = subprocess.run(
        [*mounted, str(state), sys.executable, _START],
        env=os.environ | {"CELLBLOCK_RUNTIME": runtime, "CELLBLOCK_STATE_DIR": str(state)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"-v {state}:{state}" in said.stdout
    assert "does not see the state folder" in said.stdout


async def test_a_live_orchestrator_abroad_keeps_its_kernels_until_it_hands_one_over(
    program: Program, runtime: str
) -> None:
    """Starting and sweeping here costs it nothing."""
    async with make_manager(runtime) as manager:
        await manager.sweep_everywhere()
        assert program.ask("run") == "42"
        with pytest.raises(SessionElsewhereError, match=program.instance):
            async with manager.acquire_kernel("agent", timeout=60):
                pass
        with pytest.raises(SessionElsewhereError, match="a call uses it"):
            async with manager.acquire_kernel("agent", timeout=60, handover=True):
                pass
        assert program.ask("leave") == "left"
        async with manager.acquire_kernel("agent", timeout=60, handover=True) as (_, session):
            assert (await manager.execute(session, "x")).result == "42"


async def test_a_dead_orchestrator_abroad_leaves_its_session_to_a_running_one(program: Program, runtime: str) -> None:
    """With its kernel; its warm kernel is removed."""
    async with make_manager(runtime) as manager:
        program.kill()
        async with manager.acquire_kernel("agent", timeout=60) as (_, session):
            assert (await manager.execute(session, "x")).result == "41"
        async with asyncio.timeout(60):  # beside the agent, which does not wait for it
            while program.containers() != 1:
                await asyncio.sleep(0.1)
    assert program.containers() == 0


@pytest.mark.one_runtime
@pytest.mark.alone
def test_prune_all_removes_what_a_dead_orchestrator_abroad_left_and_nothing_of_a_live_one(
    program: Program, runtime: str, state: Path, tmp_path: Path
) -> None:
    """Neither its network namespace nor its folders are seen from here."""
    lives = prune_without(state, tmp_path)
    assert program.containers() == 2
    assert lives["unjudged"] == []
    assert program.ask("run") == "42"
    program.kill()
    died = prune_without(state, tmp_path)
    assert died["removed"]["containers"] >= 2
    assert program.containers() == 0


def prune_without(hidden: Path, tmp_path: Path) -> dict[str, Any]:
    """Run `cellblock prune --all` with folders of its own, where one folder is not visible."""
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o mode=0700 none "$0" && exec "$@"', str(hidden)]
    own = {"CELLBLOCK_STATE_DIR": str(tmp_path / "s"), "CELLBLOCK_DATA_DIR": str(tmp_path / "d")}
    done = subprocess.run(
        [*mounted, sys.executable, "-m", "orchestrator.cli.entry", "prune", "--all", "--json"],
        cwd=REPOSITORY, env=os.environ | own, capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    return said
