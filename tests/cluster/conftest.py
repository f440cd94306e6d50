"""Clusters of the tests' own: servers on loopback with a directory in this process, and a bed of simulated hosts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.fakedirectory import FakeDirectory, record
from tests.cluster.faultycluster import FaultyCluster, faulty_cluster
from tests.cluster.lossyproxy import LossyProxy
from tests.cluster.simulatedhosts import SimulatedHosts, simulated_hosts
from tests.server.conftest import Server, serving

pytest.register_assert_rewrite("tests.cluster.pauses")


@dataclass
class Cluster:
    """Servers that are nodes, "n1", "n2" and so on, over one store."""

    folder: Path
    servers: list[Server]

    @contextlib.contextmanager
    def directory(self, count: int) -> Iterator[FakeDirectory]:
        """Yield a directory with the first nodes."""
        directory = FakeDirectory(self.folder)
        for number, server in enumerate(self.servers[:count], 1):
            directory.add(record(f"n{number}", server.url), server.process.pid)
        try:
            yield directory
        finally:
            directory.close()


@contextlib.contextmanager
def cluster_of(count: int) -> Iterator[Cluster]:
    """Run servers with one data folder and one state folder, so that a live one goes on with a dead one's sessions."""
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as name,
        contextlib.ExitStack() as stack,
    ):  # sockets need a short path
        folder = Path(name)
        nodes = [serving(folder, CELLBLOCK_STATE_DIR=str(folder / "state")) for _ in range(count)]
        with ThreadPoolExecutor(count) as threads:
            servers = list(threads.map(stack.enter_context, nodes))
        yield Cluster(folder, servers)


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes, for all tests that kill none."""
    with cluster_of(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def directory(cluster: Cluster) -> Iterator[FakeDirectory]:
    """The directory that the managers of a module's tests read."""
    with cluster.directory(int(os.environ.get("CELLBLOCK_TEST_NODES", "2"))) as directory:
        yield directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(directory: FakeDirectory) -> AsyncIterator[ClusterKernelManager]:
    """The manager of the cluster: what tests that are written for any manager get here."""
    async with ClusterKernelManager(directory=directory) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: ClusterKernelManager) -> AsyncIterator[RemoteSession]:
    """A session with an empty working directory."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.run_command(session, "chmod -R u+rwX . ; find /work -mindepth 1 -delete")
        yield session


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(cluster: Cluster) -> AsyncIterator[LossyProxy]:
    async with LossyProxy(cluster.servers[0].url).running() as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="module")
async def lossy(cluster: Cluster, proxy: LossyProxy) -> AsyncIterator[ClusterKernelManager]:
    """A manager that reaches its only node through the proxy."""
    with cluster.directory(1) as directory:
        directory.records["n1"] = dataclasses.replace(directory.records["n1"], url=proxy.url)
        async with ClusterKernelManager(directory=directory) as manager:
            yield manager


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyCluster]:
    """Two nodes, for all tests of the module."""
    with faulty_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def bed() -> Iterator[SimulatedHosts]:
    """A bed whose hosts all run, are thawed and reach each other when a test begins and when it ends."""
    with simulated_hosts(3) as bed:
        yield bed
