"""What a cell of one agent costs while another agent's cells write much to the history: p50 and p99 in milliseconds."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from benchmarks.subjects import READY, Run, engine_runtimes, manager_on, runner

_PAUSE = 0.02  # seconds between two cells of the neighbour
FLOODS = {
    "190 displays of 40 KB": "for i in range(190): display({'text/plain': str(i) + 'x' * 40_000}, raw=True)",
    "300 Latin-1 pieces of 30 KB": "for i in range(300): display({'text/plain': str(i) + chr(233) * 30_000}, raw=True)",
}


async def _neighbour(run: Run, seconds: float) -> list[float]:
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        await run("1")
        took.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(_PAUSE)
    return took


async def _loop(run: Run, code: str) -> None:
    while True:
        await run(code)


def _said(took: list[float]) -> str:
    return f"p50 {statistics.median(took):.1f}, p99 {statistics.quantiles(took, n=100)[98]:.1f}"


async def measure(runtime: str, seconds: float) -> None:
    """Print the neighbour's times alone, beside an agent that prints, and beside each of the floods."""
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(manager_on(runtime, kernels=2, output_mb=64))
        runs = []
        for agent in ("neighbour", "flood"):
            _kernel, session = await stack.enter_async_context(manager.acquire_kernel(agent, timeout=READY))
            runs.append(runner(manager, session))
        neighbour, flood = runs
        await _neighbour(neighbour, 1.0)
        for name, code in {"alone": "", "a busy loop": "for i in range(3_000_000): pass", **FLOODS}.items():
            flooding = asyncio.create_task(_loop(flood, code)) if code else None
            took = await _neighbour(neighbour, seconds)
            print(f"{runtime}, {name}: {_said(took)} ms of {len(took)} cells", flush=True)
            if flooding is not None:
                flooding.cancel()
                await asyncio.wait({flooding})


def main() -> None:
    """Measure each runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runtime", action="append")
    given = parser.parse_args()
    for runtime in given.runtime or engine_runtimes():
        asyncio.run(measure(runtime, given.seconds))


if __name__ == "__main__":
    main()
