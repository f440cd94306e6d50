"""Measures what an attack costs others: this process's memory and loop, a neighbour's latency, the engine's CPU."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator.limits import MIB

if TYPE_CHECKING:
    from orchestrator.isolation.subject import Subject

_TICK = 0.005  # seconds between two samples of memory and loop latency
_DAEMONS = ("dockerd", "containerd")  # prefixes of process names; they include the shims
_QUIET_CELLS = 200  # that the neighbour runs without an attack; the p99 is the third slowest
_SLOWER = 2.0  # how many times its quiet p99 a neighbour's p99 may reach
_LAST_CELL = 30.0  # seconds that the neighbour's last cell may take


@dataclass
class Cost:
    """What an attack cost while it ran.

    Attributes:
        memory: bytes by which this process's resident memory grew at its peak.
        stall: seconds of the longest turn of the event loop, in wall-clock time.
        loop_cpu: CPU seconds of the loop's thread in its longest turn. The loop did not cause a stall longer than this.
        latencies: seconds that each of the neighbour's cells took.
        errors: messages that reached the loop's exception handler, and failures of the measurement.
    """

    memory: int = 0
    stall: float = 0.0
    loop_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def slowdown(self, quiet: float) -> list[str]:
        """Return a fault if the neighbour's p99 is more than twice ``quiet``, its p99 without an attack in seconds."""
        if self.p99 <= _SLOWER * quiet or not self.latencies:
            return []
        return [f"neighbour p99 {1000 * self.p99:.1f} ms, {1000 * quiet:.1f} ms before"]

    @property
    def p99(self) -> float:
        """The 99th percentile of the neighbour's latencies, in seconds."""
        return quantile(self.latencies, 0.99)

    def add(self, other: Cost) -> None:
        """Add the cost of another attack: keep the maxima, join the latencies and the errors."""
        self.memory = max(self.memory, other.memory)
        self.stall = max(self.stall, other.stall)
        self.loop_cpu = max(self.loop_cpu, other.loop_cpu)
        self.latencies += other.latencies
        self.errors += other.errors

    def describe(self) -> str:
        said = f"+{self.memory / MIB:.0f} MiB, stall {1000 * self.stall:.0f} ms ({1000 * self.loop_cpu:.0f} of CPU)"
        return said + (f", neighbour p99 {1000 * self.p99:.0f} ms" if self.latencies else "")


@contextlib.asynccontextmanager
async def watch(neighbour: Subject | None = None) -> AsyncIterator[Cost]:
    """Measure the cost while the body runs. Meanwhile the neighbour runs one cell after another."""
    gc.collect()
    loop, cost, over = asyncio.get_running_loop(), Cost(), asyncio.Event()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: cost.errors.append(str(context.get("message"))))
    tasks = [asyncio.create_task(_watch_process(cost, over))]
    if neighbour is not None:
        tasks.append(asyncio.create_task(_cells(neighbour, cost.latencies, over.is_set)))
    try:
        yield cost
    finally:
        over.set()
        _, late = await asyncio.wait(tasks, timeout=_LAST_CELL)
        for task in late:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                cost.errors.append(f"{type(result).__name__}: {result}")
        loop.set_exception_handler(handler)


async def quiet_p99(neighbour: Subject) -> float:
    """Return the p99 in seconds of the neighbour's cells without an attack. It is measured once and kept."""
    if not neighbour.quiet_p99:
        latencies: list[float] = []
        await _cells(neighbour, latencies, lambda: len(latencies) >= _QUIET_CELLS)
        neighbour.quiet_p99 = quantile(latencies, 0.99)
    return neighbour.quiet_p99


async def _watch_process(cost: Cost, over: asyncio.Event) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    while not over.is_set():
        cost.memory = max(cost.memory, process.memory_info().rss - before)
        begun, cpu = time.monotonic(), time.thread_time()
        await asyncio.sleep(_TICK)
        cost.stall = max(cost.stall, time.monotonic() - begun - _TICK)
        cost.loop_cpu = max(cost.loop_cpu, time.thread_time() - cpu)


async def _cells(neighbour: Subject, latencies: list[float], over: Callable[[], bool]) -> None:
    while not over():
        begun = time.monotonic()
        result = await neighbour.run("1 + 1")
        if result.result != "2":
            raise RuntimeError(f"a neighbour's cell ended as {result.outcome}")
        latencies.append(time.monotonic() - begun)


def daemon_cpu() -> dict[int, float] | None:
    """Return the CPU seconds so far of the engine's processes and shims, by pid; None if they are not visible."""
    found: dict[int, float] = {}
    for process in _daemons():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found or None


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Return the CPU seconds used between two results of ``daemon_cpu``."""
    return sum(seconds - before.get(pid, seconds) for pid, seconds in after.items())


def processes_of(container_id: str) -> list[str]:
    """Return the names of host processes with the container's id in their arguments: its shim and its sandbox."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        info: dict[str, Any] = process.info
        if any(container_id in argument for argument in info["cmdline"] or ()):
            found.append(str(info["name"]))
    return sorted(found)


def _daemons() -> Iterable[psutil.Process]:
    return (process for process in psutil.process_iter(["name"]) if (process.info["name"] or "").startswith(_DAEMONS))


def quantile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` of ``values`` lie; NaN if ``values`` is empty."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else math.nan
