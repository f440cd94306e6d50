"""KernelClient: the orchestrator's own client on a kernel's wire."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jupyter_client.session import Session

from orchestrator.kernel.boundedjson import load, memory
from orchestrator.kernel.channel import Accept, Channel, Handler, Message
from orchestrator.kernel.wire import RawMessage, Wire


class KernelClient:
    """Sends requests, and parses the messages that their handlers accept."""

    def __init__(self, wire: Wire) -> None:
        # The packer is pinned: jupyter_client can be configured to unpickle what a kernel sends.
        self._session = Session(packer="json", unpacker="json", username="host")
        self._wire = wire

    def send(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        handler: Handler,
        buffers: Sequence[bytes] = (),
        accept: Accept | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Send a request and return its id. See ``Kernel.send``."""
        message = self._session.msg(kind, content, metadata=None if metadata is None else dict(metadata))
        # Not jupyter_client's numbered one: a kernel that can guess the next answers before it has read the question.
        message_id = message["header"]["msg_id"] = secrets.token_hex(16)
        parts = [self._session.pack(message[part]) for part in ("header", "parent_header", "metadata", "content")]
        self._wire.send(channel, kind, message_id, parts, partial(_receive, handler, accept), buffers)
        return message_id

    def forget(self, message_id: str) -> None:
        """Drop all further messages for this request."""
        self._wire.forget(message_id)


def _receive(handler: Handler, accept: Accept | None, raw: RawMessage) -> None:
    """Parse a message for a handler that accepts it: what no handler wants costs a header.

    Raises:
        MalformedError: its content is no JSON object.
    """
    if accept is None or accept(raw.kind, memory(raw.content)):
        handler(Message(raw.channel, raw.kind, raw.parent_id, load(raw.content), raw.buffers, raw.parts[2]))
