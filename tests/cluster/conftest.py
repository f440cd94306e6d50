"""Clusters of the tests' own: real servers on loopback, and a directory in this process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.fakedirectory import FakeDirectory, record
from tests.server.conftest import Server, serving


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers with data and state folders of their own, for all tests of the cluster that kill none."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(node(tmp_path_factory.mktemp("node"), number)) for number in range(2)]


@contextlib.contextmanager
def node(folder: Path, number: int, *options: str, **settings: str) -> Iterator[Server]:
    """Run a server with a data folder, a state folder and a range of user ids of its own."""
    with tempfile.TemporaryDirectory(prefix="cb-") as state:  # sockets need a short path
        own = {"CELLBLOCK_STATE_DIR": state, "CELLBLOCK_UID_BASE": str(260_000 + 2_000 * number)}
        with serving(folder, *options, **{**own, **settings}) as server:
            yield server


@pytest.fixture(scope="module", params=[1, 2], ids=["one_node", "two_nodes"])
def directory(servers: list[Server], request: pytest.FixtureRequest) -> FakeDirectory:
    """The directory that the managers of a module's tests read."""
    return FakeDirectory(*(record(f"n{number}", each.url) for number, each in enumerate(servers[: request.param], 1)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(directory: FakeDirectory) -> AsyncIterator[ClusterKernelManager]:
    """The manager of the cluster: what tests that are written for any manager get here."""
    async with ClusterKernelManager(directory) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: ClusterKernelManager) -> AsyncIterator[RemoteSession]:
    """A session with an empty working directory."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.run_command(session, "chmod -R u+rwX . ; find /work -mindepth 1 -delete")
        yield session
