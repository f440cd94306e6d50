"""KernelCalls: what the broker of one kernel calls: the manager of its session, through the directory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import ContextVar

from orchestrator.celloptions import CellOptions
from orchestrator.errors import SessionEndedError
from orchestrator.output.events import Event, InputHandler
from orchestrator.principal import Principal
from orchestrator.server.directory import Directory, Served, Wish
from orchestrator.sessions.restored import is_loss
from orchestrator.sessions.session import KernelSession

CALLER: ContextVar[Principal] = ContextVar("caller")  # whose request is served: tokens of a group differ in policies
_PATIENCE = 60.0  # seconds for a kernel


class KernelCalls:
    """See ``SessionCalls``.

    Attributes:
        served: the session that the kernel's agent has, or had last.
    """

    def __init__(self, directory: Directory, served: Served) -> None:
        self._directory = directory
        self.served = served

    @property
    def is_over(self) -> bool:
        """Whether somebody has ended the session; one that was lost is followed by another one."""
        ended = self.served.session.ended
        return ended is not None and not is_loss(ended)

    @contextlib.asynccontextmanager
    async def acquire_kernel(
        self, agent_id: str, timeout: float | None = _PATIENCE, *, caller: str = ""
    ) -> AsyncIterator[tuple[None, KernelSession]]:
        """Yield the agent's session, awake: a new one with the same policy, if its last one was lost.

        Raises:
            SessionEndedError: somebody has ended it.
            See ``Directory.open``.
        """
        if self.is_over:
            reason = self.served.session.ended or ""
            raise SessionEndedError(
                f"the kernel was shut down: {reason}.", reason=reason, remedy="Start another kernel."
            )
        if not self.served.session.is_awake:
            handle = self.served.handle
            wish = Wish(handle.name, handle.policy, handle.image, handle.environment, handle.labels, timeout=timeout)
            self.served, _ = await self._directory.open(CALLER.get(), wish)
        with self.served.session.in_use():
            yield None, self.served.session

    async def stream_code(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        options: CellOptions = CellOptions(),  # noqa: B008 - it is frozen
    ) -> AsyncGenerator[Event, None]:
        """See ``AgentKernelManager.stream_code``."""
        environment = self.served.environment(None)
        events = self.served.manager.stream_code(session, code, answer=answer, options=options, environment=environment)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def interrupt(self, session: KernelSession) -> bool:
        """See ``AgentKernelManager.interrupt``."""
        return self.served.manager.interrupt(session)
