"""Waits that end with the client: what nobody waits for any longer is cancelled, where the wire's contract says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection. ``Boundary`` writes it into the access log; nobody else reads it."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, and cancel it if the client disconnects before.

    Raises:
        ClientGoneError: the client has gone, and ``work`` was cancelled.
        Whatever ``work`` raises.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("the client has gone.")
    finally:
        await stopped(working, gone)


async def stopped(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they have ended, even if the caller is cancelled again meanwhile.

    Call it where the caller unwinds already. A generator that a task still reads cannot be closed, and anyio cancels
    its tasks as long as they run.
    """
    for task in tasks:
        task.cancel()
    running = {task for task in tasks if not task.done()}
    while running:
        with contextlib.suppress(asyncio.CancelledError):
            _, running = await asyncio.wait(running)
        running = {task for task in running if not task.done()}


async def _gone(request: Request) -> None:
    """Return once the client has disconnected. The request's body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
