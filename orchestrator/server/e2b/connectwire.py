"""The Connect protocol with JSON, as E2B's SDKs speak it: envelopes of streams, and errors. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.errors import InvalidInputError
from orchestrator.limits import MIB
from orchestrator.server.answers import dumps

STREAM_TYPE: Final = "application/connect+json"
_HEAD = struct.Struct(">BI")
_COMPRESSED, _LAST = 1, 2
_LONGEST = 4 * MIB  # bytes of one message

# https://connectrpc.com/docs/protocol: the HTTP status of each code, in answers that are no streams.
STATUS: Final[dict[str, int]] = {
    "already_exists": 409,
    "deadline_exceeded": 504,
    "failed_precondition": 400,
    "internal": 500,
    "invalid_argument": 400,
    "not_found": 404,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "unauthenticated": 401,
    "unavailable": 503,
    "unimplemented": 501,
}


def envelope(message: Mapping[str, Any]) -> bytes:
    """Return one message of a stream."""
    data = dumps(message)
    return _HEAD.pack(0, len(data)) + data


def last_envelope(code: str = "", message: str = "") -> bytes:
    """Return the end of a stream; with a code, the error that ended it."""
    data = dumps({"error": error_form(code, message)} if code else {})
    return _HEAD.pack(_LAST, len(data)) + data


def error_form(code: str, message: str) -> dict[str, str]:
    """Return the body of an error."""
    return {"code": code, "message": message}


def parsed(data: bytes) -> dict[str, Any]:
    """Return a message.

    Raises:
        InvalidInputError: it is no JSON object.
    """
    try:
        message = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InvalidInputError("the message is no JSON object.")
    return message


class Envelopes:
    """Takes the messages out of a client's stream, which comes in pieces of any size."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """Return the messages that are complete now.

        Raises:
            InvalidInputError: one is compressed, longer than 4 MiB, or no JSON object.
        """
        self._data += piece
        found = []
        while len(self._data) >= _HEAD.size:
            flags, length = _HEAD.unpack_from(self._data)
            if flags & _COMPRESSED or length > _LONGEST:
                raise InvalidInputError("a message of the stream is compressed, or longer than 4 MiB.")
            end = _HEAD.size + length
            if len(self._data) < end:
                break
            message = bytes(self._data[_HEAD.size : end])
            del self._data[:end]
            if not flags & _LAST:
                found.append(parsed(message))
        return found
