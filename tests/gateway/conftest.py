"""A server with tokens, and kernels of two groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio

from tests.server.conftest import Server, serving

WEBSOCKETS = 16  # that one token may have open


@dataclass
class Gateway:
    """A running server.

    Attributes:
        mine, theirs: tokens of two groups.
    """

    server: Server
    mine: str
    theirs: str

    @property
    def url(self) -> str:
        return self.server.url

    def http(self, token: str) -> httpx.AsyncClient:
        """Return a client that calls as Jupyter's do."""
        headers = {"Authorization": f"token {token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=90)


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(tmp_path_factory.mktemp("gateway"), "--concurrent", str(WEBSOCKETS), tokens=1) as server:
        mine = server.token("mine", "--group", "mine", "--policy", "local-dev", "--policy", "default")
        yield Gateway(server, mine, server.token("theirs", "--group", "theirs"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http(gateway.mine) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel(http: httpx.AsyncClient) -> str:
    """A kernel that most tests of a module share."""
    answer = await http.post("/api/kernels", json={"name": "python3", "env": {"KERNEL_TEST": "yes"}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
