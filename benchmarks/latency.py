"""What isolation costs: a trivial cell, and the lease of a warm kernel, beside a plain local ipykernel over ipc.

Run it with ``make bench``. All subjects take turns in one run, so that a noisy machine is noisy for all of them; the
figures to quote are the ratios of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator import AgentKernelManager, KernelResourceLimits, Settings
from orchestrator.container.engine import connect, gvisor_fault

BASELINE = "local ipykernel (ipc)"
CODE = "1 + 1"
WARM_UP = 20  # executes of each subject that are not counted
SETTLE = 1.0  # seconds of quiet before each lease, in which the pool has refilled

Execute = Callable[[], Awaitable[None]]
console = Console()


@asynccontextmanager
async def local_kernel() -> AsyncIterator[Execute]:
    """A stock ipykernel and a stock client, as ``jupyter_client`` starts them. Done means: idle and reply."""
    manager = AsyncKernelManager(transport="ipc")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)

    async def execute() -> None:
        request = client.execute(CODE)
        while True:
            message = await client.get_iopub_msg(timeout=30)
            mine = message["parent_header"].get("msg_id") == request
            if mine and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        await client.get_shell_msg(timeout=30)

    try:
        yield execute
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        manager.cleanup_connection_file()


@asynccontextmanager
async def sandboxed_kernel(runtime: str) -> AsyncIterator[Execute]:
    async with (
        manager_on(runtime, warm=0) as manager,
        manager.acquire_kernel("bench", timeout=60) as (_kernel, session),
    ):

        async def execute() -> None:
            assert (await manager.execute_code(session, CODE))["result"] == "2"

        yield execute


def manager_on(runtime: str, *, warm: int) -> AgentKernelManager:
    """A manager with the CPU share of a whole core: the baseline has no limit at all."""
    settings = Settings.load().model_copy(update={"runtime": runtime, "warm_kernels": warm})
    return AgentKernelManager(
        max_kernels=2, settings=settings, resource_limits=KernelResourceLimits(max_cpu_percent=100)
    )


async def measure_executes(runtimes: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of every execute, by subject."""
    async with AsyncExitStack() as stack:
        subjects = {BASELINE: await stack.enter_async_context(local_kernel())}
        for runtime in runtimes:
            subjects[runtime] = await stack.enter_async_context(sandboxed_kernel(runtime))
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        for number in track(range(WARM_UP + rounds), "executes", console=console):
            for name, execute in subjects.items():
                begun = time.perf_counter()
                await execute()
                if number >= WARM_UP:
                    seconds[name].append(time.perf_counter() - begun)
    return seconds


async def measure_leases(runtime: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of: lease of a warm kernel and its first result; and, right after it, a later execute on it."""
    leases, executes = [], []
    async with manager_on(runtime, warm=1) as manager:
        for number in track(range(rounds), f"leases under {runtime}", console=console):
            while manager.pool.available_count < 1:
                await asyncio.sleep(0.05)
            await asyncio.sleep(SETTLE)
            agent = f"agent-{number}"
            begun = time.perf_counter()
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                await manager.execute_code(session, CODE)
                leases.append(time.perf_counter() - begun)
                for _ in range(5):
                    begun = time.perf_counter()
                    await manager.execute_code(session, CODE)
                    executes.append(time.perf_counter() - begun)
            await manager.end_session(agent)
    return leases, executes


def report(executes: dict[str, list[float]], leases: dict[str, tuple[list[float], list[float]]]) -> dict[str, object]:
    """Print the tables, and return the figures."""
    base = statistics.median(executes[BASELINE])
    figures: dict[str, object] = {}
    table = Table("trivial execute", "p50 ms", "p90 ms", "p99 ms", "p50 ratio to baseline", title_justify="left")
    for name, seconds in executes.items():
        p50, p90, p99 = (1000 * quantile(seconds, share) for share in (0.5, 0.9, 0.99))
        ratio = p50 / (1000 * base)
        table.add_row(name, f"{p50:.2f}", f"{p90:.2f}", f"{p99:.2f}", f"{ratio:.2f}")
        figures[f"execute {name}"] = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "ratio": ratio}
    console.print(table)
    table = Table("lease of a warm kernel and first result", "p50 ms", "p90 ms", "ratio to an execute on it")
    for name, (lease, execute) in leases.items():
        p50, p90 = 1000 * quantile(lease, 0.5), 1000 * quantile(lease, 0.9)
        ratio = p50 / (1000 * statistics.median(execute))
        table.add_row(name, f"{p50:.2f}", f"{p90:.2f}", f"{ratio:.2f}")
        figures[f"lease {name}"] = {"p50_ms": p50, "p90_ms": p90, "ratio": ratio}
    console.print(table)
    return figures


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def engine_runtimes() -> list[str]:
    client = connect(30)
    try:
        return ["runc"] if gvisor_fault(client.info()["Runtimes"]) else ["runc", "runsc"]
    finally:
        client.close()


async def main() -> None:
    """Measure, print and, if asked to, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="executes of each subject")
    parser.add_argument("--leases", type=int, default=20, help="leases under each runtime")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    runtimes = engine_runtimes()
    executes = await measure_executes(runtimes, options.rounds)
    leases = {runtime: await measure_leases(runtime, options.leases) for runtime in runtimes}
    figures = report(executes, leases)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
