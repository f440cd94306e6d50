"""A request with a key is made once, however often and however it comes again; and each group has its own share."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from orchestrator.errors import IdempotencyError, InvalidInputError, StoreError
from orchestrator.principal import Principal
from orchestrator.server.idempotency import Idempotency

RED, BLUE = Principal("r", "red"), Principal("b", "blue")


async def test_a_request_is_made_once() -> None:
    """At once and later; another request with the key is refused; another group's key is another key."""
    once: Idempotency[int] = Idempotency(lambda _: 1)
    numbers = itertools.count(1)

    async def make() -> int:
        await asyncio.sleep(0.01)
        return next(numbers)

    assert await asyncio.gather(*(once.once(RED, "k", b"a", make) for _ in range(5))) == [1] * 5
    assert await once.once(RED, "k", b"a", make) == 1
    assert await once.once(BLUE, "k", b"b", make) == 2
    assert await once.once(RED, None, b"a", make) == 3
    with pytest.raises(IdempotencyError):
        await once.once(RED, "k", b"b", make)
    for key in ("", "x" * 256):
        with pytest.raises(InvalidInputError):
            await once.once(RED, key, b"a", make)


async def test_what_failed_is_made_again_and_what_lost_its_client_goes_on() -> None:
    once: Idempotency[int] = Idempotency(lambda _: 1)

    async def fail() -> int:
        raise StoreError("full.")

    async def make() -> int:
        await asyncio.sleep(0.05)
        return 7

    with pytest.raises(StoreError):
        await once.once(RED, "k", b"a", fail)
    client = asyncio.create_task(once.once(RED, "k", b"a", make))
    await asyncio.sleep(0.01)
    client.cancel()
    assert await once.once(RED, "k", b"a", fail) == 7


@pytest.mark.parametrize(("many", "size"), [(10_050, 1), (40, 1024 * 1024)])
async def test_no_group_makes_another_ones_answers_be_forgotten(many: int, size: int) -> None:
    """Neither by the number of its keys nor by the size of its answers; its own oldest ones go."""
    once: Idempotency[int] = Idempotency(lambda _: size)
    numbers = itertools.count(1)

    async def make() -> int:
        return next(numbers)

    first = await once.once(BLUE, "k", b"a", make)
    own = await once.once(RED, "k0", b"a", make)
    for number in range(1, many):
        await once.once(RED, f"k{number}", b"a", make)
    assert await once.once(BLUE, "k", b"a", make) == first
    assert await once.once(RED, "k0", b"a", make) != own
