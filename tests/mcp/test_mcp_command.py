"""`cellblock mcp`, as clients start it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.mcp import Client as KnownClient
from orchestrator.errors import CellblockError
from orchestrator.manager import AgentKernelManager
from orchestrator.mcp.clientconfigs import CLIENTS
from tests.conftest import REPOSITORY
from tests.mcp.servers import call, refused, stdio_server, text_of
from tests.mcp.test_principals import INITIALIZE
from tests.server.conftest import Server, serving

TOKEN = "of-the-test"  # noqa: S105 - of this test


@contextlib.asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command with pipes, as a client does."""
    server = stdio_server("orchestrator.cli.entry", "mcp", *arguments)
    process = await asyncio.create_subprocess_exec(
        server.command,
        *server.args,
        cwd=REPOSITORY,
        env={**os.environ, **(server.env or {}), **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def ask(process: asyncio.subprocess.Process, message: dict[str, object]) -> dict[str, object]:
    """Send one request, and return its answer. Every line of stdout must be a message."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    while True:
        answer: dict[str, object] = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        if answer.get("id") == message["id"]:
            return answer


def tool_call(number: int, name: str, **arguments: object) -> dict[str, object]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def containers(state: Path) -> int:
    """Return how many containers have their sockets in a state folder."""
    client = docker.from_env()
    try:
        found = client.containers.list(all=True, filters={"label": "org.cellblock.instance"})
        return sum(str(state) in json.dumps(each.attrs) for each in found)
    finally:
        client.close()


async def test_an_agents_session_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A printed configuration starts the server, from any folder. The variables are there at the next start."""
    shown = CliRunner().invoke(app, ["mcp", "--print-config", "cursor", "--agent", "worker"])
    form = json.loads(shown.stdout)["mcpServers"]["cellblock"]
    environment = {**(stdio_server().env or {}), "PYTHONPATH": str(REPOSITORY)}
    server = StdioServerParameters(command=form["command"], args=form["args"], env=environment, cwd=tmp_path)
    async with Client(server) as client:
        await call(client, "run_python", code="x = 41; print('out', flush=True)")
    async with Client(server, mode="legacy") as client:
        assert await call(client, "run_python", code="x + 1") == "42"


@pytest.mark.parametrize("how", ["end of input", "SIGTERM while a cell runs"])
async def test_stdout_has_only_the_protocol_and_the_server_ends_cleanly(how: str, state: Path) -> None:
    """Exit status 0, no traceback, and no kernel is left."""
    async with started("--policy", "default", CELLBLOCK_STATE_DIR=str(state)) as process:
        assert "result" in await ask(process, INITIALIZE)
        assert process.stdin is not None
        process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\nno message\n\xff\xfe\n')
        answer = json.dumps(await ask(process, tool_call(2, "run_python", code="import os; os.write(1, b'x'); 6 * 7")))
        assert "42" in answer
        assert await asyncio.to_thread(containers, state) > 0
        if how == "end of input":
            process.stdin.close()
        else:
            process.stdin.write(json.dumps(tool_call(3, "run_python", code="while True: pass")).encode() + b"\n")
            await process.stdin.drain()
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert "Traceback" not in said
        assert "never" not in said
    assert await asyncio.to_thread(containers, state) == 0


async def test_without_an_engine_a_call_says_so() -> None:
    """The server answers, and lives on."""
    async with started(DOCKER_HOST="unix:///nonexistent.sock") as process:
        await ask(process, INITIALIZE)
        for number in (2, 3):
            answer = await ask(process, tool_call(number, "run_python", code="1"))
            assert "engine_unavailable: " in json.dumps(answer)
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_over_http_a_token_and_the_loopback_address_protect() -> None:
    """Host and Origin of web pages are refused, and so is a request without the token."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    headers = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {TOKEN}"}
    async with (
        started("--http", f"127.0.0.1:{port}", CELLBLOCK_MCP_TOKEN=TOKEN) as process,
        httpx2.AsyncClient(headers=headers, base_url=f"http://127.0.0.1:{port}") as web,
    ):
        assert process.stderr is not None
        line = await asyncio.wait_for(process.stderr.readline(), 20)
        assert f"serving http://127.0.0.1:{port}/mcp".encode() in line
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(httpx2.ConnectError):
                    opened = await web.post("/mcp", json=INITIALIZE)
                    break
                await asyncio.sleep(0.1)
        assert opened.status_code == 200
        for header, value, status in (
            ("Authorization", "Bearer other", 401),
            ("Authorization", "", 401),
            ("Host", "evil.example", 421),
            ("Origin", "https://evil.example", 403),
        ):
            assert (await web.post("/mcp", json=INITIALIZE, headers={header: value})).status_code == status
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http", "0.0.0.0:8765"], "CELLBLOCK_MCP_TOKEN"),
        (["--http", "127.0.0.1"], "HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "HOST:PORT"),
        (["--policy", "none"], "none"),
        (["--agent", "a/b"], "slashes"),
        (["--server", "http://127.0.0.1:9", "--http", "127.0.0.1:8765"], "/mcp"),
        (["--server", "http://127.0.0.1:9", "--kernels", "2"], "its own"),
        (["--server", "http://127.0.0.1:9", "--token-file", "/nonexistent"], "cannot be read"),
        (["--server", "http://127.0.0.1:9", "--token-file", "/dev/zero"], "no token"),
        (["--token-file", "/dev/null"], "--server"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], said: str) -> None:
    """Before anything is served: as wrong usage, or as an error that `cellblock` prints."""
    done = CliRunner().invoke(app, ["mcp", *arguments])
    assert done.exit_code in (1, 2)
    assert done.exit_code == 2 or isinstance(done.exception, CellblockError)
    assert said in f"{done.stderr} {done.exception}"
    assert done.stdout == ""


def test_a_missing_extra_is_told(tmp_path: Path) -> None:
    """In a Python that finds no package `mcp`: the command that installs it, and status 2."""
    program = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def none(name, *more):
    return None if name.partition(".")[0] == "mcp" else find(name, *more)
importlib.machinery.PathFinder.find_spec = none
from orchestrator.cli.entry import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "mcp"], cwd=REPOSITORY, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'cellblock[mcp]'" in done.stderr


@pytest.mark.parametrize("client", list(KnownClient))
def test_the_configuration_of_a_client_has_its_form(client: KnownClient) -> None:
    """The keys that each client reads, and a command that is found from any folder."""
    shown = CliRunner().invoke(app, ["mcp", "--print-config", client, "--agent", "me", "--policy", "strict"])
    assert shown.exit_code == 0
    assert shown.stderr.startswith("# ")
    if client == "codex":
        form = tomllib.loads(shown.stdout)["mcp_servers"]["cellblock"]
    else:
        key = {"vscode": "servers", "zed": "context_servers"}.get(client, "mcpServers")
        form = json.loads(shown.stdout)[key]["cellblock"]
    assert Path(form["command"]).is_absolute()
    assert form["args"][-5:] == ["mcp", "--agent", "me", "--policy", "strict"]
    assert form.get("type") == ("stdio" if client in ("vscode", "claude-code") else None)


def test_every_client_that_is_offered_is_known() -> None:
    assert {str(client) for client in KnownClient} == set(CLIENTS)


@contextlib.asynccontextmanager
async def stdio_client(server: Server, *arguments: str) -> AsyncIterator[Client]:
    """Start `cellblock mcp` as the client of a server. Without an engine: the server's is not its own."""
    command = stdio_server("orchestrator.cli.entry", "mcp", "--server", server.url, *arguments)
    environment = {**(command.env or {}), "DOCKER_HOST": "unix:///nonexistent.sock"}
    async with Client(command.model_copy(update={"env": environment})) as client:
        yield client


async def test_the_sandboxes_of_a_server(tmp_path: Path) -> None:
    """The tools work as over a manager. Sessions end with the command, or are kept for the agent."""
    with serving(tmp_path, tokens=1, CELLBLOCK_WARM_KERNELS="0") as server:
        token = server.token("editor", "--group", "team", "--policy", "default", "--policy", "local-dev")
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        own = ["--token-file", str(file)]
        async with AgentKernelManager.connect(server.url, token=token) as manager:
            async with stdio_client(server, *own, "--policy", "local-dev", "--agent", "me") as client:
                await use_every_tool(client)
                (session,) = await manager.list_sessions()
                assert (session["agent_id"], session["policy"]) == ("me:main", "local-dev")
            async with stdio_client(server, *own) as client:
                assert await call(client, "run_python", code="1 + 1") == "2"
                assert len(await manager.list_sessions()) == 2
            assert await manager.list_sessions() == [session]
        async with stdio_client(server, *own, "--agent", "me") as client:
            assert await call(client, "run_python", code="x") == "1"
            await asyncio.to_thread(server.command, "token", "revoke", token.split("_")[1])
            await asyncio.sleep(2)
            assert "unauthorized: " in await refused(client, "run_python", code="x")
            assert "unauthorized: " in await refused(client, "sessions")
            assert "token editor, for mcp, principal me" in (tmp_path / "audit.jsonl").read_text()
            await asyncio.to_thread(server.stop)
            assert "server_unavailable: " in await refused(client, "run_python", code="x")


async def use_every_tool(client: Client) -> None:
    assert await call(client, "run_python", code="x = 1\nx") == "1"
    assert "said" in await call(client, "run_command", command="echo said")
    await call(client, "write_file", path="a/b.txt", content="text")
    assert "text" in await call(client, "read_file", path="a/b.txt")
    assert "b.txt" in await call(client, "list_files", path="a")
    assert "x" in await call(client, "variables")
    assert "package: " in await refused(client, "install", packages=["emoji"])
    saved = (await call(client, "checkpoint")).split()[1].rstrip(":")
    await call(client, "run_python", code="x = 2")
    await call(client, "restore", checkpoint=saved)
    assert await call(client, "run_python", code="x") == "1"
    await call(client, "fork", into=["copy"])
    assert await call(client, "run_python", code="x", session="copy") == "1"
    listed = await call(client, "sessions")
    assert listed.startswith("copy: live, 1 cells")
    assert "\nmain: live, 3 cells" in listed
    assert await call(client, "sessions", end="copy") == "Ended copy."
    for tool, arguments in (
        ("run_python", {"code": "open('begun', 'w').close()\nwhile True: pass"}),
        ("run_command", {"command": "rm begun; exec sleep 60"}),
    ):
        running = asyncio.create_task(client.call_tool(tool, arguments))
        while ("begun" in await call(client, "list_files")) != (tool == "run_python"):
            await asyncio.sleep(0.1)
        name = re.findall(r"runs ((?:cell|command)-\w+)", await call(client, "sessions"))[0]
        await client.call_tool("interrupt", {"id": name})
        assert "interrupted" in text_of(await asyncio.wait_for(running, 30)).lower()
    await call(client, "restart", keep_files=True)
    assert "NameError" in await call(client, "run_python", code="x")
    assert "text" in await call(client, "read_file", path="a/b.txt")
    await call(client, "run_python", code="x = 1")
