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

_BATCH = 32  # messages taken from one socket before the loop's other work has its turn
_MESSAGE_FRAMES = 5  # signature, header, parent header, metadata, content

Channel = Literal["shell", "control", "iopub"]
_SOCKET_TYPES: dict[Channel, int] = {"shell": zmq.DEALER, "control": zmq.DEALER, "iopub": zmq.SUB}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel, with a genuine signature. All of it is a claim of hostile code."""

    channel: Channel
    kind: str
    parent_id: str
    content: dict[str, Any]
    buffers: Sequence[bytes]


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
            self._guard.consumed(channel, sum(map(len, frames)))
            message = self._parse(channel, frames)
            if message is None:
                self.rejected += 1
            elif message.kind == "iopub_welcome":
                if not self.welcome.done():
                    self.welcome.set_result(None)
            elif (handler := self._handlers.get(message.parent_id)) is not None:
                handler(message)

        return receive

    def _parse(self, channel: Channel, frames: list[bytes]) -> Message | None:
        """Check the frames' count, signature and shape. None when any of it is wrong."""
        try:
            start = frames.index(DELIM) + 1
        except ValueError:
            return None
        parts = frames[start : start + _MESSAGE_FRAMES]
        if len(parts) != _MESSAGE_FRAMES or not hmac.compare_digest(self._session.sign(parts[1:]), parts[0]):
            return None
        header, parent, content = (_load(part) for part in (parts[1], parts[2], parts[4]))
        if header is None or parent is None or content is None:
            return None
        kind, parent_id = header.get("msg_type"), parent.get("msg_id", "")
        if not isinstance(kind, str) or not isinstance(parent_id, str):
            return None
        return Message(channel, kind, parent_id, content, frames[start + _MESSAGE_FRAMES :])


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
        self._loop.add_reader(self._descriptor, self._drain)
        self._loop.call_soon(self._drain)

    def send(self, frames: Sequence[bytes]) -> None:
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close(linger=0)

    def _drain(self) -> None:
        for _ in range(_BATCH):
            if self._socket.closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(frames)
        self._loop.call_soon(self._drain)


def _load(part: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(part)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number past the digit limit; nested too deep
        return None
    return value if isinstance(value, dict) else None
