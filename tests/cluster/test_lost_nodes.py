"""Nodes that are killed, frozen and started anew in the midst of calls."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator import NodeLostError, StreamOutput
from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.conftest import Cluster, cluster_of
from tests.cluster.fakedirectory import FakeDirectory
from tests.cluster.lossyproxy import LossyProxy

CODE = "kept += 1\nprint(kept, flush=True)\nimport time\ntime.sleep(20)"
NEXT_RESULT = 15.0  # seconds after an agent's next call


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Two nodes that a test may kill."""
    with cluster_of(2) as cluster:
        yield cluster


async def started_on(
    directory: FakeDirectory, node_id: str, manager: ClusterKernelManager, agent: str
) -> RemoteSession:
    """Return the session of an agent, on a node."""
    others = [name for name in directory.records if name != node_id]
    for name in others:
        directory.set(name, state="draining")
    async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
        await manager.execute(session, "kept = 41")
    for name in others:
        directory.set(name)
    return session


async def test_a_killed_node(nodes: Cluster) -> None:
    """Its running cells end as a dead kernel's do, once its lease is over; they are not run again.

    The agents' next calls go to the other node, and find the variables: it has adopted the kernels. No call is told of
    it but those that ran.
    """
    with nodes.directory(2) as directory:
        async with ClusterKernelManager(directory=directory) as manager:
            session = await started_on(directory, "n1", manager, "waits")
            streams = await started_on(directory, "n1", manager, "streams")
            follows = await started_on(directory, "n1", manager, "follows")
            idles = await started_on(directory, "n1", manager, "idles")
            texts: list[str] = []

            async def streamed() -> str:
                outcome = ""
                async for event in manager.stream_code(streams, CODE):
                    if isinstance(event, StreamOutput):
                        texts.append(event.text)
                    outcome = getattr(getattr(event, "result", None), "outcome", outcome)
                return outcome

            executing = asyncio.create_task(manager.execute(session, CODE))
            streaming = asyncio.create_task(streamed())
            started = await manager.start_code(follows, CODE)
            listing = asyncio.create_task(manager.run_command(idles, "sleep 60"))
            await asyncio.sleep(1.5)
            nodes.servers[0].process.kill()
            await asyncio.to_thread(nodes.servers[0].process.wait)
            next_call = asyncio.create_task(manager.execute(idles, "kept"))
            await asyncio.sleep(2)
            directory.set("n1", lease_left_s=-1.0)
            over = time.monotonic()
            async with asyncio.timeout(NEXT_RESULT):
                result = await executing
                assert (result.outcome, result.kernel_state) == ("kernel_died", "dead")
                assert "was not run again" in str(result.error)
                assert (await streaming, "".join(texts)) == ("kernel_died", "42\n")
                assert (await started.wait()).outcome == "kernel_died"
                with pytest.raises(NodeLostError):
                    await listing
                assert (await next_call).result == "41"
                for each in (session, streams, follows):
                    assert (await manager.execute(each, "kept")).result == "42"
            assert time.monotonic() - over < NEXT_RESULT
            cells = [entry["code"] for entry in await session.history()]
            assert cells.count(CODE) == 1


async def test_a_frozen_node(nodes: Cluster) -> None:
    """It accepts connections and says nothing: waits for it end with its lease, and new agents go elsewhere."""
    with nodes.directory(2) as directory:
        async with ClusterKernelManager(directory=directory) as manager:
            session = await started_on(directory, "n1", manager, "frozen")
            os.kill(nodes.servers[0].process.pid, signal.SIGSTOP)
            try:
                executing = asyncio.create_task(manager.execute(session, "kept += 1"))
                reading = asyncio.create_task(session.history())
                await asyncio.sleep(1)
                directory.set("n1", lease_left_s=-1.0)
                async with asyncio.timeout(NEXT_RESULT):
                    assert (await executing).outcome == "kernel_died"
                    assert [entry["code"] for entry in await reading] == ["kept = 41"]  # read on the other node
                    async with manager.acquire_kernel("new", timeout=60) as (_kernel, other):
                        assert (await manager.execute(other, "1")).result == "1"
            finally:
                os.kill(nodes.servers[0].process.pid, signal.SIGCONT)


async def test_a_server_that_is_started_anew_under_the_same_lease(nodes: Cluster) -> None:
    """The new process does not know what the old one began: it is not asked to run the cell again, but the next one."""
    with nodes.directory(1) as directory:
        async with (
            LossyProxy(nodes.servers[0].url).running() as proxy,
            ClusterKernelManager(directory=directory) as manager,
        ):
            directory.records["n1"] = replace(directory.records["n1"], url=proxy.url)
            session = await started_on(directory, "n1", manager, "anew")
            executing = asyncio.create_task(manager.execute(session, CODE))
            await asyncio.sleep(1.5)
            proxy.target = nodes.servers[1].url  # another process, at the address of the first
            directory.processes[nodes.servers[1].process.pid] = "n1"
            nodes.servers[0].process.kill()
            async with asyncio.timeout(60):
                assert (await executing).outcome == "kernel_died"
                assert (await manager.execute(session, "kept")).result == "42"
            assert [entry["code"] for entry in await session.history()].count(CODE) == 1
