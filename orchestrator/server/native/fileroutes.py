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

router = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])
_PIECE = 4 * MIB  # bytes that are read at once
_LARGEST = 1024 * MIB
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
PathDescription = Annotated[
    str, Query(description="Absolute, or relative to `/work`. Bytes that are no UTF-8 are percent-encoded as they are.")
]


@router.get("/content", summary="Read a file", responses={206: {"description": "The range that was asked for."}})
async def read(
    served: TheSession,
    request: Request,
    path: PathDescription,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
) -> Response:
    """Stream a file. A `Range` of bytes is honoured; of a file that changes meanwhile, the parts may not fit."""
    name = _path(request, "path")
    info = await served.manager.stat_file(served.session, name, follow_links=True)
    if info.is_dir:
        raise FileTransferError(f"{name!r} is a folder.", path=name, fault="is_folder")
    # A size of 0 proves nothing: files of /proc have content all the same.
    start, end = _range(wanted, info.size) if info.size else (0, None)
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    status = 200
    if end is not None:
        headers["Content-Length"] = str(end - start)
        if wanted is not None and (start, end) != (0, info.size):
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{info.size}"
    first = await _piece(served, name, start, end)
    return StreamingResponse(_pieces(served, name, start, end, first), status, headers, "application/octet-stream")


@router.put("/content", summary="Write a file")
async def write(served: TheSession, request: Request, path: PathDescription) -> Response:
    """Write the request's body to a file, whole or not at all."""
    return Json({"bytes": await served.manager.write_file(served.session, _path(request, "path"), request.stream())})


@router.get("/archive", summary="Read a folder as a tar")
async def read_folder(served: TheSession, request: Request, path: PathDescription = ".") -> Response:
    """Stream a folder with all that it has. The tar comes from the sandbox: it may say anything."""
    pieces = served.manager.read_folder(served.session, _path(request, "path", "."))
    first = await anext(pieces, b"")
    return StreamingResponse(_with_first(first, pieces), media_type="application/x-tar")


@router.put("/archive", summary="Extract a tar into a folder")
async def write_folder(served: TheSession, request: Request, path: PathDescription = ".") -> Response:
    """Extract the request's body, a tar, into a folder."""
    size = await served.manager.write_folder(served.session, _path(request, "path", "."), request.stream())
    return Json({"bytes": size})


@router.get("/stat", summary="Look at a file")
async def stat(served: TheSession, request: Request, path: PathDescription, follow_links: bool = False) -> Response:
    """Return what a path is, with its size and times."""
    info = await served.manager.stat_file(served.session, _path(request, "path"), follow_links=follow_links)
    return Json(info.as_dict())


@router.get("", summary="List a folder")
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


@router.post("/folder", summary="Make a folder")
async def make_dir(served: TheSession, request: Request, path: PathDescription, parents: bool = True) -> Response:
    """Make a folder; `made` says whether it is new."""
    return Json({"made": await served.manager.make_dir(served.session, _path(request, "path"), parents=parents)})


@router.post("/move", summary="Move a file or a folder")
async def move(served: TheSession, request: Request, source: PathDescription, destination: PathDescription) -> Response:
    """Move or rename. A file replaces a file."""
    await served.manager.move(served.session, _path(request, "source"), _path(request, "destination"))
    return Json({"moved": True})


@router.delete("", summary="Remove a file or a folder")
async def remove(served: TheSession, request: Request, path: PathDescription, recursive: bool = False) -> Response:
    """Remove a file, a link, or a folder."""
    await served.manager.remove(served.session, _path(request, "path"), recursive=recursive)
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


async def _piece(served: Served, name: str, at: int, end: int | None) -> bytes:
    length = _PIECE if end is None else min(_PIECE, end - at)
    return await served.manager.read_file(served.session, name, offset=at, length=length, limit=_PIECE)


async def _pieces(served: Served, name: str, start: int, end: int | None, piece: bytes) -> AsyncGenerator[bytes, None]:
    at = start
    while piece:
        yield piece
        at += len(piece)
        if at >= (_LARGEST if end is None else end):
            return
        piece = await _piece(served, name, at, end)


async def _with_first(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
    try:
        yield first
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()
