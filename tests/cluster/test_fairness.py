"""Fairness over real nodes of one PostgreSQL: whose turn it is at one node depends on what groups hold at the other."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import AgentKernelManager
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.remote.remotemanager import RemoteKernelManager
from orchestrator.remote.remotesession import RemoteSession
from orchestrator.store.noderecord import NodeRecord
from tests.cluster.storenode import store_node
from tests.postgres import postgres_server
from tests.server.conftest import Server

LEASE_S = 3
HOLDING = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, list[Server]]]:
    """A node of two kernels, one of one kernel, and the URL of their database."""
    with (
        postgres_server() as url,
        tempfile.TemporaryDirectory(prefix="cb-") as name,
        contextlib.ExitStack() as stack,
    ):
        servers: list[Server] = []
        for kernels in (2, 1):
            options = "--max-kernels", str(kernels)
            folder = Path(name) / f"n{kernels}"
            server = store_node(folder, url, LEASE_S, *options, tokens=int(not servers), CELLBLOCK_WARM_KERNELS="0")
            servers.append(stack.enter_context(server))
        yield url, servers


async def told(directory: StoreDirectory, server: Server, condition: Callable[[NodeRecord], bool]) -> None:
    """Wait until a node has told something, and each node has renewed its lease twice since: so it has read it."""
    left: dict[str, float] = {}
    renewals: Counter[str] = Counter()
    while True:
        records = await directory.nodes()
        (mine,) = (record for record in records if record.url == server.url)
        if condition(mine):
            for record in records:
                renewals[record.node_id] += record.lease_left_s > left.get(record.node_id, LEASE_S)
                left[record.node_id] = record.lease_left_s
            if min(renewals.values()) >= 2:
                return
        await asyncio.sleep(0.2)


async def test_a_group_that_holds_kernels_at_another_node_waits_behind_one_that_holds_none(
    nodes: tuple[str, list[Server]],
) -> None:
    """Although it asked first: at this node, both hold nothing."""
    url, (large, small) = nodes
    tokens = {group: small.token(group, "--group", group) for group in ("rich", "poor", "other")}
    turns: list[str] = []

    async with contextlib.AsyncExitStack() as stack:

        async def caller(server: Server, group: str) -> RemoteKernelManager:
            manager = AgentKernelManager.connect(server.url, token=tokens[group])
            return await stack.enter_async_context(manager)

        async def held(manager: RemoteKernelManager, name: str) -> RemoteSession:
            async with manager.acquire_kernel(name, timeout=120) as (_kernel, session):
                await manager.start_code(session, HOLDING)
            return session

        async def wait(manager: RemoteKernelManager, group: str) -> None:
            async with manager.acquire_kernel("waiting", timeout=120):
                turns.append(group)

        directory = StoreDirectory(url)
        stack.push_async_callback(directory.close)
        async with asyncio.timeout(120), asyncio.TaskGroup() as waiting:
            rich, other = await caller(large, "rich"), await caller(small, "other")
            await asyncio.gather(held(rich, "first"), held(rich, "second"), held(other, "holding"))
            rich_here, poor_here = await caller(small, "rich"), await caller(small, "poor")
            waiting.create_task(wait(rich_here, "rich"))
            await told(directory, small, lambda record: record.capacity.waiting == 1)
            waiting.create_task(wait(poor_here, "poor"))
            await told(directory, small, lambda record: record.capacity.waiting == 2)
            await told(directory, large, lambda record: record.capacity.held == {"default": {"rich": 2}})
            assert not turns
            await other.end_session("holding")
    assert turns == ["poor", "rich"]
