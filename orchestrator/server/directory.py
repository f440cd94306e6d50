"""Directory: the sessions of one server, by group. It finds a session's manager, and ends sessions that expire."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.errors import (
    ForbiddenError,
    InvalidInputError,
    SessionBusyError,
    SessionElsewhereError,
    SessionEndedError,
    UnknownSessionError,
)
from orchestrator.inputs import check_agent_id, check_environment
from orchestrator.manager import AgentKernelManager
from orchestrator.principal import Principal
from orchestrator.server.expiries import Expiries
from orchestrator.server.managers import Managers
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import HandleRecord, History, SessionRecord
from orchestrator.store.records import Expiry

_log = logging.getLogger(__name__)
_HELD = 1000  # session objects that are kept while nobody uses them
_MOST_LABELS, _LONGEST_LABEL = 64, 1000
_LONGEST_TTL = 366 * 86400.0  # seconds


@dataclass
class Served:
    """A session, as the server knows it.

    Attributes:
        handle: what the store keeps of it for the server.
        manager: its manager.
        session: the session; asleep or awake. The manager wakes it when it is used.
        attachments: what doors keep with it, such as commands that ended, by a name of the door's own.
    """

    handle: HandleRecord
    manager: AgentKernelManager
    session: KernelSession
    attachments: dict[str, Any] = field(default_factory=dict)

    @property
    def session_id(self) -> str:
        return self.handle.session_id

    def environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """Return the variables of a cell or a command: the session's, and its own."""
        return {**self.handle.environment, **(more or {})}


@dataclass(frozen=True, slots=True)
class Wish:
    """How a client wants a new session to be.

    Attributes:
        name: the agent; "": a new one.
        policy: "": the token's first.
        image: the name of a sandbox image; "": the policy's.
        ttl_s: seconds after which it expires; None: never.
        caller: on whose behalf the client asks, as it says.
    """

    name: str = ""
    policy: str = ""
    image: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl_s: float | None = None
    on_expiry: Expiry = "end"
    timeout: float | None = 60.0
    priority: int = 0
    caller: str = ""


class Directory:
    """The sessions of one server.

    Attributes:
        expiries: ends those that expire.
    """

    def __init__(self, managers: Managers, history: History) -> None:
        self._managers = managers
        self._history = history
        self._served: OrderedDict[str, Served] = OrderedDict()
        self.expiries = Expiries(self)
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def history(self) -> History:
        """The store. A session's past can be read there without waking it."""
        return self._history

    def held(self, session_id: str) -> Served | None:
        """Return a session of any group that was used lately."""
        return self._served.get(session_id)

    async def open(self, principal: Principal, wish: Wish) -> tuple[Served, bool]:
        """Return the session of an agent, and whether it is new.

        The agent's session that has not ended is returned as it is, with its policy, variables and labels.

        Raises:
            ForbiddenError: the token does not allow the policy.
            InvalidInputError: the wish cannot be used.
            SessionBusyError: another request makes the agent's session, and takes longer than ``wish.timeout``.
            See ``AgentKernelManager.acquire_kernel``.
        """
        name = wish.name or f"session-{time.time_ns():x}"
        check_agent_id(principal.agent_id(name))
        check_environment(wish.environment)
        _check_labels(wish.labels)
        check_ttl(wish.ttl_s)
        # Two that make one agent's session at once would both say that it is new, and each would hold one of its own.
        lock = self._opening.setdefault(principal.agent_id(name), asyncio.Lock())
        try:
            async with asyncio.timeout(wish.timeout):
                await lock.acquire()
        except TimeoutError:
            raise SessionBusyError(
                f"another request makes the session of {name!r}.", agent_id=name, waited=wish.timeout or 0.0
            ) from None
        try:
            return await self._open(principal, wish, name)
        finally:
            lock.release()

    async def _open(self, principal: Principal, wish: Wish, name: str) -> tuple[Served, bool]:
        if wish.name and (found := await self._history.run(History.handle_of_agent, principal.group, name)) is not None:
            _check_policy(principal, found[0].policy)
            with contextlib.suppress(SessionEndedError):  # it has ended meanwhile: the agent gets a new one
                served = self._served.get(found[0].session_id) or await self._load(principal, *found)
                await self._use(served, principal, wish)
                return served, False
        policy = wish.policy or principal.policies[0]
        _check_policy(principal, policy)
        manager = await self._managers.of(policy, wish.image)
        session = await self._acquire(manager, principal, replace(wish, name=name))
        if (other := self._served.get(session.session_id)) is not None:  # another request was quicker
            return other, False
        handle = HandleRecord(
            session.session_id,
            principal.group,
            name,
            policy,
            wish.image,
            principal.token_id,
            dict(wish.environment),
            dict(wish.labels),
            None if wish.ttl_s is None else time.time() + wish.ttl_s,
            wish.on_expiry,
        )
        await self._history.run(History.add_handle, handle)
        return self._enter(handle, manager, session), True

    async def find(self, principal: Principal, session_id: str) -> Served:
        """Return a session of the caller's group, to be used. It is not woken.

        Raises:
            UnknownSessionError: the group has no session of this id.
            ForbiddenError: the token does not allow its policy.
            SessionEndedError: it has ended.
        """
        served = self._served.get(session_id)
        if served is not None and served.handle.group == principal.group:
            _check_policy(principal, served.handle.policy)
            self._served.move_to_end(session_id)
        else:
            handle, record = await self.record(principal, session_id)
            _check_policy(principal, handle.policy)
            served = await self._load(principal, handle, record)
        if (ended := served.session.ended) is not None:
            raise _ended(ended)
        return served

    async def of_agent(self, principal: Principal, name: str) -> Served:
        """Return the session of the group's agent.

        Raises:
            UnknownSessionError: the agent has none that has not ended.
        """
        found = await self._history.run(History.handle_of_agent, principal.group, name)
        if found is None:
            raise UnknownSessionError(f"the agent {name!r} has no session.", session_id="")
        return await self.find(principal, found[0].session_id)

    async def record(self, principal: Principal, session_id: str) -> tuple[HandleRecord, SessionRecord]:
        """Return what the store has of a session of the caller's group, also of one that has ended.

        Raises:
            UnknownSessionError: the group has no session of this id.
        """
        return _known(await self._history.run(History.handle, principal.group, session_id), session_id)

    async def record_of_any_group(self, session_id: str) -> tuple[HandleRecord, SessionRecord]:
        """Return what the store has of a session, whichever group it belongs to. Only for operators.

        Raises:
            UnknownSessionError: there is no session of this id.
        """
        return _known(await self._history.run(History.handle, None, session_id), session_id)

    async def fork(self, principal: Principal, parent: Served, names: Sequence[str]) -> list[Served]:
        """Make sessions with the state of one, for agents of these names. They have its policy, variables and labels.

        Raises:
            See ``AgentKernelManager.fork``.
        """
        agents = [principal.agent_id(name) for name in names]
        made = await parent.manager.fork(parent.session, len(names), agent_ids=agents)
        found = []
        for session, name in zip(made, names, strict=True):
            handle = replace(parent.handle, session_id=session.session_id, name=name, expires_at=None)
            await self._history.run(History.add_handle, handle)
            found.append(self._enter(handle, parent.manager, session))
        return found

    async def set_expiry(self, served: Served, ttl_s: float | None, on_expiry: Expiry) -> None:
        """Set after how many seconds from now a session expires; None: never.

        Raises:
            InvalidInputError: the time is not above 0, or longer than a year.
        """
        check_ttl(ttl_s)
        expires_at = None if ttl_s is None else time.time() + ttl_s
        await self._history.run(History.set_expiry, served.session_id, expires_at, on_expiry)
        served.handle = replace(served.handle, expires_at=expires_at, on_expiry=on_expiry)
        self.expiries.note(served.handle)

    async def end(self, served: Served, reason: str = "end_session") -> bool:
        """End a session. Returns whether it had not ended yet.

        Raises:
            SessionBusyError: see ``AgentKernelManager.end_session``.
        """
        agent_id = served.session.agent_id
        current = served.manager.sessions.get(agent_id)
        if served.session.ended is not None or (current is not None and current is not served.session):
            return False
        self._forget(served.session_id)
        return await served.manager.end_session(agent_id, reason=reason)

    async def stop(self, handle: HandleRecord, record: SessionRecord, reason: str) -> bool:
        """End a session that the store has, without waking it. Returns whether it had not ended yet.

        Raises:
            SessionBusyError: see ``AgentKernelManager.end_session``.
        """
        manager = await self._managers.of(handle.policy, handle.image)
        current = manager.sessions.get(record.agent_id)
        if record.state == "ended" or (current is not None and current.session_id != record.session_id):
            return False
        self._forget(record.session_id)
        return await manager.end_session(record.agent_id, reason=reason)

    async def _load(self, principal: Principal, handle: HandleRecord, record: SessionRecord) -> Served:
        """Return a session that the server has not held yet, awake.

        Raises:
            SessionEndedError: it has ended.
            See ``AgentKernelManager.acquire_kernel``.
        """
        if record.state == "ended":
            raise _ended(record.end_reason or "unknown")
        manager = await self._managers.of(handle.policy, handle.image)
        session = await self._acquire(manager, principal, Wish(handle.name))
        if session.session_id != handle.session_id:  # it ended meanwhile, and this is a new one
            await manager.end_session(session.agent_id)
            raise _ended(record.end_reason or "unknown")
        held = self._served.get(handle.session_id)  # another request was quicker
        return held if held is not None else self._enter(handle, manager, session)

    async def _use(self, served: Served, principal: Principal, wish: Wish) -> None:
        """Wake a session if it sleeps, and charge its kernel to the caller.

        Raises:
            SessionEndedError: it has ended, and the agent has another one.
        """
        session = await self._acquire(served.manager, principal, replace(wish, name=served.handle.name))
        if session.session_id != served.session_id:
            raise _ended(served.session.ended or "unknown")
        served.session = session  # a new object, if the session was another node's meanwhile

    async def _acquire(self, manager: AgentKernelManager, principal: Principal, wish: Wish) -> KernelSession:
        agent_id, handover = principal.agent_id(wish.name), False
        caller = f"token {principal.name}{wish.caller and f', for {wish.caller}'}"
        while True:
            try:
                async with manager.acquire_kernel(
                    agent_id,
                    wish.timeout,
                    caller=caller,
                    group=principal.group,
                    priority=wish.priority,
                    handover=handover,
                ) as (_kernel, session):
                    return session
            except SessionElsewhereError as error:
                if handover or not self._managers.owns(error.owner):
                    raise
                handover = True  # a manager of this server took it over from a dead process

    def _enter(self, handle: HandleRecord, manager: AgentKernelManager, session: KernelSession) -> Served:
        served = self._served[handle.session_id] = Served(handle, manager, session)
        self.expiries.note(handle)
        return served

    def _forget(self, session_id: str) -> None:
        self._served.pop(session_id, None)
        self.expiries.forget(session_id)

    def shrink(self) -> None:
        """Let go of ended sessions, and of those that sleep and were used longest ago."""
        over = len(self._served) - _HELD
        for session_id, served in list(self._served.items()):
            if served.session.ended is not None:
                self._forget(session_id)
            elif over > 0 and served.session.asleep and not served.session.users:
                del self._served[session_id]
            over -= 1


def check_ttl(ttl_s: float | None) -> None:
    """Check a time to live.

    Raises:
        InvalidInputError: it is not above 0 and at most a year.
    """
    if ttl_s is not None and not 0 < ttl_s <= _LONGEST_TTL:
        raise InvalidInputError(f"a time to live is a number of seconds above 0, and at most {_LONGEST_TTL:.0f}.")


def _check_policy(principal: Principal, policy: str) -> None:
    """Check that a caller may make and use sessions of a policy.

    Raises:
        ForbiddenError: its token does not name the policy.
    """
    if policy not in principal.policies:
        raise ForbiddenError(
            f"this token may not use the policy {policy!r}.", remedy=f"It may use: {', '.join(principal.policies)}."
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    long = any(len(text) > _LONGEST_LABEL for item in labels.items() for text in item)
    if len(labels) > _MOST_LABELS or long:
        raise InvalidInputError(f"a session may have {_MOST_LABELS} labels of at most {_LONGEST_LABEL} characters.")


def _known(found: tuple[HandleRecord, SessionRecord] | None, session_id: str) -> tuple[HandleRecord, SessionRecord]:
    if found is None:
        raise UnknownSessionError(
            f"there is no session {session_id[:64]!r}.", session_id=session_id, remedy="List the sessions, or make one."
        )
    return found


def _ended(reason: str) -> SessionEndedError:
    return SessionEndedError(f"the session has ended: {reason}.", reason=reason, remedy="Make a new session.")
