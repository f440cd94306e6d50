"""Two nodes with folders of their own and one database: what happens to the agents of a node that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from orchestrator.cluster.clustermanager import ClusterKernelManager
from tests.cluster.storenode import store_node
from tests.server.conftest import Server

_LONGEST = 60.0  # seconds; 15 are promised, on a machine that does nothing else


@dataclass
class Nodes:
    """The servers, by the names of their nodes, and the database."""

    url: str
    servers: dict[str, Server]

    async def of(self, manager: ClusterKernelManager, agent: str) -> str:
        """Return the node that owns an agent's session."""
        node = await manager.node_of(agent)
        assert node is not None
        return node


@contextlib.contextmanager
def nodes_of(url: str, count: int) -> Iterator[Nodes]:
    """Run nodes on free ports, each with a data folder and a state folder of its own."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    with tempfile.TemporaryDirectory(prefix="cb-") as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / str(number) for number in range(count)]
        nodes = [store_node(folder, url, 4) for folder in folders]
        with ThreadPoolExecutor(count) as threads:
            servers = list(threads.map(stack.enter_context, nodes))
        names = [(folder / "data" / "id").read_text() for folder in folders]
        yield Nodes(url, dict(zip(names, servers, strict=True)))


@pytest.fixture
def nodes(postgres_url: str) -> Iterator[Nodes]:
    with nodes_of(postgres_url, 2) as nodes:
        yield nodes


@pytest.fixture
async def manager(nodes: Nodes) -> AsyncIterator[ClusterKernelManager]:
    async with ClusterKernelManager(store_url=nodes.url) as manager:
        yield manager


async def test_a_drained_nodes_agent_goes_on_without_an_error(nodes: Nodes, manager: ClusterKernelManager) -> None:
    """It keeps its variables; the node takes no session any longer."""
    async with manager.acquire_kernel("drained", timeout=60) as (_kernel, session):
        assert (await manager.execute(session, "x = 41")).outcome == "ok"
    before = await nodes.of(manager, "drained")
    async with httpx.AsyncClient(base_url=nodes.servers[before].url, timeout=60) as http:
        answer = await http.post("/v1/operator/drain", json={"deadline_s": 30})
        assert answer.json() == {"kept": {}}
    async with manager.acquire_kernel("drained", timeout=60) as (_kernel, session):
        assert (await manager.execute(session, "x + 1")).result == "42"
    assert await nodes.of(manager, "drained") != before
    states = {record.node_id: record.state for record in await manager._router._directory.nodes()}
    assert states[before] == "draining"


async def test_a_killed_nodes_agent_goes_on_from_its_checkpoint(nodes: Nodes, manager: ClusterKernelManager) -> None:
    """Its next result comes soon after its next call, and says which cells are not in it."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.execute(session, "x = 41")
        await manager.checkpoint(session)
        await manager.execute(session, "y = 1")
    lost = nodes.servers[await nodes.of(manager, "agent")]
    os.kill(lost.process.pid, signal.SIGKILL)
    lost.process.wait(30)
    began = time.monotonic()
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        result = await manager.execute(session, "x + 1")
    assert time.monotonic() - began < _LONGEST
    assert result.result == "42"
    assert any("continues from its checkpoint" in warning for warning in result.warnings), result.warnings
    assert [entry["code"] for entry in await session.history()] == ["x = 41", "y = 1", "x + 1"]


async def test_a_frozen_node_acknowledges_nothing_when_it_is_back(nodes: Nodes, manager: ClusterKernelManager) -> None:
    """It is frozen while a cell runs, for longer than its lease: the cell counts as interrupted, and runs once."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.execute(session, "runs = 0")
        await manager.checkpoint(session)
        slow = asyncio.create_task(manager.execute(session, "import time; time.sleep(2); runs += 1"))
        await asyncio.sleep(1)
    frozen = nodes.servers[await nodes.of(manager, "agent")]
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        assert (await asyncio.wait_for(slow, _LONGEST)).outcome == "kernel_died"
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert (await manager.execute(session, "runs")).result == "0"
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(_LONGEST):
        while "taken over by another process" not in (log := frozen.log.read_text()) and "was fenced" not in log:
            await asyncio.sleep(0.2)
    assert (await manager.execute(session, "runs + 1")).result == "1"
    outcomes = [entry["result"]["outcome"] for entry in await session.history()]
    assert outcomes == ["ok", "interrupted", "ok", "ok"]
