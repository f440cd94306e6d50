"""The orchestrator is killed at each step of a kernel's life, and the next start cleans up after it alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, make_manager, one_session
from tests.faults.engineproxy import EngineProxy
from tests.faults.privateengine import PrivateEngine

CLEANED = 30.0  # seconds until the next start must have adopted or removed everything
LIFE = """
import asyncio
from orchestrator import AgentKernelManager

async def main():
    async with AgentKernelManager(max_kernels=2) as manager:
        async with manager.acquire_kernel("agent") as (_kernel, session):
            await manager.execute_code(session, "x = 'kept'")
            await manager.checkpoint(session)
            print("kept", flush=True)
        await manager.hibernate("agent")
        async with manager.acquire_kernel("agent") as (_kernel, session):
            await manager.execute_code(session, "x")

asyncio.run(main())
"""
CHANGES = ("POST", "DELETE")


class Life:
    """One run of the program through the proxy, killed before a request or after its answer."""

    def __init__(self, proxy: EngineProxy, runtime: str, at: int | None, moment: str) -> None:
        self._proxy = proxy
        self._killed = threading.Event()
        self._begun = len(proxy.seen)
        self._process = subprocess.Popen(
            [sys.executable, "-c", LIFE],
            cwd=REPOSITORY,
            env=os.environ | {"DOCKER_HOST": proxy.url, "CELLBLOCK_RUNTIME": runtime, "CELLBLOCK_WARM_KERNELS": "0"},
            stdout=subprocess.PIPE,
            text=True,
        )

        def hook(number: int, _request: str) -> None:
            if at is not None and number - self._begun == at:
                self._process.kill()
                self._process.wait()
                self._killed.set()

        proxy.before = hook if moment == "before" else lambda _number, _request: None
        proxy.after = hook if moment == "after" else lambda _number, _request: None

    def end(self) -> tuple[list[str], bool, bool]:
        """Wait for the end. Return the requests, whether it was killed, and whether it had a checkpoint."""
        said, _ = self._process.communicate(timeout=120)
        return self._proxy.seen[self._begun :], self._killed.is_set(), "kept" in said


async def _look_after(engine: PrivateEngine, runtime: str, state: Path, kept: bool, neighbours: set[str]) -> None:
    begun = time.monotonic()
    async with make_manager(runtime, max_kernels=2) as manager:
        adopted = {f"cellblock-{session.kernel_id}" for session in manager.sessions.values()}
        while (
            left := set(engine.containers()) - neighbours
        ) != adopted:  # the engine still finishes requests under way
            assert time.monotonic() - begun < CLEANED, left - adopted
            await asyncio.sleep(0.2)
        assert time.monotonic() - begun < CLEANED
        if kept:
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                assert (await manager.execute_code(session, "x"))["result"] == "'kept'"
        await manager.end_session("agent")
    assert set(engine.containers()) == neighbours


async def test_killed_at_each_step(
    engine: PrivateEngine, proxy: EngineProxy, runtime: str, state: Path, tmp_path: Path
) -> None:
    """A kill before a changing request, or after its answer, leaves nothing behind and harms no neighbour."""
    requests, _, _ = await asyncio.to_thread(lambda: Life(proxy, runtime, None, "before").end())
    kernel = ["POST /containers/create", "POST /containers//start", "DELETE /containers/"]
    changes = [request for request in requests if request.startswith(CHANGES)]
    # The first request asks whether the engine sees the state folder; the engine always refuses it.
    assert changes == ["POST /containers/create", *kernel, *kernel]
    steps = [(at, "after") for at in range(len(requests)) if requests[at] not in ("GET /version", "GET /events")]
    steps += [(at, "before") for at, request in enumerate(requests) if request.startswith(CHANGES)]
    if runtime != "runc":  # the steps are the same under each runtime, but the effect of a kill differs
        steps = [(at, moment) for at, moment in steps if requests[at].startswith(CHANGES)]
    async with one_session(runtime, data_dir=str(tmp_path / "neighbour")) as (neighbour, living):
        await neighbour.execute_code(living, "alive = 1")
        neighbours = set(engine.containers())
        for at, moment in steps:
            life = await asyncio.to_thread(Life, proxy, runtime, at, moment)
            seen, killed, kept = await asyncio.to_thread(life.end)
            try:
                await _look_after(engine, runtime, state, kept, neighbours)
            except Exception as error:
                error.add_note(f"killed: {killed}, {moment} request {at} of {seen}")
                raise
        assert (await neighbour.execute_code(living, "alive"))["result"] == "1"
    assert engine.containers() == {}
    assert not list(state.rglob("*"))
    deadline = time.monotonic() + 15
    while engine.processes() and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    assert engine.processes() == []


@pytest.mark.parametrize(
    "lost",
    [
        ["POST /containers/create"],
        ["POST /containers//start"],
        ["DELETE /containers/"],
        ["POST /containers/create", "POST /containers//start", "DELETE /containers/"],
    ],
    ids=["create", "start", "remove", "all"],
)
async def test_lost_answers_leave_neither_twins_nor_orphans(
    engine: PrivateEngine,
    proxy: EngineProxy,
    runtime: str,
    state: Path,
    lost: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If answers of the engine are lost, there is still only one container, and none afterwards."""
    monkeypatch.setenv("DOCKER_HOST", proxy.url)
    async with make_manager(runtime, max_kernels=2) as manager:
        proxy.lose(*lost)
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"
            assert set(engine.containers()) == {f"cellblock-{session.kernel_id}"}
        await manager.end_session("agent")
        assert engine.containers() == {}
        assert proxy.lost_all()
    assert not list(state.rglob("*"))
