"""Errors as E2B's clients read them: ``{"code", "message"}`` with an HTTP status, or a Connect error. Pure."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.errors import CellblockError, FileTransferError, ServerError
from orchestrator.server.problems import status_of

_GONE: Final = frozenset({"session_ended", "unknown_session", "kernel_died"})
_CONTROL_STATUS: Final[dict[int, int]] = {410: 404, 422: 400, 408: 500}
_FILE_STATUS: Final[dict[str, int]] = {"missing": 404, "permission": 403, "full": 507, "too_large": 413}
_FILE_CODES: Final[dict[str, str]] = {
    "missing": "not_found",
    "permission": "permission_denied",
    "exists": "already_exists",
    "not_empty": "failed_precondition",
    "full": "resource_exhausted",
    "too_large": "resource_exhausted",
    "slow": "deadline_exceeded",
    "is_folder": "invalid_argument",
    "not_a_folder": "invalid_argument",
}
_CODES: Final[dict[int, str]] = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    409: "failed_precondition",
    413: "resource_exhausted",
    422: "invalid_argument",
    429: "resource_exhausted",
    503: "unavailable",
}


class SandboxGoneError(ServerError):
    """A sandbox of E2B's wire has ended, is paused, or never was. Its clients look for "was not found".

    Attributes:
        sandbox_id: as the client named it.
    """

    sandbox_id: str


class NotSupportedError(ServerError):
    """E2B has it, and a Cellblock has nothing that does the same. Nothing was done."""


class NotThereError(ServerError):
    """There is no such process, watcher or snapshot."""


class TimedOutError(ServerError):
    """A command exceeded its time limit, and was killed."""


class PortClosedError(ServerError):
    """A port of a sandbox that nothing can reach: a sandbox has no network.

    Attributes:
        sandbox_id: as the client named it.
        port: the port.
    """

    sandbox_id: str
    port: int


def control_error(error: CellblockError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error of the control plane: a sandbox that is gone is a 404."""
    if isinstance(error, SandboxGoneError | NotThereError):
        status = 404
    elif isinstance(error, NotSupportedError):
        status = 400
    else:
        status = status_of(error)
        status = _CONTROL_STATUS.get(status, status)
    return status, {"code": status, "message": str(error)}


def data_error(error: CellblockError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error of the data plane: a sandbox that is gone is a 502, as E2B's proxy has it."""
    if isinstance(error, SandboxGoneError | PortClosedError) or error.code in _GONE:
        message = "The sandbox is running but port is not open" if isinstance(error, PortClosedError) else _LOST
        form = {name: getattr(error, name) for name in ("sandbox_id", "port") if hasattr(error, name)}
        named = {{"sandbox_id": "sandboxId"}.get(name, name): value for name, value in form.items()}
        return 502, {"code": 502, "message": message, **named}
    if isinstance(error, FileTransferError):
        status = _FILE_STATUS.get(error.fault, 400)
    else:
        status, _ = control_error(error)
    return status, {"code": status, "message": str(error)}


_LOST: Final = "The sandbox was not found"


def connect_error(error: CellblockError) -> tuple[str, str]:
    """Return code and message of a Connect error."""
    if isinstance(error, SandboxGoneError | PortClosedError) or error.code in _GONE:
        return "unavailable", data_error(error)[1]["message"]
    if isinstance(error, FileTransferError):
        return _FILE_CODES.get(error.fault, "failed_precondition"), str(error)
    for kind, code in (
        (NotSupportedError, "unimplemented"),
        (NotThereError, "not_found"),
        (TimedOutError, "deadline_exceeded"),
    ):
        if isinstance(error, kind):
            return code, str(error)
    return _CODES.get(status_of(error), "internal"), str(error)
