"""Serves orders in a driver's process: one JSON object per line on standard input, one answer per line on its output.

A driver provides a *sandbox*: an async context manager that opens a sandbox, yields a function that executes the
trivial cell in it, and closes the sandbox. This module uses only the standard library, because each driver runs in its
peer's environment. Times are measured here, so that they exclude the transfer of orders and answers.

===================== =====================================================================================
``{"do": "open"}``    open a sandbox for later executes
``{"do": "execute"}`` execute in it, and answer with the seconds
``{"do": "shut"}``    close it
``{"do": "lease"}``   open a sandbox, execute in it, answer with the seconds of both, and close it
===================== =====================================================================================

At the end of the input the driver closes its sandbox and exits.
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
NETWORK = os.environ.get("PEERS_NETWORK", "")  # a bridge network of Docker
GATEWAY = os.environ.get("PEERS_GATEWAY", "")  # this host's address in it

Execute = Callable[[], Awaitable[None]]
Sandbox = Callable[[], AbstractAsyncContextManager[Execute]]


def check(output: object) -> None:
    """Check the output of the trivial cell.

    Raises:
        RuntimeError: the output is wrong.
    """
    if str(output).strip() != "2":
        raise RuntimeError(f"the sandbox answered {output!r}")


class Server:
    """Carries out the orders."""

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
    """Answer orders until the input ends. Output of the peer goes to standard error.

    Waiting for an order blocks the event loop, so that a polling peer does not slow the subject whose turn it is.
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
    except Exception as error:  # noqa: BLE001 - the table reports any failure of a peer
        return {"error": f"{type(error).__name__}: {error}"}
