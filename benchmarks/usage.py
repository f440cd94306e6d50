"""Measures the cost of monitoring: 100 idle kernels, each sampled once a second by the manager.

Run it with ``make usage``. The figure is the CPU time of the whole host process, which includes the sampling.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.subjects import data_folder
from orchestrator import AgentKernelManager, KernelResourceLimits, Settings

BOUND = 3.0  # percent of a core
ROUNDS = 6
ROUND = 10.0  # seconds per round
START = 900.0  # seconds until all kernels must be ready

console = Console()


async def measure(runtime: str, kernels: int) -> list[float]:
    """Return the percentage of a core that the host process used in each round."""
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": kernels, "audit_log": "off", "data_dir": data_folder(runtime)}
    )
    limits = KernelResourceLimits(max_memory_mb=200)  # 100 kernels fit on a host with 24 GiB
    taken: list[float] = []
    async with AgentKernelManager(max_kernels=kernels, resource_limits=limits, settings=settings) as manager:
        with Progress(console=console, transient=True) as shown:
            task = shown.add_task(f"{kernels} kernels under {runtime}", total=kernels)
            async with asyncio.timeout(START):
                while (overview := manager.overview())["pool"]["ready"] < kernels:
                    shown.update(task, completed=overview["pool"]["ready"])
                    await asyncio.sleep(1)
            task = shown.add_task("measuring", total=ROUNDS)
            await asyncio.sleep(ROUND)
            for _ in range(ROUNDS):
                cpu, begun = time.process_time(), time.monotonic()
                await asyncio.sleep(ROUND)
                taken.append(100 * (time.process_time() - cpu) / (time.monotonic() - begun))
                shown.advance(task)
        overview = manager.overview()
        assert all(kernel["usage"] for kernel in overview["kernels"]), "a kernel was not sampled"
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.usage --kernels 10")
    parser.add_argument("--kernels", type=int, default=100, help="idle kernels (default: %(default)s)")
    parser.add_argument("--runtime", default="runc", help="default: %(default)s")
    arguments = parser.parse_args()
    taken = asyncio.run(measure(arguments.runtime, arguments.kernels))
    table = Table(
        "kernels",
        "runtime",
        "median",
        "worst",
        "bound",
        title="% of one core (lower is better)",
    )
    median, worst = statistics.median(taken), max(taken)
    table.add_row(str(arguments.kernels), arguments.runtime, f"{median:.2f}", f"{worst:.2f}", f"{BOUND:g}")
    console.print(table)
    return int(median > BOUND)


if __name__ == "__main__":
    run_main(main)
