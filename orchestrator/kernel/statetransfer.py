"""Moves a session's state out of a kernel and into a fresh one, as bytes that the host never looks into.

The kernel saves or loads the state where it runs cells, and runs code of the session for it, so it is bounded like a
cell. Meanwhile the pieces travel over the control channel, one at a time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Literal

from orchestrator.errors import CheckpointStateError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.interruption import Interruption
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import text
from orchestrator.limits import MIB, Deadline
from orchestrator.outcome import Outcome
from orchestrator.output.printable import printable

PIECE = MIB  # bytes
_ATTEMPTS = 2  # the second one leaves out or replaces what the first could not save or load
_MOST_LOST = 1001  # entries that a kernel may report
_LONGEST = 300  # characters of each of their texts

Losses = list[dict[str, str]]
Write = Callable[[bytes], Awaitable[None]]


async def save_state(kernel: Kernel, begin: Callable[[], Awaitable[Write]], timeout: float) -> Losses:
    """Have the kernel save its state, and pass the pieces on.

    Args:
        begin: called before each attempt; returns a function that is awaited with each piece. Both may raise, which
            ends the transfer.
        timeout: seconds for everything.

    Returns:
        What could not be saved: ``{"name", "kind", "reason"}`` each.

    Raises:
        CheckpointStateError: it failed or took too long. A kernel that ignored its interrupts was killed.
        KernelDiedError: the kernel died.
    """
    deadline = Deadline(timeout)
    for _ in range(_ATTEMPTS):
        write = await begin()
        travel = partial(_take, kernel, write=write, deadline=deadline)
        reply = await _move(kernel, "save", {}, deadline, travel)
        if reply["status"] == "ok":
            return _losses(reply)
    raise CheckpointStateError("the kernel could not capture its state.")


async def load_state(kernel: Kernel, pieces: Callable[[], AsyncIterator[bytes]], timeout: float) -> Losses:
    """Have a fresh kernel load a state.

    Args:
        pieces: called before each attempt; returns the pieces of the state.
        timeout: seconds for everything.

    Returns:
        What had been saved and could not be loaded.

    Raises:
        CheckpointStateError, KernelDiedError: as for ``save_state``. Discard the kernel then.
    """
    deadline = Deadline(timeout)
    for attempt in range(_ATTEMPTS):
        options = {"tolerant": attempt > 0}
        reply = await _move(kernel, "load", options, deadline, lambda transfer: _give(kernel, transfer, pieces()))
        if reply["status"] == "ok":
            return _losses(reply)
    raise CheckpointStateError("the kernel could not load the state.")


async def _move(
    kernel: Kernel,
    verb: Literal["save", "load"],
    options: dict[str, Any],
    deadline: Deadline,
    travel: Callable[[str], Awaitable[None]],
) -> dict[str, Any]:
    transfer = secrets.token_hex(8)
    content = {"transfer": transfer, "options": options}
    request = asyncio.create_task(kernel.request("shell", f"state_{verb}_request", content, timeout=None))
    try:
        async with asyncio.timeout(deadline.remaining()):
            await travel(transfer)
            reply: Message = await request
    except TimeoutError:
        raise CheckpointStateError(
            f"the kernel did not {verb} its state in time.",
            remedy="Raise [sessions] checkpoint_time_s in the policy.",
        ) from None
    finally:
        if not request.done():
            await asyncio.shield(_release(kernel, request))
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    if reply.content.get("status") not in ("ok", "again"):
        reason = printable(text(reply.content.get("reason")), _LONGEST) or "no reason given"
        raise CheckpointStateError(f"the kernel could not {verb} its state: {reason}.")
    return reply.content


async def _release(kernel: Kernel, request: asyncio.Task[Message]) -> None:
    """Interrupt a kernel that still saves or loads, so that its session can go on; kill it if it ignores that."""
    interruption = Interruption(kernel, lambda: not request.done() and kernel.is_alive)
    try:
        interruption.stop(kill=partial(kernel.kill, Outcome.TIMEOUT))
        await asyncio.wait({request})
        await interruption.settled()
    finally:
        interruption.cancel()


async def _take(kernel: Kernel, transfer: str, write: Write, deadline: Deadline) -> None:
    last = False
    while not last:
        reply = await kernel.request(
            "control", "state_take_request", {"transfer": transfer}, timeout=deadline.remaining()
        )
        for piece in reply.buffers[:1]:
            if len(piece) > PIECE:
                raise CheckpointStateError("the kernel sent a larger piece of its state than was asked for.")
            await write(bytes(piece))
        last = reply.content.get("last") is True


async def _give(kernel: Kernel, transfer: str, pieces: AsyncIterator[bytes]) -> None:
    """Send the pieces. A kernel that has stopped loading takes the rest and drops it."""
    async for piece in pieces:
        await _offer(kernel, {"transfer": transfer, "last": False}, (piece,))
    await _offer(kernel, {"transfer": transfer, "last": True}, ())


async def _offer(kernel: Kernel, content: dict[str, Any], buffers: tuple[bytes, ...]) -> None:
    taken = False
    while not taken:
        reply = await kernel.request("control", "state_give_request", content, timeout=None, buffers=buffers)
        taken = reply.content.get("taken") is True


def _losses(reply: dict[str, Any]) -> Losses:
    found = reply.get("lost")
    if not isinstance(found, list):
        return []
    return [
        {key: printable(text(loss.get(key)), _LONGEST) for key in ("name", "kind", "reason")}
        for loss in found[:_MOST_LOST]
        if isinstance(loss, dict)
    ]
