"""Nodes that stop at a step of a cell or of a checkpoint until another one has it, and then go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.errors import NodeLostError
from tests.cluster.clusterfaults import CELL
from tests.cluster.faultycluster import FaultyCluster, FaultyNode
from tests.cluster.faultyserver import STEPS
from tests.cluster.historychecker import check

OF_CHECKPOINTS = ("blob-written", "checkpoint-recorded")
OF_CELLS = tuple(step for step in STEPS if step not in OF_CHECKPOINTS)
_LONGEST = 90.0  # seconds


async def stop_in_a_cell(cluster: FaultyCluster, step: str) -> None:
    """Check that the node acknowledges nothing afterwards.

    Another node has the session meanwhile. The cell is not run again, and its end is written only if it was.
    """
    agent = f"at-{step}"
    async with ClusterKernelManager(store_url=cluster.database.url, seed=1) as manager:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute(session, CELL.format("first"))
            await manager.checkpoint(session)
            node = await _node_of(cluster, manager, agent)
            before = node.log()
            (node.folder / step).touch()
            cell = asyncio.create_task(manager.execute(session, CELL.format("second")))
            await _stopped(node)
        try:
            with contextlib.suppress(NodeLostError):
                assert (await asyncio.wait_for(cell, _LONGEST)).outcome == "kernel_died"
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, CELL.format("third"))).result == "'first third'"
        finally:
            node.signal(signal.SIGCONT)
        await _serving_again(node, before)
        assert (await manager.execute(session, CELL.format("fourth"))).result == "'first third fourth'"
        outcomes = [entry["result"]["outcome"] for entry in await session.history()]
        ended = "ok" if step == "end-written" else "interrupted"
        assert outcomes == (["ok"] * 3 if step == "begin-write" else ["ok", ended, "ok", "ok"])
        assert check([], [], await asyncio.to_thread(cluster.changes)) == []
        await manager.end_session(agent)


async def stop_in_a_checkpoint(cluster: FaultyCluster, step: str) -> None:
    """Check that a checkpoint that was not recorded by then is never recorded; one that was has its state."""
    agent = f"at-{step}"
    async with ClusterKernelManager(store_url=cluster.database.url, seed=1) as manager:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute(session, CELL.format("first"))
            await manager.checkpoint(session)
            await manager.execute(session, CELL.format("second"))
            node = await _node_of(cluster, manager, agent)
            before = node.log()
            (node.folder / step).touch()
            making = asyncio.create_task(manager.checkpoint(session))
            await _stopped(node)
        try:
            with pytest.raises(NodeLostError):
                await asyncio.wait_for(making, _LONGEST)
            expected = "'first third'" if step == "blob-written" else "'first second third'"
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, CELL.format("third"))).result == expected
        finally:
            node.signal(signal.SIGCONT)
        await _serving_again(node, before)
        kept = await asyncio.to_thread(cluster.checkpoints, session.session_id)
        assert kept == (1 if step == "blob-written" else 2)
        assert check([], [], await asyncio.to_thread(cluster.changes)) == []
        await manager.end_session(agent)


async def _node_of(cluster: FaultyCluster, manager: ClusterKernelManager, agent: str) -> FaultyNode:
    name = await manager.node_of(agent)
    return next(node for node in cluster.nodes if node.node_id == name)


async def _stopped(node: FaultyNode) -> None:
    async with asyncio.timeout(_LONGEST):
        while not node.is_stopped():
            await asyncio.sleep(0.05)


async def _serving_again(node: FaultyNode, before: str) -> None:
    """Wait until a node that was continued has noticed that it was fenced."""
    async with asyncio.timeout(_LONGEST):
        while "was fenced" not in node.log()[len(before) :]:
            await asyncio.sleep(0.1)
