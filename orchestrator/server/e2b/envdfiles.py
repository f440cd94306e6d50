"""``/files`` of E2B's envd: files as they are, up and down, in any size."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncGenerator, AsyncIterable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orchestrator.errors import FileTransferError, InvalidInputError, RequestTooLargeError
from orchestrator.limits import MIB
from orchestrator.server.answers import Json
from orchestrator.server.directory import Served
from orchestrator.server.e2b.addresses import query_of
from orchestrator.server.e2b.fileentries import inside, written
from orchestrator.server.e2b.multipartfiles import MultipartFiles, Step

_MOST_FILES = 1000
_PIECE = 4 * MIB  # bytes of a file that are read at once
_LARGEST = 1024 * MIB
_UNPACKED = MIB  # bytes of a compressed body that are unpacked at once


async def health(_request: Request) -> Response:
    """Say that the sandbox runs."""
    return Response(status_code=204)


async def read(request: Request) -> Response:
    """Stream a file."""
    served: Served = request.state.served
    path = _path(request)
    info = await served.manager.stat_file(served.session, path, follow_links=True)
    if info.kind != "file":
        raise FileTransferError(f"path {path!r} is not a file.", path=path, fault="is_folder")
    first = await _piece(served, path, 0)
    return StreamingResponse(
        _pieces(served, path, first),
        media_type="application/octet-stream",
        headers={"X-Content-Type-Options": "nosniff"},
    )


async def write(request: Request) -> Response:
    """Write the files of a multipart body, or the body as one file. Each is written whole or not at all."""
    served: Served = request.state.served
    if request.headers.get("content-type", "").startswith("multipart/"):
        return Json([written(path) for path in await _write_parts(served, request)])
    path = _path(request)
    body = request.stream()
    if request.headers.get("content-encoding") == "gzip":
        body = _unpacked(body)
    await served.manager.write_file(served.session, path, body)
    return Json([written(path)])


routes = [
    Route("/health", health, methods=["GET"]),
    Route("/files", read, methods=["GET"]),
    Route("/files", write, methods=["POST"]),
]


async def _piece(served: Served, path: str, at: int) -> bytes:
    return await served.manager.read_file(served.session, path, offset=at, length=_PIECE, limit=_PIECE)


async def _pieces(served: Served, path: str, piece: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a file from its start, of which ``piece`` is the first part; 1 GiB at most: it may have no end."""
    at = 0
    while piece and at < _LARGEST:
        yield piece
        at += len(piece)
        piece = await _piece(served, path, at)


def _path(request: Request) -> str:
    path = query_of(request.scope).get("path", "")
    if not path:
        raise InvalidInputError("the request names no path.")
    return inside(path)


async def _write_parts(served: Served, request: Request) -> list[str]:
    """Write each part to its path: that of the query where there is one, else the part's file name."""
    wanted = query_of(request.scope).get("path", "")
    steps = MultipartFiles(request.headers["content-type"], request.stream()).steps()
    paths: list[str] = []
    async for kind, name in steps:
        assert kind == "begin"
        path = inside(wanted if wanted and not paths else os.fsdecode(name))
        if len(paths) >= _MOST_FILES:
            raise InvalidInputError(f"a request may have {_MOST_FILES} files.")
        await served.manager.write_file(served.session, path, _part(steps))
        paths.append(path)
    if not paths:
        raise InvalidInputError("the body has no part called `file`.")
    return paths


async def _part(steps: AsyncGenerator[Step, None]) -> AsyncGenerator[bytes, None]:
    async for kind, data in steps:
        if kind == "end":
            return
        yield data


async def _unpacked(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the content of a gzip body.

    Raises:
        InvalidInputError: it is no gzip, or ends early.
        RequestTooLargeError: the content has more than 1 GiB.
    """
    unpacking, size = zlib.decompressobj(16 + zlib.MAX_WBITS), 0
    try:
        async for packed in body:
            rest = packed
            while rest:
                piece = unpacking.decompress(rest, _UNPACKED)
                size += len(piece)
                if size > _LARGEST:
                    raise RequestTooLargeError(f"the content exceeds {_LARGEST} bytes.", limit=_LARGEST)
                rest = unpacking.unconsumed_tail
                yield piece
    except zlib.error:
        raise InvalidInputError("the body is no gzip.") from None
    if not unpacking.eof:
        raise InvalidInputError("the body is a gzip that ends early.")
