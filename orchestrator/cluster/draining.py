"""Draining: asks the server of a node to move its sessions away, or to take sessions again. The server does it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.nodeconnections import NodeConnections
from orchestrator.errors import CellblockError, ClusterError

_MARGIN = 10.0  # seconds that the answer may take beyond the deadline that the server keeps itself


async def drain(url: str, token: str | None, seconds: float, verify: str | bool = True) -> dict[str, Any]:
    """Have a node take no new session, and move each of its own by a checkpoint. Return what the server answers.

    Args:
        token: one with the right `operator`; None: the server needs none.
        seconds: what the server has time for.
        verify: a file with the certificate authority of its certificate; True: the system's.

    Raises:
        ServerUnavailableError, UnauthorizedError, ForbiddenError: the server is not there, or refuses it.
        ClusterError: it is not done in time. The server goes on with it.
    """
    return await _told(url, token, verify, "drain", {"deadline_s": seconds}, seconds + _MARGIN)


async def undrain(url: str, token: str | None, verify: str | bool = True) -> dict[str, Any]:
    """Have a node take sessions again. Return what the server answers.

    Raises:
        See ``drain``.
    """
    return await _told(url, token, verify, "undrain", None, _MARGIN)


async def _told(
    url: str, token: str | None, verify: str | bool, what: str, body: Mapping[str, Any] | None, seconds: float
) -> dict[str, Any]:
    connection = NodeConnections(token, verify).to(url)
    try:
        async with asyncio.timeout(seconds):
            return await connection.ask("POST", f"/v1/operator/{what}", body)
    except TimeoutError as error:
        if isinstance(error, CellblockError):
            raise
        raise ClusterError(
            f"{url} has not said after {seconds:.0f} s that the {what} is done; it goes on with it.",
            remedy="`cellblock audit tail --cluster` shows whether it was asked.",
        ) from None
    finally:
        await connection.close()
