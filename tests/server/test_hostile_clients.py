"""Requests that no good client sends: none may end in a status of 500, or get around what a token may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio

from tests.server.conftest import Server, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
_HUGE = 10**400


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants tokens."""
    with serving(tmp_path_factory.mktemp("hostile"), tokens=1) as server:
        yield server


@pytest.fixture(scope="module")
def token(guarded: Server) -> str:
    return guarded.token("red", "--group", "red")


@pytest_asyncio.fixture(loop_scope="module")
async def http(guarded: Server, token: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": token}) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def path(guarded: Server, token: str) -> str:
    """The path of a session."""
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": token}) as client:
        return f"/v1/sessions/{(await client.post('/v1/sessions', json={'agent_id': 'main'})).json()['session_id']}"


async def test_a_password_that_is_no_ascii_is_no_token(guarded: Server) -> None:
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        answer = await client.get("/v1/caller", headers={b"Authorization": b"Basic \xff\xe9"})
    assert answer.status_code == 401


async def test_base64_that_is_no_ascii_is_refused(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(f"{path}/commands", json={"command": "cat", "stdin_base64": "é"})
    assert answer.status_code == 422
    body = {"code": "1", "language": "python", "files": {"a": "é"}}
    assert (await http.post("/run_code", json=body)).status_code == 422
