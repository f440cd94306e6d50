"""mcp_tools: any MCP server's tools as tools of a sandbox.

    async with fastmcp.Client("server.py") as client:
        async with manager.acquire_kernel("agent", tools=await mcp_tools(client)) as (kernel, session):
            await manager.execute(session, "import tools; tools.search(query='…')")

So an agent without a network reaches exactly those servers, and those of their tools, that its operator passes on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from orchestrator.errors import InvalidInputError
from orchestrator.tool import Tool


class McpClient(Protocol):
    """What is needed of a client: ``fastmcp.Client`` and ``mcp.Client`` have it."""

    async def list_tools(self) -> Any: ...
    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any: ...


class McpToolError(Exception):
    """A tool of an MCP server reported an error."""


async def mcp_tools(client: McpClient, names: Collection[str] | None = None, *, prefix: str = "") -> list[Tool]:
    """Return the tools of an MCP server for ``tools=``.

    A tool returns its structured content, or else its text; other content is named, such as "[image: image/png]".

    Args:
        client: connected, as long as the tools may be called.
        names: which of the tools; None: all.
        prefix: for their names, where several servers have tools of the same name.

    Raises:
        InvalidInputError: the server has no tool of one of the names, or a tool cannot be offered.
    """
    listed = await client.list_tools()
    found = {tool.name: tool for tool in getattr(listed, "tools", listed)}
    if missing := set(names or ()) - found.keys():
        raise InvalidInputError(f"the MCP server has no tool {', '.join(map(repr, sorted(missing)))}.")
    return [
        Tool(f"{prefix}{name}", _schema(tool), _caller(client, name), getattr(tool, "description", None) or "")
        for name, tool in found.items()
        if names is None or name in names
    ]


def _schema(tool: Any) -> dict[str, Any]:
    schema = getattr(tool, "input_schema", None) or getattr(tool, "inputSchema", None)
    return dict(schema) if schema else {"type": "object"}


def _caller(client: McpClient, name: str) -> Any:
    async def call(**arguments: Any) -> Any:
        result = await client.call_tool(name, arguments)
        texts = [_text(each) for each in getattr(result, "content", None) or ()]
        if getattr(result, "is_error", False) or getattr(result, "isError", False):
            raise McpToolError("\n".join(texts) or "the tool reported an error")
        structured = getattr(result, "structured_content", None)
        if structured is None:
            structured = getattr(result, "structuredContent", None)
        if isinstance(structured, dict) and set(structured) == {"result"}:  # how servers wrap what is no object
            return structured["result"]
        return structured if structured is not None else "\n".join(texts)

    return call


def _text(content: Any) -> str:
    text = getattr(content, "text", None)
    if isinstance(text, str):
        return text
    kind = getattr(content, "type", "content")
    mime = getattr(content, "mime_type", None) or getattr(content, "mimeType", None)
    return f"[{kind}: {mime}]" if mime else f"[{kind}]"
