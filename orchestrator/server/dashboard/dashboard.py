"""Dashboard: the wire of the dashboard's files and frames. Its data come from the native API.

Invariants:
- The page runs no script and no style but its own files, and loads nothing from anywhere else.
- What a cell put out as HTML is only ever served as a document without scripts, origin, forms, links or loads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from orchestrator.errors import CellblockError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json, Problem
from orchestrator.server.dashboard.frames import Frames
from orchestrator.server.dialect import TokenWire
from orchestrator.server.service import Service

_ROOT = "/dashboard/"
_FRAMES = "/dashboard/frames"
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ALWAYS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
    "Permissions-Policy": "camera=(), clipboard-read=(), display-capture=(), geolocation=(), microphone=(), "
    "payment=(), publickey-credentials-get=(), serial=(), usb=()",
}
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
_FRAME_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_FRAME_META: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_FRAME_HEAD: Final = (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
    f'content="{_FRAME_META}"><title>Output</title><style>:root{{color-scheme:only light;background:#fff;color:#1b1b1b;'
    "font:14px/1.4 system-ui,sans-serif}body{margin:8px}table{border-collapse:collapse}td,th{padding:2px 8px;"
    "text-align:right}tbody tr:nth-child(odd){background:#f3f4f6}svg,img{max-width:100%;height:auto}</style><body>"
).encode()
_GONE: Final = b"<p>This output is no longer here. Open the cell again.</p>"


class Dashboard(TokenWire):
    """The dashboard's wire. Its files are public, for they hold no data; only a known caller adds a frame."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._frames = Frames()
        self._files = _files()
        self.app = Starlette(
            routes=[
                Route(_FRAMES, self._add_frame, methods=["POST"]),
                Route(f"{_FRAMES}/{{name}}", self._frame, methods=["GET"]),
                Route("/", self._file, methods=["GET"]),
                Route(f"{_ROOT}{{path:path}}", self._file, methods=["GET"]),
            ],
            exception_handlers={CellblockError: _problem},
        )

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return bool(scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith(_ROOT)))

    def is_public(self, scope: Scope) -> bool:
        """See ``Dialect``. The name of a frame is a secret of its own."""
        return bool(scope["method"] in ("GET", "HEAD"))

    async def _file(self, request: Request) -> Response:
        found = self._files.get(request.path_params.get("path", "index.html"))
        if found is None:
            return Response("not found\n", 404, _ALWAYS, "text/plain")
        content, kind, tag = found
        headers = {**_ALWAYS, "Content-Security-Policy": _PAGE_POLICY, "ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    async def _add_frame(self, request: Request) -> Response:
        """Take HTML that the page has sanitised. What it cannot do does not depend on that."""
        caller: Principal = request.scope["state"]["principal"]
        name = self._frames.add(caller.token_id, await request.body())
        return Json({"path": f"{_FRAMES}/{name}"}, 201)

    async def _frame(self, request: Request) -> Response:
        document = self._frames.take(request.path_params["name"])
        headers = {**_ALWAYS, "Content-Security-Policy": _FRAME_POLICY, "Cache-Control": "no-store"}
        body = _FRAME_HEAD + (_GONE if document is None else document)
        return Response(body, 404 if document is None else 200, headers, "text/html; charset=utf-8")


def _files() -> Mapping[str, tuple[bytes, str, str]]:
    """Return each file's content, media type and tag, by its path below ``/dashboard/``. No request opens a path."""
    here = resources.files(__package__)
    pairs = [*_below(here / "static", ""), *_below(here / "vendor", "vendor/")]
    return {
        path: (content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for path, content in pairs
        if (suffix := path.rpartition(".")[2]) in _TYPES
    }


def _below(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _below(each, f"{prefix}{each.name}/")
        else:
            found.append((f"{prefix}{each.name}", each.read_bytes()))
    return found


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CellblockError)
    return Problem(error)
