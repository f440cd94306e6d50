"""Quotas over real nodes of one PostgreSQL: clients that race, a node that dies, and idle sessions that make room."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator import KernelPoolExhaustedError
from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.storenode import store_node
from tests.postgres import postgres_server
from tests.server.conftest import Server

QUOTA = 2
RACERS = 6
LEASE_S = 6


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, list[Server]]]:
    """Two nodes, and the URL of their database."""
    with (
        postgres_server() as url,
        tempfile.TemporaryDirectory(prefix="cb-") as name,
        contextlib.ExitStack() as stack,
    ):
        policy = Path(name) / "quota.toml"
        policy.write_text(f"[scheduling]\ngroup_quota = {QUOTA}\n")

        def node(number: int) -> Server:
            folder = Path(name) / f"n{number}"
            server = store_node(folder, url, LEASE_S, CELLBLOCK_POLICY=str(policy))
            return stack.enter_context(server)

        with ThreadPoolExecutor(1) as threads:
            servers = list(threads.map(node, range(2)))
        yield url, servers


async def raced(manager: ClusterKernelManager, begun: str, timeout: float) -> tuple[Counter[str], list[RemoteSession]]:
    """Let agents race for kernels that they keep in use. Return what each got, and the sessions of the winners."""
    sessions: list[RemoteSession] = []
    decided = asyncio.Barrier(RACERS)

    async def race(number: int) -> str:
        try:
            async with manager.acquire_kernel(f"{begun}{number}", timeout=timeout) as (_kernel, session):
                cell = await manager.start_code(
                    session, "import time; time.sleep(600)"
                )  # a busy session keeps its place
                sessions.append(session)
                await decided.wait()
                del cell
            return "kernel"
        except KernelPoolExhaustedError as error:
            await decided.wait()
            return error.reason

    async with asyncio.timeout(240):
        return Counter(await asyncio.gather(*(race(number) for number in range(RACERS)))), sessions


async def test_an_idle_session_of_the_group_makes_room(nodes: tuple[str, list[Server]]) -> None:
    """Wherever it is: the node that has it is asked too, puts it to sleep, and takes the new session."""
    url, _ = nodes
    async with ClusterKernelManager(store_url=url) as manager:
        for number in range(QUOTA + 2):
            async with manager.acquire_kernel(f"idle{number}", timeout=60) as (_kernel, session):
                assert (await manager.execute(session, "1")).result == "1"


async def test_a_race_and_a_node_that_dies(nodes: tuple[str, list[Server]]) -> None:
    """No more than the quota get a kernel. When a node dies, its places come free once its lease is over."""
    url, servers = nodes
    async with ClusterKernelManager(store_url=url) as manager:
        got, sessions = await raced(manager, "first", timeout=10)
        assert 1 <= got["kernel"] <= QUOTA  # a winner that is idle for a moment may make room for another
        owners = [await manager.node_of(session.agent_id) for session in sessions]
        victim = owners[0]
        directory = StoreDirectory(url)
        (dead,) = (record.url for record in await directory.nodes() if record.node_id == victim)
        await directory.close()
        (killed,) = (server for server in servers if server.url == dead)
        killed.process.kill()
        await asyncio.to_thread(killed.process.wait)
        got, _ = await raced(manager, "second", timeout=30)
        assert 1 <= got["kernel"] <= QUOTA - (len(owners) - owners.count(victim))
