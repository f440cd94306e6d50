"""``/v1/sessions/{session_id}/files``: the files of a session. Paths are in the query: there any byte has a form."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from orchestrator.errors import FileTransferError, InvalidInputError
from orchestrator.limits import MIB
from orchestrator.server.answers import Json
from orchestrator.server.directory import Served
from orchestrator.server.native.access import TheSession
from orchestrator.server.native.described import COUNT, FILE, FLAG, ByteStream, TarStream, answers, fields, many
from orchestrator.server.native.once import JustOnce

router = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])
_PIECE = 4 * MIB  # bytes that are read at once
_LARGEST = 1024 * MIB
_FARTHEST = 2**53  # bytes: from 2**63 on no file has an offset, and the kernel would not answer
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
PathDescription = Annotated[
    str, Query(description="Absolute, or relative to `/work`. Bytes that are no UTF-8 are percent-encoded as they are.")
]


@router.get(
    "/content",
    summary="Read a file",
    response_class=ByteStream,
    responses={206: {"description": "The range that was asked for.", "content": {ByteStream.media_type: {}}}},
)
async def read(
    served: TheSession,
    request: Request,
    path: PathDescription,
    offset: Annotated[int, Query(ge=0, le=_FARTHEST)] = 0,
    length: Annotated[int | None, Query(ge=0, le=_FARTHEST)] = None,
    limit: Annotated[int, Query(ge=0, le=_FARTHEST)] = _LARGEST,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
) -> Response:
    """Stream a file, or a part of it: by `offset` and `length`, or by a `Range` of bytes.

    A file that is larger than `limit` bytes is refused. Of one that changes meanwhile the parts may not fit.
    """
    name = _path(request, "path")
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    status = 200
    if wanted is not None:
        info = await served.manager.stat_file(served.session, name, follow_links=True)
        offset, end = _range(wanted, info.size)
        length, status = end - offset, 206
        headers["Content-Range"] = f"bytes {offset}-{end - 1}/{info.size}"
    first, more = await _first_piece(served, name, offset, length, limit)
    if not more:
        return ByteStream(first, status, headers)
    pieces = _pieces(served, name, offset, length, first)
    return StreamingResponse(pieces, status, headers, ByteStream.media_type)


@router.put("/content", summary="Write a file", responses=answers(fields(bytes=COUNT)))
async def write(served: TheSession, request: Request, path: PathDescription) -> Response:
    """Write the request's body to a file, whole or not at all."""
    return Json({"bytes": await served.manager.write_file(served.session, _path(request, "path"), request.stream())})


@router.get("/archive", summary="Read a folder as a tar", response_class=TarStream)
async def read_folder(served: TheSession, request: Request, path: PathDescription = ".") -> Response:
    """Stream a folder with all that it has. The tar comes from the sandbox: it may say anything."""
    pieces = served.manager.read_folder(served.session, _path(request, "path", "."))
    first = await anext(pieces, b"")
    return TarStream(_with_first(first, pieces))


@router.put("/archive", summary="Extract a tar into a folder", responses=answers(fields(bytes=COUNT)))
async def write_folder(served: TheSession, request: Request, path: PathDescription = ".") -> Response:
    """Extract the request's body, a tar, into a folder."""
    size = await served.manager.write_folder(served.session, _path(request, "path", "."), request.stream())
    return Json({"bytes": size})


@router.get("/stat", summary="Look at a file", responses=answers(FILE))
async def stat(served: TheSession, request: Request, path: PathDescription, follow_links: bool = False) -> Response:
    """Return what a path is, with its size and times."""
    info = await served.manager.stat_file(served.session, _path(request, "path"), follow_links=follow_links)
    return Json(info.as_dict())


@router.get("", summary="List a folder", responses=answers(fields(files=many(FILE))))
async def list_files(
    served: TheSession,
    request: Request,
    path: PathDescription = ".",
    recursive: bool = False,
    pattern: str = "",
    limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
) -> Response:
    """Return the files in a folder, in the order of their paths."""
    found = await served.manager.list_files(
        served.session, _path(request, "path", "."), recursive=recursive, pattern=pattern, limit=limit
    )
    return Json({"files": [info.as_dict() for info in found]})


@router.post("/folder", summary="Make a folder", responses=answers(fields(made=FLAG)))
async def make_dir(
    served: TheSession, request: Request, path: PathDescription, once: JustOnce, parents: bool = True
) -> Response:
    """Make a folder; `made` says whether it is new."""
    name = _path(request, "path")
    return Json({"made": await once(lambda: served.manager.make_dir(served.session, name, parents=parents))})


@router.post("/move", summary="Move a file or a folder", responses=answers(fields(moved=FLAG)))
async def move(
    served: TheSession, request: Request, source: PathDescription, destination: PathDescription, once: JustOnce
) -> Response:
    """Move or rename. A file replaces a file."""
    names = _path(request, "source"), _path(request, "destination")
    await once(lambda: served.manager.move(served.session, *names))
    return Json({"moved": True})


@router.delete("", summary="Remove a file or a folder", responses=answers(fields(removed=FLAG)))
async def remove(
    served: TheSession, request: Request, path: PathDescription, once: JustOnce, recursive: bool = False
) -> Response:
    """Remove a file, a link, or a folder."""
    name = _path(request, "path")
    await once(lambda: served.manager.remove(served.session, name, recursive=recursive))
    return Json({"removed": True})


def _path(request: Request, name: str, default: str = "") -> str:
    """Return a path of the query, with bytes that are no UTF-8 as lone surrogates."""
    for item in request.scope["query_string"].split(b"&"):
        key, _, value = item.partition(b"=")
        if key == name.encode():
            return os.fsdecode(unquote_to_bytes(value.replace(b"+", b" "))) or default
    return default


def _range(wanted: str | None, size: int) -> tuple[int, int]:
    """Return the first byte of a range, and the one after its last.

    Raises:
        InvalidInputError: the file has none of these bytes, or the header is not one range of bytes.
    """
    if wanted is None:
        return 0, size
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or not (found[1] or found[2]):
        raise InvalidInputError("the range is not of the form bytes=FIRST-LAST.")
    if not found[1]:
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if start >= end:
        raise InvalidInputError(f"the file has {size} bytes, and none of this range.")
    return start, end


async def _first_piece(served: Served, name: str, offset: int, length: int | None, limit: int) -> tuple[bytes, bool]:
    """Return the first piece, and whether there may be more.

    Raises:
        FileTransferError: the file cannot be read, or is larger than ``limit``.
    """
    if limit <= _PIECE:
        found = await served.manager.read_file(served.session, name, offset=offset, length=length, limit=limit)
        return found, False
    if length is None:
        info = await served.manager.stat_file(served.session, name, follow_links=True)
        if info.size - offset > limit:
            raise FileTransferError(f"{name!r} has more than {limit} bytes.", path=name, fault="too_large")
    piece = await _piece(served, name, offset, length)
    return piece, len(piece) == _PIECE and length != _PIECE


async def _piece(served: Served, name: str, at: int, left: int | None) -> bytes:
    size = _PIECE if left is None else min(_PIECE, left)
    return await served.manager.read_file(served.session, name, offset=at, length=size, limit=_PIECE)


async def _pieces(served: Served, name: str, at: int, left: int | None, piece: bytes) -> AsyncGenerator[bytes, None]:
    while piece:
        yield piece
        at += len(piece)
        left = None if left is None else left - len(piece)
        if left == 0 or at > _LARGEST:
            return
        piece = await _piece(served, name, at, left)


async def _with_first(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
    try:
        yield first
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()
