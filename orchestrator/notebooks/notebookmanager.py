"""NotebookManager: what this room asks of a manager. ``AgentKernelManager`` has it, and the manager of a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from orchestrator.output.events import Event


class NotebookManager(Protocol):
    """The methods mean what those of ``AgentKernelManager`` mean. A session is only handed back."""

    def stream_code(
        self, session: Any, code: str, *, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Event, None]: ...

    async def read_file(
        self, session: Any, path: str, *, offset: int = 0, length: int | None = None, limit: int = ...
    ) -> bytes: ...

    async def write_file(self, session: Any, path: str, data: bytes) -> int: ...
