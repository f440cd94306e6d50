"""Two principals over HTTP: neither reaches what is the other's. And two processes over one principal's session."""

from __future__ import annotations

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from orchestrator.errors import InvalidInputError
from orchestrator.mcp.handles import check_owner, handle_of, name_in
from tests.conftest import make_manager
from tests.mcp.servers import call, ended, http_client, http_server, id_in, links_of, refused

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


async def test_two_principals_share_nothing() -> None:
    """Sessions of one name, ids of cells, resources, checkpoints, and connections of the protocol of 2025."""
    async with (
        make_manager("runc") as manager,
        http_server(manager) as url,
        http_client(url, principal="one") as one,
        http_client(url, principal="two", mode="legacy") as two,
    ):
        await call(one, "run_python", code="secret = 'of one'")
        assert "NameError" in await call(two, "run_python", code="secret")
        assert (await call(one, "sessions")).startswith("main: live, 1 cells; last were cell-")
        assert set(manager.sessions) == {"one:main", "two:main"}

        loop = await one.call_tool("run_python", {"code": "while True: pass"})
        assert "there is no" in await refused(two, "wait", id=id_in(loop))
        assert "there is no" in await refused(two, "interrupt", id=id_in(loop))
        assert "no cell is running" in await refused(two, "interrupt")
        await ended(one, await one.call_tool("interrupt", {}))

        shown = await one.call_tool("run_python", {"code": "print('x' * 100_000)"})
        (link,) = links_of(shown)
        assert (await one.read_resource(str(link.uri))).contents
        for uri in (str(link.uri), "cellblock://output/../x", "file:///etc/passwd"):
            with pytest.raises(MCPError, match="no such resource"):
                await two.read_resource(uri)

        saved = await call(one, "checkpoint")
        assert "checkpoint_" in await refused(two, "restore", checkpoint=saved.split()[1].rstrip(":"))
        await call(two, "sessions", end="main")
        assert await call(one, "run_python", code="secret") == "'of one'"

        headers = {"Accept": "application/json, text/event-stream", "Authorization": "Bearer one"}
        async with httpx2.AsyncClient(headers=headers) as web:
            opened = await web.post(url, json=INITIALIZE)
            assert opened.status_code == 200
            connection = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
            assert (await web.post(url, json=listing, headers=connection)).status_code == 200
            stolen = connection | {"Authorization": "Bearer two"}
            assert (await web.post(url, json=listing, headers=stolen)).status_code == 404
            nobody = await web.post(url, json=INITIALIZE, headers={"Authorization": "Bearer three"})
            assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
            for bad in (b"", b"{", b"[]", b"null", b'{"jsonrpc": "2.0"}', b"[" * 100_000, b"\xff" * 1000):
                answer = await web.post(url, content=bad, headers={"Content-Type": "application/json"})
                assert 400 <= answer.status_code < 500
            huge = await web.post(url, content=b" " * 9_000_000, headers={"Content-Type": "application/json"})
            assert huge.status_code == 413


async def test_a_session_of_another_process_is_named_with_what_to_do() -> None:
    """Two managers on one data folder, as two servers of one agent are."""
    async with (
        make_manager("runc") as mine,
        make_manager("runc") as other,
        http_server(mine) as here,
        http_server(other) as there,
        http_client(here) as client,
        http_client(there) as late,
    ):
        await call(client, "run_python", code="x = 1")
        told = await refused(late, "run_python", code="x")
        assert told.startswith("session_elsewhere: ")
        assert "Use another `session` name" in told
        assert await call(late, "run_python", code="2", session="other") == "2"


@pytest.mark.parametrize(
    ("owner", "agent_id", "name"),
    [
        ("one", "one:main", "main"),
        ("one", "one:two:main", None),
        ("one:two", "one:two:main", "main"),
        ("one", "onetwo:main", None),
        ("one", "one:", None),
        ("one", "one", None),
    ],
)
def test_no_agent_id_belongs_to_two_principals(owner: str, agent_id: str, name: str | None) -> None:
    assert name_in(owner, agent_id) == name
    if name is not None:
        assert handle_of(owner, name).agent_id == agent_id


@pytest.mark.parametrize("owner", ["", " ", "a/b", "a\nb", "x" * 121])
def test_hostile_principals_are_refused(owner: str) -> None:
    with pytest.raises(InvalidInputError):
        check_owner(owner)
