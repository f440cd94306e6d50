"""NodeLink: the requests to one node, in one of its epochs.

A request whose answer is lost is sent again to the same node with the same idempotency key, until it is answered or the
node's lease is over. It names the server's process: another process at the same address, which does not know the key,
refuses it. So nothing that a node may have begun is begun a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from orchestrator.errors import (
    CellblockError,
    IncompatibleServerError,
    NodeLostError,
    NotOwnerError,
    ServerUnavailableError,
)
from orchestrator.limits import Deadline
from orchestrator.protocol import SPOKEN, have_one_in_common
from orchestrator.remote.connection import Connection, Headers
from orchestrator.remote.link import Download, Numbered, Query, Rereadable
from orchestrator.store.noderecord import NodeRecord

T = TypeVar("T")
PATIENCE = 30.0  # seconds in which a node that holds its lease has to answer again
_PAUSE = 0.25  # seconds between two tries
_CANCELLING = 0.4  # seconds that a cancelled caller waits for the node to hear of it
_KEYED = re.compile(  # what the server does once for each key
    r"POST /v1/sessions(/[^/]+/(checkpoints|fork|execute|cells|commands|lease|restart|hibernate|packages|restore"
    r"|files/folder|files/move))?|PUT /v1/sessions/[^/]+/lifetime|DELETE /v1/sessions/[^/]+(/files)?"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server said of itself and of the caller.

    Attributes:
        process_id: of its process.
        group, policies: of the caller's token.
    """

    process_id: str
    group: str
    policies: tuple[str, ...]


class NodeLink:
    """One node, as its clients reach it.

    Args:
        is_over: asked by the link, after a failure, whether the node's lease is over.

    Attributes:
        record: the node.
    """

    def __init__(
        self, record: NodeRecord, connection: Connection, is_over: Callable[[NodeRecord], Awaitable[bool]]
    ) -> None:
        self.record = record
        self._connection = connection
        self._is_over = is_over
        self._facts: Facts | None = None
        self._limits: dict[asyncio.Timeout, float] = {}
        self._cancelling: set[asyncio.Task[Any]] = set()
        self._cut = False

    @property
    def waited_s(self) -> float:
        """For how long somebody has waited for the node; 0 if nobody does."""
        since = next(iter(self._limits.values()), None)
        return 0.0 if since is None else time.monotonic() - since

    def cut(self) -> None:
        """End all waits for the node: its lease is over. Called by ``Router``."""
        self._cut = True
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Close the connections."""
        for task in self._cancelling:
            task.cancel()
        if self._cancelling:
            await asyncio.wait(self._cancelling)
        await self._connection.close()

    async def facts(self) -> Facts:
        """Return what the server is, and who calls.

        Raises:
            UnauthorizedError, UntrustedServerError: it does not accept the token, or is not trusted.
            IncompatibleServerError: it speaks another protocol.
            ServerUnavailableError: it does not answer.
        """
        if self._facts is None:
            try:
                async with self._while_leased(undone=True):
                    found = await self._connection.ask("GET", "/v1/caller")
            except ServerUnavailableError as error:
                error.undone = True  # the request itself was not sent yet
                raise
            newest = int(found.get("protocol", 0))
            served = int(found.get("protocol_oldest", newest)), newest
            _check_protocol(self.record.url, served, str(found.get("version", "")))
            self._facts = Facts(str(found["process_id"]), str(found["group"]), tuple(found["policies"]))
        return self._facts

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Query | None = None,
        patience: float = PATIENCE,
    ) -> dict[str, Any]:
        """Send a request, and return the answer's JSON.

        Args:
            patience: seconds in which it is sent again while the node does not answer and holds its lease.

        Raises:
            NodeLostError: the node's lease is over.
            ServerUnavailableError: the node holds its lease, and does not answer.
            NotOwnerError: the node, or the process at its address, does not own the session and has done nothing.
            See ``Connection.ask``.
        """
        key = _key(method, path)
        asking = self._asked(
            lambda head: self._connection.ask(method, path, body, query=query, headers={**head, **key}),
            again=bool(key) or method == "GET",
            patience=patience,
        )
        try:
            return await asking
        except asyncio.CancelledError:
            if key:
                await self._cancel(key["Idempotency-Key"])
            raise

    @contextlib.asynccontextmanager
    async def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seen: int = 0
    ) -> AsyncGenerator[Numbered, None]:
        """See ``Connection.events``. The stream of a cell that breaks is taken up where it was."""
        key = _key(method, path) if path.endswith("/execute") else {}
        stream = self._events(method, path, body, seen, key)
        try:
            yield stream
        finally:
            await stream.aclose()

    @contextlib.asynccontextmanager
    async def download(self, path: str, query: Query) -> AsyncGenerator[Download, None]:
        """See ``Connection.download``."""
        async with contextlib.AsyncExitStack() as stack:
            answer = await self._asked(
                lambda head: stack.enter_async_context(self._connection.download(path, query, headers=head)), again=True
            )
            yield _Guarded(answer, self)

    async def upload(self, path: str, query: Query, data: bytes | AsyncIterable[bytes]) -> dict[str, Any]:
        """See ``Connection.upload``. What can be read again is sent again: the file is the same in the end."""
        again = isinstance(data, bytes | Rereadable)
        try:
            return await self._asked(lambda head: self._connection.upload(path, query, data, headers=head), again=again)
        except ServerUnavailableError as error:
            if not again and not error.undone:
                error.remedy = "A stream cannot be sent twice. Look at what is there, or send bytes or a file."
            raise

    async def guarded(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Wait for something of the node.

        Raises:
            NodeLostError: its lease is over.
        """
        async with self._while_leased():
            return await wait()

    async def _events(
        self, method: str, path: str, body: Mapping[str, Any] | None, seen: int, key: Headers
    ) -> Numbered:
        begun = False
        deadline = Deadline(PATIENCE)
        while True:
            try:
                head = {**await self._headers(), **key}
                async with contextlib.AsyncExitStack() as stack:
                    opening = self._connection.events(method, path, body, seen=seen, headers=head)
                    events = await self.guarded(partial(stack.enter_async_context, opening))
                    while (event := await self.guarded(lambda: anext(events, None))) is not None:  # noqa: B023
                        if event[0] is not None:
                            seen, deadline = event[0], Deadline(PATIENCE)
                        yield event
                    return
            except (ServerUnavailableError, NotOwnerError) as error:
                begun = await self._after(error, begun, again=bool(key), deadline=deadline)

    async def _asked(self, send: Callable[[Headers], Awaitable[T]], *, again: bool, patience: float = PATIENCE) -> T:
        """Send a request until it is answered or refused, or may not be sent again."""
        begun = False
        deadline = Deadline(patience)
        while True:
            try:
                return await self.guarded(partial(send, await self._headers()))
            except (ServerUnavailableError, NotOwnerError) as error:
                begun = await self._after(error, begun, again=again, deadline=deadline)

    async def _after(
        self, error: ServerUnavailableError | NotOwnerError, begun: bool, *, again: bool, deadline: Deadline
    ) -> bool:
        """Wait before a request is sent again, and return whether the node may have begun it.

        Raises:
            NodeLostError: the node's lease is over, or its server is another process than the one that may have begun.
            The error: the request may not be sent again.
        """
        if isinstance(error, NotOwnerError):
            self._facts = self._facts if error.session_id else None
            if begun or not error.undone:
                raise self.lost(undone=False) from error
            raise error
        begun = begun or not error.undone
        if begun:
            error.undone, error.remedy = False, "What the node has done of the request is not known."
        if begun and not again:
            raise error
        if await self._is_over(self.record):
            raise self.lost(undone=not begun) from error
        if not deadline.remaining():
            raise error
        await asyncio.sleep(_PAUSE)
        return begun

    async def _headers(self) -> Headers:
        return {"Cellblock-Process": (await self.facts()).process_id}

    @contextlib.asynccontextmanager
    async def _while_leased(self, *, undone: bool = False) -> AsyncIterator[None]:
        """End a wait when the node's lease is over.

        Raises:
            NodeLostError: it is.
        """
        if self._cut:
            raise self.lost(undone=True)
        try:
            async with asyncio.timeout(None) as limit:
                self._limits[limit] = time.monotonic()
                try:
                    yield
                finally:
                    del self._limits[limit]
        except TimeoutError:
            if limit.expired():
                raise self.lost(undone=undone) from None
            raise

    def lost(self, *, undone: bool) -> NodeLostError:
        """Return the error of a call during which the node's lease ended."""
        return NodeLostError(
            f"the node {self.record.node_id} is lost: its lease ended, or its server was started anew.",
            node_id=self.record.node_id,
            undone=undone,
            remedy="The session's next call goes to another node, and continues from its newest checkpoint.",
        )

    async def _cancel(self, key: str) -> None:
        """Have the node cancel a request, also if the caller is cancelled again meanwhile."""
        task = asyncio.create_task(self._connection.ask("DELETE", f"/v1/requests/{key}"))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelled)
        await asyncio.wait({task}, timeout=_CANCELLING)

    def _cancelled(self, task: asyncio.Task[Any]) -> None:
        self._cancelling.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, CellblockError) and not self._connection.is_closed:
                raise error


class _Guarded:
    """A download whose pieces are waited for no longer than the node has its lease."""

    def __init__(self, answer: Download, link: NodeLink) -> None:
        self._answer = answer
        self._link = link

    async def aread(self) -> bytes:
        return await self._link.guarded(self._answer.aread)

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        pieces = self._answer.aiter_bytes(chunk_size)
        while (piece := await self._link.guarded(lambda: anext(pieces, None))) is not None:
            yield piece


def _key(method: str, path: str) -> Headers:
    """Return the header that makes a request one that may be sent again; none where the server takes no key."""
    return {"Idempotency-Key": secrets.token_hex(16)} if _KEYED.fullmatch(f"{method} {path}") else {}


def _check_protocol(url: str, served: tuple[int, int], version: str) -> None:
    if not have_one_in_common(SPOKEN, served):
        raise IncompatibleServerError(
            f"the server {url} (Cellblock {version}) speaks the protocols {served[0]} to {served[1]}; this client "
            f"speaks {SPOKEN[0]} to {SPOKEN[1]}.",
            protocol=served[1],
            spoken=SPOKEN,
            version=version,
            remedy="Upgrade the older of the two.",
        )
