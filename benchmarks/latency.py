"""Measures the cost of isolation, compared with a stock local kernel: cells, leases, starts, outputs and memory.

Run it with ``make bench``. All subjects take turns in one run, so that load on the machine affects all of them. Quote
the ratios of the medians, as the range of three runs. ``--only`` selects one measure.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
from rich.progress import track

from benchmarks.command import run_main
from benchmarks.figures import Report, console, show_ranges
from benchmarks.plot import draw
from benchmarks.subjects import (
    BASELINE,
    READY,
    Run,
    engine_runtimes,
    manager_on,
    runner,
    sandboxed_kernel,
    stock_kernel,
)

CODE = "1 + 1"
WARM_UP = 20  # executes of each subject before the measurement
SETTLE = 1.0  # seconds of idle time before each lease, after the pool has refilled
AGENTS = 8
BATCH = 25  # executes of each agent between two turns
OUTPUTS = {
    "1 MB of output": "print(('x' * 99 + chr(10)) * 10_000)",
    "10 MB of output": "print(('x' * 99 + chr(10)) * 100_000)",
    "10,000 prints": "for n in range(10_000): print(n)",
    "100 displays": "from IPython.display import HTML, display\nfor n in range(100): display(HTML(f'<b>{n}</b>'))",
}
IDLE_KERNELS = 4  # measured together: proportional set size divides shared memory among them
IMPORT = "import time; begun = time.perf_counter()\nimport pandas\ntime.perf_counter() - begun"

Subjects = dict[str, Run]


async def timed(run: Awaitable[object]) -> float:
    """Await ``run`` and return its duration in milliseconds."""
    begun = time.perf_counter()
    await run
    return 1000 * (time.perf_counter() - begun)


async def open_subjects(stack: AsyncExitStack, runtimes: list[str], *, output_mb: float = 10) -> Subjects:
    """Start a stock kernel and a sandboxed kernel under each runtime; return how to run a cell in each."""
    subjects: Subjects = {BASELINE: (await stack.enter_async_context(stock_kernel())).run}
    for runtime in runtimes:
        subjects[runtime] = await stack.enter_async_context(sandboxed_kernel(runtime, output_mb=output_mb))
    return subjects


async def measure_executes(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure the time of a trivial cell."""
    async with AsyncExitStack() as stack:
        subjects = await open_subjects(stack, runtimes)
        samples: dict[str, list[float]] = {name: [] for name in subjects}
        for number in track(range(WARM_UP + rounds), "executes", console=console):
            for name, run in subjects.items():
                taken = await timed(run(CODE))
                if number >= WARM_UP:
                    samples[name].append(taken)
    report.add("trivial execute", samples, baseline=BASELINE, bounds={"runc": 0.8, "runsc": 2.0})


async def measure_leases(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure the time from requesting a warm kernel to its first result; the stock kernel runs already."""
    async with AsyncExitStack() as stack:
        stock = await stack.enter_async_context(stock_kernel())
        managers = {
            runtime: await stack.enter_async_context(manager_on(runtime, warm=1, kernels=3)) for runtime in runtimes
        }
        samples: dict[str, list[float]] = {BASELINE: [], **{runtime: [] for runtime in runtimes}}
        later: dict[str, list[float]] = {f"{runtime}: a later execute": [] for runtime in runtimes}
        for number in track(range(rounds), "leases", console=console):
            for runtime, manager in managers.items():
                while manager.pool.available_count < 1:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(SETTLE)
                begun = time.perf_counter()
                async with manager.acquire_kernel(f"agent-{number}", timeout=READY) as (_kernel, session):
                    await runner(manager, session)(CODE)
                    samples[runtime].append(1000 * (time.perf_counter() - begun))
                    later[f"{runtime}: a later execute"].append(await timed(runner(manager, session)(CODE)))
                await manager.end_session(f"agent-{number}")
            await asyncio.sleep(SETTLE)
            samples[BASELINE].append(await timed(stock.run(CODE)))
    report.add(
        "lease of a warm kernel and first result",
        samples | later,
        baseline=BASELINE,
        bounds=dict.fromkeys(runtimes, 1.3),
    )


async def measure_preload(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure ``import pandas`` in an agent's first cell; the baseline is a policy without ``preload``."""
    for runtime in runtimes:
        samples: dict[str, list[float]] = {"default": [], "data-science": []}
        for policy in track(list(samples) * rounds, f"imports under {runtime}", console=console):
            async with (
                manager_on(runtime, policy=policy) as manager,
                manager.acquire_kernel("agent", timeout=READY) as (_kernel, session),
            ):
                result = await manager.execute_code(session, IMPORT)
                samples[policy].append(1000 * float(result["result"]))
        named = {f"{runtime}, policy {policy}": values for policy, values in samples.items()}
        report.add(f"import pandas under {runtime}", named, baseline=f"{runtime}, policy default")


async def measure_cold_starts(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure the time from the request for a kernel to its first result, with no warm kernel."""
    async with AsyncExitStack() as stack:
        managers = {runtime: await stack.enter_async_context(manager_on(runtime)) for runtime in runtimes}
        samples: dict[str, list[float]] = {BASELINE: [], **{runtime: [] for runtime in runtimes}}
        for number in track(range(rounds), "cold starts", console=console):
            begun = time.perf_counter()
            async with stock_kernel() as stock:
                await stock.run(CODE)
                samples[BASELINE].append(1000 * (time.perf_counter() - begun))
            for runtime, manager in managers.items():
                begun = time.perf_counter()
                async with manager.acquire_kernel(f"agent-{number}", timeout=READY) as (_kernel, session):
                    await runner(manager, session)(CODE)
                    samples[runtime].append(1000 * (time.perf_counter() - begun))
                await manager.end_session(f"agent-{number}")
                await asyncio.sleep(SETTLE / 2)  # so that its removal does not slow the next start
    report.add("cold start to first result", samples, baseline=BASELINE, bounds={"runc": 1.3, "runsc": 3.0})


async def measure_agents(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure the executes per second of eight agents that run at once, each in its own loop."""
    async with AsyncExitStack() as stack:
        groups: dict[str, list[Run]] = {BASELINE: []}
        groups[BASELINE] = [(await stack.enter_async_context(stock_kernel())).run for _ in range(AGENTS)]
        for runtime in runtimes:
            manager = await stack.enter_async_context(manager_on(runtime, kernels=AGENTS))
            groups[runtime] = []
            for number in range(AGENTS):
                _kernel, session = await stack.enter_async_context(manager.acquire_kernel(f"agent-{number}", READY))
                groups[runtime].append(runner(manager, session))
        samples: dict[str, list[float]] = {name: [] for name in groups}
        for number in track(range(1 + rounds), f"{AGENTS} agents at once", console=console):
            for name, runs in groups.items():
                taken = await timed(asyncio.gather(*(_batch(run) for run in runs)))
                if number:
                    samples[name].append(1000 * AGENTS * BATCH / taken)
    report.add(
        f"executes of {AGENTS} agents at once",
        samples,
        baseline=BASELINE,
        unit="1/s",
        bounds={"runc": 1.0},
        more_is_better=True,
    )


async def _batch(run: Run) -> None:
    for _ in range(BATCH):
        await run(CODE)


async def measure_outputs(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure the cells per second of cells with much output."""
    for title, code in OUTPUTS.items():
        async with AsyncExitStack() as stack:
            subjects = await open_subjects(stack, runtimes, output_mb=64)
            samples: dict[str, list[float]] = {name: [] for name in subjects}
            for number in track(range(2 + rounds), title, console=console):
                for name, run in subjects.items():
                    taken = await timed(run(code))
                    if number >= 2:
                        samples[name].append(1000 / taken)
        report.add(
            title,
            samples,
            baseline=BASELINE,
            unit="1/s",
            bounds=dict.fromkeys(runtimes, 0.8),
            more_is_better=True,
        )


async def measure_memory(report: Report, runtimes: list[str], _rounds: int) -> None:
    """Measure the memory of an idle kernel after one cell: MiB of proportional set size, and of the cgroup."""
    async with AsyncExitStack() as stack:
        stocks = [await stack.enter_async_context(stock_kernel()) for _ in range(IDLE_KERNELS)]
        for stock in stocks:
            await stock.run(CODE)
        samples = {BASELINE: _shares(stock.process.pid for stock in stocks)}
    for runtime in runtimes:
        async with AsyncExitStack() as stack:
            manager = await stack.enter_async_context(manager_on(runtime, kernels=IDLE_KERNELS))
            samples[f"{runtime}, cgroup"] = []
            processes = []
            for number in range(IDLE_KERNELS):
                _kernel, session = await stack.enter_async_context(manager.acquire_kernel(f"agent-{number}", READY))
                await runner(manager, session)(CODE)
                usage = await manager.get_kernel_resource_usage(session.kernel_id)
                samples[f"{runtime}, cgroup"].append(usage["memory_mb"])
                processes.append(session.kernel_id)
            if runtime == "runc":
                samples["runc, PSS"] = _shares(_first_process(kernel_id) for kernel_id in processes)
    report.add("memory of an idle kernel", samples, baseline=BASELINE, unit="MiB")
    ours, theirs = statistics.median(samples["runc, PSS"]), statistics.median(samples[BASELINE])
    console.print(f"runc, PSS: {ours - theirs:+.1f} MiB compared with a stock kernel (bound: +10)\n")


def _shares(pids: Iterable[int]) -> list[float]:
    return [psutil.Process(pid).memory_full_info().pss / 2**20 for pid in list(pids)]


def _first_process(kernel_id: str) -> int:
    from orchestrator.container.engine import connect

    client = connect(30)
    try:
        return int(client.containers.get(f"cellblock-{kernel_id}").attrs["State"]["Pid"])
    finally:
        client.close()


MEASURES: dict[str, tuple[Callable[[Report, list[str], int], Coroutine[Any, Any, None]], int]] = {
    "executes": (measure_executes, 500),
    "leases": (measure_leases, 30),
    "preload": (measure_preload, 3),
    "starts": (measure_cold_starts, 15),
    "agents": (measure_agents, 10),
    "outputs": (measure_outputs, 10),
    "memory": (measure_memory, 1),
}


def main() -> int:
    """Measure, print, draw and save. Exit status: 0 if every bound is met, 1 if one is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m benchmarks.latency --only executes --rounds 200"
    )
    parser.add_argument("--only", choices=list(MEASURES), action="append", help="run only this measure; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds of every measure; default: each has its own")
    parser.add_argument("--runs", type=int, default=1, help="runs; of several, the range of each ratio is shown")
    parser.add_argument(
        "--runtime",
        action="append",
        help="repeatable; default: all runtimes of the engine",
    )
    parser.add_argument("--json", type=Path, help="write the last run's figures to this file as JSON")
    parser.add_argument("--plot", type=Path, help="draw the last run's ratios to this SVG file")
    options = parser.parse_args()
    runtimes = options.runtime or engine_runtimes()
    reports = [Report() for _ in range(options.runs)]
    for report in reports:
        for name in options.only or MEASURES:
            measure, rounds = MEASURES[name]
            asyncio.run(measure(report, runtimes, options.rounds or rounds))
        if options.json:
            report.save(options.json)
    if options.plot:
        draw(report, options.plot, BASELINE)
    if options.runs > 1:
        show_ranges(reports)
    missed = [figure for report in reports for figure in report.missed]
    for figure in missed:
        console.print(f"[red]missed[/] {figure.measure}, {figure.subject}: {figure.ratio:.2f}, bound {figure.bound:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    run_main(main)
