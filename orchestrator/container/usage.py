"""What a container uses, as the engine measures it: for hosts whose cgroups cannot be read. See ``cgroup``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.container.engine import Engine


@dataclass(frozen=True, slots=True)
class Usage:
    """One container at one moment.

    Attributes:
        at: seconds on the monotonic clock.
        cpu_s: seconds of CPU since its start.
        memory: bytes in use, reclaimable page cache left out. Under gVisor its own are among them.
        rss: bytes of anonymous memory; 0 where the engine does not say. gVisor keeps a sandbox's memory in a file of
            its own, so that under runsc this is gVisor's alone.
        peak: bytes, the highest ``memory`` since it was last reset, or since the start.
        oom_kills: processes in it that were killed for want of memory; 0 where the engine does not say.
        pids: processes and threads; under runsc those of gVisor itself.
        tmpfs: bytes of the files in /work, /tmp and /dev/shm, which ``memory`` has too; None where only the sandbox
            could say, as under runsc.
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
    """Ask the engine.

    Raises:
        EngineError: it does not answer, or the container is gone.
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
