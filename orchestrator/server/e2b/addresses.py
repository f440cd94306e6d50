"""Which sandbox and which of its ports a request is for, and whether it is of E2B's control plane. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import Scope

ENVD, INTERPRETER = 49983, 49999
_HOST = re.compile(r"(\d{1,5})-([0-9a-f]{32})\.")
_CONTROL: Final = re.compile(r"/(?:v[23]/)?(?:sandboxes|snapshots|templates|volumes|secrets)(?:/.*)?")
_STREAMS: Final = ("/execute", "/process.Process/Start", "/process.Process/Connect", "/process.Process/StreamInput",
                   "/filesystem.Filesystem/WatchDir")  # fmt: skip
_UPLOADS: Final = ("/files", "/process.Process/StreamInput")


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers, by their names in small letters."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def query_of(scope: Scope) -> dict[str, str]:
    """Return the last value of each parameter of a request's query."""
    return dict(
        parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")[:100]
    )


def address_of(scope: Scope) -> tuple[str, int] | None:
    """Return the sandbox and the port that a request is for; None if it names none. A signed URL names only a port."""
    headers = headers_of(scope)
    if sandbox_id := headers.get("e2b-sandbox-id"):
        port = headers.get("e2b-sandbox-port", str(ENVD))
        return sandbox_id, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if found := _HOST.match(headers.get("host", "")):
        return found[2], int(found[1])
    return ("", ENVD) if is_signed(scope) else None


def is_signed(scope: Scope) -> bool:
    """Return whether a request has a signed file URL."""
    return scope["path"] == "/files" and b"signature=" in scope.get("query_string", b"")


def is_control(path: str) -> bool:
    """Return whether a path is of the control plane."""
    return _CONTROL.fullmatch(path) is not None


def is_upload(scope: Scope) -> bool:
    """Return whether a request of the data plane carries a file, or input as it is typed."""
    return scope.get("method") == "POST" and scope["path"] in _UPLOADS


def is_stream(scope: Scope) -> bool:
    """Return whether a request of the data plane is answered for as long as there is something to tell."""
    return scope["path"] in _STREAMS
