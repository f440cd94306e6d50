"""Serves MCP over HTTP from a process of its own, to the one principal that has the token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import sys
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from orchestrator.mcp.httpendpoint import PrincipalOf
from orchestrator.mcp.mcpservice import McpService

_LET_GO = 3  # seconds that open answers have to end when the server does


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


async def serve_http(
    service: McpService, owner: str, address: tuple[str, int], token: str, stop: asyncio.Event
) -> None:
    """Serve at /mcp until ``stop`` is set.

    On the loopback address, requests with another Host or Origin are refused: a web page could send them. On any other
    address the token alone decides, since no web page has it.

    Args:
        token: what clients send as bearer token; "": none is asked for.
    """
    host, port = address
    endpoint = service.http(_whoever_has(token, owner), any_host=not is_loopback(host))
    server = _Server(
        uvicorn.Config(
            Starlette(routes=[Route("/mcp", endpoint=endpoint)]),
            host=host,
            port=port,
            log_level="warning",
            log_config=None,
            timeout_graceful_shutdown=_LET_GO,
        )
    )

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        async with endpoint.running():
            print(f"cellblock: serving http://{f'[{host}]' if ':' in host else host}:{port}/mcp", file=sys.stderr)
            await server.serve()
    finally:
        ending.cancel()


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _whoever_has(token: str, owner: str) -> PrincipalOf:
    def principal_of(request: Request) -> str | None:
        given = request.headers.get("authorization", "").encode()
        return owner if not token or hmac.compare_digest(given, f"Bearer {token}".encode()) else None

    return principal_of
