"""Draining: asks the server of a node to move its sessions away. The server does it."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.remote.connection import Connection

_ROUTE = "/v1/operator/drain"
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
    connection = Connection(url, token, None, verify)
    try:
        async with asyncio.timeout(seconds + _MARGIN):
            return await connection.ask("POST", _ROUTE, {"deadline_s": seconds})
    except TimeoutError:
        raise ClusterError(f"{url} has not said after {seconds:.0f} s that it is drained; it goes on.") from None
    finally:
        await connection.close()
