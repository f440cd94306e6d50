"""Errors as E2B's clients read them: ``{"code", "message"}`` with an HTTP status, or a Connect error. Pure."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.errors import CellblockError, FileTransferError, UnknownSessionError
from orchestrator.server.problems import status_of

_GONE: Final = frozenset({"session_ended", "unknown_session", "kernel_died"})
_LOST: Final = "The sandbox was not found"  # clients look for these words
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


class E2bError(Exception):
    """A refusal that only E2B's wire has.

    Attributes:
        status: of HTTP.
        code: of Connect.
        details: what else the body of the answer has.
    """

    def __init__(self, message: str, status: int, code: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details


Refusal = CellblockError | E2bError


def not_supported(message: str) -> E2bError:
    """Return the refusal of what E2B has, and of which a Cellblock has nothing that does the same."""
    return E2bError(message, 400, "unimplemented")


def not_there(message: str) -> E2bError:
    """Return the refusal of a process, a watcher or a snapshot that there is not."""
    return E2bError(message, 404, "not_found")


def timed_out() -> E2bError:
    """Return how a command ends that exceeded its time limit."""
    return E2bError("the command exceeded its time limit, and was killed.", 504, "deadline_exceeded")


def port_closed(sandbox_id: str, port: int) -> E2bError:
    """Return the refusal of a port of a sandbox, which has no network. Clients look for these words."""
    return E2bError("The sandbox is running but port is not open", 502, "unavailable", sandboxId=sandbox_id, port=port)


def gone(sandbox_id: str) -> UnknownSessionError:
    """Return the error of a sandbox that has ended, is paused, or never was."""
    return UnknownSessionError(f"sandbox {sandbox_id[:64]!r} was not found.", session_id=sandbox_id[:64])


def control_error(error: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error of the control plane: a sandbox that is gone is a 404."""
    if isinstance(error, E2bError):
        return error.status, {"code": error.status, "message": str(error), **error.details}
    status = status_of(error)
    status = _CONTROL_STATUS.get(status, status)
    return status, {"code": status, "message": str(error)}


def data_error(error: Refusal) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error of the data plane: a sandbox that is gone is a 502, as E2B's proxy has it."""
    if isinstance(error, CellblockError) and error.code in _GONE:
        named = {"sandboxId": error.session_id} if isinstance(error, UnknownSessionError) else {}
        return 502, {"code": 502, "message": _LOST, **named}
    if isinstance(error, FileTransferError):
        status = _FILE_STATUS.get(error.fault, 400)
        return status, {"code": status, "message": str(error)}
    return control_error(error)


def connect_error(error: Refusal) -> tuple[str, str]:
    """Return code and message of a Connect error."""
    if isinstance(error, E2bError):
        return error.code, str(error)
    if error.code in _GONE:
        return "unavailable", _LOST
    if isinstance(error, FileTransferError):
        return _FILE_CODES.get(error.fault, "failed_precondition"), str(error)
    return _CODES.get(status_of(error), "internal"), str(error)
