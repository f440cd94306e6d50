"""What a server answers, read with bounds: a server that was taken over may send anything, for ever.

Every fault of an answer is a ServerError.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pydantic_core

from orchestrator.errors import ServerError
from orchestrator.limits import MIB
from orchestrator.remote.failures import failure
from orchestrator.remote.link import Numbered

_LARGEST_ERROR = MIB  # bytes of a refusal that are read where a stream was asked for


class BodyOfAnswer:
    """A ``Download``.

    Args:
        largest: bytes that ``aread`` reads.
    """

    def __init__(self, answer: aiohttp.ClientResponse, largest: int) -> None:
        self._answer = answer
        self._largest = largest

    async def aread(self) -> bytes:
        return await _read(self._answer, self._largest)

    def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        return self._answer.content.iter_chunked(chunk_size or MIB)


async def checked(answer: aiohttp.ClientResponse, largest: int) -> dict[str, Any]:
    """Return an answer's JSON, or raise the error that it is.

    Raises:
        ServerError: the answer has more bytes than ``largest``, or is no JSON object.
        Any error of the server's.
    """
    content = await _read(answer, largest)
    if not _is_good(answer):
        raise failure(_json(content), answer.status)
    return _object(content)


async def refuse_errors(answer: aiohttp.ClientResponse) -> None:
    """Raise the error that an answer is, if it is one."""
    if not _is_good(answer):
        body = bytearray()
        async for piece in answer.content.iter_any():
            body += piece
            if len(body) > _LARGEST_ERROR:
                break
        raise failure(_json(bytes(body)), answer.status)


async def events_of(answer: aiohttp.ClientResponse, largest: int) -> Numbered:
    """Yield the events of a stream. aiohttp's own lines are bounded, and an event with 10 MB of output is one line.

    Args:
        largest: bytes of one event.

    Raises:
        ServerError: an event is larger, or has not the form of one.
        The error that an event of the type "problem" is.
    """
    rest = bytearray()
    async for piece in answer.content.iter_any():
        looked = max(0, len(rest) - 1)
        rest += piece
        while (end := rest.find(b"\n\n", looked)) >= 0:
            lines = [line.partition(b": ") for line in bytes(rest[:end]).split(b"\n")]
            del rest[: end + 2]
            looked = 0
            fields = {name: value for name, _, value in lines}  # a comment has no name
            if b"data" in fields:
                yield _event(fields)
        if len(rest) > largest:
            raise ServerError(f"an event of the server has more than {largest} bytes.")


def loads(content: bytes) -> Any:
    """Return what JSON says. pydantic's reader is faster, and has no lone surrogates, which names of files may have.

    Raises:
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    try:
        return pydantic_core.from_json(content)
    except ValueError:
        return json.loads(content)


async def _read(answer: aiohttp.ClientResponse, largest: int) -> bytes:
    pieces, size = [], 0
    async for piece in answer.content.iter_any():
        size += len(piece)
        if size > largest:
            raise ServerError(f"the server's answer has more than {largest} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def _is_good(answer: aiohttp.ClientResponse) -> bool:
    """Return whether it is what was asked for. A redirection is not: it is not followed."""
    return 200 <= answer.status < 300


def _event(fields: Mapping[bytes, bytes]) -> tuple[int | None, dict[str, Any]]:
    form = _object(fields[b"data"])
    if form.get("type") == "problem":
        raise failure(form.get("problem"), 500)
    number = fields.get(b"id", b"")
    return int(number) if number.isdigit() and len(number) < 20 else None, form


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ServerError("what the server answers is no JSON object.")
    return found


def _json(content: bytes) -> object:
    try:
        return loads(content)
    except (ValueError, RecursionError):
        return content[:500].decode("utf-8", "replace")
