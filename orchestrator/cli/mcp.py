"""`cellblock mcp`: serves sandboxes to an MCP client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.policies import existing_policy
from orchestrator.cli.render import run_async
from orchestrator.errors import CellblockError, SettingsError
from orchestrator.manager import AgentKernelManager
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.mcp.facade import Facade
    from orchestrator.mcp.mcpservice import McpService
    from orchestrator.remote.remotemanager import RemoteKernelManager

_TOKEN = "CELLBLOCK_MCP_TOKEN"  # noqa: S105 - the name of the variable
_ENDING = 10.0  # seconds that a server has to end the sessions
_LONGEST_TOKEN = 1000  # characters


class Client(StrEnum):
    """The clients whose configuration is known."""

    claude_desktop = "claude-desktop"
    claude_code = "claude-code"
    cursor = "cursor"
    vscode = "vscode"
    codex = "codex"
    gemini_cli = "gemini-cli"
    windsurf = "windsurf"
    zed = "zed"


def mcp(
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve over HTTP, at /mcp. Default: over stdin and stdout.")
    ] = "",
    agent: Annotated[str, typer.Option(help="A name under which sessions are kept, and go on at the next start.")] = "",
    policy: Annotated[
        str, typer.Option("--policy", help="A policy's name or file; with --server, a name. Default: CELLBLOCK_POLICY.")
    ] = "",
    kernels: Annotated[int | None, typer.Option(min=1, help="How many kernels may exist at once. Default: 4.")] = None,
    server: Annotated[
        str, typer.Option(metavar="URL", help="A running `cellblock serve` that has the sandboxes. Default: none.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the token of that server, if it needs one.")
    ] = None,
    print_config: Annotated[
        Client | None, typer.Option("--print-config", help="Print the configuration of a client and exit.")
    ] = None,
) -> None:
    """Serve sandboxes to an MCP client: tools to run Python and commands, and to read and write files.

    Sessions end with the server. With --agent, they are kept, and go on where they were.

    With --server, the sandboxes are those of a server, and --policy is one of its token's.

    Over HTTP, another address than the loopback one needs a token in CELLBLOCK_MCP_TOKEN, which clients send as
    "Authorization: Bearer TOKEN".

    Example: cellblock mcp --print-config claude-code
    """
    if not server:
        existing_policy(policy)
    if print_config is not None:
        _print_config(print_config, agent, policy, server, token_file)
        return
    if find_spec("mcp") is None:
        typer.echo("cellblock: the MCP server needs mcp: pip install 'cellblock[mcp]'", err=True)
        raise typer.Exit(2)
    owner = agent or f"mcp-{secrets.token_hex(4)}"
    if server:
        if http or kernels is not None:
            raise typer.BadParameter("a server has its own /mcp, and its own number of kernels.", param_hint="--server")
        token = None if token_file is None else _token_in(token_file)
        remote = AgentKernelManager.connect(server, token=token, policy=policy)
        run_async(_serve_for(remote, owner, keep=bool(agent)))
        return
    if token_file is not None:
        raise typer.BadParameter("the token is that of a --server.", param_hint="--token-file")
    address = _address(http) if http else None
    settings = Settings.load()
    if policy:
        settings = settings.model_copy(update={"policy": policy})
    manager = AgentKernelManager(kernels or 4, settings=settings, keep_sessions=bool(agent))
    run_async(_serve(manager, owner, address, settings.mcp_token))


async def _serve(manager: AgentKernelManager, owner: str, address: tuple[str, int] | None, token: str) -> None:
    from orchestrator.mcp.httpserving import serve_http

    service = _service(manager, owner)
    stop = asyncio.Event()
    with _told_by_signals(stop):
        try:
            async with service.closing(), _warming(manager):
                if address is None:
                    await _until(stop, service.serve_stdio())
                else:
                    await serve_http(service, owner, address, token, stop)
        finally:
            await manager.shutdown()


async def _serve_for(manager: RemoteKernelManager, owner: str, *, keep: bool) -> None:
    """Serve the sandboxes of a server over stdio. Without ``keep``, end their sessions at the end."""
    service = _service(manager, owner)
    stop = asyncio.Event()
    with _told_by_signals(stop):
        async with manager:
            try:
                async with service.closing():
                    await _until(stop, service.serve_stdio())
            finally:
                if not keep:
                    with contextlib.suppress(CellblockError, TimeoutError):  # the server is gone, or hangs
                        async with asyncio.timeout(_ENDING):
                            await service.end_sessions()


def _service(manager: Facade, owner: str) -> McpService:
    from orchestrator.mcp.mcpservice import McpService

    # Before the SDK, which else writes its own form: its messages go where Cellblock's go.
    logging.basicConfig(handlers=logging.getLogger("orchestrator").handlers or None, level=logging.WARNING)
    return McpService(manager, owner=owner)


async def _until(stop: asyncio.Event, work: Awaitable[None]) -> None:
    """Await the work, and cancel it when the server is told to stop."""
    tasks = [asyncio.ensure_future(work), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(done[0], Exception):
        raise done[0]


@contextlib.asynccontextmanager
async def _warming(manager: AgentKernelManager) -> AsyncIterator[None]:
    """Start the manager beside serving: clients wait only seconds for the first answer.

    A manager that cannot start says why at the first call.
    """

    async def start() -> None:
        with contextlib.suppress(CellblockError):
            await manager.start()

    task = asyncio.create_task(start())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.contextmanager
def _told_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _address(text: str) -> tuple[str, int]:
    from orchestrator.mcp.httpserving import is_loopback

    host, _colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter("give HOST:PORT, such as 127.0.0.1:8765.", param_hint="--http")
    if not is_loopback(host) and not Settings.load().mcp_token:
        raise SettingsError(
            f"{host} can be reached from elsewhere, and no token is set.",
            remedy=f"Set {_TOKEN}, or serve on 127.0.0.1.",
        )
    return host, int(port)


def _token_in(file: Path) -> str:
    try:
        with file.open() as opened:
            token = opened.read(_LONGEST_TOKEN + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{str(file)!r} cannot be read: {error}.", param_hint="--token-file") from None
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii() or not token.isprintable():
        raise typer.BadParameter(f"{str(file)!r} has no token.", param_hint="--token-file")
    return token


def _print_config(client: Client, agent: str, policy: str, server: str, token_file: Path | None) -> None:
    from orchestrator.mcp.clientconfigs import CLIENTS

    command, *first = _own_command()
    arguments = [*first, "mcp"]
    if agent:
        arguments += ["--agent", agent]
    if policy:
        arguments += ["--policy", str(Path(policy).absolute()) if os.sep in policy else policy]
    if server:
        arguments += ["--server", server]
    if token_file is not None:
        arguments += ["--token-file", str(token_file.absolute())]
    config = CLIENTS[client]
    typer.echo(f"# {config.place}", err=True)
    typer.echo(config.text(command, arguments))


def _own_command() -> list[str]:
    """Return the command that runs this program from any folder: its script, or the interpreter with its module."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "cellblock" and os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "orchestrator.cli.entry"]
