"""Measures what stock Jupyter clients wait for: the broker beside a stock kernel, and beside clients that misbehave.

Run it with ``make brokers``. The broker has a process of its own, as a kernel that Jupyter starts has.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from rich.progress import track

from benchmarks.command import run_main
from benchmarks.figures import Report, console
from benchmarks.latency import timed
from benchmarks.subjects import BASELINE, READY, Stock, engine_runtimes, stock_kernel
from tests.broker.brokerprocess import broker_process, process

CODE = "1 + 1"
WARM_UP = 20


@asynccontextmanager
async def brokered(runtime: str) -> AsyncIterator[tuple[Stock, Path]]:
    """Start a broker, and yield a stock client of it, and its connection file."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        async with broker_process(Path(folder), runtime) as (file, info):
            client = AsyncKernelClient()
            client.load_connection_info(info)  # type: ignore[arg-type]
            client.start_channels()
            try:
                await client.wait_for_ready(timeout=READY)
                yield Stock(AsyncKernelManager(), client), file
            finally:
                client.stop_channels()


async def measure_executes(report: Report, runtimes: list[str], rounds: int) -> None:
    """Measure a trivial cell of a stock client, over the broker and in a stock kernel."""
    async with AsyncExitStack() as stack:
        subjects = {BASELINE: await stack.enter_async_context(stock_kernel())}
        for runtime in runtimes:
            subjects[runtime] = (await stack.enter_async_context(brokered(runtime)))[0]
        samples: dict[str, list[float]] = {name: [] for name in subjects}
        for number in track(range(WARM_UP + rounds), "executes", console=console):
            for name, subject in subjects.items():
                taken = await timed(subject.run(CODE))
                if number >= WARM_UP:
                    samples[name].append(taken)
    report.add("trivial execute over the broker", samples, baseline=BASELINE, bounds={"runc": 1.2})


async def measure_neighbours(report: Report, runtime: str, rounds: int) -> None:
    """Measure one client's cells alone, and beside a client that was stopped and one that floods."""
    async with brokered(runtime) as (subject, file):
        samples: dict[str, list[float]] = {"alone": [], "beside both": []}
        for turn in range(4):
            for _ in track(range(rounds), f"alone, turn {turn + 1}", console=console):
                samples["alone"].append(await timed(subject.run(CODE)))
            with process("listen", str(file)) as stopped, process("flood", str(file)):
                stopped.send_signal(signal.SIGSTOP)
                try:
                    for _ in track(range(rounds), f"beside both, turn {turn + 1}", console=console):
                        samples["beside both"].append(await timed(subject.run(CODE)))
                finally:
                    stopped.send_signal(signal.SIGCONT)
    report.add(f"one client's cells ({runtime})", samples, baseline="alone", bounds={"beside both": 2.0})
    for name, taken in samples.items():
        console.print(f"{name}: p99 {sorted(taken)[int(0.99 * len(taken))]:.1f} ms, of {len(taken)} cells")


def main() -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--only", choices=["executes", "neighbours"])
    wanted = parser.parse_args()
    report = Report()
    if wanted.only != "neighbours":
        asyncio.run(measure_executes(report, engine_runtimes(), wanted.rounds))
    if wanted.only != "executes":
        asyncio.run(measure_neighbours(report, "runc", wanted.rounds))
    return 1 if report.missed else 0


if __name__ == "__main__":
    run_main(main)
