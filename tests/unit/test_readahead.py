"""Generators that are read ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from orchestrator.server.readahead import ReadAhead


class Source:
    """Yields numbers, and then waits, ends or fails.

    Attributes:
        yielded: how many numbers it has yielded.
        closed: whether it was unwound.
    """

    def __init__(self, count: int, last: Exception | asyncio.Event | None = None) -> None:
        self.yielded = 0
        self.closed = False
        self._count, self._last = count, last

    async def numbers(self) -> AsyncGenerator[int, None]:
        try:
            while self.yielded < self._count:
                self.yielded += 1
                yield self.yielded
            if isinstance(self._last, Exception):
                raise self._last
            if self._last is not None:
                await self._last.wait()
        finally:
            self.closed = True


async def all_of(ahead: ReadAhead[int]) -> list[list[int]]:
    """Return what each call of ``take`` has returned."""
    found = []
    while await ahead.come(20) and (come := ahead.take()):
        found.append(come)
    return found


async def test_what_has_come_is_taken_at_once_and_no_more_is_read_ahead() -> None:
    """In order, and nothing twice. A source that is not taken from stands still, and is closed at the end."""
    source = Source(100)
    async with ReadAhead(source.numbers()) as ahead:
        for _ in range(20):
            await asyncio.sleep(0)
        assert source.yielded == 16
        found = await all_of(ahead)
    assert [number for each in found for number in each] == list(range(1, 101))
    assert len(found) <= 8
    left = Source(100)
    async with ReadAhead(left.numbers()) as ahead:
        assert await ahead.come(20)
    assert left.closed


async def test_it_is_over_when_the_first_source_is() -> None:
    """Another one may wait for ever, or end before; it is cancelled, and unwound."""
    asked = Source(1, asyncio.Event())
    async with ReadAhead(Source(2).numbers(), asked.numbers()) as ahead:
        assert sorted(number for each in await all_of(ahead) for number in each) == [1, 1, 2]
    assert asked.closed
    async with ReadAhead(Source(3).numbers(), Source(0).numbers()) as ahead:
        assert await all_of(ahead) == [[1, 2, 3]]


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError("of the source")])
async def test_an_error_of_a_source_comes_after_what_came_before_it(error: Exception) -> None:
    async with ReadAhead(Source(2, error).numbers()) as ahead:
        assert await ahead.come(20)
        assert ahead.take() == [1, 2]
        assert await ahead.come(20)
        with pytest.raises(type(error), match=str(error)):
            ahead.take()
    async with ReadAhead(Source(0, asyncio.Event()).numbers(), Source(0, error).numbers()) as ahead:
        assert await ahead.come(20)
        with pytest.raises(type(error), match=str(error)):
            ahead.take()


async def test_nothing_may_come_for_a_while() -> None:
    """The wait ends, and goes on later with nothing lost."""
    more = asyncio.Event()

    async def slow() -> AsyncGenerator[int, None]:
        await more.wait()
        yield 1

    async with ReadAhead(slow()) as ahead:
        assert not await ahead.come(0.01)
        more.set()
        assert await all_of(ahead) == [[1]]
