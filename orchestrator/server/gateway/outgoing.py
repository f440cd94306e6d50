"""Outgoing: one message on its way to the clients of a kernel. It is encoded once, however many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from orchestrator.broker.messages import Channel, JupyterMessage
from orchestrator.server.gateway.framing import json_frame, parts_of, v1_frame

_LARGE = 100_000  # bytes from which on a thread is worth its 0.1 ms
_ENVELOPE = 1000  # bytes of its own header, and of what holds it
_ESCAPED = 6  # bytes of a character outside of ASCII


class Outgoing:
    """One message.

    Attributes:
        size: about how many bytes it takes.
    """

    def __init__(self, channel: Channel, message: JupyterMessage) -> None:
        self._channel = channel
        self._message = message
        self._parts: list[bytes] | None = None
        told = _weight(message.parent) + _weight(message.metadata) + _weight(message.content)
        self.size = _ENVELOPE + told + sum(map(len, message.buffers))

    async def frame(self, *, v1: bool) -> bytes | str:
        """Return it as a frame: text, where the subprotocol has text."""
        return await asyncio.to_thread(self._frame, v1) if self.size > _LARGE else self._frame(v1)

    def _frame(self, v1: bool) -> bytes | str:
        if self._parts is None:
            self._parts = parts_of(self._message)
        buffers = self._message.buffers
        if v1:
            return v1_frame(self._channel, self._parts, buffers)
        framed = json_frame(self._channel, self._message.header, self._parts, buffers)
        return framed if buffers else framed.decode("ascii")


def _weight(value: Any) -> int:
    """Return about how many bytes a value takes as JSON. The broker made it: it is bounded in depth and items."""
    if isinstance(value, str):
        return len(value) if value.isascii() else _ESCAPED * len(value)
    if isinstance(value, Mapping):
        return sum(_weight(key) + _weight(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_weight, value))
    return 8
