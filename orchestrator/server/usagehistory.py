"""UsageHistory: the memory and CPU use of every kernel over the last hour, in memory, for the dashboard."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.limits import MIB
from orchestrator.manager import AgentKernelManager

INTERVAL = 5.0  # seconds between two points
_POINTS = 720  # of each kernel: one hour
_MOST = 256  # kernels, also those that have ended
Point = tuple[float, float, float]
"""The wall clock's time in seconds, MiB of memory, percent of one core."""


@dataclass
class _Series:
    kernel_id: str
    policy: str
    agent_id: str = ""
    session_id: str = ""
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=_POINTS))

    def as_dict(self, after: float) -> dict[str, Any]:
        return {
            "kernel_id": self.kernel_id,
            "policy": self.policy,
            "agent": self.agent_id,
            "session": self.session_id,
            "points": [point for point in self.points if point[0] > after],
        }


class UsageHistory:
    """The points of each kernel. A kernel that has ended stays until its last point is an hour old.

    Args:
        managers: returns the managers whose kernels are measured; their monitors have the samples.
    """

    def __init__(self, managers: Callable[[], Iterable[AgentKernelManager]]) -> None:
        self._managers = managers
        self._series: OrderedDict[str, _Series] = OrderedDict()  # the one measured longest ago first

    async def run(self) -> None:
        """Note a point of each kernel every 5 s, until cancelled."""
        while True:
            self.note(time.time())
            await asyncio.sleep(INTERVAL)

    def note(self, now: float) -> None:
        """Note a point of each kernel, and forget what is too old."""
        for manager in self._managers():
            sessions = {session.kernel_id: session for session in manager.sessions.values()}
            for kernel_id, sample in manager.monitor.latest.items():
                series = self._series.setdefault(kernel_id, _Series(kernel_id, manager.settings.policy))
                if (session := sessions.get(kernel_id)) is not None:
                    series.agent_id, series.session_id = session.agent_id, session.session_id
                series.points.append((round(now, 1), round(sample.usage.memory / MIB, 1), round(sample.cpu_percent, 1)))
                self._series.move_to_end(kernel_id)
        oldest = now - INTERVAL * _POINTS
        for series in list(self._series.values()):
            if len(self._series) <= _MOST and series.points[-1][0] >= oldest:
                break
            del self._series[series.kernel_id]

    def as_list(self, group: str | None, after: float) -> list[dict[str, Any]]:
        """Return the series with the points after a moment, of one group's sessions; None: of all kernels."""
        return [
            series.as_dict(after)
            for series in self._series.values()
            if series.points[-1][0] > after and (group is None or series.agent_id.startswith(f"{group}:"))
        ]
