"""A request with a key is made once, however often and however it comes again; and each group has its own share."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from weakref import WeakSet

import pytest

from orchestrator.errors import IdempotencyError, InvalidInputError, NodeLeaseError, StoreError, TooManyRequestsError
from orchestrator.limits import MIB
from orchestrator.principal import Principal
from orchestrator.server.idempotency import Idempotency

RED, BLUE = Principal("r", "red"), Principal("b", "blue")


def counting(size: int = 0) -> Callable[[], Awaitable[bytes]]:
    """Return what makes an answer that says how many were made, with so many bytes more."""
    numbers = itertools.count(1)

    async def make() -> bytes:
        await asyncio.sleep(0)
        return b"%d " % next(numbers) + bytes(size)

    return make


async def test_a_request_is_made_once() -> None:
    """At once and later; another request with the key is refused; another group's key is another key."""
    once, make = Idempotency(), counting()
    assert await asyncio.gather(*(once.once(RED, "k", b"a", make) for _ in range(5))) == [b"1 "] * 5
    assert await once.once(RED, "k", b"a", make) == b"1 "
    assert await once.once(BLUE, "k", b"b", make) == b"2 "
    assert await once.once(RED, None, b"a", make) == b"3 "
    with pytest.raises(IdempotencyError):
        await once.once(RED, "k", b"b", make)
    for key in ("", "x" * 256):
        with pytest.raises(InvalidInputError):
            await once.once(RED, key, b"a", make)


async def test_what_failed_is_made_again_and_what_lost_its_client_goes_on() -> None:
    once = Idempotency()

    async def fail() -> bytes:
        raise StoreError("full.")

    async def make() -> bytes:
        await asyncio.sleep(0.05)
        return b"7"

    with pytest.raises(StoreError):
        await once.once(RED, "k", b"a", fail)
    client = asyncio.create_task(once.once(RED, "k", b"a", make))
    await asyncio.sleep(0.01)
    client.cancel()
    assert await once.once(RED, "k", b"a", fail) == b"7"


@pytest.mark.parametrize(("many", "size"), [(10_050, 0), (40, MIB)])
async def test_no_group_makes_another_ones_answers_be_forgotten(many: int, size: int) -> None:
    """Neither by the number of its keys nor by the size of its answers; its own oldest ones go."""
    once, make = Idempotency(), counting(size)
    first = await once.once(BLUE, "k", b"a", make)
    own = await once.once(RED, "k0", b"a", make)
    for number in range(1, many):
        await once.once(RED, f"k{number}", b"a", make)
    assert await once.once(BLUE, "k", b"a", make) == first
    assert await once.once(RED, "k0", b"a", make) != own


async def test_a_request_without_end_does_not_keep_the_answers_after_it() -> None:
    """Answers are forgotten in the order in which they came, whatever is still being made."""
    once, make = Idempotency(), counting(MIB)

    async def wait() -> bytes:
        await asyncio.Event().wait()
        return b""

    endless = asyncio.create_task(once.once(RED, "endless", b"a", wait))
    await asyncio.sleep(0)
    for number in range(40):
        await once.once(RED, f"k{number}", b"a", make)
    assert (await once.once(RED, "k0", b"a", make)).startswith(b"41 ")
    assert once.cancel(RED, "endless")
    assert not once.cancel(BLUE, "endless")
    await asyncio.wait({endless})


class _Held:
    """What a request holds."""


async def test_what_a_failure_holds_is_counted_and_what_raised_it_is_let_go() -> None:
    """The error of a cell that ran is answered again and again; the frames that raised it hold the whole request."""
    once = Idempotency()
    alive: WeakSet[_Held] = WeakSet()

    async def fail() -> bytes:
        held = _Held()
        alive.add(held)
        raise NodeLeaseError("the lease is over.")

    for _ in range(3):
        with pytest.raises(NodeLeaseError, match="the lease is over") as caught:
            await once.once(RED, "k", b"a", fail)
        depth = len(caught.traceback)
        del caught
    gc.collect()
    assert not alive
    with pytest.raises(NodeLeaseError) as caught:
        await once.once(RED, "k", b"a", fail)
    assert len(caught.traceback) == depth


async def test_requests_whose_clients_have_gone_have_a_bound() -> None:
    """Each is made to its end, so a caller that sends and leaves must not have any number of them, or of bytes."""
    once, over = Idempotency(), asyncio.Event()

    async def make() -> bytes:
        await over.wait()
        return b""

    large = bytes(3 * MIB)
    waiting = [asyncio.create_task(once.once(RED, f"large{number}", large, make)) for number in range(30)]
    waiting += [asyncio.create_task(once.once(BLUE, f"k{number}", b"", make)) for number in range(1010)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused = [task for task in waiting if task.done() and isinstance(task.exception(), TooManyRequestsError)]
    assert len(refused) == (30 - 64 // 3) + 10
    over.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await once.once(BLUE, "k2000", b"", make) == b""
