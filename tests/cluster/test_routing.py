"""Where calls go, and what becomes of them when answers are lost or nodes refuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import psutil
import pytest

from orchestrator import (
    CellFinished,
    IncompatibleServerError,
    KernelPoolExhaustedError,
    NoNodeError,
    NotOwnerError,
    StoreError,
    StreamOutput,
)
from orchestrator.cluster import nodelink
from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.connection import Connection
from orchestrator.store.noderecord import Capacity
from tests.cluster.conftest import Cluster
from tests.cluster.fakedirectory import FakeDirectory, record
from tests.cluster.lossyproxy import LossyProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def directory(cluster: Cluster) -> Iterator[FakeDirectory]:
    with cluster.directory(2) as directory:
        yield directory


async def test_a_lost_answer_is_asked_for_again_and_the_cell_runs_once(
    lossy: ClusterKernelManager, proxy: LossyProxy
) -> None:
    """The answers of the acquisition, the cell, the started cell and the command are lost, each at its first byte."""
    proxy.losing = [b"POST /v1/sessions ", b"/execute", b"/cells ", b"/commands "]
    async with lossy.acquire_kernel("careful", timeout=60) as (_kernel, session):
        assert (await lossy.execute(session, "runs = 1; runs")).result == "1"
        cell = await lossy.start_code(session, "runs += 1; runs")
        assert (await cell.wait(30)).result == "2"
        assert (await lossy.run_command(session, "echo x >> /work/log; wc -l < /work/log")).stdout == b"1\n"
        assert (await lossy.execute(session, "runs")).result == "2"
    assert proxy.losing == []
    assert [entry["code"] for entry in await session.history()] == ["runs = 1; runs", "runs += 1; runs", "runs"]


async def test_a_broken_stream_goes_on_where_it_was(lossy: ClusterKernelManager, proxy: LossyProxy) -> None:
    """No event is missing, and none comes twice."""
    async with lossy.acquire_kernel("streamer", timeout=60) as (_kernel, session):
        proxy.losing, proxy.after = [b"/execute"], 2000
        code = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(0.02)"
        events = [event async for event in lossy.stream_code(session, code)]
    text = "".join(event.text for event in events if isinstance(event, StreamOutput))
    assert text.split() == [str(number) for number in range(40)]
    assert isinstance(events[-1], CellFinished)
    assert events[-1].result.outcome == "ok"
    assert proxy.losing == []


async def test_a_request_for_another_process_is_refused(cluster: Cluster) -> None:
    """A server that was started anew does not know the keys of the one before, and would run the cell again."""
    connection = Connection(cluster.servers[0].url, None, None, True)
    with pytest.raises(NotOwnerError):
        await connection.ask("POST", "/v1/sessions", {"agent_id": "other"}, headers={"Cellblock-Process": "gone"})
    await connection.close()


async def test_each_node_refuses_and_the_error_says_what_each_said(cluster: Cluster) -> None:
    """The deadline holds over all of them."""
    directory = FakeDirectory()
    for number, server in enumerate(cluster.servers, 1):
        directory.add(record(f"n{number}", server.url))
    directory.add(record("n3", NOWHERE))
    began = time.monotonic()
    async with ClusterKernelManager(directory=directory) as manager:
        with pytest.raises(NoNodeError) as refused:
            async with manager.acquire_kernel("nobody", timeout=1, image="cellblock-sandbox:none"):
                pass
    assert time.monotonic() - began < 20
    assert {refusal.node_id for refusal in refused.value.refusals} == {"n1", "n2", "n3"}
    assert isinstance(refused.value, KernelPoolExhaustedError)


async def test_a_node_that_is_gone_is_passed_over(cluster: Cluster) -> None:
    """It looks better than the other one, and does not answer."""
    better = Capacity(kernels=100, free=100, memory_free_mb=500_000, cores=64.0, load=0.0, warm={"default": 50})
    alone = FakeDirectory()
    alone.add(record("gone", NOWHERE, better))
    alone.add(record("n2", cluster.servers[1].url))
    async with (
        ClusterKernelManager(directory=alone) as manager,
        manager.acquire_kernel("wanderer", timeout=60) as (_kernel, session),
    ):
        assert (await manager.execute(session, "6 * 7")).result == "42"


async def test_two_clients_of_one_agent_get_one_kernel(directory: FakeDirectory) -> None:
    """Also where they ask different nodes at once."""
    async with (
        ClusterKernelManager(directory=directory, seed=1) as one,
        ClusterKernelManager(directory=directory, seed=2) as two,
    ):

        async def acquired(manager: ClusterKernelManager) -> str:
            async with manager.acquire_kernel("shared", timeout=60) as (kernel, _session):
                return kernel.kernel_id

        assert len(set(await asyncio.gather(*(acquired(manager) for manager in (one, two) * 3)))) == 1


async def test_a_wrong_protocol_is_refused_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node says what it speaks: what the directory has of it decides nothing."""
    monkeypatch.setattr(nodelink, "SPOKEN", (2, 3))
    directory = FakeDirectory()
    directory.add(record("n1", cluster.servers[0].url, protocol=2))
    async with ClusterKernelManager(directory=directory) as manager:
        with pytest.raises(IncompatibleServerError, match="speaks the protocols 1 to 1; this client speaks 2 to 3"):
            async with manager.acquire_kernel("agent", timeout=10):
                pass


async def test_the_store_is_away(directory: FakeDirectory) -> None:
    """A session that is known goes on; a new one is refused with the store's error."""
    async with (
        ClusterKernelManager(directory=directory) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        directory.is_away = True
        try:
            assert (await manager.execute(session, "1 + 1")).result == "2"
            with pytest.raises(StoreError):
                async with manager.acquire_kernel("another", timeout=10):
                    pass
        finally:
            directory.is_away = False


async def test_short_calls_do_not_ask_the_store(directory: FakeDirectory) -> None:
    """Only the acquisition does."""
    async with (
        ClusterKernelManager(directory=directory) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        before = directory.readings
        for _ in range(20):
            await manager.execute(session, "1")
        assert directory.readings == before


async def test_a_consumer_that_stalls_on_a_gigabyte_keeps_memory_bounded(
    cluster: Cluster, directory: FakeDirectory
) -> None:
    """Of this process and of both nodes; and one that then stops ends the cell."""
    processes = [psutil.Process(), *(psutil.Process(server.process.pid) for server in cluster.servers)]
    async with (
        ClusterKernelManager(directory=directory) as manager,
        manager.acquire_kernel("flood", timeout=60) as (_kernel, session),
    ):
        before = [process.memory_info().rss for process in processes]
        code = "for _ in range(1024): print('x' * 1024 * 1024)"
        stream = manager.stream_code(session, code, output_limit=10**9)
        await anext(stream)
        await asyncio.sleep(3)
        grown = [process.memory_info().rss - old for process, old in zip(processes, before, strict=True)]
        assert max(grown) < 200 * 1024 * 1024, grown
        await stream.aclose()
        async with asyncio.timeout(10):
            assert (await manager.execute(session, "'free'")).result == "'free'"


async def test_the_sessions_of_all_nodes_are_listed_and_ended_by_name(directory: FakeDirectory) -> None:
    async with ClusterKernelManager(directory=directory, seed=3) as manager:
        for name in ("list-1", "list-2", "list-3", "list-4"):
            async with manager.acquire_kernel(name, timeout=60) as (_kernel, session):
                await manager.execute(session, "1")
        names = {row["agent_id"] for row in await manager.list_sessions()}
        assert names >= {"list-1", "list-2", "list-3", "list-4"}
        assert [await manager.end_session(name) for name in ("list-1", "list-2", "list-3", "list-4")] == [True] * 4
        assert not await manager.end_session("list-1")


async def test_a_node_that_may_take_a_session_is_waited_for(directory: FakeDirectory) -> None:
    """All renew their leases late, or start just now: the caller's own time limit decides."""
    names = list(directory.records)
    for name in names:
        directory.set(name, lease_left_s=1.0)
    try:
        async with ClusterKernelManager(directory=directory) as manager:
            with pytest.raises(NoNodeError, match="no node"):
                async with manager.acquire_kernel("late", timeout=0.7):
                    pass
            for name in names:
                asyncio.get_running_loop().call_later(1.0, directory.set, name)
            async with manager.acquire_kernel("late", timeout=60) as (_kernel, session):
                assert (await manager.execute(session, "1")).result == "1"
    finally:
        for name in names:
            directory.set(name)
