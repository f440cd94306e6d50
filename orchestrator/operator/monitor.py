"""Monitor: samples the resource use of every kernel each second, and records kernels near their memory limit.

Measured with `make usage`: with 100 idle kernels the whole host process uses 1.7 % of a core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB, KernelResourceLimits

INTERVAL = 1.0  # seconds between two samples of a kernel
_SHORTEST = 0.2  # the shortest span in seconds over which CPU use is computed


@dataclass(frozen=True, slots=True)
class Sample:
    """The resource use of one kernel at one moment.

    Attributes:
        cpu_percent: percent of one core used since the previous sample.
    """

    usage: Usage
    cpu_percent: float

    def as_dict(self, limits: KernelResourceLimits) -> dict[str, Any]:
        usage = self.usage
        return {
            "memory_mb": usage.memory / MIB,
            "memory_limit_mb": limits.max_memory_mb,
            "peak_memory_mb": usage.peak / MIB,
            "rss_mb": usage.rss / MIB,
            "tmpfs_mb": None if usage.tmpfs is None else usage.tmpfs / MIB,
            "cpu_percent": self.cpu_percent,
            "cpu_limit_percent": limits.max_cpu_percent,
            "cpu_seconds": usage.cpu_s,
            "pids": usage.pids,
            "oom_kills": usage.oom_kills,
        }


class Monitor:
    """Samples the resource use of kernels.

    Args:
        kernels: returns the live kernels. ``run`` calls it before each round.
        memory_mb: the memory limit of each kernel, in MiB.
        warn_percent: the percentage of that limit from which on a kernel counts as near it.

    Attributes:
        latest: the last sample of each live kernel, by kernel id.
    """

    def __init__(self, kernels: Callable[[], Sequence[Kernel]], memory_mb: int, warn_percent: float) -> None:
        self._kernels = kernels
        self._memory_limit = memory_mb * MIB
        self._warn_from = self._memory_limit * warn_percent / 100
        self._warned: set[str] = set()
        self.latest: dict[str, Sample] = {}

    async def run(self) -> None:
        """Sample every kernel each second, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            kernels = self._kernels()
            live = {kernel.kernel_id for kernel in kernels}
            self._warned &= live
            for kernel_id in [known for known in self.latest if known not in live]:
                del self.latest[kernel_id]
            unseen = []
            for kernel in kernels:
                usage = kernel.usage()
                if usage is not None:
                    self._note(kernel, usage)
                else:
                    unseen.append(kernel)
            await asyncio.gather(*map(self._ask, unseen))

    async def sample(self, kernel: Kernel) -> Sample:
        """Measure one kernel now and return the sample.

        Raises:
            EngineError: neither the host's cgroups nor the engine can be read.
        """
        usage = await kernel.measure()
        last = self.latest.get(kernel.kernel_id)
        if last is None or usage.at - last.usage.at < _SHORTEST:
            last = self._note(kernel, usage) if last is None else last
            await asyncio.sleep(_SHORTEST)
            usage = await kernel.measure()
        return self._note(kernel, usage)

    async def _ask(self, kernel: Kernel) -> None:
        try:
            self._note(kernel, await kernel.measure())
        except EngineError:
            self.latest.pop(kernel.kernel_id, None)

    def _note(self, kernel: Kernel, usage: Usage) -> Sample:
        last = self.latest.get(kernel.kernel_id)
        span = 0.0 if last is None else usage.at - last.usage.at
        used = 0.0 if last is None else usage.cpu_s - last.usage.cpu_s
        percent = max(0.0, 100 * used / span) if span > 0 else 0.0
        sample = self.latest[kernel.kernel_id] = Sample(usage, percent)
        self._watch_memory(kernel, usage)
        return sample

    def _watch_memory(self, kernel: Kernel, usage: Usage) -> None:
        """Record in the audit log that a kernel is near its memory limit, once per approach."""
        near = usage.memory >= self._warn_from
        if near and kernel.kernel_id not in self._warned:
            self._warned.add(kernel.kernel_id)
            kernel.note("kernel.near_memory_limit", memory=usage.memory, limit=self._memory_limit)
        elif not near:
            self._warned.discard(kernel.kernel_id)
