"""Backoff: an agent whose kernels keep dying waits longer and longer for its next fresh kernel.

A fresh kernel costs most of a core-second: its start, and the removal of the dead one. A cell that kills its kernel, in
a loop, would take most of a machine from the other agents. The first two deaths cost no wait; after that the wait
doubles from 0.5 s to 30 s, so that one agent's loop takes about 3 % of a core. A kernel that was used for ten seconds
before it died ends the streak.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import KernelPoolExhaustedError, ManagerClosedError
from orchestrator.limits import Deadline

FREE = 2  # deaths in a row that cost no wait: a mistake, and its repetition
_FIRST = 0.5  # seconds, after the first death beyond those; doubled with each further one
_LONGEST = 30.0  # seconds
_PROVEN = 10.0  # seconds that a kernel must serve for its death to begin a new streak; a good cell alone is cheap
_FORGOTTEN = 300.0  # seconds after which a streak is over: a later death begins a new one
_REMEMBERED = 10_000  # agents


@dataclass(slots=True)
class _Streak:
    """Deaths in a row, and when the agent may have its next kernel, in monotonic seconds."""

    deaths: int = 0
    not_before: float = 0.0


class Backoff:
    """The waits of one manager's agents.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._streaks: dict[str, _Streak] = {}  # the last to die last
        self._closed = asyncio.Event()

    def died(self, agent_id: str, served_s: float) -> float:
        """Note that a kernel of the agent died by itself. Return how many seconds its next one has to wait.

        Args:
            served_s: for how many seconds the agent had it.
        """
        streak = self._streaks.pop(agent_id, None) or _Streak()
        over = served_s >= _PROVEN or self._clock() > streak.not_before + _FORGOTTEN
        streak.deaths = 1 if over else streak.deaths + 1
        beyond = streak.deaths - FREE
        wait = 0.0 if beyond <= 0 else min(_FIRST * 2.0 ** min(beyond - 1, 20), _LONGEST)
        streak.not_before = self._clock() + wait
        self._streaks[agent_id] = streak
        if len(self._streaks) > _REMEMBERED:
            del self._streaks[next(iter(self._streaks))]
        return wait

    def forgive(self, agent_id: str) -> None:
        """Forget the agent's deaths: the last one was not its own doing."""
        self._streaks.pop(agent_id, None)

    def waits(self) -> dict[str, float]:
        """Return the agents that would have to wait now, each with the seconds."""
        now = self._clock()
        return {agent: streak.not_before - now for agent, streak in self._streaks.items() if streak.not_before > now}

    def close(self) -> None:
        """Refuse those who wait, and all later callers that would."""
        self._closed.set()

    async def wait(self, agent_id: str, deadline: Deadline | None, max_kernels: int) -> None:
        """Wait until the agent may have a fresh kernel.

        Raises:
            KernelPoolExhaustedError: that takes longer than the deadline; raised at once.
            ManagerClosedError: ``close`` was called.
        """
        streak = self._streaks.get(agent_id)
        seconds = 0.0 if streak is None else streak.not_before - self._clock()
        if streak is None or seconds <= 0:
            return
        if deadline is not None and deadline.remaining() < seconds:
            raise KernelPoolExhaustedError(
                f"the last {streak.deaths} kernels of agent {agent_id!r} died soon after their lease; it may have its "
                f"next one in {seconds:.1f} s.",
                max_kernels=max_kernels,
                waited=0.0,
                reason="backoff",
                expected_wait=seconds,
                remedy="Find out from the last results why the kernels died, and try again after that time.",
            )
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise ManagerClosedError
