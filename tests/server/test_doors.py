"""Who may come in, what they see, and what a server does with bad input, slow clients and its own end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, ServerUnavailableError, SessionEndedError, UnauthorizedError
from tests.server.conftest import Server, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOWHERE = "0" * 32


class Tokens:
    """The tokens of one server's callers."""

    def __init__(self, server: Server) -> None:
        self.red = server.token("red", "--group", "red")
        self.blue = server.token("blue", "--group", "blue")
        self.operator = server.token("boss", "--group", "ops", "--operator")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants tokens."""
    with serving(tmp_path_factory.mktemp("guarded"), "--concurrent", "8", tokens=1) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(guarded: Server) -> Tokens:
    return Tokens(guarded)


@pytest_asyncio.fixture(loop_scope="module")
async def http(guarded: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=guarded.url, timeout=60) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def new_session(http: httpx.AsyncClient, token: str, **wish: Any) -> dict[str, Any]:
    answer = await http.post("/v1/sessions", json=wish, headers=bearer(token))
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def operations(http: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Return every method and path of the API's own description."""
    found = (await http.get("/openapi.json")).json()
    return [(method.upper(), path) for path, methods in found["paths"].items() for method in methods]


PUBLIC = {"/health", "/ready"}


async def test_no_route_works_without_a_valid_token(http: httpx.AsyncClient, guarded: Server, tokens: Tokens) -> None:
    """Missing, malformed, unknown and revoked tokens, on every route: 401, and nothing more is said."""
    revoked = guarded.token("gone", "--group", "red")
    guarded.command("token", "revoke", revoked.split("_")[1])
    await asyncio.sleep(1.2)
    session = await new_session(http, tokens.red, agent_id="target")
    wrong = [None, "x", tokens.red[:-1], tokens.red[:-1] + ("A" if tokens.red[-1] != "A" else "B"), revoked]
    seen = set()
    for method, path in await operations(http):
        if path in PUBLIC:
            continue
        url = path.replace("{session_id}", session["session_id"]).replace("{cell_id}", "x").replace("{number}", "1")
        for token in wrong:
            answer = await http.request(method, url, headers={} if token is None else bearer(token))
            assert answer.status_code == 401, (method, path)
            assert answer.json()["code"] == "unauthorized"
            seen.add(answer.json()["message"])
    assert seen == {
        "this server needs a token.",
        "the token is missing, unknown, revoked or expired.",
    }


async def test_another_groups_session_is_as_unknown_as_any(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """On every route, with a body that is valid or not: the same answer, but for the id, as for a session of nobody."""
    session = await new_session(http, tokens.red, agent_id="secret", labels={"project": "x"})
    bodies: list[Any] = [None, {}, {"code": "1"}, {"command": "true"}, {"count": 1}, {"checkpoint_id": NOWHERE}]
    for method, path in await operations(http):
        if "{session_id}" not in path:
            continue
        for body in bodies:
            answers = []
            for session_id in (session["session_id"], NOWHERE):
                url = path.replace("{session_id}", session_id).replace("{cell_id}", "x").replace("{number}", "1")
                url = url.replace("{question_id}", "x") + "?path=x&source=x&destination=y"
                answer = await http.request(method, url, json=body, headers=bearer(tokens.blue))
                answers.append((answer.status_code, answer.text.replace(session_id, "ID")))
            assert answers[0] == answers[1], (method, path)
            assert answers[0][0] in ((403,) if "operator" in path else (404, 422))
    listed = (await http.get("/v1/sessions?ended=true", headers=bearer(tokens.blue))).text
    assert session["session_id"] not in listed
    same_name = await new_session(http, tokens.blue, agent_id="secret")
    assert same_name["session_id"] != session["session_id"]
    assert same_name["labels"] == {}


async def test_another_groups_session_takes_as_long_as_any(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """The median times of an answer about another group's session and about none differ by less than their spread."""
    session = await new_session(http, tokens.red, agent_id="timed")
    times: dict[str, list[float]] = {session["session_id"]: [], NOWHERE: []}
    for _ in range(150):
        for session_id, taken in times.items():
            begun = time.perf_counter()
            await http.get(f"/v1/sessions/{session_id}", headers=bearer(tokens.blue))
            taken.append(time.perf_counter() - begun)
    (first, second) = (sorted(taken) for taken in times.values())
    spread = max(first[112] - first[37], second[112] - second[37])
    assert abs(first[75] - second[75]) < 2 * spread


async def test_only_an_operator_sees_all_kernels(http: httpx.AsyncClient, tokens: Tokens) -> None:
    for path in ("/v1/overview", "/metrics"):
        assert (await http.get(path, headers=bearer(tokens.red))).status_code == 403
        assert (await http.get(path, headers=bearer(tokens.operator))).status_code == 200


async def test_a_policy_that_the_token_does_not_name_is_refused(http: httpx.AsyncClient, tokens: Tokens) -> None:
    answer = await http.post("/v1/sessions", json={"policy": "strict"}, headers=bearer(tokens.red))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_only_images_of_cellblock_can_be_named(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """Not any image that the host's engine has."""
    for image in (
        "postgres:16",
        "cellblock-base:x",
        "x/cellblock-sandbox:1",
        "cellblock-sandbox:a b",
        "sha256:" + "0" * 64,
    ):
        answer = await http.post("/v1/sessions", json={"image": image}, headers=bearer(tokens.red))
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    answer = await http.post("/v1/sessions", json={"image": "cellblock-sandbox:nosuch"}, headers=bearer(tokens.red))
    assert answer.json()["code"] == "image_missing"


async def test_a_revoked_token_loses_its_stream(http: httpx.AsyncClient, guarded: Server) -> None:
    """Within two seconds, in the midst of a cell. The cell goes on: the session is its group's."""
    token = guarded.token("short", "--group", "short")
    session = await new_session(http, token)
    path = f"/v1/sessions/{session['session_id']}/execute"
    code = "import time\nfor n in range(100): print(n, flush=True); time.sleep(0.1)"
    headers = {**bearer(token), "Accept": "text/event-stream"}
    begun = 0.0
    with pytest.raises(httpx.RemoteProtocolError):
        async with http.stream("POST", path, json={"code": code}, headers=headers) as answer:
            assert answer.status_code == 200
            pieces = answer.aiter_bytes()
            await anext(pieces)
            await asyncio.to_thread(guarded.command, "token", "revoke", token.split("_")[1])
            begun = time.monotonic()
            async for _ in pieces:
                pass
    assert time.monotonic() - begun < 8
    assert (await http.get("/v1/sessions", headers=bearer(token))).status_code == 401


async def test_more_open_requests_than_allowed_are_refused(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """One token's places are its own: another one's requests go on."""
    session = await new_session(http, tokens.red, agent_id="busy")
    path = f"/v1/sessions/{session['session_id']}/execute"
    slow = {"code": "import time; time.sleep(1)"}
    tasks = [asyncio.create_task(http.post(path, json=slow, headers=bearer(tokens.red))) for _ in range(8)]
    await asyncio.sleep(0.5)
    answer = await http.get("/v1/sessions", headers=bearer(tokens.red))
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "too_many_requests", "1")
    assert (await http.get("/v1/sessions", headers=bearer(tokens.blue))).status_code == 200
    assert {(await task).status_code for task in tasks} == {200}


BAD_BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"code": "1", "timeout": NaN}',
    "infinity": b'{"code": "1", "timeout": 1e999}',
    "below zero": b'{"code": "1", "timeout": -1}',
    "unknown key": b'{"code": "1", "extra": 1}',
    "wrong type": b'{"code": 1}',
    "deep": b"[" * 100_000,
    "empty": b"",
    "no UTF-8": b'{"code": "\xff"}',
    "a lone surrogate": b'{"code": "\\ud800"}',
    "NUL": b'{"code": "a\\u0000"}',
    "a huge number": b'{"code": "1", "output_limit": ' + b"9" * 5000 + b"}",
    "a variable of a bad name": b'{"code": "1", "environment": {"A=": "1"}}',
    "a tool of a bad name": b'{"code": "1", "tools": [{"name": "no!", "parameters": {}}]}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_refused_with_what_is_wrong(http: httpx.AsyncClient, tokens: Tokens, name: str) -> None:
    session = await new_session(http, tokens.red, agent_id="bad")
    headers = {**bearer(tokens.red), "Content-Type": "application/json", "Accept": "text/event-stream"}
    path = f"/v1/sessions/{session['session_id']}/execute"
    answer = await http.post(path, content=BAD_BODIES[name], headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] in ("invalid_input", "invalid_code")


async def test_a_body_is_bounded(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """Declared or not: 413, after 3 MiB at most were read."""
    headers = {**bearer(tokens.red), "Content-Type": "application/json"}

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024 * 1024

    for content in (b" " * 100_000_000, endless()):
        try:
            answer = await http.post("/v1/sessions", content=content, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the server has answered and closed the connection while the client still sent
    assert (await http.get("/health")).status_code == 200


def raw(server: Server, data: bytes, timeout: float = 15.0) -> bytes:
    """Send bytes, and return what comes until the server closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


async def test_a_head_is_bounded_in_size_and_time(guarded: Server) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert b" 200 " in await asyncio.to_thread(raw, guarded, head + b"\r\n")
    assert b" 431 " in await asyncio.to_thread(raw, guarded, head + b"X: " + b"y" * 100_000 + b"\r\n\r\n")
    begun = time.monotonic()
    assert await asyncio.to_thread(raw, guarded, head, 30.0) == b""
    assert 5 < time.monotonic() - begun < 25


async def test_a_page_of_another_origin_is_refused(http: httpx.AsyncClient, tokens: Tokens) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = await http.get("/v1/sessions", headers={**bearer(tokens.red), "Origin": origin})
        assert answer.status_code == 403


async def test_names_of_files_lead_nowhere_else(http: httpx.AsyncClient, guarded: Server, tokens: Tokens) -> None:
    """A path is the sandbox's; a checkpoint is named by its id, never by a path of the host."""
    session = await new_session(http, tokens.red, agent_id="paths")
    path = f"/v1/sessions/{session['session_id']}"
    answer = await http.get(f"{path}/files/content?path=../../../../etc/hostname", headers=bearer(tokens.red))
    assert answer.text.strip() != Path("/etc/hostname").read_text().strip()
    for name in (str(guarded.log), "../x", "", "0" * 31, "g" * 32):
        answer = await http.post(f"{path}/restore", json={"checkpoint_id": name}, headers=bearer(tokens.red))
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_a_stream_goes_on_where_it_was(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """A client that lost its connection gets every event once, in order."""
    session = await new_session(http, tokens.blue, agent_id="resumes")
    path = f"/v1/sessions/{session['session_id']}"
    code = "import time\nfor n in range(20): print(n, flush=True); time.sleep(0.05)"
    started = (await http.post(f"{path}/cells", json={"code": code}, headers=bearer(tokens.blue))).json()
    text, last, finished = "", 0, False
    while not finished:
        headers = {**bearer(tokens.blue), "Last-Event-ID": str(last)}
        async with http.stream("GET", f"{path}/cells/{started['cell_id']}/events", headers=headers) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith("id: "):
                    assert int(line[4:]) == last + 1
                    last += 1
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    text += event.get("text", "") if event["type"] == "stream" else ""
                    finished = event["type"] == "cell_finished"
                    if last % 3 == 0 and event["type"] == "stream":
                        break
    assert text == "".join(f"{n}\n" for n in range(20))


async def test_a_compact_answer_has_the_output_once(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """Of a cell that was waited for, and of one that was started."""
    session = await new_session(http, tokens.blue, agent_id="compact")
    path, head = f"/v1/sessions/{session['session_id']}", bearer(tokens.blue)
    query, code = {"compact": "true"}, {"code": "print('a'); 'b'"}
    whole = (await http.post(f"{path}/execute", json=code, headers=head)).json()
    assert (whole["stdout"], whole["stderr"], whole["result"]) == ("a\n", "", "'b'")
    brief = (await http.post(f"{path}/execute", json=code, headers=head, params=query)).json()
    assert set(whole) - set(brief) == {"stdout", "stderr", "result"}
    assert brief["outputs"][0] == whole["outputs"][0]
    cell = (await http.post(f"{path}/cells", json=code, headers=head)).json()["cell_id"]
    started = (await http.get(f"{path}/cells/{cell}", headers=head, params={**query, "wait_s": "30"})).json()
    assert set(started["result"]) == set(brief)


async def test_a_key_never_runs_the_code_twice(http: httpx.AsyncClient, tokens: Tokens) -> None:
    session = await new_session(http, tokens.blue, agent_id="keys")
    path = f"/v1/sessions/{session['session_id']}/execute"
    headers = {**bearer(tokens.blue), "Idempotency-Key": "k1"}
    code = {"code": "n = globals().get('n', 0) + 1; import time; time.sleep(0.3); n"}
    answers = await asyncio.gather(*(http.post(path, json=code, headers=headers) for _ in range(3)))
    assert {answer.json()["result"] for answer in answers} == {"1"}
    assert (await http.post(path, json=code, headers=headers)).json()["result"] == "1"
    other = await http.post(path, json={"code": "2"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency")
    headers["Authorization"] = f"Bearer {tokens.red}"  # another group's key is another key
    session = await new_session(http, tokens.red, agent_id="keys")
    answer = await http.post(f"/v1/sessions/{session['session_id']}/execute", json=code, headers=headers)
    assert answer.json()["result"] == "1"


async def test_a_client_that_is_gone_interrupts_its_cell(http: httpx.AsyncClient, tokens: Tokens) -> None:
    session = await new_session(http, tokens.blue, agent_id="gone")
    path = f"/v1/sessions/{session['session_id']}"
    with pytest.raises(httpx.ReadTimeout):
        await http.post(f"{path}/execute", json={"code": "while True: pass"}, headers=bearer(tokens.blue), timeout=1)
    answer = await http.post(f"{path}/execute", json={"code": "1"}, headers=bearer(tokens.blue))
    assert answer.json()["result"] == "1"
    cells = (await http.get(f"{path}/history", headers=bearer(tokens.blue))).json()["cells"]
    assert [cell["outcome"] for cell in cells] == ["cancelled", "ok"]


async def test_a_slow_reader_costs_nobody_anything(http: httpx.AsyncClient, guarded: Server, tokens: Tokens) -> None:
    """It reads nothing of 8 MB, while others are answered."""
    session = await new_session(http, tokens.blue, agent_id="slow")
    await http.post(
        f"/v1/sessions/{session['session_id']}/commands",
        json={"command": "head -c 200000000 /dev/zero > big"},
        headers=bearer(tokens.blue),
    )
    host, port = guarded.url.removeprefix("http://").split(":")
    request = (
        f"GET /v1/sessions/{session['session_id']}/files/content?path=big HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {tokens.blue}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request.encode())
        worst = 0.0
        for _ in range(20):
            begun = time.perf_counter()
            assert (await http.get("/v1/sessions", headers=bearer(tokens.red))).status_code == 200
            worst = max(worst, time.perf_counter() - begun)
            await asyncio.sleep(0.05)
        assert worst < 5


async def test_a_session_expires(http: httpx.AsyncClient, tokens: Tokens) -> None:
    """It ends, or hibernates and keeps its variables."""
    ends = await new_session(http, tokens.red, agent_id="ends", ttl_s=1)
    sleeps = await new_session(http, tokens.blue, agent_id="sleeps", ttl_s=1, on_expiry="hibernate")
    path = f"/v1/sessions/{sleeps['session_id']}/execute"
    await http.post(path, json={"code": "x = 5"}, headers=bearer(tokens.blue))
    await asyncio.sleep(4)
    answer = await http.post(
        f"/v1/sessions/{ends['session_id']}/execute", json={"code": "1"}, headers=bearer(tokens.red)
    )
    assert (answer.status_code, answer.json()["code"]) == (410, "session_ended")
    shown = await http.get(f"/v1/sessions/{sleeps['session_id']}", headers=bearer(tokens.blue))
    assert shown.json()["state"] == "asleep"
    answer = await http.post(path, json={"code": "x"}, headers=bearer(tokens.blue))
    assert answer.json()["result"] == "5"


async def test_the_access_log_has_no_code(http: httpx.AsyncClient, guarded: Server, tokens: Tokens) -> None:
    session = await new_session(http, tokens.red, agent_id="logged")
    path = f"/v1/sessions/{session['session_id']}"
    await http.post(f"{path}/execute", json={"code": "'hush' + 'hush'"}, headers=bearer(tokens.red))
    await http.put(f"{path}/files/content?path=hush.txt", content=b"hush", headers=bearer(tokens.red))
    async with asyncio.timeout(30):
        while '"method": "PUT"' not in guarded.log.read_text().strip().splitlines()[-1]:  # written after the answer
            await asyncio.sleep(0.05)
    log = guarded.log.read_text()
    assert "hush" not in log
    assert tokens.red not in log
    entry = json.loads(log.strip().splitlines()[-1])["request"]
    assert (entry["method"], entry["status"], entry["group"], entry["token"]) == ("PUT", 200, "red", "red")
    assert "Traceback" not in log


async def test_a_server_for_others_needs_tokens(tmp_path: Path) -> None:
    """It refuses to listen elsewhere, and says how to make a token."""
    with pytest.raises(AssertionError, match="cellblock token create"), serving(tmp_path, "--host", "::"):
        pass


async def test_sigterm_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """Sessions, their variables and ids outlive the server; a cell that runs is in the history."""
    with serving(tmp_path) as server:
        remote = AgentKernelManager.connect(server.url)
        async with remote as manager, manager.acquire_kernel("a", 60, labels={"k": "v"}) as (_, session):
            for n in range(5):
                assert (await manager.execute(session, f"x = {n}")).outcome == "ok"
            running = asyncio.create_task(manager.execute(session, "while True: pass"))
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(server.stop) == 0
            ended = (await asyncio.gather(running, return_exceptions=True))[0]
            if isinstance(ended, BaseException):
                assert isinstance(ended, ServerUnavailableError | SessionEndedError)
            else:
                assert ended.outcome in ("interrupted", "cancelled", "timeout")
    with serving(tmp_path) as server:
        async with AgentKernelManager.connect(server.url) as manager:
            async with manager.acquire_kernel("a", 60) as (_, again):
                assert again.session_id == session.session_id
                assert (await manager.execute(again, "x")).result == "4"
            assert (await manager.list_sessions())[0]["labels"] == {"k": "v"}


async def test_a_unix_socket_is_for_its_user(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(tmp_path, "--uds", str(path)) as server:
        assert server.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        remote = AgentKernelManager.connect("http://cellblock", uds=path)
        async with remote as manager, manager.acquire_kernel("a", 60) as (_, session):
            assert (await manager.execute(session, "1 + 1")).result == "2"
    assert not path.exists()


async def test_a_wrong_token_is_a_typed_error(guarded: Server) -> None:
    wrong = "cb_x"
    async with AgentKernelManager.connect(guarded.url, token=wrong) as manager:
        with pytest.raises(UnauthorizedError, match="cellblock token create"):
            await manager.list_sessions()
    async with AgentKernelManager.connect("http://127.0.0.1:9") as manager:
        with pytest.raises(ServerUnavailableError, match="does not answer"):
            await manager.list_sessions()
