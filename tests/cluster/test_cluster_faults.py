"""Faults in a working cluster, an outage of its database, and nodes that go on when others have their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.manager import AgentKernelManager
from tests.cluster.clusterfaults import CELL, KINDS, ClusterFaults, kinds_of
from tests.cluster.faultycluster import FaultyCluster
from tests.cluster.pauses import stop_in_a_cell, stop_in_a_checkpoint

_LONGEST = 60.0  # seconds
_FAULTS = 5
_MOST_AGENTS = 10  # until each node has one


async def until(condition: Callable[[dict[str, tuple[int, bool]]], bool], cluster: FaultyCluster) -> None:
    """Wait until a condition holds of the nodes' epochs and leases."""
    async with asyncio.timeout(_LONGEST):
        while not condition(await asyncio.to_thread(cluster.epochs)):
            await asyncio.sleep(0.05)


async def test_nothing_acknowledged_is_lost_or_run_twice_under_faults(faulty: FaultyCluster) -> None:
    """The faults are killed and frozen nodes, databases that are cut off or restarted, wrong clocks and full disks."""
    async with ClusterKernelManager(store_url=faulty.database.url, seed=7) as manager:
        found = await ClusterFaults(faulty, manager, seed=7).run(kinds_of(len(KINDS), 7)[:_FAULTS])
    assert found.wrong == []
    assert sum(one.tokens is not None for one in found.told) > _FAULTS


async def test_a_node_that_stops_after_the_end_of_a_cell_is_written_acknowledges_nothing(faulty: FaultyCluster) -> None:
    """Of the steps of a cell, the one at which most could be lost. ``suite_pauses.py`` has the others."""
    await stop_in_a_cell(faulty, "end-written")


async def test_a_node_that_stops_once_a_checkpoint_is_recorded_acknowledges_nothing(faulty: FaultyCluster) -> None:
    """The next node goes on from this checkpoint."""
    await stop_in_a_checkpoint(faulty, "checkpoint-recorded")


async def test_both_nodes_keep_their_kernels_in_an_outage_longer_than_a_lease(faulty: FaultyCluster) -> None:
    """One of them reaches the database first, and finds the other's lease ended."""
    agents: dict[str, str] = {}  # on which node each is
    first, second = faulty.nodes
    before = await asyncio.to_thread(faulty.epochs)
    async with ClusterKernelManager(store_url=faulty.database.url, seed=1) as manager:
        for agent in (f"outage-{number}" for number in range(_MOST_AGENTS)):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                await manager.execute(session, CELL.format("before"))
            agents[agent] = await manager.node_of(agent) or ""
            if set(agents.values()) == before.keys():
                break
        assert set(agents.values()) == before.keys()
        for node in faulty.nodes:
            node.database.freeze()
        await until(lambda now: not any(lasts for _, lasts in now.values()), faulty)
        first.database.thaw()
        await until(lambda now: now[first.node_id][1], faulty)
        second.database.thaw()
        await until(lambda now: now[second.node_id][1], faulty)
        after = await asyncio.to_thread(faulty.epochs)
        assert [after[node][0] for node in before] == [epoch for epoch, _ in before.values()]
        for agent in agents:
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, CELL.format("after"))).result == "'before after'"
            await manager.end_session(agent)


async def test_a_session_that_slept_when_its_node_was_fenced_wakes_there(faulty: FaultyCluster) -> None:
    """The node's server still knows the session as it was before."""
    node = faulty.nodes[0]
    before = (await asyncio.to_thread(faulty.epochs))[node.node_id][0]
    async with AgentKernelManager.connect(f"http://127.0.0.1:{node.port}") as manager:
        async with manager.acquire_kernel("sleeper", timeout=60) as (_kernel, session):
            await manager.execute(session, CELL.format("before"))
        assert await manager.hibernate("sleeper")
        await asyncio.to_thread(faulty.fence, node)
        await until(lambda now: now[node.node_id][0] == before + 2 and now[node.node_id][1], faulty)
        async with manager.acquire_kernel("sleeper", timeout=60) as (_kernel, session):
            assert (await manager.execute(session, CELL.format("after"))).result == "'before after'"
        await manager.end_session("sleeper")
