"""SessionCalls: what the broker calls of the manager."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from orchestrator.celloptions import CellOptions
from orchestrator.output.events import Event, InputHandler
from orchestrator.sessions.session import KernelSession


class SessionCalls(Protocol):
    """The part of ``AgentKernelManager`` that runs the requests of Jupyter's clients. See there."""

    def acquire_kernel(
        self, agent_id: str, timeout: float | None = None, *, caller: str = ""
    ) -> AbstractAsyncContextManager[tuple[Any, KernelSession]]: ...

    def stream_code(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        options: CellOptions = ...,
    ) -> AsyncGenerator[Event, None]: ...

    def interrupt(self, session: KernelSession) -> bool: ...
