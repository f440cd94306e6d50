"""Ready-made configurations of MCP clients: which file, and what belongs into it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

NAME = "cellblock"


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """The configuration that names a server to one client.

    Attributes:
        place: the file that the text belongs into.
        text: returns the file's text for a command and its arguments.
    """

    place: str
    text: Callable[[str, Sequence[str]], str]


def _json(key: str, **more: Any) -> Callable[[str, Sequence[str]], str]:
    def text(command: str, arguments: Sequence[str]) -> str:
        return json.dumps({key: {NAME: {**more, "command": command, "args": list(arguments)}}}, indent=2)

    return text


def _toml(command: str, arguments: Sequence[str]) -> str:
    # A JSON string of ASCII is a TOML string.
    return f"[mcp_servers.{NAME}]\ncommand = {json.dumps(command)}\nargs = {json.dumps(list(arguments))}"


CLIENTS = {
    "claude-desktop": ClientConfig(
        "~/Library/Application Support/Claude/claude_desktop_config.json (macOS), "
        "%APPDATA%\\Claude\\claude_desktop_config.json (Windows), "
        "~/.config/Claude/claude_desktop_config.json (Linux)",
        _json("mcpServers"),
    ),
    "claude-code": ClientConfig(".mcp.json in the project's folder", _json("mcpServers", type="stdio")),
    "cursor": ClientConfig("~/.cursor/mcp.json, or .cursor/mcp.json in the project's folder", _json("mcpServers")),
    "vscode": ClientConfig(".vscode/mcp.json in the workspace", _json("servers", type="stdio")),
    "codex": ClientConfig("~/.codex/config.toml", _toml),
    "gemini-cli": ClientConfig(
        "~/.gemini/settings.json, or .gemini/settings.json in the project's folder", _json("mcpServers")
    ),
    "windsurf": ClientConfig("~/.codeium/windsurf/mcp_config.json", _json("mcpServers")),
    "zed": ClientConfig("~/.config/zed/settings.json", _json("context_servers", source="custom")),
}
