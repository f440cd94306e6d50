"""Other people's clients, unmodified, each in an environment of its own."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conformance.__main__ import REPOSITORY, environment
from tests.gateway.conftest import Gateway
from tests.gateway.labserver import TOKEN, lab_server
from tests.gateway.wireclient import wire_client

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def lab(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab whose kernels are those of the gateway."""
    with lab_server(tmp_path_factory.mktemp("lab"), gateway.url, gateway.mine) as address:
        yield address


async def test_autogens_executor(gateway: Gateway) -> None:
    """It runs blocks, keeps a plot, reports an error, restarts, and deletes its kernel."""
    address = urlsplit(gateway.url)
    script = REPOSITORY / "tests" / "gateway" / "autogen_client.py"
    command = [str(environment("autogen")), str(script), str(address.hostname), str(address.port), gateway.theirs]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    async with gateway.http(gateway.theirs) as theirs:
        assert (await theirs.get("/api/kernels")).json() == []


async def test_jupyter_servers_gateway_client(gateway: Gateway, http: httpx.AsyncClient, lab: str) -> None:
    """A notebook server with ``--gateway-url``: kernelspecs, start, cells, interrupt, restart, list and shutdown."""
    headers = {"Authorization": f"token {TOKEN}"}
    async with httpx.AsyncClient(base_url=lab, headers=headers, timeout=60) as notebook:
        specs = (await notebook.get("/api/kernelspecs")).json()
        assert list(specs["kernelspecs"]) == ["python3", "default"]
        wish = {"path": "n.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
        session = (await notebook.post("/api/sessions", json=wish)).json()
        kernel_id = session["kernel"]["id"]
        assert (await http.get(f"/api/kernels/{kernel_id}")).status_code == 200
        async with wire_client(lab, kernel_id, TOKEN, v1=False, session_id="n") as client:
            assert (await client.execute("print('through'); 6 * 7")).value == "42"
            request = await client.ask("execute_request", {"code": "print('runs')\nimport time; time.sleep(100)"})
            await client.heard("stream")
            assert (await notebook.post(f"/api/kernels/{kernel_id}/interrupt")).status_code == 204
            assert (await client.answer(request)).of("execute_reply")[0]["ename"] == "KeyboardInterrupt"
            assert (await notebook.post(f"/api/kernels/{kernel_id}/restart")).status_code == 200
            assert (await client.execute("'time' in globals()")).value == "False"
            assert kernel_id in (await notebook.get("/api/kernels")).text
        assert (await notebook.delete(f"/api/sessions/{session['id']}")).status_code == 204
        assert (await http.get(f"/api/kernels/{kernel_id}")).status_code == 404
