"""SandboxFusion's wire with its own client, and MCP at ``/mcp`` with the official one."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.__main__ import environment
from tests.mcp.servers import call, http_client
from tests.server.conftest import Server, serving


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("guarded"), tokens=1) as server:
        yield server


@pytest.fixture(scope="module")
def token(guarded: Server) -> str:
    return guarded.token("trainer", "--group", "rl")


CASES = {
    ("python", "print(input()[::-1])", "abc"): ("Success", "Finished", 0, "cba\n"),
    ("python", "raise SystemExit(3)", ""): ("Failed", "Finished", 3, ""),
    ("python", "print('before', flush=True)\nwhile True: pass", ""): ("Failed", "TimeLimitExceeded", None, "before\n"),
    ("bash", "echo $((6 * 7)); cat data/in.txt", ""): ("Success", "Finished", 0, "42\nfile"),
    ("python", "open('out.bin', 'wb').write(bytes(3))", ""): ("Success", "Finished", 0, ""),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1][:20])
async def test_run_code(guarded: Server, token: str, case: tuple[str, str, str]) -> None:
    language, code, stdin = case
    body = {
        "language": language,
        "code": code,
        "stdin": stdin,
        "run_timeout": 2,
        "files": {"data/in.txt": base64.b64encode(b"file").decode()},
        "fetch_files": ["out.bin", "nosuch"],
    }
    async with httpx.AsyncClient(base_url=guarded.url, auth=("", token), timeout=60) as http:
        answer = (await http.post("/run_code", json=body)).json()
        run = answer["run_result"]
        assert (answer["status"], run["status"], run["return_code"], run["stdout"]) == CASES[case]
        expected = {"out.bin": base64.b64encode(bytes(3)).decode()} if "out.bin" in code else {}
        assert answer["files"] == expected
        listed = (await http.get("/v1/sessions")).json()["sessions"]
        assert listed == []  # nothing is left


async def test_many_at_once_are_apart(guarded: Server, token: str) -> None:
    """Twice as many as kernels may exist: the others wait."""
    async with httpx.AsyncClient(base_url=guarded.url, auth=("", token), timeout=120) as http:

        async def run(number: int) -> str:
            code = f"import os; print({number}, os.listdir('.'))"
            found = await http.post("/run_code", json={"language": "python", "code": code})
            return str(found.json()["run_result"]["stdout"])

        assert await asyncio.gather(*map(run, range(20))) == [f"{number} ['main.py']\n" for number in range(20)]


async def test_a_client_that_is_gone_leaves_no_sandbox(guarded: Server, token: str) -> None:
    """Whether its sandbox was running the program, was being made, or waited for a kernel."""
    async with httpx.AsyncClient(base_url=guarded.url, auth=("", token), timeout=60) as http:
        before = {each["session_id"] for each in await sessions(http, ended=True)}
        body = {"language": "python", "code": "import time; time.sleep(50)", "run_timeout": 60}
        asking = [asyncio.create_task(http.post("/run_code", json=body)) for _ in range(14)]
        async with asyncio.timeout(60):
            while not await sessions(http):
                await asyncio.sleep(0.05)
        for each in asking:
            each.cancel()
        await asyncio.wait(asking)
        cell = await asyncio.wait_for(http.post("/run_jupyter", json={"cells": ["1"], "total_timeout": 30}), 40)
        assert cell.json()["status"] == "Success"
        async with asyncio.timeout(30):
            while await sessions(http):
                await asyncio.sleep(0.2)
        made = [each for each in await sessions(http, ended=True) if each["session_id"] not in before]
        assert len(made) > 1
        assert {each["state"] for each in made} == {"ended"}


async def sessions(http: httpx.AsyncClient, *, ended: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/v1/sessions", params={"ended": ended})).json()["sessions"]
    return found


async def test_run_jupyter(guarded: Server, token: str) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, auth=("", token), timeout=60) as http:
        cells = ["a = 123", "a", "print(a)", "raise RuntimeError('no')", "a + 1"]
        answer = (await http.post("/run_jupyter", json={"cells": cells})).json()
        assert answer["status"] == "Failed"
        assert answer["cells"][1]["display"] == [{"text/plain": "123"}]
        assert answer["cells"][2]["stdout"] == "123\n"
        assert answer["cells"][3]["error"][0]["ename"] == "RuntimeError"
        assert answer["cells"][4]["display"] == [{"text/plain": "124"}]
        slow = {"cells": ["1", "while True: pass", "2"], "total_timeout": 2}
        answer = (await http.post("/run_jupyter", json=slow)).json()
        assert (answer["driver"]["status"], len(answer["cells"])) == ("TimeLimitExceeded", 2)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"code": 1}', b'{"code": "1"}', b'{"code":"1","language":"python","run_timeout":NaN}']
)
async def test_bad_bodies(guarded: Server, token: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=guarded.url, auth=("", token)) as http:
        answer = await http.post("/run_code", content=body)
        assert (answer.status_code, answer.json()["status"]) == (422, "SandboxError")
    async with httpx.AsyncClient(base_url=guarded.url) as http:
        assert (await http.post("/run_code", content=body)).status_code == 401


CLIENT = """
import sys
from sandbox_fusion import RunCodeRequest, RunJupyterRequest, RunStatus, run_code, run_jupyter, set_endpoint
set_endpoint(sys.argv[1])
request = RunCodeRequest(code='print(sum(map(int, input().split())))', language='python', stdin='1 2 3')
done = run_code(request, max_attempts=1)
assert (done.status, done.run_result.stdout) == (RunStatus.Success, '6\\n'), done
done = run_jupyter(RunJupyterRequest(cells=['x = 1', 'x + 1']), max_attempts=1)
assert done.cells[1].display == [{'text/plain': '2'}], done
try:
    run_code(RunCodeRequest(code='int main() {}', language='cpp'), max_attempts=1)
except Exception as error:
    print(error)
"""


def test_sandbox_fusions_own_client(guarded: Server, token: str) -> None:
    """Unmodified, as trainers call it: the endpoint has the token."""
    endpoint = guarded.url.replace("http://", f"http://:{token}@")
    command = [str(environment("sandbox_fusion")), "-c", CLIENT, endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "language 'cpp' is not supported" in done.stdout
    assert sys.executable not in command


async def test_mcp_has_the_sessions_of_the_group(guarded: Server, token: str) -> None:
    """State stays from call to call, `/v1` sees the session, and another group has another one of the same name."""
    other = guarded.token("other", "--group", "other")
    async with (
        http_client(f"{guarded.url}/mcp", principal=token) as mine,
        http_client(f"{guarded.url}/mcp", principal=other, mode="legacy") as theirs,
    ):
        await call(mine, "run_python", code="x = 41")
        assert await call(mine, "run_python", code="x + 1") == "42"
        assert "NameError" in await call(theirs, "run_python", code="x")
    async with httpx.AsyncClient(base_url=guarded.url, headers={"Authorization": f"Bearer {token}"}) as http:
        (session,) = (await http.get("/v1/sessions")).json()["sessions"]
        assert (session["agent_id"], session["cell_count"]) == ("main", 2)
        answer = await http.post(f"/v1/sessions/{session['session_id']}/execute", json={"code": "x"})
        assert answer.json()["result"] == "41"
        assert (await http.delete(f"/v1/sessions/{session['session_id']}")).json() == {"ended": True}
