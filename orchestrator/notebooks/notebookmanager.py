"""NotebookManager: what this room asks of a manager. ``AgentKernelManager`` has it, and the manager of a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from orchestrator.output.events import Event


class NotebookManager(Protocol):
    """The methods mean what those of ``AgentKernelManager`` mean. A session is only handed back.

    ``stream_code`` takes ``environment`` too, where ``Notebooks`` has one.
    """

    def stream_code(self, session: Any, code: str, *, timeout: float | None = None) -> AsyncGenerator[Event, None]: ...

    async def read_file(self, session: Any, path: str, *, length: int | None = None) -> bytes: ...

    async def write_file(self, session: Any, path: str, data: bytes) -> int: ...
