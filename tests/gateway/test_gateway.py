"""Jupyter Server's kernels API: its routes, both subprotocols, and what hostile, slow and lost clients get."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateway.conftest import WEBSOCKETS, Gateway
from tests.gateway.wireclient import V1, wire_client

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOBODY = str(uuid.UUID(int=0))


async def test_kernelspecs_are_the_tokens_policies(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """``python3`` is the first one, and another one has its own name; what a token may not use is unknown."""
    found = (await http.get("/api/kernelspecs")).json()
    assert (found["default"], list(found["kernelspecs"])) == ("python3", ["python3", "default"])
    spec = (await http.get("/api/kernelspecs/default")).json()
    assert spec == found["kernelspecs"]["default"]
    assert (spec["spec"]["language"], spec["resources"]) == ("python", {})
    for name in ("nosuch", "strict"):
        assert (await http.get(f"/api/kernelspecs/{name}")).status_code == 404
        assert (await http.post("/api/kernels", json={"name": name})).status_code == 501
    async with gateway.http(gateway.theirs) as theirs:
        assert list((await theirs.get("/api/kernelspecs")).json()["kernelspecs"]) == ["python3"]


async def test_a_kernel_has_jupyters_model(http: httpx.AsyncClient, kernel: str) -> None:
    """Started, listed, shown and counted."""
    model = (await http.get(f"/api/kernels/{kernel}")).json()
    assert {**model, "last_activity": ""} == {
        "id": kernel, "name": "python3", "execution_state": "idle", "connections": 0, "last_activity": "",
    }  # fmt: skip
    assert kernel in [each["id"] for each in (await http.get("/api/kernels")).json()]
    assert (await http.get("/api/status")).json()["kernels"] >= 1
    assert (await http.get("/api")).json()["version"].startswith("2.")
    assert (await http.get("/api/me")).json()["identity"]["username"] == "mine"


@pytest.mark.parametrize("v1", [True, False])
async def test_a_cell_comes_as_jupyter_server_sends_it(gateway: Gateway, kernel: str, v1: bool) -> None:
    """Under both subprotocols: types, order, parents, channels; and the environment that the client has asked for."""
    async with wire_client(gateway.url, kernel, gateway.mine, v1=v1) as client:
        assert client.v1 is v1
        answer = await client.execute("import os; print('a\\u20ac'); os.environ['KERNEL_TEST']")
        assert answer.kinds == ["status", "execute_input", "stream", "execute_result", "execute_reply", "status"]
        assert (answer.text, answer.value) == ("a\u20ac\n", "'yes'")
        assert {message["channel"] for message in answer.messages} == {"iopub", "shell"}
        failed = await client.execute("1 / 0")
        assert failed.of("error")[0]["ename"] == failed.of("execute_reply")[0]["ename"] == "ZeroDivisionError"
        info = (await client.answer(await client.ask("kernel_info_request", {}))).of("kernel_info_reply")[0]
        assert info["language_info"]["name"] == "python"
        done = await client.answer(await client.ask("complete_request", {"code": "os.envir", "cursor_pos": 8}))
        assert "environ" in done.of("complete_reply")[0]["matches"][0]


async def test_older_clients_find_type_and_id_outside_of_the_header_too(gateway: Gateway, kernel: str) -> None:
    async with wire_client(gateway.url, kernel, gateway.mine, v1=False) as client:
        await client.ask("execute_request", {"code": "1"})
        message = await client.receive()
        header = message["header"]
        assert (message["msg_type"], message["msg_id"]) == (header["msg_type"], header["msg_id"])


COMM = """
from ipykernel.comm import Comm
def opened(comm, message):
    comm.on_msg(lambda m: comm.send({'got': len(m['buffers'][0])}, buffers=[b'\\x00\\xff', bytes(m['buffers'][0])]))
get_ipython().kernel.comm_manager.register_target('test', opened)
"""


@pytest.mark.parametrize("v1", [True, False])
async def test_buffers_go_both_ways(gateway: Gateway, kernel: str, v1: bool) -> None:
    """A widget's binary messages, under both subprotocols."""
    async with wire_client(gateway.url, kernel, gateway.mine, v1=v1) as client:
        await client.execute(COMM)
        comm = {"comm_id": uuid.uuid4().hex}
        await client.ask("comm_open", {**comm, "target_name": "test", "data": {}})
        await client.ask("comm_msg", {**comm, "data": {}}, buffers=[b"12345"])
        message = await client.heard("comm_msg")
        assert message["content"]["data"] == {"got": 5}
        assert message["buffers"] == [b"\x00\xff", b"12345"]


async def test_input_is_asked_of_the_client(gateway: Gateway, kernel: str) -> None:
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        request = await client.ask("execute_request", {"code": "input('name? ')", "allow_stdin": True})
        question = await client.heard("input_request")
        assert (question["channel"], question["content"]["prompt"]) == ("stdin", "name? ")
        await client.ask("input_reply", {"value": "Ada"}, "stdin")
        assert (await client.answer(request)).value == "'Ada'"


async def test_what_a_client_executes_is_a_cell_of_the_session(
    gateway: Gateway, http: httpx.AsyncClient, kernel: str
) -> None:
    """`/v1` has it in its history, and what `/v1` executes is seen by the client."""
    (session,) = [
        each for each in (await http.get("/v1/sessions")).json()["sessions"] if each["agent_id"].endswith(kernel)
    ]
    path = f"/v1/sessions/{session['session_id']}"
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        await client.execute("shared = 'of jupyter'")
        last = (await http.get(f"{path}/history")).json()["cells"][-1]
        assert (last["code"], last["outcome"]) == ("shared = 'of jupyter'", "ok")
        assert (await http.post(f"{path}/execute", json={"code": "print(shared)"})).json()["stdout"] == "of jupyter\n"
        assert (await client.heard("execute_input"))["content"]["code"] == "print(shared)"
        assert (await client.heard("stream"))["content"]["text"] == "of jupyter\n"


async def test_two_clients_see_each_others_cells(gateway: Gateway, kernel: str) -> None:
    """Outputs go to both, and the reply to who has asked."""
    async with (
        wire_client(gateway.url, kernel, gateway.mine) as first,
        wire_client(gateway.url, kernel, gateway.mine, v1=False) as second,
    ):
        await first.execute("print('for both')")
        assert (await second.heard("stream"))["content"]["text"] == "for both\n"
        await second.execute("2")
        with pytest.raises(TimeoutError):
            await second.heard("execute_reply", timeout=0.3)


async def test_interrupt_and_restart(gateway: Gateway, http: httpx.AsyncClient, kernel: str) -> None:
    """An interrupt ends the cell alone. A restart leaves files and clients, and all clients are told."""
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        await client.execute("kept = 1; open('kept.txt', 'w').write('here')")
        request = await client.ask("execute_request", {"code": "print('runs')\nimport time; time.sleep(100)"})
        await client.heard("stream")
        assert (await http.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "busy"
        assert (await http.post(f"/api/kernels/{kernel}/interrupt", json={})).status_code == 204
        assert (await client.answer(request)).of("execute_reply")[0]["ename"] == "KeyboardInterrupt"
        assert (await client.execute("kept")).value == "1"
        async with wire_client(gateway.url, kernel, gateway.mine) as other:
            restarted = await http.post(f"/api/kernels/{kernel}/restart", json={})
            assert (restarted.status_code, restarted.json()["id"]) == (200, kernel)
            for each in (client, other):
                assert (await each.heard("status", execution_state="starting"))["parent_header"] == {}
                await each.heard("status", execution_state="idle")
            assert (await other.execute("'kept' in globals(), open('kept.txt').read()")).value == "(False, 'here')"


async def test_a_kernel_that_died_is_followed_by_a_fresh_one(
    gateway: Gateway, http: httpx.AsyncClient, kernel: str
) -> None:
    """The client learns it, stays connected, and its next cell runs; or somebody restarts the kernel before."""
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        died = await client.execute("import os; os._exit(1)")
        assert died.of("execute_reply")[0]["ename"] == "KernelDied"
        fresh = await client.execute("'os' in globals()")
        assert (fresh.value, fresh.kinds[-1]) == ("False", "status")
        await client.heard("status", execution_state="restarting")
        await client.execute("import os; os._exit(1)")
        assert (await http.post(f"/api/kernels/{kernel}/interrupt")).status_code == 204
        assert (await http.post(f"/api/kernels/{kernel}/restart")).status_code == 200
        await client.heard("status", execution_state="starting")
        assert (await client.execute("'os' in globals()")).value == "False"
        with pytest.raises(TimeoutError):
            await client.heard("status", timeout=0.5, execution_state="restarting")


async def test_a_shut_down_kernel_is_gone_for_everybody(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """By DELETE, by `/v1`, or by a client's shutdown request: clients are disconnected, and the id is unknown."""

    async def by_delete(kernel_id: str) -> None:
        assert (await http.delete(f"/api/kernels/{kernel_id}")).status_code == 204

    async def by_native(kernel_id: str) -> None:
        for each in (await http.get("/v1/sessions")).json()["sessions"]:
            if each["agent_id"].endswith(kernel_id):
                await http.delete(f"/v1/sessions/{each['session_id']}")

    async def by_client(kernel_id: str) -> None:
        async with wire_client(gateway.url, kernel_id, gateway.mine) as other:
            await other.ask("shutdown_request", {"restart": False}, "control")
            await other.heard("shutdown_reply")

    for end in (by_delete, by_native, by_client):
        kernel_id = (await http.post("/api/kernels")).json()["id"]
        async with wire_client(gateway.url, kernel_id, gateway.mine, session_id="s") as client:
            await client.execute("1")
            await end(kernel_id)
            with pytest.raises(ConnectionClosed):
                await client.heard("never")
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/interrupt"), ("POST", "/restart")):
            answer = await http.request(method, f"/api/kernels/{kernel_id}{path}")
            assert (answer.status_code, "message" in answer.json()) == (404, True)
        assert kernel_id not in (await http.get("/api/kernels")).text


async def test_a_client_that_comes_back_gets_what_it_missed(gateway: Gateway, kernel: str) -> None:
    """Its cell runs on meanwhile. A client without a session id cannot come back, and its cell is interrupted."""
    code = "import time; time.sleep(1); print('missed')"
    async with wire_client(gateway.url, kernel, gateway.mine, session_id="returns") as client:
        request = await client.ask("execute_request", {"code": code})
        await client.heard("execute_input")
    await asyncio.sleep(2)
    async with wire_client(gateway.url, kernel, gateway.mine, session_id="returns", v1=False) as client:
        answer = await client.answer(request)
        assert (await client.heard("status"))["parent_header"] == {}  # what the kernel does now
        assert (await client.execute("1")).value == "1"
        assert (answer.text, answer.of("execute_reply")[0]["status"]) == ("missed\n", "ok")
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        await client.ask("execute_request", {"code": "done = False\nimport time; time.sleep(100)\ndone = True"})
        await client.heard("execute_input")
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        assert (await client.execute("done")).value == "False"


async def test_a_client_that_connects_twice_has_its_last_websocket(gateway: Gateway, kernel: str) -> None:
    async with (
        wire_client(gateway.url, kernel, gateway.mine, session_id="twice") as first,
        wire_client(gateway.url, kernel, gateway.mine, session_id="twice") as second,
    ):
        with pytest.raises(ConnectionClosed):
            await first.heard("never")
        assert (await second.execute("1")).value == "1"


async def test_notebooks_have_sessions(http: httpx.AsyncClient) -> None:
    """Made, found again by their path, renamed, moved to another kernel, and deleted with their kernel."""
    wish = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    made = await http.post("/api/sessions", json=wish)
    session = made.json()
    path = f"/api/sessions/{session['id']}"
    assert (made.status_code, made.headers["location"]) == (201, path)
    assert session["notebook"] == {"path": "a.ipynb", "name": "a"}
    assert (await http.post("/api/sessions", json=wish)).json()["id"] == session["id"]
    assert session in (await http.get("/api/sessions")).json()
    moved = (await http.patch(path, json={"path": "b.ipynb"})).json()
    assert (moved["path"], moved["kernel"]["id"]) == ("b.ipynb", session["kernel"]["id"])
    changed = (await http.patch(path, json={"kernel": {"name": "default"}})).json()
    assert (changed["kernel"]["name"], changed["kernel"]["id"] == session["kernel"]["id"]) == ("default", False)
    assert (await http.get(f"/api/kernels/{session['kernel']['id']}")).status_code == 404
    assert (await http.delete(path)).status_code == 204
    assert (await http.get(path)).status_code == 404
    assert (await http.get(f"/api/kernels/{changed['kernel']['id']}")).status_code == 404
    existing = (await http.post("/api/kernels")).json()["id"]
    console = {"path": "c", "type": "console", "kernel": {"id": existing}}
    assert (await http.post("/api/sessions", json=console)).json()["kernel"]["id"] == existing
    await http.delete(f"/api/kernels/{existing}")
    assert "console" not in (await http.get("/api/sessions")).text


async def test_another_groups_kernel_is_as_unknown_as_any(
    gateway: Gateway, http: httpx.AsyncClient, kernel: str
) -> None:
    """On every route, and for a WebSocket: the answer differs in the id alone."""
    session = (await http.post("/api/sessions", json={"path": "s", "type": "x", "kernel": {"id": kernel}})).json()["id"]
    async with gateway.http(gateway.theirs) as theirs:
        assert (await theirs.get("/api/kernels")).json() == (await theirs.get("/api/sessions")).json() == []
        for method, path, known in (
            ("GET", "/api/kernels/ID", kernel),
            ("DELETE", "/api/kernels/ID", kernel),
            ("POST", "/api/kernels/ID/interrupt", kernel),
            ("POST", "/api/kernels/ID/restart", kernel),
            ("GET", "/api/sessions/ID", session),
            ("PATCH", "/api/sessions/ID", session),
            ("DELETE", "/api/sessions/ID", session),
        ):
            answers = []
            for each in (known, NOBODY):
                answer = await theirs.request(method, path.replace("ID", each), content=b"{}")
                answers.append((answer.status_code, answer.text.replace(each, "ID")))
            assert answers[0] == answers[1]
            assert answers[0][0] == 404
        bodies = [{"path": "p", "type": "x", "kernel": {"id": each}} for each in (kernel, NOBODY)]
        found = [await theirs.post("/api/sessions", json=body) for body in bodies]
        assert [answer.status_code for answer in found] == [404, 404]
    async with wire_client(gateway.url, kernel, gateway.mine, session_id="s") as client:
        for each in (kernel, NOBODY, "../x", "x"):
            with pytest.raises(InvalidStatus) as refused:
                async with wire_client(gateway.url, each, gateway.theirs, session_id="s"):
                    pass
            assert refused.value.response.status_code == (403 if "/" in each else 404)
        async with gateway.http(gateway.theirs) as theirs:
            assert (await theirs.get(f"/api/kernels/{kernel}")).status_code == 404
        assert (await client.execute("1")).value == "1"


async def test_a_token_is_needed_and_is_never_logged(gateway: Gateway, kernel: str) -> None:
    """As ``token``, as ``Bearer`` and in the address; a wrong one, or none, gets nothing."""
    async with httpx.AsyncClient(base_url=gateway.url) as stranger:
        for path in ("/api", "/api/kernels", f"/api/kernels/{kernel}", "/api/kernelspecs", "/api/sessions", "/api/x"):
            assert (await stranger.get(path)).status_code == 401
            assert (await stranger.get(path, params={"token": "wrong"})).status_code == 401
        assert (await stranger.get("/api", params={"token": gateway.mine})).status_code == 200
        assert (await stranger.get("/api", headers={"Authorization": f"Bearer {gateway.mine}"})).status_code == 200
        assert (await stranger.get("/v1/sessions", params={"token": gateway.mine})).status_code == 401
    with pytest.raises(InvalidStatus):
        async with wire_client(gateway.url, kernel, "wrong"):
            pass
    with pytest.raises(InvalidStatus):
        address = f"{gateway.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={gateway.mine}"
        async with connect(address, origin="https://evil.example", proxy=None):  # type: ignore[arg-type]
            pass
    assert gateway.mine.split("_", 2)[2] not in gateway.server.log.read_text()


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


HEADER = '{"msg_id": "m", "msg_type": "execute_request"}'
MALFORMED: dict[str, str | bytes] = {
    "no JSON": "{",
    "a list": "[]",
    "no header": '{"content": {}, "channel": "shell"}',
    "a header without an id": '{"header": {"msg_type": "x"}, "content": {}, "channel": "shell"}',
    "a long header": '{"header": {"msg_id": "%s", "msg_type": "x"}, "content": {}, "channel": "shell"}' % ("m" * 9000),
    "a content that is no object": f'{{"header": {HEADER}, "content": [], "channel": "shell"}}',
    "a channel that is no text": f'{{"header": {HEADER}, "content": {{}}, "channel": []}}',
    "deep": f'{{"header": {HEADER}, "content": {{"code": {deep(100_000)}}}, "channel": "shell"}}',
    "many items": f'{{"header": {HEADER}, "content": {{"code": [{"0," * 100_000}0]}}, "channel": "shell"}}',
    "an empty binary frame": b"",
    "a huge count": struct.pack("!I", 2**32 - 1) + b"{}",
    "offsets beyond the end": struct.pack("!II", 1, 2**31) + b"{}",
    "offsets that go back": struct.pack("!III", 2, 12, 3) + b"{}",
}
MALFORMED_V1: dict[str, str | bytes] = {
    "text": "{}",
    "nothing": b"",
    "a huge count": struct.pack("<Q", 2**63),
    "no parts": struct.pack("<QQ", 1, 16),
    "cut offsets": struct.pack("<QQ", 6, 56),
    "offsets beyond the end": struct.pack("<7Q", 6, 56, 57, 58, 59, 60, 2**40),
    "no UTF-8": struct.pack("<7Q", 6, 56, 57, 59, 61, 63, 65) + b"\xff{}{}{}{}",
}


async def test_a_malformed_message_costs_its_websocket_alone(gateway: Gateway, kernel: str) -> None:
    """Under both subprotocols. The kernel's other clients go on, and the server logs no failure."""
    async with wire_client(gateway.url, kernel, gateway.mine) as good:
        for v1, table in ((False, MALFORMED), (True, MALFORMED_V1)):
            for name, frame in table.items():
                async with wire_client(gateway.url, kernel, gateway.mine, v1=v1) as bad:
                    await bad.socket.send(frame)
                    with pytest.raises(ConnectionClosed):
                        await bad.heard("never", timeout=10)
                    assert bad.socket.close_code == 1007, name
        assert (await good.execute("1")).value == "1"
    async with wire_client(gateway.url, kernel, gateway.mine, v1=False) as client:
        for channel in ("iopub", "hb", "x"):
            await client.ask("execute_request", {"code": "1"}, channel)  # as Jupyter Server does: nobody reads it
        assert (await client.execute("2")).value == "2"
    assert "failed" not in gateway.server.log.read_text()


async def test_a_message_and_a_queue_are_bounded(gateway: Gateway, kernel: str) -> None:
    """A message of more than 2 MiB ends the WebSocket; beyond 16 MiB of them that wait, requests are refused."""
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        with pytest.raises(ConnectionClosed):
            await client.execute("#" + "x" * 3_000_000)
        assert client.socket.close_code == 1009
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        await client.ask("execute_request", {"code": "import time; time.sleep(100)"})
        await client.heard("execute_input")
        for _ in range(20):
            await client.ask("execute_request", {"code": "#" + "x" * 1_000_000})
        refused = (await client.heard("execute_reply"))["content"]
        assert (refused["status"], refused["ename"]) == ("error", "TooManyRequests")


async def test_a_client_that_reads_nothing_costs_nobody_anything(gateway: Gateway, kernel: str) -> None:
    """It is disconnected once more than 16 MiB wait for it; the cell, and other clients, do not wait for it."""
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        address = f"{gateway.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={gateway.mine}"
        async with connect(address, subprotocols=[V1], max_size=None, max_queue=1, proxy=None) as slow:  # type: ignore[list-item]
            slow.transport.pause_reading()
            for _ in range(4):
                big = await client.execute("print('x' * 8_000_000)")
                assert big.of("execute_reply")[0]["status"] == "ok"
                assert len(big.text) == 8_000_001
            slow.transport.resume_reading()
            received = 0
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(60):
                    while True:
                        received += len(await slow.recv())
            assert received < 32_000_000
            assert slow.close_code == 1013


async def test_a_token_has_so_many_websockets_and_no_more(gateway: Gateway, kernel: str) -> None:
    """As many as ``--concurrent`` says; another token's are its own."""
    sockets: list[Any] = []
    address = f"{gateway.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={gateway.mine}"
    try:
        with pytest.raises(InvalidStatus):
            for _ in range(WEBSOCKETS + 1):
                sockets.append(await connect(address, proxy=None))  # noqa: PERF401 - those that are open are closed
        assert len(sockets) == WEBSOCKETS
    finally:
        for each in sockets:
            await each.close()


async def test_a_kernel_that_sleeps_wakes_with_its_variables(
    gateway: Gateway, http: httpx.AsyncClient, kernel: str
) -> None:
    """Its client stays connected, is told of no restart, and the model does not wake it."""
    (session,) = [
        each for each in (await http.get("/v1/sessions")).json()["sessions"] if each["agent_id"].endswith(kernel)
    ]
    path = f"/v1/sessions/{session['session_id']}"
    async with wire_client(gateway.url, kernel, gateway.mine) as client:
        await client.execute("slept = 7")
        assert (await http.post(f"{path}/hibernate")).json() == {"asleep": True}
        assert (await http.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "idle"
        assert (await http.get(path)).json()["state"] == "asleep"
        assert (await client.execute("slept")).value == "7"
        with pytest.raises(TimeoutError):
            await client.heard("status", timeout=0.5, execution_state="restarting")


async def open_webui(url: str, token: str, code: str) -> dict[str, str]:
    """Run code as Open WebUI's code execution does: a kernel for each run, its token in every address, JSON frames."""
    async with httpx.AsyncClient(base_url=url, params={"token": token}, timeout=60) as http:
        kernel_id = (await http.post("/api/kernels")).raise_for_status().json()["id"]
        found = {"stdout": "", "stderr": "", "result": ""}
        try:
            address = f"{url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels?token={token}"
            async with connect(address, proxy=None) as socket:
                header = {
                    "msg_id": "a1", "msg_type": "execute_request", "username": "user", "session": uuid.uuid4().hex,
                    "date": "", "version": "5.3",
                }  # fmt: skip
                content = {
                    "code": code, "silent": False, "store_history": True, "user_expressions": {},
                    "allow_stdin": False, "stop_on_error": True,
                }  # fmt: skip
                request = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
                await socket.send(json.dumps({**request, "channel": "shell"}))
                while True:
                    message = json.loads(await socket.recv())
                    if message["parent_header"].get("msg_id") != "a1":
                        continue
                    content = message["content"]
                    if message["msg_type"] == "stream":
                        found[content["name"]] += content["text"]
                    elif message["msg_type"] in ("execute_result", "display_data"):
                        data = content["data"]
                        found["result"] += data.get("image/png", data.get("text/plain", ""))
                    elif message["msg_type"] == "error":
                        found["stderr"] += "\n".join(content["traceback"])
                    elif content.get("execution_state") == "idle":
                        return found
        finally:
            (await http.delete(f"/api/kernels/{kernel_id}")).raise_for_status()


async def test_vs_codes_remote_kernel(http: httpx.AsyncClient, gateway: Gateway) -> None:
    """Its wire in our own words: no backing file, a session, JSON frames, ``input()``, and a lost connection."""
    for path in ("/api/kernelspecs", "/api/kernels", "/api/sessions"):
        assert (await http.get(path)).status_code == 200
    backing = await http.post("/api/contents", json={"type": "notebook"})
    assert (backing.status_code, "message" in backing.json()) == (404, True)
    path = f"analysis-jvsc-{uuid.uuid4()}.ipynb"
    wish = {"path": path, "name": "analysis.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    session = (await http.post("/api/sessions", json=wish)).json()
    kernel_id = session["kernel"]["id"]
    async with wire_client(gateway.url, kernel_id, gateway.mine, v1=False, session_id="vs-code") as client:
        info = (await client.answer(await client.ask("kernel_info_request", {}))).of("kernel_info_reply")[0]
        assert (info["debugger"], info["supported_features"]) == (False, [])
        options = {"store_history": True, "user_expressions": {}, "allow_stdin": True, "stop_on_error": False}
        request = await client.ask("execute_request", {"code": "name = input('who? ')", "silent": False, **options})
        assert (await client.heard("input_request"))["content"]["prompt"] == "who? "
        await client.ask("input_reply", {"value": "Ada"}, "stdin")
        assert (await client.answer(request)).of("execute_reply")[0]["status"] == "ok"
    async with wire_client(gateway.url, kernel_id, gateway.mine, v1=False, session_id="vs-code") as client:
        assert (await client.execute("name", **options)).value == "'Ada'"
    assert (await http.delete(f"/api/sessions/{session['id']}")).status_code == 204
    assert (await http.get(f"/api/kernels/{kernel_id}")).status_code == 404


async def test_open_webuis_code_execution(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """Its wire in our own words: outputs, a picture and an error; and it leaves no kernel."""
    before = len((await http.get("/api/kernels")).json())
    run = await open_webui(gateway.url, gateway.theirs, "print('out')\n6 * 7")
    assert run == {"stdout": "out\n", "stderr": "", "result": "42"}
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"
    run = await open_webui(gateway.url, gateway.theirs, plot)
    assert run["result"].startswith("iVBOR")
    run = await open_webui(gateway.url, gateway.theirs, "1 / 0")
    assert "ZeroDivisionError" in run["stderr"]
    assert len((await http.get("/api/kernels")).json()) == before
