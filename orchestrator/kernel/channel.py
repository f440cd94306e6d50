"""Jupyter's messages on a kernel's wire: requests out, messages of the kernel in."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jupyter_client.session import DELIM, Session

from orchestrator.kernel.guard import Guard

_LONGEST_HEADER = 64 * 1024  # bytes
# Commas in one message's JSON, brackets weighed. Measured: parsing and cleaning takes 11 ms for 30,000 numbers, and
# 15 ms for 6,000 objects. An honest plot of more points than that is better sent as a picture.
_MOST_ITEMS = 30_000
_WEIGHTS = ((b",", 1), (b"[", 5), (b"{", 5))
_SMALL = 16 * 1024  # bytes of JSON that need no counting first
_REJECTS = 1000  # malformed messages after which the kernel is cut off; an honest one sends none
_REMEMBERED = 1000  # finished requests whose second end would be noticed
_MESSAGE_FRAMES = 5  # signature, header, parent header, metadata, content
_FOUR_BYTES = tuple(bytes([lead]) for lead in range(0xF0, 0xF5))  # first bytes of characters that take four in UTF-8
_ESCAPE = re.compile(rb"\\u")  # a third of the time that ``in`` takes for two bytes
_SURROGATES = (b"\\ud8", b"\\ud9", b"\\uda", b"\\udb", b"\\uD")  # how JSON may spell them instead

Channel = Literal["shell", "control", "iopub", "stdin"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel, with a genuine signature. All of it is a claim of hostile code."""

    channel: str
    kind: str
    parent_id: str
    content: dict[str, Any]
    buffers: Sequence[bytes]


Handler = Callable[[Message], None]
Accept = Callable[[str, int], bool]


class KernelClient:
    """Talks to one kernel: signs requests, and checks what comes of whom.

    Args:
        on_reject: called with the number of messages so far that were dropped because they were malformed or wrongly
            signed, at each of them.
    """

    def __init__(self, key: bytes, guard: Guard, on_reject: Callable[[int], None] = lambda _count: None) -> None:
        # The packer is pinned: jupyter_client can be configured to unpickle what a kernel sends.
        self._session = Session(key=key, packer="json", unpacker="json", username="host")
        self._guard = guard
        self._on_reject = on_reject
        self._handlers: dict[str, tuple[Handler, Accept]] = {}
        self._ends: OrderedDict[str, set[str]] = OrderedDict()
        self.rejected = 0
        self.welcome = asyncio.get_running_loop().create_future()

    def send(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        handler: Handler,
        buffers: Sequence[bytes] = (),
        accept: Accept = lambda _kind, _size: True,
    ) -> str:
        """Send a request; ``handler`` gets every message whose parent it is, until ``forget``.

        Args:
            accept: asked before a message is parsed, with its kind and the bytes that its content will take in
                memory at most; what it refuses is dropped.

        Returns:
            The request's message id.
        """
        message = self._session.msg(kind, content)
        # Not jupyter_client's numbered one: a kernel that can guess the next answers before it has read the question.
        message_id = message["msg_id"] = message["header"]["msg_id"] = secrets.token_hex(16)
        self._handlers[message_id] = handler, accept
        if kind == "execute_request":
            self._ends[message_id] = set()
            if len(self._ends) > _REMEMBERED:
                self._ends.popitem(last=False)
        self._guard.send(channel, [*self._session.serialize(message), *buffers])
        return message_id

    def forget(self, message_id: str) -> None:
        """Drop whatever else comes for this request."""
        self._handlers.pop(message_id, None)

    def close(self) -> None:
        self.welcome.cancel()
        self._handlers.clear()

    def receive(self, channel: str, frames: list[bytes]) -> None:
        """Take a message of the kernel: see ``Guard.listen``."""
        try:
            if channel == "hb":  # nobody asks anything there
                raise _MalformedError
            self._dispatch(channel, frames)
        except _MalformedError:
            self.rejected += 1
            self._on_reject(self.rejected)
            if self.rejected >= _REJECTS:
                self._guard.disconnect(f"it sent {_REJECTS} malformed messages", violated=True)

    def _dispatch(self, channel: str, frames: list[bytes]) -> None:
        """Check frame count, signature and shape, and hand the message to whoever asked for it.

        The content is parsed last, and only for a handler that accepts it: what nobody waits for costs a header.

        Raises:
            _MalformedError: any of it is wrong.
        """
        start = frames.index(DELIM) + 1 if DELIM in frames else len(frames)
        parts = frames[start : start + _MESSAGE_FRAMES]
        if len(parts) != _MESSAGE_FRAMES or not hmac.compare_digest(self._session.sign(parts[1:]), parts[0]):
            raise _MalformedError
        header, parent, content = parts[1], parts[2], parts[4]
        if max(len(header), len(parent)) > _LONGEST_HEADER:
            raise _MalformedError
        kind, parent_id = _load(header).get("msg_type"), _load(parent).get("msg_id", "")
        if not isinstance(kind, str) or not isinstance(parent_id, str):
            raise _MalformedError
        if kind == "iopub_welcome":
            if not self.welcome.done():
                self.welcome.set_result(None)
            return
        if kind in ("execute_reply", "status") and self._is_second_end(channel, kind, parent_id, content):
            self._guard.disconnect(f"it sent a second {kind} for one request", violated=True)
            return
        handler, accept = self._handlers.get(parent_id, (None, _nobody))
        if handler is None or not accept(kind, _memory(content)):
            return
        buffers = frames[start + _MESSAGE_FRAMES :]
        frames.clear()
        parts.clear()
        handler(Message(channel, kind, parent_id, _load(content), buffers))

    def _is_second_end(self, channel: str, kind: str, parent_id: str, content: bytes) -> bool:
        """Notice a request that ends twice: one of the two was forged, to have the host believe that a cell is over."""
        ends = self._ends.get(parent_id)
        if ends is None or (kind == "execute_reply") != (channel == "shell"):
            return False
        if kind == "status" and (len(content) > _SMALL or _load(content).get("execution_state") != "idle"):
            return False
        if kind in ends:
            return True
        ends.add(kind)
        return False


class _MalformedError(Exception):
    """A message that is not as the protocol says."""


def _load(part: bytes) -> dict[str, Any]:
    if len(part) > _SMALL and _items(part) > _MOST_ITEMS:
        raise _MalformedError
    try:
        value = _JSON.decode(part.decode())
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8; nested too deep
        raise _MalformedError from error
    if not isinstance(value, dict):
        raise _MalformedError
    return value


def _integer(digits: str) -> int | float:
    """Parse an integer; one that no 64 bits hold becomes a float: long ones take time that grows with their square."""
    return int(digits) if len(digits) <= 20 else float(digits)


_JSON = json.JSONDecoder(parse_int=_integer)  # made once: ``json.loads`` would make one for every part


def _items(part: bytes) -> int:
    """Weigh the structure of a JSON text; what its strings have of it does not count if there is much of it."""
    marks = _marks(part[1:])  # it begins with a bracket, and most text has no other
    if marks <= _MOST_ITEMS:
        return marks
    bare = part.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * _MOST_ITEMS:
        return marks
    return sum(map(_marks, bare.split(b'"')[::2]))


def _marks(part: bytes) -> int:
    """Looks first whether there are any: counting takes ten times as long."""
    return sum(weight * part.count(mark) for mark, weight in _WEIGHTS if mark in part)


def _memory(content: bytes) -> int:
    """Return the bytes that a JSON text's strings take at most: one wide character widens all of its string."""
    escapes = _ESCAPE.search(content) is not None
    if content.isascii() and not escapes:
        return len(content)
    if any(lead in content for lead in _FOUR_BYTES) or (escapes and any(mark in content for mark in _SURROGATES)):
        return 4 * len(content)
    return 2 * len(content)


def _nobody(_kind: str, _size: int) -> bool:
    return False
