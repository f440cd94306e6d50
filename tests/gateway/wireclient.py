"""A client of a kernel's WebSocket, under either subprotocol, written from Jupyter's documentation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

V1 = "v1.kernel.websocket.jupyter.org"
READY = 60.0  # seconds


@dataclass
class Answer:
    """What came for one request, up to its idle status, in its order."""

    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The types of the messages."""
        return [message["header"]["msg_type"] for message in self.messages]

    def of(self, kind: str) -> list[Any]:
        """Return the contents of the messages of one type."""
        return [each["content"] for each in self.messages if each["header"]["msg_type"] == kind]

    @property
    def text(self) -> str:
        """What was printed."""
        return "".join(content["text"] for content in self.of("stream"))

    @property
    def value(self) -> str:
        """The result as text."""
        return str(self.of("execute_result")[0]["data"]["text/plain"])


class WireClient:
    """One WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.v1 = socket.subprotocol == V1

    async def execute(self, code: str, **options: Any) -> Answer:
        """Run a cell."""
        return await self.answer(await self.ask("execute_request", {"code": code, "silent": False, **options}))

    async def ask(
        self, kind: str, content: dict[str, Any], channel: str = "shell", buffers: Sequence[bytes] = ()
    ) -> str:
        """Send a request, and return its id."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s", "username": "u", "version": "5.3"}
        parts = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self.socket.send(v1_frame(channel, parts, buffers) if self.v1 else json_frame(channel, parts, buffers))
        return header["msg_id"]

    async def answer(self, request: str, timeout: float = READY) -> Answer:
        """Return what comes for a request; a request's reply and its idle status come in either order."""
        found, missing = Answer(), {"idle", "reply"}
        async with asyncio.timeout(timeout):
            while missing:
                message = await self.receive()
                if message["parent_header"].get("msg_id") == request:
                    found.messages.append(message)
                    if message["header"]["msg_type"].endswith("_reply"):
                        missing.discard("reply")
                    elif message["content"].get("execution_state") == "idle":
                        missing.discard("idle")
        return found

    async def heard(self, kind: str, timeout: float = READY, **content: Any) -> dict[str, Any]:
        """Return the next message of a type with this content."""
        async with asyncio.timeout(timeout):
            while True:
                message = await self.receive()
                if message["header"]["msg_type"] == kind and content.items() <= message["content"].items():
                    return message

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        frame = await self.socket.recv()
        if self.v1:
            assert isinstance(frame, bytes)
            return of_v1(frame)
        return of_json(frame)


@contextlib.asynccontextmanager
async def wire_client(
    url: str, kernel_id: str, token: str, *, v1: bool = True, session_id: str = ""
) -> AsyncIterator[WireClient]:
    """Connect a client, as browsers do: with the token in the address."""
    address = f"{url.replace('http', 'ws')}/api/kernels/{kernel_id}/channels?token={token}&session_id={session_id}"
    protocols = [Subprotocol(V1)] if v1 else None
    async with connect(address, subprotocols=protocols, max_size=None, proxy=None) as socket:
        yield WireClient(socket)


def v1_frame(channel: str, parts: dict[str, Any], buffers: Sequence[bytes]) -> bytes:
    pieces = [channel.encode(), *(json.dumps(part).encode() for part in parts.values()), *buffers]
    at = 8 * (len(pieces) + 2)
    ends = [at := at + len(piece) for piece in pieces]
    return struct.pack(f"<{len(pieces) + 2}Q", len(pieces) + 1, 8 * (len(pieces) + 2), *ends) + b"".join(pieces)


def of_v1(frame: bytes) -> dict[str, Any]:
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    pieces = [frame[start:end] for start, end in pairwise(offsets)]
    assert offsets[-1] == len(frame)
    names = ("header", "parent_header", "metadata", "content")
    parts = {name: json.loads(piece) for name, piece in zip(names, pieces[1:5], strict=True)}
    return {**parts, "channel": pieces[0].decode(), "buffers": pieces[5:]}


def json_frame(channel: str, parts: dict[str, Any], buffers: Sequence[bytes]) -> str | bytes:
    text = json.dumps({**parts, "channel": channel})
    if not buffers:
        return text
    pieces = [text.encode(), *buffers]
    at = 4 * (len(pieces) + 1)
    starts = [at, *(at := at + len(piece) for piece in pieces[:-1])]
    return struct.pack(f"!{len(pieces) + 1}I", len(pieces), *starts) + b"".join(pieces)


def of_json(frame: str | bytes) -> dict[str, Any]:
    if isinstance(frame, str):
        found: dict[str, Any] = json.loads(frame)
        return found
    (count,) = struct.unpack_from("!I", frame)
    starts = [*struct.unpack_from(f"!{count}I", frame, 4), len(frame)]
    pieces = [frame[start:end] for start, end in pairwise(starts)]
    return {**json.loads(pieces[0]), "buffers": pieces[1:]}
