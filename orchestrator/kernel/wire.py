"""Wire: what the clients of one kernel share. It signs what they send and routes what the kernel answers.

A client sends requests and gets every message whose parent is one of them. It may also subscribe to all outputs, of
other clients' requests too, as a Jupyter front end does. Contents are bytes here: each client parses what it wants.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.kernel.boundedjson import SMALL, MalformedError, load
from orchestrator.kernel.channel import Channel
from orchestrator.kernel.guard import Guard

_DELIMITER = b"<IDS|MSG>"  # between a message's routing frames and its signature
_LONGEST_HEADER = 64 * 1024  # bytes
_REJECTS = 1000  # malformed messages after which the kernel is disconnected; an honest one sends none
_REMEMBERED = 1000  # finished requests whose second end would be noticed
_MESSAGE_FRAMES = 5  # signature, header, parent header, metadata, content


class RawMessage(NamedTuple):
    """One message of the kernel, with a genuine signature. All of it is a claim of hostile code.

    Attributes:
        kind: the message type that its header names.
        parent_id: the request that it answers.
        parts: header, parent header, metadata and content, as JSON; only the first two are known to be valid.
    """

    channel: str
    kind: str
    parent_id: str
    parts: Sequence[bytes]
    buffers: Sequence[bytes]

    @property
    def content(self) -> bytes:
        """Its content, as JSON that may be malformed."""
        return self.parts[3]


Receiver = Callable[[RawMessage], None]


class Wire:
    """One kernel's wire, for any number of clients.

    Args:
        key: signs messages in both directions.
        on_reject: called with the number of malformed or wrongly signed messages so far, at each of them.

    Attributes:
        rejected: that number.
        welcome: done once the kernel has confirmed the subscription to its outputs.
    """

    def __init__(self, key: bytes, guard: Guard, on_reject: Callable[[int], None] = lambda _count: None) -> None:
        self._signature = hmac.new(key, digestmod=hashlib.sha256)
        self._guard = guard
        self._on_reject = on_reject
        self._receivers: dict[str, Receiver] = {}
        self._subscribers: tuple[Receiver, ...] = ()
        self._ends: OrderedDict[str, set[str]] = OrderedDict()
        self.rejected = 0
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(
        self,
        channel: Channel,
        kind: str,
        message_id: str,
        parts: Sequence[bytes],
        receiver: Receiver,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Sign and send a request; ``receiver`` gets every message whose parent it is, until ``forget``.

        Args:
            message_id: as in the header. Nobody must be able to guess it: a kernel that can would answer before it has
                read the question.
            parts: header, parent header, metadata and content, as JSON.
            receiver: may raise MalformedError; the message counts as rejected then.

        Raises:
            ValueError: another request with this id is not forgotten yet.
        """
        if message_id in self._receivers:
            raise ValueError(f"there is a request with the id {message_id!r} already")
        self._receivers[message_id] = receiver
        if kind == "execute_request":
            self._ends[message_id] = set()
            if len(self._ends) > _REMEMBERED:
                self._ends.popitem(last=False)
        self._guard.send(channel, [_DELIMITER, self._sign(parts), *parts, *buffers])

    def forget(self, message_id: str) -> None:
        """Drop all further messages for this request."""
        self._receivers.pop(message_id, None)

    def subscribe(self, receiver: Receiver) -> Callable[[], None]:
        """Have ``receiver`` called with every output message, whichever client's request caused it.

        The client that sent the request gets the message first. Return what ends the subscription; it is idempotent.

        Args:
            receiver: must not raise.
        """
        self._subscribers += (receiver,)

        def unsubscribe() -> None:
            self._subscribers = tuple(one for one in self._subscribers if one is not receiver)

        return unsubscribe

    def close(self) -> None:
        """Call no client any more."""
        self.welcome.cancel()
        self._receivers.clear()
        self._subscribers = ()

    def receive(self, channel: str, frames: list[bytes]) -> None:
        """Take a message of the kernel. Called by the guard: see ``Guard.listen``."""
        try:
            if channel == "hb":  # the host sends nothing there
                raise MalformedError
            self._route(channel, frames)
        except MalformedError:
            self.rejected += 1
            self._on_reject(self.rejected)
            if self.rejected >= _REJECTS:
                self._guard.disconnect(f"it sent {_REJECTS} malformed messages", violated=True)

    def _route(self, channel: str, frames: list[bytes]) -> None:
        """Check frame count, signature and headers, and hand the message to the clients that wait for it.

        Raises:
            MalformedError: any of it is wrong.
        """
        start = frames.index(_DELIMITER) + 1 if _DELIMITER in frames else len(frames)
        parts = frames[start + 1 : start + _MESSAGE_FRAMES]
        if len(parts) != _MESSAGE_FRAMES - 1 or not hmac.compare_digest(self._sign(parts), frames[start]):
            raise MalformedError
        if max(len(parts[0]), len(parts[1])) > _LONGEST_HEADER:
            raise MalformedError
        kind, parent_id = load(parts[0]).get("msg_type"), load(parts[1]).get("msg_id", "")
        if not isinstance(kind, str) or not isinstance(parent_id, str):
            raise MalformedError
        if kind == "iopub_welcome":
            if not self.welcome.done():
                self.welcome.set_result(None)
            return
        if kind in ("execute_reply", "status") and self._is_second_end(channel, kind, parent_id, parts[3]):
            self._guard.disconnect(f"it sent a second {kind} for one request", violated=True)
            return
        receiver = self._receivers.get(parent_id)
        subscribers = self._subscribers if channel == "iopub" else ()
        if receiver is None and not subscribers:
            return
        message = RawMessage(channel, kind, parent_id, parts, frames[start + _MESSAGE_FRAMES :])
        if receiver is not None:
            receiver(message)
        for subscriber in subscribers:
            subscriber(message)

    def _is_second_end(self, channel: str, kind: str, parent_id: str, content: bytes) -> bool:
        """Return whether a request ends twice: one end was forged, to make the host believe that a cell is over."""
        ends = self._ends.get(parent_id)
        if ends is None or (kind == "execute_reply") != (channel == "shell"):
            return False
        if kind == "status" and (len(content) > SMALL or load(content).get("execution_state") != "idle"):
            return False
        if kind in ends:
            return True
        ends.add(kind)
        return False

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        signature = self._signature.copy()
        for part in parts:
            signature.update(part)
        return signature.hexdigest().encode()
