"""RemoteSession: an agent's session on a server, as its client sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.errors import SessionEndedError
from orchestrator.remote.link import Link
from orchestrator.sessions.restored import Lost, Restored
from orchestrator.store.history import CommandRecord
from orchestrator.tool import Tool


@dataclass(frozen=True, slots=True)
class RemoteKernel:
    """The kernel of a session, as the server named it when the session was acquired.

    Attributes:
        kernel_id: a name that no other kernel has.
        runtime: the container runtime that it runs under, such as "runsc".
    """

    kernel_id: str
    runtime: str


@dataclass(eq=False)
class RemoteSession:
    """One agent's session. The fields are as the server said last: when the session was acquired, or restarted.

    Attributes:
        previous_end: why this agent's previous kernel ended; None for its first kernel.
        restored: the checkpoint that its variables came from; None if they came from none.
        created_at, last_used_at: seconds since the epoch.
        expires_at: seconds since the epoch; None: it does not expire.
        ended: why the session is over, as far as this client has noticed; None while it is not.
    """

    session_id: str
    agent_id: str
    kernel_id: str
    runtime: str
    policy: str
    created_at: float
    last_used_at: float
    cell_count: int
    previous_end: str | None
    parent_id: str | None
    restored: Restored | None
    expires_at: float | None
    connection: Link = field(repr=False)
    ended: str | None = None
    _tools: Mapping[str, Tool] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, connection: Link, form: Mapping[str, Any]) -> Self:
        """Return the session that a server described."""
        found = cls.__new__(cls)
        found.connection, found.ended, found._tools = connection, None, {}
        found.update(form)
        return found

    def update(self, form: Mapping[str, Any]) -> None:
        """Take over what the server says of the session now."""
        names = "session_id agent_id kernel_id runtime policy created_at last_used_at cell_count previous_end parent_id"
        for name in (*names.split(), "expires_at"):
            setattr(self, name, form[name])
        self.restored = None if form["restored"] is None else restored_of(form["restored"])

    @property
    def path(self) -> str:
        """Where the server has it."""
        return f"/v1/sessions/{self.session_id}"

    @property
    def kernel(self) -> RemoteKernel:
        return RemoteKernel(self.kernel_id, self.runtime)

    async def history(self) -> list[dict[str, Any]]:
        """Return one ``{"timestamp", "code", "result"}`` per cell, in order. The session is not woken.

        Raises:
            StoreError: the history cannot be read.
            ServerUnavailableError: the server does not answer.
        """
        found = await self.connection.ask("GET", f"{self.path}/history")
        return [{name: cell[name] for name in ("timestamp", "code", "result")} for cell in found["cells"]]

    async def command_history(self) -> list[CommandRecord]:
        """Return all commands of the session, with their results.

        Raises:
            See ``history``.
        """
        found = await self.connection.ask("GET", f"{self.path}/commands/history")
        return [CommandRecord(**{**form, "command": tuple(form["command"])}) for form in found["commands"]]

    @contextlib.contextmanager
    def offering(self, tools: Mapping[str, Tool] | None) -> Iterator[None]:
        """Offer tools to every cell while the context is open; None: those that are offered already."""
        before = self._tools
        if tools is not None:
            self._tools = tools
        try:
            yield
        finally:
            self._tools = before

    def offered(self, tools: Mapping[str, Tool]) -> dict[str, Tool]:
        """Return the tools of a cell: those of the session, and its own."""
        return {**self._tools, **tools}

    @contextlib.contextmanager
    def noticing_its_end(self) -> Iterator[None]:
        """Remember why the session ended, when a call is refused for that."""
        try:
            yield
        except SessionEndedError as error:
            self.ended = error.reason
            raise


def restored_of(form: Mapping[str, Any]) -> Restored:
    """Return what a session was restored from, as a server described it."""
    lost = tuple(Lost(**loss) for loss in form["lost"])
    return Restored(form["checkpoint_id"], form["cell"], lost, form["seconds"])
