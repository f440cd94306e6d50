"""Refill: starts kernels, at once for callers that wait, and a little later to keep the pool warm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from orchestrator.kernel.kernel import Kernel
from orchestrator.pool.scheduler import Room

_LONGEST_DELAY = 60.0  # seconds between two attempts to refill while every start fails


class Refill:
    """Starts kernels, bounded by the room on the host.

    Args:
        start: starts a kernel; None: the pool has only the kernels that are added to it.
        delay: seconds from a lease to the start of its successor; doubled after each start that fails.
        has_waiters: whether a caller waits; if none does, a new kernel runs its first cells before it is ready.
        started: called with each kernel that is ready, no longer counted in ``starting``.
        failed: called with the error of each start that fails.
        ended: called after each start, for the next decision.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Kernel]] | None,
        delay: float,
        *,
        has_waiters: Callable[[], bool],
        started: Callable[[Kernel], None],
        failed: Callable[[Exception], None],
        ended: Callable[[], None],
    ) -> None:
        self._start = start
        self._delay = delay
        self._has_waiters = has_waiters
        self._started = started
        self._failed = failed
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # monotonic seconds; no kernel is started ahead of need before
        self._failures = 0  # starts that failed in a row

    @property
    def can_start(self) -> bool:
        return self._start is not None

    @property
    def starting(self) -> int:
        """How many kernels are starting."""
        return len(self._tasks)

    def put_off(self, seconds: float | None = None) -> None:
        """Start no kernel ahead of need for so many seconds, by default ``delay``. Calls in a row do not add up."""
        now = time.monotonic()
        if now >= self._not_before:
            self._not_before = now + (self._delay if seconds is None else seconds)

    def balance(self, room: Room, *, waiting: int, ready: int, fresh: int, warm: int) -> None:
        """Start the kernels that are wanted and fit.

        Args:
            waiting: callers that may have a kernel now.
            ready: kernels that are ready; ``fresh`` of them are not too old.
            warm: how many to keep ready.
        """
        if self._start is None:
            return
        begun = self._start_up_to(min(waiting - ready - self.starting, room.kernels), room.at_once)
        missing = min(waiting + warm - fresh - self.starting, room.kernels - begun)
        delay = self._not_before - time.monotonic()
        if missing > 0 and delay <= 0:
            self._start_up_to(missing, room.ahead)
        elif missing > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    async def close(self) -> None:
        """Cancel the starts, and wait until they have ended."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _timer_fired(self) -> None:
        self._timer = None
        self._ended()

    def _start_up_to(self, wanted: int, at_once: int) -> int:
        count = max(0, min(wanted, at_once - self.starting))
        for _ in range(count):
            task = asyncio.get_running_loop().create_task(self._start_one())
            self._tasks.add(task)
            task.add_done_callback(self._task_ended)
        return count

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ended()

    async def _start_one(self) -> None:
        try:
            kernel = await self._start_counted()
        except Exception as error:  # noqa: BLE001 - a caller waits for this kernel and must hear of any error
            self._failures = min(self._failures + 1, 10)
            self.put_off(min(self._delay * 2**self._failures, _LONGEST_DELAY))
            self._failed(error)
            return
        self._failures = 0
        self._started(kernel)

    async def _start_counted(self) -> Kernel:
        """Start a kernel. Stop counting it as starting once it is ready."""
        assert self._start is not None
        try:
            kernel = await self._start()
            if not self._has_waiters():
                await _warm_up(kernel)
            return kernel
        finally:
            self._tasks.discard(asyncio.current_task())


async def _warm_up(kernel: Kernel) -> None:
    try:
        await kernel.warm_up()
    except BaseException:
        await kernel.stop()
        raise
