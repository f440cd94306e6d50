"""Errors as HTTP answers: problem+json (RFC 9457), with one status for each error code. Pure."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

from orchestrator.errors import CellblockError, FileTransferError, KernelPoolExhaustedError, TooManyRequestsError

STATUS: Final[dict[str, int]] = {
    "cellblock": 500,
    "cell_not_found": 404,
    "checkpoint": 409,
    "checkpoint_damaged": 409,
    "checkpoint_foreign": 403,
    "checkpoint_format": 409,
    "checkpoint_missing": 404,
    "checkpoint_state": 409,
    "checkpoint_too_large": 413,
    "cluster": 500,
    "command_limit": 429,
    "engine": 503,
    "engine_permission": 503,
    "engine_setup": 503,
    "engine_timeout": 503,
    "engine_unavailable": 503,
    "engine_unsupported": 503,
    "file_transfer": 409,
    "forbidden": 403,
    "idempotency": 422,
    "image_build": 503,
    "image_in_use": 409,
    "image_missing": 503,
    "incompatible_server": 409,
    "invalid_agent_id": 422,
    "invalid_code": 422,
    "invalid_input": 422,
    "invalid_position": 422,
    "kernel": 409,
    "kernel_died": 410,
    "kernel_not_found": 422,
    "kernel_pool_exhausted": 503,
    "kernel_start": 503,
    "kernel_timeout": 408,
    "manager_closed": 503,
    "no_node": 503,
    "node_lost": 410,
    "node_lease": 503,
    "not_owner": 409,
    "notebook": 409,
    "notebook_conflict": 409,
    "notebook_creation": 422,
    "notebook_not_found": 404,
    "package": 422,
    "policy": 422,
    "quota_exceeded": 403,
    "ray_missing": 500,
    "ray_unavailable": 503,
    "request_timeout": 408,
    "request_too_large": 413,
    "sandbox_floor": 500,
    "server": 500,
    "server_unavailable": 503,
    "session_busy": 409,
    "session_elsewhere": 409,
    "session_ended": 410,
    "settings": 503,
    "store": 503,
    "too_many_requests": 429,
    "unauthorized": 401,
    "unknown_kernel_name": 422,
    "unknown_runtime": 503,
    "unknown_session": 404,
    "untrusted_server": 502,
    "user_id_taken": 503,
    "wrong_event_loop": 500,
}
_FILE_STATUS: Final[dict[str, int]] = {"missing": 404, "permission": 403, "too_large": 413, "slow": 408}


def status_of(error: CellblockError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, FileTransferError):
        return _FILE_STATUS.get(error.fault, STATUS[error.code])
    return STATUS[error.code]


def problem(error: CellblockError) -> dict[str, Any]:
    """Return the body of an error's answer: RFC 9457's members, and those of ``CellblockError.as_dict``."""
    return {
        "type": f"urn:cellblock:{error.code}",
        "title": error.code.replace("_", " "),
        "status": status_of(error),
        "detail": str(error),
        **error.as_dict(),
    }


def headers_of(error: CellblockError) -> dict[str, str]:
    """Return the headers of an error's answer: when to try again, and how to say who calls."""
    if isinstance(error, TooManyRequestsError):
        return {"Retry-After": str(math.ceil(error.retry_after))}
    if isinstance(error, KernelPoolExhaustedError):
        return {"Retry-After": str(math.ceil(error.expected_wait or 1.0))}
    if status_of(error) == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="cellblock"'}
    return {}
