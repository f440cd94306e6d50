"""FastMCP's ``CodeMode`` over sandboxes, and an MCP server's tools as tools of a sandbox."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastmcp import Client, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.experimental.transforms.code_mode import CodeMode

from orchestrator import AgentKernelManager, InvalidInputError, KernelSession
from orchestrator.adapters.codemode import CellblockProvider
from orchestrator.adapters.mcptools import mcp_tools
from tests.conformance.bindings import RUNTIMES, one_session


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def running(runtime: str, tmp_path: Path) -> AsyncIterator[tuple[AgentKernelManager, KernelSession]]:
    async with one_session(runtime, tmp_path) as found:
        yield found


def server(*transforms: Any) -> Any:
    """The server of CodeMode's own examples: ``add`` and ``multiply``; and a tool that fails."""
    mcp = FastMCP("server", transforms=list(transforms))

    @mcp.tool
    def add(x: int, y: int) -> int:
        """Add two numbers."""
        return x + y

    @mcp.tool
    def multiply(x: int, y: int) -> int:
        """Multiply two numbers."""
        return x * y

    @mcp.tool
    def greet(name: str) -> str:
        """Greet someone."""
        return f"Hello, {name}!"

    @mcp.tool
    def failing() -> str:
        """Fail."""
        raise ToolError("no such thing")

    return mcp


CODE = {
    "a = await call_tool('add', {'x': 3, 'y': 4})\nreturn await call_tool('multiply', {'x': a['result'], 'y': 2})": {
        "result": 14
    },
    "return (await call_tool('greet', {'name': 'World'}))['result']": "Hello, World!",
    "import asyncio\n"
    "got = await asyncio.gather(*(call_tool('add', {'x': n, 'y': 1}) for n in range(20)))\n"
    "return [each['result'] for each in got]": [n + 1 for n in range(20)],
    "text = '''one\n  two\nthree'''\nreturn text": "one\n  two\nthree",
    "if True:\n    return {'a': [1, None, 2.5]}": {"a": [1, None, 2.5]},
    "import os\nreturn os.path.exists('/work')": True,
}
FAILING = {
    "return await call_tool('failing', {})": "no such thing",
    "return await call_tool('nosuch', {})": "Unknown tool: nosuch",
    "1 / 0": "ZeroDivisionError",
    "import socket\nsocket.create_connection(('1.1.1.1', 80), 1)": "OSError",
    "def (": "no Python|SyntaxError",
    "for n in range(60): await call_tool('add', {'x': n, 'y': n})": "Tool call limit exceeded",
    "import os\nos._exit(1)": "The kernel ended",
    "while True: pass": "time limit",
}


@pytest.mark.parametrize("code", CODE)
async def test_code_mode_runs_in_a_sandbox(running: Any, code: str) -> None:
    manager, _ = running
    async with Client(server(CodeMode(sandbox_provider=CellblockProvider(manager)))) as client:
        assert [tool.name for tool in await client.list_tools()] == ["search", "get_schema", "execute"]
        assert "add" in str((await client.call_tool("search", {"query": "add numbers"})).data)
        result = await client.call_tool("execute", {"code": code})
    expected = CODE[code]
    text = "".join(content.text for content in result.content)
    assert (text if isinstance(expected, str) else json.loads(text)) == expected
    assert list(manager.sessions) == ["a"]  # that of the fixture: each run's own has ended


@pytest.mark.parametrize("code", FAILING)
async def test_code_that_fails_is_an_error_of_the_tool(running: Any, code: str) -> None:
    manager, _ = running
    provider = CellblockProvider(manager, timeout=2)
    async with Client(server(CodeMode(sandbox_provider=provider))) as client:
        result = await client.call_tool("execute", {"code": code}, raise_on_error=False)
    assert result.is_error
    said = result.content[0].text
    assert any(part in said for part in FAILING[code].split("|")), said
    assert list(manager.sessions) == ["a"]


async def test_a_servers_tools_are_tools_of_a_sandbox(running: Any) -> None:
    manager, session = running
    async with Client(server()) as client:
        tools = await mcp_tools(client, ["add", "greet", "failing"], prefix="mcp_")
        code = (
            "import tools\n"
            "try: tools.mcp_failing()\n"
            "except tools.ToolError as error: failed = str(error)\n"
            "found = tools.mcp_add(x=1, y=2), tools.mcp_greet(name='you')\n"
            "*found, 'no such thing' in failed, hasattr(tools, 'mcp_multiply')"
        )
        result = await manager.execute(session, code, tools=tools)
        assert result.result == "(3, 'Hello, you!', True, False)", result.as_text()
        result = await manager.execute(session, "tools.mcp_add(x='one', y=2)", tools=tools)
        assert result.error is not None
        assert "not valid" in result.error.evalue
        with pytest.raises(InvalidInputError, match="nosuch"):
            await mcp_tools(client, ["nosuch"])
