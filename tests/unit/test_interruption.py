"""The steps in which a kernel's work is stopped: over control, from outside each second, and killed at last."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from orchestrator.kernel.interruption import AGAIN, GRACE, STRAY, Interruption


class Deaf:
    """A kernel that notes when it is interrupted, and answers over control when it is told to."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.steps: list[tuple[str, int]] = []  # each with the seconds that it came after
        self.answer = asyncio.Event()

    def note(self, step: str) -> None:
        self.steps.append((step, round(time.monotonic() - self.begun)))

    async def interrupt(self) -> None:
        self.note("control")
        await self.answer.wait()

    async def interrupt_from_outside(self) -> None:
        self.note("outside")

    def kill(self) -> None:
        self.note("kill")


async def test_work_that_ignores_every_interrupt_is_killed_after_the_grace_period() -> None:
    """Once over control, then each second from outside. After the kill nothing follows."""
    kernel = Deaf()
    runs = [True]

    def kill() -> None:
        kernel.kill()
        runs.clear()

    interruption = Interruption(kernel, lambda: bool(runs))
    interruption.stop(kill)
    await asyncio.sleep(GRACE + AGAIN + 0.2)
    outside = [("outside", number) for number in range(1, int(GRACE / AGAIN))]
    assert [step for step in kernel.steps if step != ("outside", int(GRACE))] == [("control", 0), *outside, ("kill", 3)]
    interruption.cancel()


async def test_work_that_ends_is_neither_interrupted_again_nor_killed() -> None:
    kernel = Deaf()
    kernel.answer.set()
    runs = [True]
    interruption = Interruption(kernel, lambda: bool(runs))
    interruption.stop(kernel.kill)
    await asyncio.sleep(0.05)
    runs.clear()
    await asyncio.sleep(AGAIN + 0.1)
    assert kernel.steps == [("control", 0)]
    assert not interruption.is_pending


async def test_without_a_kill_it_goes_on_interrupting() -> None:
    """Its caller has a deadline of its own, and cancels it."""
    kernel = Deaf()
    interruption = Interruption(kernel, lambda: True)
    interruption.stop(None)
    await asyncio.sleep(2 * AGAIN + 0.1)
    interruption.cancel()
    await asyncio.sleep(AGAIN + 0.1)
    assert kernel.steps == [("control", 0), ("outside", 1), ("outside", 2)]
    assert not interruption.is_pending


async def test_one_interrupt_is_repeated_from_outside_only_when_it_is_not_answered() -> None:
    """The control thread may be unable to run; one that has answered is not interrupted twice."""
    for answers, steps in ((True, [("control", 0)]), (False, [("control", 0), ("outside", 1)])):
        kernel = Deaf()
        if answers:
            kernel.answer.set()
        interruption = Interruption(kernel, lambda: True)
        interruption.interrupt()
        await asyncio.sleep(AGAIN + 0.1)
        assert kernel.steps == steps
        interruption.cancel()


async def test_a_pending_interrupt_is_waited_for_and_then_cancelled() -> None:
    """It could hit what the kernel runs next; ``on_answer`` is called in either case."""
    for seconds, longest in ((0.1, 0.5), (None, STRAY + 0.5)):
        kernel, answers = Deaf(), list[bool]()
        interruption = Interruption(kernel, lambda: False, on_answer=partial(answers.append, True))
        interruption.interrupt()
        await asyncio.sleep(0)
        assert interruption.is_pending
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, kernel.answer.set)
        begun = time.monotonic()
        await interruption.settled()
        assert (seconds or STRAY) - 0.05 <= time.monotonic() - begun < longest
        await asyncio.sleep(0)
        assert not interruption.is_pending
        assert answers == [True]


async def test_what_has_settled_sends_no_more() -> None:
    """Neither the repeated interrupt nor the kill, though the work is said to run again."""
    kernel = Deaf()
    kernel.answer.set()
    interruption = Interruption(kernel, lambda: True)
    interruption.stop(kernel.kill)
    await interruption.settled()
    interruption.settle()
    await asyncio.sleep(AGAIN + 0.1)
    assert kernel.steps == [("control", 0)]
