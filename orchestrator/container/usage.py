"""What a container uses. The engine measures it if this host cannot read the container's cgroup; see ``cgroup``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.container.engine import Engine


@dataclass(frozen=True, slots=True)
class Usage:
    """What one container uses at one moment.

    Attributes:
        at: seconds on the monotonic clock.
        cpu_s: seconds of CPU since the container's start.
        memory: bytes in use, without reclaimable page cache. Includes gVisor's own memory under runsc.
        rss: bytes of anonymous memory; 0 if the engine does not report it. Under runsc only gVisor's own, because
            gVisor keeps a sandbox's memory in a file.
        peak: the highest ``memory`` in bytes since the last reset or the start.
        oom_kills: processes of the container killed because it ran out of memory; 0 if the engine does not report it.
        pids: processes and threads; under runsc those of gVisor itself.
        tmpfs: bytes of the files in /work, /tmp and /dev/shm, which ``memory`` includes; None if the host cannot see
            them, as under runsc.
    """

    at: float
    cpu_s: float
    memory: int
    rss: int
    peak: int
    oom_kills: int
    pids: int
    tmpfs: int | None = None


async def engine_usage(engine: Engine, name: str) -> Usage:
    """Return what a container uses, as the engine reports it.

    Raises:
        EngineError: the engine does not answer, or the container is gone.
    """
    sample: dict[str, Any] = await engine.retry(
        lambda: engine.client.api.stats(name, decode=None, stream=False, one_shot=True)
    )
    memory = sample.get("memory_stats", {})
    details = memory.get("stats", {})
    cache = int(details.get("total_inactive_file", details.get("inactive_file", 0)))  # cgroup v1, v2
    used = int(memory.get("usage", 0))
    return Usage(
        at=time.monotonic(),
        cpu_s=float(sample.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)) / 1e9,
        memory=max(0, used - cache),
        rss=int(details.get("total_rss", details.get("anon", 0))),
        peak=max(used, int(memory.get("max_usage", 0))) - cache,
        oom_kills=0,
        pids=int(sample.get("pids_stats", {}).get("current", 0)),
    )
