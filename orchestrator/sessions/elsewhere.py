"""Elsewhere: the sessions that other processes own. A session has one owner: it is refused, taken over or handed over.

A process takes over the sessions of a dead process when it starts, and when one of their agents comes. A live process
keeps its sessions, unless another one asks for a handover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from orchestrator.errors import CellblockError, SessionBusyError, SessionElsewhereError
from orchestrator.limits import Deadline
from orchestrator.sessions.checkpoint import capture_between_cells
from orchestrator.sessions.owners import Owners, instance_of_owner
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.store.history import History, SessionRecord

Ask = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any] | None]]
_HANDOVER = 60.0  # seconds that a handover may take when the caller sets no timeout
HANDOVER = "handover"


class Elsewhere:
    """Finds an agent's session in the store, whichever process owns it."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry
        self._owners: Owners | None = None
        self._recover: Callable[[], Awaitable[object]] | None = None
        self._ask: Ask | None = None
        self._recovering: asyncio.Task[None] | None = None

    def open(self, owners: Owners, recover: Callable[[], Awaitable[object]], ask: Ask) -> None:
        """Set what this process knows about others. The manager calls this once, when it starts.

        Args:
            recover: takes over the sessions of all dead processes; ``registry.continuing`` has those that take longer.
            ask: sends a request to an instance's control socket; returns the reply, or None if none comes in time.
        """
        self._owners, self._recover, self._ask = owners, recover, ask

    async def sleeping(self, agent_id: str, deadline: Deadline | None, *, handover: bool) -> SessionRecord | None:
        """Return the agent's sleeping session; None if it has none. The caller holds the agent's lock.

        Takes over what a dead process had, which may give the agent a live session.

        Args:
            handover: ask the live process that owns the session to hand it over.

        Raises:
            SessionElsewhereError: another process owns the session.
            SessionBusyError: taking it over takes longer than the deadline.
        """
        records, owner = await self._find(agent_id, deadline)
        if owner is not None and self._recover is not None and self._is_dead(owner):
            await self._take_over(agent_id, deadline)
            records, owner = await self._find(agent_id, deadline)
        why = ""
        if owner is not None and handover and not self._is_dead(owner):
            why = await self._request_handover(agent_id, owner, deadline)
            records, owner = await self._find(agent_id, deadline)
        if owner is not None:
            raise self._elsewhere(agent_id, owner, why)
        return next((record for record in records if record.state == "asleep" and record.owner is None), None)

    async def continued(self, agent_id: str, deadline: Deadline | None) -> None:
        """Wait until the agent's session, if it is being taken over from a dead process, is continued.

        Raises:
            SessionBusyError: that takes longer than the deadline.
            StoreError: it cannot be continued now; it is tried again soon.
        """
        if (continuing := self._registry.continuing.get(agent_id)) is not None:
            waiting = asyncio.ensure_future(continuing.wait())
            try:
                await _in_time(waiting, agent_id, deadline)
                waiting.result()
            finally:
                waiting.cancel()

    async def _find(self, agent_id: str, deadline: Deadline | None) -> tuple[list[SessionRecord], str | None]:
        """Return the agent's sessions that have not ended, and the other process that owns one of them."""
        await self.continued(agent_id, deadline)
        records = await self._registry.store.run(History.sessions_of, agent_id)
        others = (record.owner for record in records if record.owner not in (None, self._registry.owner))
        return records, next(others, None)

    def _is_dead(self, owner: str) -> bool:
        return self._owners is not None and self._owners.is_dead(owner)

    async def _take_over(self, agent_id: str, deadline: Deadline | None) -> None:
        if self._recovering is None or self._recovering.done():
            self._recovering = asyncio.create_task(self._recover_once())
        await _in_time(self._recovering, agent_id, deadline)
        self._recovering.result()

    async def _recover_once(self) -> None:
        if self._recover is not None:
            await self._recover()

    async def _request_handover(self, agent_id: str, owner: str, deadline: Deadline | None) -> str:
        """Return why the owner keeps the session; "" when it has handed it over."""
        if self._ask is None:
            return "it cannot be asked"
        timeout = _HANDOVER if deadline is None else deadline.remaining()
        reply = await self._ask(instance_of_owner(owner), {"do": HANDOVER, "agent": agent_id}, timeout)
        return f"it did not answer within {timeout:.0f} s" if reply is None else str(reply.get("error", ""))[:300]

    def _elsewhere(self, agent_id: str, owner: str, why: str) -> SessionElsewhereError:
        pid, host = (None, None) if self._owners is None else self._owners.holder(owner)
        if self._is_dead(owner):
            message = f"the session of agent {agent_id!r} belongs to a process that has ended"
            remedy = "Start a process with its CELLBLOCK_STATE_DIR, or run `cellblock prune --all` there."
        else:
            where = f"process {pid} on {host}" if pid else "another live process"
            message = f"the session of agent {agent_id!r} belongs to {where} (instance {instance_of_owner(owner)})"
            remedy = "Use the agent there, or acquire its kernel with handover=True."
        if why:
            message, remedy = f"{message}, and was not handed over: {why}", "Try again when no call uses it there."
        return SessionElsewhereError(f"{message}.", agent_id=agent_id, owner=owner, pid=pid, host=host, remedy=remedy)


async def hand_over(registry: SessionRegistry, agent_id: str) -> dict[str, Any]:
    """Put an agent's session to sleep for another process: the control socket's command "handover".

    Returns:
        ``{"handed_over": True}``, or ``{"error": …}`` if the session stays here.
    """
    session = registry.sessions.get(agent_id)
    if session is None:
        return {"error": "the process has no kernel of that agent"}
    try:
        async with registry.locked(agent_id, 1.0):
            if session.users or session.is_busy or agent_id in registry.continuing:
                return {"error": "a call uses it"}
            await capture_between_cells(session, registry.files, asked_for=False)
            if session.users or session.is_busy:
                return {"error": "a call uses it"}
            await registry.put_to_sleep(session, HANDOVER)
    except CellblockError as error:
        return {"error": error.message}
    return {"handed_over": True}


async def _in_time(work: asyncio.Future[Any], agent_id: str, deadline: Deadline | None) -> None:
    """Wait for work that continues for other callers.

    Raises:
        SessionBusyError: it takes longer than the deadline.
    """
    timeout = None if deadline is None else deadline.remaining()
    done, _ = await asyncio.wait({work}, timeout=timeout)
    if not done:
        message = f"the session of agent {agent_id!r} is still being taken over from a dead process."
        raise SessionBusyError(message, agent_id=agent_id, waited=timeout or 0.0)
