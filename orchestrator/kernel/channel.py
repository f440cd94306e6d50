"""The client's end of a kernel's wire: requests out, messages of the kernel in.

Sockets are raw pyzmq ones, watched by the event loop. zmq.asyncio would give a future, and a finished one without a
pass through the loop while messages wait, so that a flooding kernel would hold the loop for as long as it likes.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zmq
from jupyter_client.session import DELIM, Session

from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.meter import weigh

_SLICE = 0.005  # seconds that one socket may hold the loop; whoever uses it up waits as long before its next turn
_LONGEST_HEADER = 64 * 1024  # bytes
_MOST_ITEMS = 50_000  # in one message's JSON; parsing and cleaning so many takes some 60 ms
_SMALL = 64 * 1024  # bytes of JSON that need no counting first
ITEM_COST = 64  # bytes that an item of parsed JSON takes in memory, however short it was on the wire
_MESSAGE_FRAMES = 5  # signature, header, parent header, metadata, content

Channel = Literal["shell", "control", "iopub"]
_SOCKET_TYPES: dict[Channel, int] = {"shell": zmq.DEALER, "control": zmq.DEALER, "iopub": zmq.SUB}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel, with a genuine signature. All of it is a claim of hostile code.

    Attributes:
        weight: bytes that its content takes: those on the wire, and ``ITEM_COST`` for each item of a structured one.
    """

    channel: Channel
    kind: str
    parent_id: str
    content: dict[str, Any]
    buffers: Sequence[bytes]
    weight: int


Handler = Callable[[Message], None]


class KernelClient:
    """Talks to one kernel over the guard's private sockets.

    Attributes:
        rejected: messages that were dropped because they were malformed or wrongly signed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint, guard: Guard) -> None:
        # The packer is pinned: jupyter_client can be configured to unpickle what a kernel sends.
        self._session = Session(key=endpoint.key, packer="json", unpacker="json", username="host")
        self._guard = guard
        self._handlers: dict[str, Handler] = {}
        self._sockets: dict[Channel, _WatchedSocket] = {}
        self.rejected = 0
        self.welcome = asyncio.get_running_loop().create_future()
        for channel, kind in _SOCKET_TYPES.items():
            socket = context.socket(kind)
            socket.linger = 0
            # No high-water mark: at it, libzmq drops iopub messages, an `idle` among them. The guard bounds bytes.
            socket.rcvhwm = socket.sndhwm = 0
            if kind == zmq.SUB:
                socket.subscribe(b"")
            socket.connect(f"ipc://{endpoint.client_path(channel)}")
            self._sockets[channel] = _WatchedSocket(socket, self._receiver(channel))

    def send(
        self, channel: Channel, kind: str, content: dict[str, Any], handler: Handler, buffers: Sequence[bytes] = ()
    ) -> str:
        """Send a request; ``handler`` gets every message whose parent it is, until ``forget``.

        Returns:
            The request's message id.
        """
        message = self._session.msg(kind, content)
        message_id: str = message["msg_id"]
        self._handlers[message_id] = handler
        self._sockets[channel].send([*self._session.serialize(message), *buffers])
        return message_id

    def forget(self, message_id: str) -> None:
        """Drop whatever else comes for this request."""
        self._handlers.pop(message_id, None)

    def close(self) -> None:
        self.welcome.cancel()
        self._handlers.clear()
        for socket in self._sockets.values():
            socket.close()

    def _receiver(self, channel: Channel) -> Callable[[list[bytes]], None]:
        def receive(frames: list[bytes]) -> None:
            self._guard.consumed(channel, weigh(frames))
            try:
                self._dispatch(channel, frames)
            except _MalformedError:
                self.rejected += 1

        return receive

    def _dispatch(self, channel: Channel, frames: list[bytes]) -> None:
        """Check frame count, signature and shape, and hand the message to whoever asked for it.

        The content is parsed last, and only for a handler: what nobody waits for costs a header.

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
        handler = self._handlers.get(parent_id)
        if handler is not None:
            weight = len(content) + (0 if kind == "stream" else ITEM_COST * _items(content))
            buffers = frames[start + _MESSAGE_FRAMES :]
            handler(Message(channel, kind, parent_id, _load(content), buffers, weight))


class _WatchedSocket:
    """A ZMQ socket whose descriptor the loop watches.

    The descriptor is edge-triggered for both directions, so after every send, and until receiving says EAGAIN, the
    socket has to be looked at again.
    """

    def __init__(self, socket: zmq.Socket[bytes], receive: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._descriptor: int = socket.FD
        self._turn: asyncio.Handle | None = None
        self._loop.add_reader(self._descriptor, self._look)
        self._look()

    def send(self, frames: Sequence[bytes]) -> None:
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._look()

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close(linger=0)

    def _look(self) -> None:
        """Look at the socket in the loop's next pass, unless that is settled already."""
        if self._turn is None:
            self._turn = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._turn = None
        end = self._loop.time() + _SLICE
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(frames)
            if self._loop.time() > end and not self._socket.closed:
                self._turn = self._loop.call_later(_SLICE, self._drain)
                return


class _MalformedError(Exception):
    """A message that is not as the protocol says."""


def _load(part: bytes) -> dict[str, Any]:
    if len(part) > _SMALL and _items(part) > _MOST_ITEMS:
        raise _MalformedError
    try:
        value = json.loads(part, parse_int=_integer)
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8; nested too deep
        raise _MalformedError from error
    if not isinstance(value, dict):
        raise _MalformedError
    return value


def _integer(digits: str) -> int | float:
    """Parse an integer; one that no 64 bits hold becomes a float: long ones take time that grows with their square."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _items(part: bytes) -> int:
    """Return at least the number of items of a JSON text; commas inside its strings do not count if there are many."""
    marks = _marks(part)
    if marks <= _MOST_ITEMS // 50:
        return marks
    bare = part.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * _MOST_ITEMS:
        return marks
    return sum(map(_marks, bare.split(b'"')[::2]))


def _marks(part: bytes) -> int:
    return part.count(b",") + part.count(b"[") + part.count(b"{")
