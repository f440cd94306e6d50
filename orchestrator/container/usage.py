"""What the engine measures of one container."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from orchestrator.container.engine import Engine
from orchestrator.limits import MEGABYTE

_SPAN = 0.2  # seconds between the two samples that CPU use is computed from


async def resource_usage(engine: Engine, name: str) -> dict[str, Any]:
    """Sample a container twice and return:

    ``memory_mb`` (page cache left out where the cgroup tells it), ``memory_limit_mb``, ``cpu_percent`` (of one core,
    over the last 0.2 s), ``cpu_seconds`` (since its start) and ``pids``.

    Raises:
        EngineError: the engine does not answer, or the container is gone.
    """
    first, started = await _sample(engine, name), time.monotonic()
    await asyncio.sleep(_SPAN)
    last, span = await _sample(engine, name), time.monotonic() - started
    memory = last.get("memory_stats", {})
    cpu = _cpu_seconds(last)
    return {
        "memory_mb": (memory.get("usage", 0) - _cache(memory.get("stats", {}))) / MEGABYTE,
        "memory_limit_mb": memory.get("limit", 0) / MEGABYTE,
        "cpu_percent": max(0.0, 100 * (cpu - _cpu_seconds(first)) / span),
        "cpu_seconds": cpu,
        "pids": last.get("pids_stats", {}).get("current", 0),
    }


async def _sample(engine: Engine, name: str) -> dict[str, Any]:
    sample: dict[str, Any] = await engine.retry(
        lambda: engine.client.api.stats(name, decode=None, stream=False, one_shot=True)
    )
    return sample


def _cpu_seconds(sample: dict[str, Any]) -> float:
    return float(sample.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)) / 1e9


def _cache(stats: dict[str, Any]) -> int:
    """Reclaimable page cache: cgroup v1 and v2 name it differently."""
    return int(stats.get("total_inactive_file", stats.get("inactive_file", 0)))
