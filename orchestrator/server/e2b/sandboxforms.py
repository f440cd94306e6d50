"""Sandboxes as E2B's control plane tells them, and pages of lists of them. Pure."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from orchestrator.errors import InvalidInputError
from orchestrator.policy.policy import Policy
from orchestrator.server.e2b.fileentries import time_of
from orchestrator.server.e2b.sandboxes import Mark, is_paused, metadata_of
from orchestrator.store.records import HandleRecord, SessionRecord

ENVD_VERSION: Final = "0.6.1"  # the newest without metadata of files, which the sandbox cannot keep
_CLIENT: Final = "cellblock"
_NEVER: Final = 366 * 86400.0  # seconds: a sandbox that does not expire is said to end in a year
_LARGEST_PAGE: Final = 1000


def started(sandbox_id: str, template: str, access: str) -> dict[str, Any]:
    """Return a sandbox as the answer of its creation."""
    return {
        "templateID": template,
        "sandboxID": sandbox_id,
        "clientID": _CLIENT,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": access,
        "trafficAccessToken": access,  # the only one that the interpreter's clients send with every request
        "domain": None,
    }


def listed(handle: HandleRecord, record: SessionRecord, policy: Policy) -> dict[str, Any]:
    """Return a sandbox as lists and ``GET /sandboxes/{id}`` have it."""
    paused = is_paused(handle, record)
    end = record.last_used_at if paused else handle.expires_at or time.time() + _NEVER
    return {
        "templateID": Mark.of(handle).template or handle.policy,
        "sandboxID": record.session_id,
        "clientID": _CLIENT,
        "startedAt": time_of(record.created_at),
        "endAt": time_of(end),
        "cpuCount": cpu_count(policy),
        "memoryMB": policy.limits.memory_mb,
        "diskSizeMB": policy.tmpfs.work_mb,
        "state": "paused" if paused else "running",
        "envdVersion": ENVD_VERSION,
        "metadata": metadata_of(handle),
    }


def detail(handle: HandleRecord, record: SessionRecord, policy: Policy, access: str) -> dict[str, Any]:
    """Return a sandbox as ``GET /sandboxes/{id}`` has it."""
    mark = Mark.of(handle)
    return {
        **listed(handle, record, policy),
        "envdAccessToken": access,
        "allowInternetAccess": False,
        "domain": None,
        "lifecycle": {
            "autoResume": mark.resumes,
            "onTimeout": "pause" if handle.on_expiry == "hibernate" else "kill",
        },
    }


def metric(usage: Mapping[str, Any], policy: Policy, now: float) -> dict[str, Any]:
    """Return what a sandbox uses now."""
    return {
        "timestamp": time_of(now),
        "timestampUnix": int(now),
        "cpuCount": cpu_count(policy),
        "cpuUsedPct": float(usage.get("cpu_percent") or 0.0),
        "memUsed": int((usage.get("memory_mb") or 0) * 2**20),
        "memTotal": policy.limits.memory_mb * 2**20,
        "memCache": 0,
        "diskUsed": int((usage.get("tmpfs_mb") or 0) * 2**20),
        "diskTotal": policy.tmpfs.work_mb * 2**20,
    }


def cpu_count(policy: Policy) -> int:
    """Return how many cores a sandbox has, rounded up."""
    return max(1, math.ceil(policy.limits.cpu_percent / 100))


class Started(Protocol):
    """Something that began at a moment, and has an id."""

    @property
    def created_at(self) -> float: ...

    @property
    def session_id(self) -> str: ...


T = TypeVar("T")


def page(
    rows: Sequence[tuple[T, Started]], limit: str, token: str, *, newest_first: bool
) -> tuple[list[tuple[T, Started]], str]:
    """Return the rows of a page by their start, and the token of the next one; "" if it is the last.

    Raises:
        InvalidInputError: the limit or the token cannot be used.
    """
    if limit and not (limit.isascii() and limit.isdigit() and 0 < int(limit[:9]) <= _LARGEST_PAGE):
        raise InvalidInputError(f"the limit is not from 1 to {_LARGEST_PAGE}.")
    most = int(limit or 100)
    key = [(row[1].created_at, row[1].session_id) for row in rows]
    order = sorted(range(len(rows)), key=key.__getitem__, reverse=newest_first)
    if token:
        after = _token(token)
        order = [index for index in order if (key[index] < after if newest_first else key[index] > after)]
    chosen = order[:most]
    if len(order) <= most:
        return [rows[index] for index in chosen], ""
    moment, session_id = key[chosen[-1]]
    return [rows[index] for index in chosen], base64.urlsafe_b64encode(f"{moment!r} {session_id}".encode()).decode()


def _token(token: str) -> tuple[float, str]:
    try:
        moment, session_id = base64.urlsafe_b64decode(token[:200]).decode().split(" ")
        return float(moment), session_id
    except (ValueError, binascii.Error):
        raise InvalidInputError("the token of the page cannot be used.") from None


def moment(text: str) -> float:
    """Return a moment in seconds since the epoch.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return datetime.fromisoformat(text[:40].replace(" ", "+")).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInputError(f"{text[:40]!r} is not a moment.") from None
