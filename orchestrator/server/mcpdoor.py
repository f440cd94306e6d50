"""McpDoor: MCP over HTTP at ``/mcp``, on the sessions of the caller's group. The tools are those of ``mcp/``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Scope

from orchestrator.errors import UnknownSessionError
from orchestrator.mcp.mcpservice import McpService
from orchestrator.output.events import Event
from orchestrator.output.fileinfo import FileInfo
from orchestrator.output.variableinfo import VariableInfo
from orchestrator.principal import Principal
from orchestrator.server.dialect import TokenWire
from orchestrator.server.directory import Served, Wish
from orchestrator.server.service import Service
from orchestrator.server.sessionnotebooks import notebooks_of
from orchestrator.sessions.commandhandle import RunningCommand
from orchestrator.store.history import History

_PATH = "/mcp"
_caller: ContextVar[Principal] = ContextVar("caller")  # of the call that runs; two tokens of a group differ in policies


class McpDoor(TokenWire):
    """The wire of MCP. A session is named by its agent, within the group: ``/v1`` has the same sessions."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._sessions = GroupSessions(service)
        self._mcp = McpService(self._sessions, note=_note_caller, notebooks_of=notebooks_of)
        self._endpoint = self._mcp.http(_group_of, any_host=True)  # ``Boundary`` checks host and origin
        self.app = self._endpoint

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See ``Dialect``."""
        async with self._mcp.closing(), self._endpoint.running():
            yield

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return bool(scope["type"] == "http" and scope["path"] == _PATH)

    def is_stream(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return True


class GroupSessions:
    """The manager that MCP's tools see: the sessions of the server's directory, each with the manager of its policy."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list_sessions(self) -> list[dict[str, Any]]:
        """See ``AgentKernelManager.list_sessions``: those of the caller's group."""
        found = await self._service.directory.history.run(History.handles, _caller.get().group)
        return [record.as_dict() for _handle, record in found]

    @contextlib.asynccontextmanager
    async def acquire_kernel(
        self, agent_id: str, timeout: float | None = None, *, caller: str = ""
    ) -> AsyncIterator[tuple[None, Served]]:
        """Yield the agent's session, awake."""
        name = agent_id.partition(":")[2]
        served, _ = await self._service.directory.open(_caller.get(), Wish(name, timeout=timeout, caller=caller))
        yield None, served

    async def stream_code(
        self, session: Served, code: str, *, timeout: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """See ``AgentKernelManager.stream_code``."""
        events = session.manager.stream_code(
            session.session, code, timeout=timeout, environment=session.environment(None)
        )
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def interrupt(self, session: Served) -> bool:
        """See ``AgentKernelManager.interrupt``."""
        return session.manager.interrupt(session.session)

    async def start_command(
        self, session: Served, command: str, *, cwd: str = "", timeout: float | None = None
    ) -> RunningCommand:
        """See ``AgentKernelManager.start_command``."""
        environment = session.environment(None)
        return await session.manager.start_command(session.session, command, cwd=cwd, timeout=timeout, env=environment)

    async def restart_kernel(self, session: Served, *, keep_files: bool = True, timeout: float | None = None) -> None:
        """See ``AgentKernelManager.restart_kernel``."""
        await session.manager.restart_kernel(session.session, keep_files=keep_files, timeout=timeout)

    async def install(self, session: Served, requirements: Sequence[str]) -> list[str]:
        """See ``AgentKernelManager.install``."""
        return await session.manager.install(session.session, requirements)

    async def read_file(self, session: Served, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """See ``AgentKernelManager.read_file``."""
        return await session.manager.read_file(session.session, path, offset=offset, length=length)

    async def write_file(self, session: Served, path: str, data: bytes) -> int:
        """See ``AgentKernelManager.write_file``."""
        return await session.manager.write_file(session.session, path, data)

    async def stat_file(self, session: Served, path: str, *, follow_links: bool = False) -> FileInfo:
        """See ``AgentKernelManager.stat_file``."""
        return await session.manager.stat_file(session.session, path, follow_links=follow_links)

    async def list_files(
        self, session: Served, path: str = ".", *, recursive: bool = False, pattern: str = "", limit: int = 10_000
    ) -> list[FileInfo]:
        """See ``AgentKernelManager.list_files``."""
        return await session.manager.list_files(
            session.session, path, recursive=recursive, pattern=pattern, limit=limit
        )

    async def list_variables(self, session: Served) -> Sequence[VariableInfo]:
        """See ``AgentKernelManager.list_variables``."""
        return await session.manager.list_variables(session.session)

    async def checkpoint(self, session: Served) -> Any:
        """See ``AgentKernelManager.checkpoint``."""
        return await session.manager.checkpoint(session.session)

    async def restore(self, session: Served, checkpoint: str, timeout: float | None = None) -> Any:
        """See ``AgentKernelManager.restore``."""
        return await session.manager.restore(session.session, checkpoint, timeout)

    async def fork(self, session: Served, count: int, *, agent_ids: Sequence[str] | None = None) -> Sequence[Served]:
        """See ``AgentKernelManager.fork``."""
        names = [agent_id.partition(":")[2] for agent_id in agent_ids or ()]
        return await self._service.directory.fork(_caller.get(), session, names)

    async def end_session(self, agent_id: str) -> bool:
        """See ``AgentKernelManager.end_session``."""
        name = agent_id.partition(":")[2]
        try:
            served = await self._service.directory.of_agent(_caller.get(), name)
        except UnknownSessionError:
            return False
        return await self._service.directory.end(served)


def _principal_of(request: Request) -> Principal:
    principal: Principal = request.scope["state"]["principal"]
    return principal


def _group_of(request: Request) -> str:
    return _principal_of(request).group


def _note_caller(request: Request) -> None:
    _caller.set(_principal_of(request))
