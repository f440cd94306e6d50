"""Faults in a working cluster, and nodes that stop at a step of a cell or of a checkpoint until another one has it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import pytest

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.errors import NodeLostError
from tests.cluster.clusterfaults import CELL, KINDS, ClusterFaults, kinds_of
from tests.cluster.faultycluster import FaultyCluster, FaultyNode, faulty_cluster
from tests.cluster.faultyserver import STEPS
from tests.cluster.historychecker import check
from tests.cluster.test_real_cluster import free_ports

_LONGEST = 90.0  # seconds
_FAULTS = 5
OF_CELLS = tuple(step for step in STEPS if step not in ("blob-written", "checkpoint-recorded"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[FaultyCluster]:
    """Two nodes, for all tests of the module."""
    with faulty_cluster(2, free_ports(2)) as cluster:
        yield cluster


async def node_of(cluster: FaultyCluster, manager: ClusterKernelManager, agent: str) -> FaultyNode:
    name = await manager.node_of(agent)
    return next(node for node in cluster.nodes if node.node_id == name)


async def stopped(node: FaultyNode) -> None:
    async with asyncio.timeout(_LONGEST):
        while not node.is_stopped():
            await asyncio.sleep(0.05)


async def serving_again(node: FaultyNode, before: str) -> None:
    """Wait until a node that was continued has noticed that it was fenced."""
    async with asyncio.timeout(_LONGEST):
        while "was fenced" not in node.log()[len(before) :]:
            await asyncio.sleep(0.1)


async def test_nothing_acknowledged_is_lost_or_run_twice_under_faults(cluster: FaultyCluster) -> None:
    """The faults are killed and frozen nodes, databases that are cut off or restarted, wrong clocks and full disks."""
    async with ClusterKernelManager(store_url=cluster.database.url, seed=7) as manager:
        found = await ClusterFaults(cluster, manager, seed=7).run(kinds_of(len(KINDS), 7)[:_FAULTS])
    assert found.wrong == []
    assert sum(one.tokens is not None for one in found.told) > _FAULTS


@pytest.mark.parametrize("step", OF_CELLS)
async def test_a_node_that_stops_at_a_step_of_a_cell_acknowledges_nothing_afterwards(
    cluster: FaultyCluster, step: str
) -> None:
    """Another node has the session meanwhile. The cell is not run again, and its end is written only if it was."""
    agent = f"at-{step}"
    async with ClusterKernelManager(store_url=cluster.database.url, seed=1) as manager:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute(session, CELL.format("first"))
            await manager.checkpoint(session)
            node = await node_of(cluster, manager, agent)
            before = node.log()
            (node.folder / step).touch()
            cell = asyncio.create_task(manager.execute(session, CELL.format("second")))
            await stopped(node)
        try:
            with contextlib.suppress(NodeLostError):
                assert (await asyncio.wait_for(cell, _LONGEST)).outcome == "kernel_died"
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, CELL.format("third"))).result == "'first third'"
        finally:
            node.signal(signal.SIGCONT)
        await serving_again(node, before)
        assert (await manager.execute(session, CELL.format("fourth"))).result == "'first third fourth'"
        outcomes = [entry["result"]["outcome"] for entry in await session.history()]
        ended = "ok" if step == "end-written" else "interrupted"
        assert outcomes == (["ok"] * 3 if step == "begin-write" else ["ok", ended, "ok", "ok"])
        assert check([], [], await asyncio.to_thread(cluster.changes)) == []
        await manager.end_session(agent)


@pytest.mark.parametrize("step", ["blob-written", "checkpoint-recorded"])
async def test_a_node_that_stops_at_a_step_of_a_checkpoint_acknowledges_nothing_afterwards(
    cluster: FaultyCluster, step: str
) -> None:
    """A checkpoint that was not recorded by then is never recorded; one that was has its state."""
    agent = f"at-{step}"
    async with ClusterKernelManager(store_url=cluster.database.url, seed=1) as manager:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute(session, CELL.format("first"))
            await manager.checkpoint(session)
            await manager.execute(session, CELL.format("second"))
            node = await node_of(cluster, manager, agent)
            before = node.log()
            (node.folder / step).touch()
            making = asyncio.create_task(manager.checkpoint(session))
            await stopped(node)
        try:
            with pytest.raises(NodeLostError):
                await asyncio.wait_for(making, _LONGEST)
            expected = "'first third'" if step == "blob-written" else "'first second third'"
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, CELL.format("third"))).result == expected
        finally:
            node.signal(signal.SIGCONT)
        await serving_again(node, before)
        kept = await asyncio.to_thread(cluster.checkpoints, session.session_id)
        assert kept == (1 if step == "blob-written" else 2)
        assert check([], [], await asyncio.to_thread(cluster.changes)) == []
        await manager.end_session(agent)
