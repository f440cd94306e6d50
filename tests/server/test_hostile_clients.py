"""Requests that no good client sends: none may end in a status of 500, or get around what a token may do."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

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


async def test_numbers_of_any_size_are_read(http: httpx.AsyncClient, path: str) -> None:
    """Such an offset made the kernel fall silent for 30 s, and such a limit was a failure of the server."""
    answer = await http.post(f"{path}/execute", json={"code": "1", "output_limit": _HUGE})
    assert (answer.status_code, answer.json()["outcome"]) == (200, "ok")
    answer = await http.get(f"{path}/files/content", params={"path": "/etc/hostname", "offset": 2**63}, timeout=5)
    assert answer.status_code == 422
    made = (await http.post("/sandboxes", json={"timeout": 60})).json()["sandboxID"]
    answer = await http.post(f"/sandboxes/{made}/connect", content=b'{"timeout": %d}' % _HUGE)
    assert answer.status_code == 400
    assert (await http.delete(f"/sandboxes/{made}")).status_code == 204


@pytest.mark.parametrize("query", ["xsignature=1", "a=1&" * 120 + "signature=1", "signature=%ff"])
async def test_a_malformed_signature_is_no_access(http: httpx.AsyncClient, query: str) -> None:
    assert (await http.get(f"/files?{query}")).status_code in (400, 401)


@pytest.mark.parametrize("mark", ["[1]", "{", '{"x": 1}', '{"source": {}}', "1", "[" * 900])
async def test_a_label_with_the_marks_name_breaks_no_list(http: httpx.AsyncClient, path: str, mark: str) -> None:
    made = await http.post("/v1/sessions", json={"agent_id": "marked", "labels": {"cellblock.e2b": mark}})
    answer = await http.get("/v2/sandboxes")
    assert (await http.delete(f"/v1/sessions/{made.json()['session_id']}")).status_code == 200
    assert answer.status_code == 200


async def test_two_accept_headers_hide_no_stream(http: httpx.AsyncClient, path: str, guarded: Server) -> None:
    """Else the stream outlives its token."""
    gone = guarded.token("gone", "--group", "red")
    accept = [("Accept", "text/event-stream"), ("Accept", "text/plain"), ("X-API-Key", gone)]
    code = "import time\nfor n in range(12): print(n, flush=True); time.sleep(0.5)"
    async with (
        httpx.AsyncClient(base_url=guarded.url, timeout=20) as client,
        client.stream("POST", f"{path}/execute", json={"code": code}, headers=accept) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        await anext(lines)
        await asyncio.to_thread(guarded.command, "token", "revoke", gone.split("_")[1])
        with pytest.raises(httpx.RemoteProtocolError):
            _ = [line async for line in lines]
    await http.post(f"{path}/interrupt")


async def test_two_who_make_one_agents_session_have_one(guarded: Server) -> None:
    """Each with another policy: one makes it, and the other finds it as it is."""
    both = guarded.token("both", "--group", "pair", "--policy", "default", "--policy", "local-dev")
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": both}) as client:
        wishes = [
            {"agent_id": "one", "labels": {"number": str(number)}, "policy": policy}
            for number, policy in enumerate(["default", "default", "local-dev", "local-dev"])
        ]
        answers = await asyncio.gather(*(client.post("/v1/sessions", json=wish) for wish in wishes))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
        found = [answer.json() for answer in answers]
        assert len({each["session_id"] for each in found}) == 1
        assert len({each["labels"]["number"] for each in found}) == 1
        await client.delete(f"/v1/sessions/{found[0]['session_id']}")


async def test_more_time_counts_while_another_session_expires(http: httpx.AsyncClient) -> None:
    """While a session that has expired takes 4 s to be saved, another one that is about to expire is given an hour."""
    slow, kept = [
        f"/v1/sessions/{(await http.post('/v1/sessions', json={'agent_id': name})).json()['session_id']}"
        for name in ("slow", "kept")
    ]
    code = "import time\nclass Slow:\n    def __reduce__(self): time.sleep(4); return int, ()\nslow = Slow()"
    await http.post(f"{slow}/execute", json={"code": code})
    await http.put(f"{slow}/lifetime", json={"ttl_s": 0.5, "on_expiry": "hibernate"})
    await http.put(f"{kept}/lifetime", json={"ttl_s": 3.5})
    await asyncio.sleep(2.5)
    assert (await http.put(f"{kept}/lifetime", json={"ttl_s": 3600})).status_code == 200
    await asyncio.sleep(4)
    assert (await http.get(kept)).json()["state"] == "live"
    for session in (slow, kept):
        await http.delete(session)


async def test_an_mcp_call_has_the_policies_of_its_own_token(guarded: Server) -> None:
    """While it waits, another token of the group calls: what that one may do is not lent to the first one."""
    few = guarded.token("few", "--group", "lent", "--policy", "default")
    more = guarded.token("more", "--group", "lent", "--policy", "local-dev")
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60) as client:
        mine, others = await mcp_headers(client, few), await mcp_headers(client, more)
        cells = [
            asyncio.create_task(mcp(client, mine, "tools/call", {"name": "run_python", "arguments": {"code": code}}))
            for code in ("import time; time.sleep(20)", "1")
        ]
        await asyncio.sleep(3)
        await mcp(client, others, "tools/list", {})
        (first,) = (await client.get("/v1/sessions", headers=mine)).json()["sessions"]
        await client.delete(f"/v1/sessions/{first['session_id']}", headers=mine)  # the second cell needs a new session
        await asyncio.gather(*cells)
        (second,) = (await client.get("/v1/sessions", headers=mine)).json()["sessions"]
        await client.delete(f"/v1/sessions/{second['session_id']}", headers=mine)
    assert (first["policy"], second["policy"]) == ("default", "default")


async def mcp_headers(client: httpx.AsyncClient, token: str) -> dict[str, str]:
    """Open a connection of MCP, and return the headers of its requests."""
    headers = {"X-API-Key": token, "Accept": "application/json, text/event-stream"}
    wish = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    answer = await mcp(client, headers, "initialize", wish)
    return {**headers, "Mcp-Session-Id": answer.headers["mcp-session-id"]}


async def mcp(
    client: httpx.AsyncClient, headers: dict[str, str], method: str, params: dict[str, Any]
) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": secrets.token_hex(4), "method": method, "params": params}
    return await client.post("/mcp", json=body, headers=headers)


async def test_a_killed_servers_session_still_hibernates(tmp_path: Path, state: Path) -> None:
    with serving(tmp_path, CELLBLOCK_STATE_DIR=str(state)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            wish = {"agent_id": "sleeper", "ttl_s": 3, "on_expiry": "hibernate"}
            path = f"/v1/sessions/{(await client.post('/v1/sessions', json=wish)).json()['session_id']}"
        server.process.kill()
        server.process.wait()
    with serving(tmp_path, CELLBLOCK_STATE_DIR=str(state)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client, asyncio.timeout(30):
            while (await client.get(path)).json()["state"] != "asleep":
                await asyncio.sleep(0.3)


async def test_a_token_uses_no_session_of_a_policy_that_it_lacks(guarded: Server) -> None:
    """Through no door, neither awake nor asleep, nor by a fork. It sees the group's sessions and their past."""
    wide = guarded.token("wide", "--group", "lacks", "--policy", "default", "--policy", "local-dev")
    narrow = guarded.token("narrow", "--group", "lacks", "--policy", "default")
    mine = {"X-API-Key": narrow}
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": wide}) as http:
        wish = {"agent_id": "parent", "policy": "local-dev"}
        session_id = (await http.post("/v1/sessions", json=wish)).json()["session_id"]
        path = f"/v1/sessions/{session_id}"
        assert (await http.post(f"{path}/execute", json={"code": "x = 1"})).json()["outcome"] == "ok"
        for state in ("live", "asleep"):
            for method, what, body in (
                ("POST", "/v1/sessions", {"agent_id": "parent"}),
                ("POST", f"{path}/execute", {"code": "x"}),
                ("POST", f"{path}/commands", {"command": "true"}),
                ("GET", f"{path}/files", None),
                ("POST", f"{path}/fork", {"count": 1}),
                ("POST", f"{path}/lease", {}),
                ("DELETE", path, None),
                ("POST", f"/sandboxes/{session_id}/connect", {"timeout": 60}),
            ):
                answer = await http.request(method, what, json=body, headers=mine)
                assert answer.status_code == 403, (method, what, answer.text)
            called = await mcp_headers(http, narrow)
            arguments = {"code": "x", "session": "parent"}
            answer = await mcp(http, called, "tools/call", {"name": "run_python", "arguments": arguments})
            assert "forbidden: " in answer.text
            assert (await http.get(path, headers=mine)).json()["state"] == state
            assert len((await http.get(f"{path}/history", headers=mine)).json()["cells"]) == 1
            await http.post(f"{path}/hibernate")
        assert (await http.post(f"{path}/fork", json={"count": 1})).status_code == 201
        assert (await http.delete(path)).json() == {"ended": True}


async def test_a_session_of_any_policy_hibernates_when_it_expires(guarded: Server) -> None:
    """The server itself may use it."""
    token = guarded.token("expires", "--group", "expires", "--policy", "local-dev")
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": token}) as http:
        wish = {"agent_id": "a", "ttl_s": 1, "on_expiry": "hibernate"}
        path = f"/v1/sessions/{(await http.post('/v1/sessions', json=wish)).json()['session_id']}"
        async with asyncio.timeout(30):
            while (await http.get(path)).json()["state"] != "asleep":
                await asyncio.sleep(0.3)


async def test_a_revoked_token_loses_its_long_request(guarded: Server) -> None:
    """Not streams alone: a cell that is waited for is interrupted, and the client is told why."""
    token = guarded.token("long", "--group", "long")
    headers = {"X-API-Key": token}
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers=headers) as http:
        path = f"/v1/sessions/{(await http.post('/v1/sessions', json={})).json()['session_id']}/execute"
        asking = asyncio.create_task(http.post(path, json={"code": "import time; time.sleep(25)"}))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(guarded.command, "token", "revoke", token.split("_")[1])
        async with asyncio.timeout(10):
            answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_a_session_in_use_is_put_to_sleep_once_it_is_not(guarded: Server, token: str) -> None:
    """It expires while a command keeps it awake: it is tried again, and keeps its state."""
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60, headers={"X-API-Key": token}) as http:
        path = f"/v1/sessions/{(await http.post('/v1/sessions', json={'agent_id': 'used'})).json()['session_id']}"
        await http.post(f"{path}/execute", json={"code": "x = 5"})
        waiting = asyncio.create_task(http.post(f"{path}/commands", json={"command": "sleep 6"}))
        await asyncio.sleep(1)
        await http.put(f"{path}/lifetime", json={"ttl_s": 0.5, "on_expiry": "hibernate"})
        await asyncio.sleep(2.5)
        assert (await http.get(path)).json()["state"] == "live"
        assert (await waiting).json()["exit_code"] == 0
        for _ in range(80):
            await asyncio.sleep(0.5)
            found = (await http.get(path)).json()
            if found["state"] == "asleep" and found["expires_at"] is None:
                break
        assert (found["state"], found["expires_at"]) == ("asleep", None)
        assert (await http.post(f"{path}/execute", json={"code": "x"})).json()["result"] == "5"
