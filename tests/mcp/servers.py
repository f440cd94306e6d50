"""MCP servers for tests: over HTTP in this process, and over stdio in one of their own. And the SDK's own client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import httpx2
import uvicorn
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from orchestrator.manager import AgentKernelManager
from orchestrator.mcp.httpserving import _Server
from orchestrator.mcp.mcpservice import McpService
from tests.conftest import REPOSITORY, make_manager

PATIENCE = 1.0  # seconds, in place of 45
TOKENS = {"Bearer one": "one", "Bearer two": "two"}


def principal_of(request: Request) -> str | None:
    return TOKENS.get(request.headers.get("authorization", ""))


@contextlib.asynccontextmanager
async def http_server(manager: AgentKernelManager, patience: float = PATIENCE) -> AsyncIterator[str]:
    """Serve over HTTP as a program that embeds the endpoint does. Yields its URL."""
    service = McpService(manager, patience=patience)
    endpoint = service.http(principal_of)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=[Route("/mcp", endpoint=endpoint)])
        server = _Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        async with service.closing(), endpoint.running():
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
            finally:
                server.should_exit = True
                await serving


T = TypeVar("T")


@contextlib.asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Keep a context open in a task of its own: pytest ends a fixture in another task than it began in."""
    opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    close = asyncio.Event()

    async def hold() -> None:
        async with context as value:
            opened.set_result(value)
            await close.wait()

    holding = asyncio.create_task(hold())
    holding.add_done_callback(lambda _task: opened.cancel())
    try:
        yield await opened
    finally:
        close.set()
        await holding


@contextlib.asynccontextmanager
async def http_client(url: str, *, mode: str = "auto", principal: str = "one") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {principal}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as web,
        Client(streamable_http_client(url, http_client=web), mode=mode) as client,
    ):
        yield client


def stdio_server(*arguments: str) -> StdioServerParameters:
    """Return how a client starts ``python -m`` with these arguments on this machine's engine."""
    environment = {key: value for key, value in os.environ.items() if key.startswith("CELLBLOCK_")}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", *arguments],
        cwd=REPOSITORY,
        env={**environment, "PATH": os.environ["PATH"], "CELLBLOCK_RUNTIME": "runc", "CELLBLOCK_WARM_KERNELS": "0"},
    )


def text_of(result: CallToolResult) -> str:
    return "\n".join(each.text for each in result.content if isinstance(each, TextContent))


def images_of(result: CallToolResult) -> list[ImageContent]:
    return [each for each in result.content if isinstance(each, ImageContent)]


def links_of(result: CallToolResult) -> list[ResourceLink]:
    return [each for each in result.content if isinstance(each, ResourceLink)]


async def call(client: Client, tool: str, /, **arguments: Any) -> str:
    """Call a tool that must not fail, and wait for its end. Returns its text."""
    return text_of(await ended(client, await client.call_tool(tool, arguments)))


async def refused(client: Client, tool: str, /, **arguments: Any) -> str:
    """Call a tool that must fail, and wait for its end. Returns what it says."""
    return text_of(await ended(client, await client.call_tool(tool, arguments), is_error=True))


async def ended(client: Client, result: CallToolResult, *, is_error: bool = False) -> CallToolResult:
    """Wait for the end of what a result says is still running."""
    while (result.meta or {}).get("org.cellblock/outcome") == "running":
        result = await client.call_tool("wait", {"id": id_in(result)})
    assert result.is_error == is_error, text_of(result)
    return result


def id_in(result: CallToolResult) -> str:
    """Return the id of what a result is about."""
    meta: Mapping[str, Any] = result.meta or {}
    return str(meta["org.cellblock/id"])


async def serve_stdio() -> None:
    """What a stdio server of tests runs: a manager on runc, and a short patience."""
    async with make_manager("runc") as manager:
        service = McpService(manager, patience=PATIENCE)
        async with service.closing():
            await service.serve_stdio()


if __name__ == "__main__":
    asyncio.run(serve_stdio())
