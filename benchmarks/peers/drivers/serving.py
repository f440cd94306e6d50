"""The peer's end of the line: one JSON object per line on standard input, one answer per line on standard output.

A driver gives a *sandbox*: an async context manager that is entered when an agent asks for a sandbox, yields a function
that executes the trivial cell in it, and is left when the sandbox is given back. It needs no more than the standard
library, since each driver runs in its peer's own environment. Seconds are measured here, without the line's own delay.

===================== =====================================================================================
``{"do": "open"}``    enter a sandbox that later executes use
``{"do": "execute"}`` execute in it, and say how many seconds that took
``{"do": "shut"}``    give it back
``{"do": "lease"}``   enter a sandbox, execute in it, and say how many seconds that took; then give it back
===================== =====================================================================================

The end of the input ends the driver, which gives everything back.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

CODE = "print(1 + 1)"
IMAGE = os.environ.get("PEERS_IMAGE", "")
NETWORK = os.environ.get("PEERS_NETWORK", "")  # a bridge of Docker's
GATEWAY = os.environ.get("PEERS_GATEWAY", "")  # this host's address on it

Execute = Callable[[], Awaitable[None]]
Sandbox = Callable[[], AbstractAsyncContextManager[Execute]]


def check(output: object) -> None:
    """Refuse a result that is not the trivial cell's.

    Raises:
        RuntimeError: it is not.
    """
    if str(output).strip() != "2":
        raise RuntimeError(f"the sandbox answered {output!r}")


class Server:
    """Carries out the orders of one line each."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._held = AsyncExitStack()
        self._execute: Execute | None = None

    async def open(self) -> None:
        self._execute = await self._held.enter_async_context(self._sandbox())
        await self._execute()

    async def execute(self) -> float:
        assert self._execute is not None, "open comes first"
        begun = time.perf_counter()
        await self._execute()
        return time.perf_counter() - begun

    async def shut(self) -> None:
        await self._held.aclose()

    async def lease(self) -> float:
        begun = time.perf_counter()
        async with self._sandbox() as execute:
            await execute()
            return time.perf_counter() - begun


async def serve(sandbox: Sandbox) -> None:
    """Answer until the input ends. What the peer itself prints goes to standard error.

    Waiting for an order blocks the event loop: a peer that polls would take the time of those whose turn it is.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server = Server(sandbox)
    orders = {"open": server.open, "execute": server.execute, "shut": server.shut, "lease": server.lease}
    try:
        while line := sys.stdin.readline():
            answers.write(json.dumps(await _answer(orders[json.loads(line)["do"]])) + "\n")
    finally:
        await server.shut()


async def _answer(order: Callable[[], Awaitable[float | None]]) -> dict[str, float | str | None]:
    try:
        return {"seconds": await order()}
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a peer stands in the table
        return {"error": f"{type(error).__name__}: {error}"}
