"""Jupyter's messages in the frames of a WebSocket, under both of its subprotocols. Pure.

``V1`` has binary frames of a message's parts. Without a subprotocol a message is one JSON object with its channel, as
text; or binary, if it has buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from orchestrator.broker.messages import Channel, JupyterMessage
from orchestrator.errors import InvalidInputError
from orchestrator.kernel.boundedjson import MalformedError, load
from orchestrator.server.answers import dumps

V1: Final = "v1.kernel.websocket.jupyter.org"
_PARTS = 4  # header, parent header, metadata, content
_MOST_BUFFERS = 1000
_HEADER = ("msg_id", "msg_type", "username", "session", "date", "version")
_LONGEST_HEADER = 4096  # characters of all its values: each answer to the message has them again
_CHANNELS: Mapping[Any, Channel] = {None: "shell", "shell": "shell", "control": "control", "stdin": "stdin"}


def parts_of(message: JupyterMessage) -> list[bytes]:
    """Return a message's header, parent header, metadata and content as JSON."""
    return [dumps(part) for part in (message.header, message.parent, message.metadata, message.content)]


def v1_frame(channel: str, parts: Sequence[bytes], buffers: Sequence[bytes]) -> bytes:
    """Return a binary frame of ``V1``."""
    pieces = [channel.encode(), *parts, *buffers]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return b"".join([struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), *pieces])


def json_frame(channel: str, header: Mapping[str, Any], parts: Sequence[bytes], buffers: Sequence[bytes]) -> bytes:
    """Return a frame of the older subprotocol: JSON, or binary if there are buffers."""
    names = (b"header", b"parent_header", b"metadata", b"content")
    members = [b'"%s":%s' % named for named in zip(names, parts, strict=True)]
    more = {"msg_id": header["msg_id"], "msg_type": header["msg_type"], "channel": channel}
    text = b"{" + b",".join([*members, dumps(more)[1:-1]])
    if not buffers:
        return text + b',"buffers":[]}'
    pieces = [text + b"}", *buffers]
    offsets = [4 * (len(pieces) + 1)]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    return b"".join([struct.pack(f"!{len(pieces) + 1}I", len(pieces), *offsets), *pieces])


def parse(data: bytes | str, *, v1: bool) -> tuple[Channel, JupyterMessage] | None:
    """Return a client's message and its channel; None for one on a channel that clients do not write.

    Raises:
        InvalidInputError: it is malformed.
    """
    size = len(data)
    try:
        if v1:
            channel, header, metadata, content, buffers = _v1_parts(_binary(data))
        elif isinstance(data, str):
            channel, header, metadata, content, buffers = *_members(load(data.encode())), []
        else:
            channel, header, metadata, content, buffers = _json_parts(data)
    except (MalformedError, ValueError, KeyError, TypeError, struct.error):
        raise InvalidInputError("a message is not as Jupyter's protocol says.") from None
    if channel not in _CHANNELS:
        return None
    return _CHANNELS[channel], JupyterMessage(_checked(header), {}, content, metadata, buffers, size)


def _binary(data: bytes | str) -> bytes:
    if isinstance(data, str):
        raise TypeError("text, where binary frames were agreed on")
    return data


def _v1_parts(data: bytes) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any], list[bytes]]:
    count = int.from_bytes(data[:8], "little")
    if not _PARTS + 2 <= count <= _PARTS + 2 + _MOST_BUFFERS:
        raise ValueError("too few parts, or too many")
    offsets = struct.unpack(f"<{count}Q", data[8 : 8 * (count + 1)])
    pieces = _pieces(data, offsets)
    header, _parent, metadata, content = (load(piece) for piece in pieces[1 : _PARTS + 1])
    return pieces[0].decode(), header, metadata, content, pieces[_PARTS + 1 :]


def _json_parts(data: bytes) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any], list[bytes]]:
    (count,) = struct.unpack("!I", data[:4])
    if not 1 <= count <= 1 + _MOST_BUFFERS:
        raise ValueError("no part, or too many")
    pieces = _pieces(data, (*struct.unpack(f"!{count}I", data[4 : 4 * (count + 1)]), len(data)))
    return *_members(load(pieces[0])), pieces[1:]


def _pieces(data: bytes, offsets: Sequence[int]) -> list[bytes]:
    """Cut data at offsets.

    Raises:
        ValueError: they do not ascend within it.
    """
    if list(offsets) != sorted(offsets) or offsets[-1] > len(data):
        raise ValueError("offsets that do not ascend within the message")
    return [data[start:end] for start, end in pairwise(offsets)]


def _members(form: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]:
    parts = [form["header"], form.get("metadata") or {}, form["content"]]
    if not all(isinstance(part, dict) for part in parts):
        raise TypeError("a part that is no object")
    channel = form.get("channel")
    if channel is not None and not isinstance(channel, str):
        raise TypeError("a channel that is no text")
    return channel, parts[0], parts[1], parts[2]


def _checked(header: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a header that answers repeat.

    Raises:
        InvalidInputError: it has no id or type, or is too long.
    """
    known = {name: value for name in _HEADER if isinstance(value := header.get(name), str)}
    if not known.get("msg_id") or not known.get("msg_type") or sum(map(len, known.values())) > _LONGEST_HEADER:
        raise InvalidInputError("a message's header has no `msg_id` or `msg_type`, or is too long.")
    return known
