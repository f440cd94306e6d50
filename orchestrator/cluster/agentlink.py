"""AgentLink: the way of one agent's calls through the cluster, to the node that owns the agent's session.

A call goes to the node that answered the last one. If that node says that it is not the owner, or its lease is over,
the directory is read again. A session without an owner goes to a node that takes it. Only what no node can have begun
is sent to another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from orchestrator.cluster.nodelink import PATIENCE, NodeLink
from orchestrator.cluster.refusals import REFUSED, UNREACHED, all_refused, soonest
from orchestrator.cluster.router import Router
from orchestrator.errors import (
    CellblockError,
    EngineError,
    KernelPoolExhaustedError,
    NodeLostError,
    NotOwnerError,
    ServerUnavailableError,
    SessionElsewhereError,
    SessionEndedError,
)
from orchestrator.limits import Deadline
from orchestrator.outcome import Outcome
from orchestrator.remote.link import Download, Numbered, Query, Rereadable
from orchestrator.store.noderecord import NodeRecord

T = TypeVar("T")
# Times that a call follows its session from node to node: for 5.6 s. A lost node that the router does not see any more
# may be alive for the others, which judge nobody dead until their database has answered for a lease.
_MOVES = 8
_PAUSE = 0.2  # seconds before the second of them; one more each time
_TRIES = 6  # nodes that are asked for a kernel before one of them is waited for
_TRY = 5.0  # seconds that each of them has, at most
_NOBODY = 0.5  # seconds between two looks for a node that may take a session
_GRACE = 2.0  # seconds that an answer may come after the deadline that the node was told


class AgentLink:
    """The calls of one agent's sessions. A ``Link``.

    Args:
        agent_id: as the caller names it; "": for calls that any node answers.
        policy, image: of a new session.
        at: the node of the last call; None: look for it.
        stays: whether calls go to that node only.
    """

    def __init__(
        self,
        router: Router,
        agent_id: str,
        policy: str = "",
        image: str = "",
        *,
        at: NodeLink | None = None,
        stays: bool = False,
    ) -> None:
        self._router = router
        self._agent_id = agent_id
        self._policy, self._image = policy, image
        self._at = at
        self._stays = stays

    def staying(self) -> AgentLink:
        """See ``Link``."""
        return AgentLink(self._router, self._agent_id, self._policy, self._image, at=self._at, stays=True)

    async def acquire(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make the agent's session on a node that has a kernel for it, or find the one that it has.

        Each of a few nodes has a few seconds; then the one that expects to be ready first has what is left of
        ``body["timeout"]``. While no node may take a session at all, one is waited for.

        Raises:
            NoNodeError: no node took the session in time.
            See ``Connection.acquire``.
        """
        deadline = Deadline(body["timeout"])
        refusals: dict[str, CellblockError] = {}

        async def asked(node: NodeLink, owns: bool, last: bool = False) -> dict[str, Any]:
            left = deadline.remaining()
            seconds = left if owns or last else min(_TRY, left / 2)
            try:
                async with asyncio.timeout(seconds + _GRACE):
                    return await node.ask(
                        "POST", "/v1/sessions", {**body, "timeout": seconds}, patience=PATIENCE if owns else 0.0
                    )
            except TimeoutError as error:
                if isinstance(error, CellblockError):
                    raise
                raise ServerUnavailableError(f"no answer for {seconds + _GRACE:.1f} s.", undone=True) from None

        while True:
            refusals.clear()
            try:
                return await self._routed(asked, is_safe=True, refusals=refusals, tries=_TRIES)
            except KernelPoolExhaustedError:
                record = await self._record(soonest(refusals))
                if not deadline.remaining() or (record is None and refusals):
                    raise
            if record is not None:
                break
            await asyncio.sleep(min(_NOBODY, deadline.remaining()))  # a node may join, or renew its lease
        self._at = self._router.link(record)
        return await self._routed(partial(asked, last=True), is_safe=True, refusals=refusals, tries=0)

    async def _record(self, node_id: str | None) -> NodeRecord | None:
        reading = await self._router.view.read()
        return next((node for node in reading.nodes if node.node_id == node_id), None)

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Query | None = None
    ) -> dict[str, Any]:
        """See ``NodeLink.ask``."""
        return await self._routed(lambda node, _: node.ask(method, path, body, query=query), is_safe=method == "GET")

    @contextlib.asynccontextmanager
    async def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seen: int = 0
    ) -> AsyncGenerator[Numbered, None]:
        """See ``NodeLink.events``."""
        async with contextlib.AsyncExitStack() as stack:

            async def opened(node: NodeLink, _owns: bool) -> Numbered:
                events = await stack.enter_async_context(node.events(method, path, body, seen=seen))
                return _with_first(await anext(events, None), events)  # a refusal comes in place of the first event

            stream = await self._routed(opened, is_safe=method == "GET")
            try:
                yield stream
            finally:
                await stream.aclose()

    @contextlib.asynccontextmanager
    async def download(self, path: str, query: Query) -> AsyncGenerator[Download, None]:
        """See ``NodeLink.download``."""
        async with contextlib.AsyncExitStack() as stack:
            yield await self._routed(
                lambda node, _: stack.enter_async_context(node.download(path, query)), is_safe=True
            )

    async def upload(self, path: str, query: Query, data: bytes | AsyncIterable[bytes]) -> dict[str, Any]:
        """See ``NodeLink.upload``. A stream can be sent once: so the owner is looked for before."""
        if not isinstance(data, bytes | Rereadable):
            await self.ask("GET", f"{path.partition('/files/')[0]}/cells")
        return await self._routed(lambda node, _: node.upload(path, query, data), is_safe=False)

    async def _routed(
        self,
        call: Callable[[NodeLink, bool], Awaitable[T]],
        *,
        is_safe: bool,
        refusals: dict[str, CellblockError] | None = None,
        tries: int | None = None,
    ) -> T:
        """Make a call at the node that owns the session, or at one that takes it.

        Args:
            call: gets the node, and whether it owns the session as far as is known.
            is_safe: whether the call may be made at another node even if a node that is lost has begun it.
            refusals: what nodes have said that did not take the session.
            tries: how many nodes to ask to take it; None: all.
        """
        refusals = {} if refusals is None else refusals
        moves, began = 0, time.monotonic()
        while True:
            node, owns = await self._next(refusals, tries, began)
            try:
                answer = await call(node, owns)
            except (NotOwnerError, SessionElsewhereError, SessionEndedError) as error:
                if isinstance(error, SessionEndedError) and error.reason != Outcome.TAKEN_OVER:
                    raise
                moves += 1
                if self._stays:
                    raise node.lost(undone=True) from error
                if moves > _MOVES:
                    raise
                await asyncio.sleep(_PAUSE * (moves - 1))
            except (*UNREACHED, *REFUSED) as error:
                await self._give_up_unless_free(node, error, owns=owns, is_safe=is_safe)
                if not owns or not isinstance(error, NodeLostError):
                    refusals[node.record.node_id] = error
            else:
                self._at = node
                if not owns:
                    self._router.view.note_placed(node.record.node_id)
                return answer
            self._at = None

    async def _next(
        self, refusals: Mapping[str, CellblockError], tries: int | None, began: float
    ) -> tuple[NodeLink, bool]:
        """Return the node to ask next, and whether it owns the session as far as is known.

        Raises:
            NoNodeError: there is none that has not refused; or the only refusal.
        """
        if self._at is not None:
            return self._at, True
        if self._agent_id and (owner := await self._router.owner_of(self._agent_id)) is not None:
            return self._router.link(owner), True
        if tries is None or len(refusals) < tries:
            for record in await self._router.candidates(self._policy, self._image):
                if record.node_id not in refusals:
                    return self._router.link(record), False
        reading = await self._router.view.read()
        raise all_refused(refusals, reading.nodes, time.monotonic() - began)

    async def _give_up_unless_free(self, node: NodeLink, error: CellblockError, *, owns: bool, is_safe: bool) -> None:
        """Return if another node may be asked after an error.

        Raises:
            The error: the node may have begun the call, or it owns the session and holds its lease.
        """
        is_lost = isinstance(error, NodeLostError)
        undone = getattr(error, "undone", not isinstance(error, EngineError))
        if self._stays or not (undone or is_safe):
            self._at = self._at if self._stays else None
            raise error
        if not owns or is_lost:
            return
        if isinstance(error, UNREACHED):
            raise error
        owner = await self._router.owner_of(self._agent_id)
        if owner is not None and owner.node_id == node.record.node_id:
            raise error  # else the session sleeps, and another node may wake it


async def _with_first(first: tuple[int | None, dict[str, Any]] | None, rest: Numbered) -> Numbered:
    if first is not None:
        yield first
        async for event in rest:
            yield event
