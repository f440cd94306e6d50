"""Interruption: interrupts what a kernel runs, first over control, then from outside, and kills the kernel at last.

Work in a kernel (a cell, the saving or loading of a state, the cell of a dead orchestrator) is stopped in these
steps:

1. At once the kernel is asked over its control channel.
2. Each second after that, the engine sends its process a SIGINT: the first interrupt may have come before the work had
   begun, or the control thread cannot run since C code holds the interpreter's lock.
3. After the grace period the kernel is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

AGAIN = 1.0  # seconds between two interrupts
GRACE = 3.0  # seconds from the first interrupt to the kill; an interrupt took 0.02 to 0.23 s
STRAY = 2.0  # seconds to wait for an unanswered interrupt after the work has ended: it could hit what comes next


class Interruptible(Protocol):
    """The part of ``Kernel`` that is needed here."""

    async def interrupt(self) -> None:
        """See ``Kernel.interrupt``."""

    async def interrupt_from_outside(self) -> None:
        """See ``Kernel.interrupt_from_outside``."""


class Interruption:
    """Interrupts one piece of work of a kernel. Used once; does nothing before ``interrupt`` or ``stop``.

    Args:
        runs: called before each step; returns whether the work still runs.
        on_answer: called each time that an interrupt was answered, failed or was cancelled.
    """

    def __init__(
        self, kernel: Interruptible, runs: Callable[[], bool], on_answer: Callable[[], None] = lambda: None
    ) -> None:
        self._kernel = kernel
        self._runs = runs
        self._on_answer = on_answer
        self._loop = asyncio.get_running_loop()
        self._sent: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._settling = False

    def interrupt(self) -> None:
        """Interrupt once over control, and once more from outside if the kernel has not answered after ``AGAIN``."""
        asked = self._send(self._kernel.interrupt())
        self._later(AGAIN, self._interrupt_again_unless, asked)

    def stop(self, kill: Callable[[], None] | None) -> None:
        """Interrupt until the work has ended.

        Args:
            kill: called when it still runs after ``GRACE``; None: never, since the caller has a deadline of its own.
        """
        self._send(self._kernel.interrupt())
        self._later(AGAIN, self._interrupt_again)
        if kill is not None:
            self._later(GRACE, self._kill, kill)

    @property
    def is_pending(self) -> bool:
        """Whether an interrupt was sent and has not been answered."""
        return bool(self._sent)

    def settle(self) -> None:
        """Send no more, and cancel after ``STRAY`` what is not answered by then. Call it when the work has ended."""
        if self._settling:
            return
        self._settling = True
        self._cancel_timers()
        if self._sent:
            self._later(STRAY, self._cancel_sent)

    async def settled(self) -> None:
        """Call ``settle`` and wait until no interrupt is pending, at most ``STRAY`` seconds."""
        self.settle()
        if self._sent:
            await asyncio.wait(set(self._sent))

    def cancel(self) -> None:
        """Send no more, and wait for nothing. Idempotent."""
        self._settling = True
        self._cancel_timers()
        self._cancel_sent()

    def _interrupt_again(self) -> None:
        if self._runs():
            self._send(self._kernel.interrupt_from_outside())
            self._later(AGAIN, self._interrupt_again)

    def _interrupt_again_unless(self, asked: asyncio.Task[None]) -> None:
        if self._runs() and not asked.done():
            self._send(self._kernel.interrupt_from_outside())

    def _kill(self, kill: Callable[[], None]) -> None:
        if self._runs():
            kill()

    def _send(self, interrupt: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(interrupt)
        self._sent.add(task)
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._sent.discard(task)
        self._on_answer()

    def _later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        self._timers.append(self._loop.call_later(seconds, callback, *args))

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _cancel_sent(self) -> None:
        for task in self._sent:
            task.cancel()
