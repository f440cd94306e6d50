"""Facade: what this room asks of a manager. ``AgentKernelManager`` has it, and so has the client of a server."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from orchestrator.output.commandresult import CommandResult
from orchestrator.output.events import Event
from orchestrator.output.fileinfo import FileInfo
from orchestrator.output.variableinfo import VariableInfo
from orchestrator.sessions.commandhandle import CommandEvent

T = TypeVar("T")


class Started(Protocol):
    """A command that runs: ``RunningCommand``, or that of a server's client."""

    def events(self) -> AsyncGenerator[CommandEvent, None]: ...

    async def wait(self) -> CommandResult: ...

    def kill(self) -> bool | Awaitable[bool]: ...


class Facade(Protocol):
    """The methods mean what those of ``AgentKernelManager`` mean. A session is opaque: it is only handed back."""

    def acquire_kernel(
        self, agent_id: str, timeout: float | None = None, *, caller: str = ""
    ) -> AbstractAsyncContextManager[tuple[Any, Any]]: ...

    def stream_code(self, session: Any, code: str, *, timeout: float | None = None) -> AsyncGenerator[Event, None]: ...

    def interrupt(self, session: Any) -> bool | Awaitable[bool]: ...

    async def start_command(
        self, session: Any, command: str, *, cwd: str = "", timeout: float | None = None
    ) -> Started: ...

    async def restart_kernel(self, session: Any, *, keep_files: bool = True, timeout: float | None = None) -> None: ...

    async def install(self, session: Any, requirements: Sequence[str]) -> list[str]: ...

    async def read_file(self, session: Any, path: str, *, offset: int = 0, length: int | None = None) -> bytes: ...

    async def write_file(self, session: Any, path: str, data: bytes) -> int: ...

    async def stat_file(self, session: Any, path: str, *, follow_links: bool = False) -> FileInfo: ...

    async def list_files(
        self, session: Any, path: str = ".", *, recursive: bool = False, pattern: str = "", limit: int = 10_000
    ) -> list[FileInfo]: ...

    async def list_variables(self, session: Any) -> Sequence[VariableInfo]: ...

    async def checkpoint(self, session: Any) -> Any: ...

    async def restore(self, session: Any, checkpoint: str, timeout: float | None = None) -> Any: ...

    async def fork(self, session: Any, count: int, *, agent_ids: Sequence[str] | None = None) -> Sequence[Any]: ...

    async def list_sessions(self) -> Sequence[Mapping[str, Any]]: ...

    async def end_session(self, agent_id: str) -> bool: ...


async def settled(answer: T | Awaitable[T]) -> T:
    """Return what a manager of this process answers at once, and that of a server after a wait."""
    return await answer if inspect.isawaitable(answer) else answer
