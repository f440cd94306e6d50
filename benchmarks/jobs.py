"""Measures what stands beside cells: commands, files and tools, each in turn with what a user would compare it with.

Run it with ``make jobs``: about five minutes. Ratios are medians of rounds, with the range of the middle half.

- ``run_command(["true"])`` beside ``subprocess.run(["true"], capture_output=True)`` in a cell of the same kernel.
- A call of a tool, measured inside, beside a trivial ``execute``.
- A file of 1 GB in and out beside ``cat`` through ``docker exec`` into and out of a container of the same runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

from benchmarks.command import run_main
from benchmarks.subjects import READY, engine_runtimes
from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession, Settings
from orchestrator.limits import MIB

ROUNDS = 200
FILE_MB = 1024
POLICY = f"""
[limits]
memory_mb = {4 * FILE_MB}
[tmpfs]
work_mb = {2 * FILE_MB + 64}
tmp_mb = 64
[tools]
calls = 100000
"""
# Each prints milliseconds.
SUBPROCESS = """
import subprocess, time
_begun = time.perf_counter()
_ = subprocess.run(["true"], capture_output=True)
print(1000 * (time.perf_counter() - _begun))
"""
TOOL = """
import time, tools
_begun = time.perf_counter()
_ = tools.echo(1)
print(1000 * (time.perf_counter() - _begun))
"""


def echo(value: int) -> int:
    return value


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return milliseconds."""
    began = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - began)


def said(name: str, ours: list[float], theirs: list[float]) -> str:
    """Return one line: both medians, and the ratio with the range of its middle half."""
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    quarter = len(ratios) // 4
    spread = f"{ratios[quarter]:.2f}-{ratios[-quarter - 1]:.2f}"
    medians = f"{statistics.median(ours):.2f} ms beside {statistics.median(theirs):.2f} ms"
    return f"{name}: {medians}, ratio {statistics.median(ours) / statistics.median(theirs):.2f} ({spread})"


async def measure_latency(runtime: str, manager: AgentKernelManager, session: KernelSession) -> None:
    """Print the two latencies."""

    async def inside(code: str) -> float:
        return float((await manager.execute(session, code, tools=[echo])).stdout)

    commands: list[float] = []
    processes: list[float] = []
    calls: list[float] = []
    cells: list[float] = []
    for number in range(ROUNDS + 20):
        found = (
            await timed(lambda: manager.run_command(session, ["true"])),
            await inside(SUBPROCESS),
            await inside(TOOL),
            await timed(lambda: manager.execute(session, "1")),
        )
        if number >= 20:  # the first ones warm up
            for kept, took in zip((commands, processes, calls, cells), found, strict=True):
                kept.append(took)
    print(said(f"{runtime}: run_command('true') beside subprocess.run", commands, processes), flush=True)
    print(said(f"{runtime}: a tool's call beside a trivial execute", calls, cells), flush=True)


async def measure_throughput(runtime: str, manager: AgentKernelManager, session: KernelSession, rounds: int) -> None:
    """Print how long a transfer takes each way."""
    container = session.live_kernel().container_name
    with tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder, "source"), Path(folder, "back")
        await asyncio.to_thread(_fill, source)
        for name, ours, theirs in (
            ("in", lambda: manager.put_file(session, source, "file"), ["sh", "-c", "cat > /work/file"]),
            ("out", lambda: manager.get_file(session, "file", back), ["cat", "/work/file"]),
            (
                "out, as bytes",
                lambda: manager.read_file(session, "file", limit=2 * FILE_MB * MIB),
                ["cat", "/work/file"],
            ),
        ):
            took: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                took[0].append(await timed(ours))
                took[1].append(await timed(partial(asyncio.to_thread, _cat, container, theirs, name, source)))
            print(said(f"{runtime}: {FILE_MB} MB {name} beside cat through docker exec", *took), flush=True)


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(FILE_MB):
            file.write(bytes(MIB))


def _cat(container: str, command: list[str], direction: str, source: Path) -> None:
    with source.open("rb") as file:
        subprocess.run(
            ["docker", "exec", "-i", container, *command],
            stdin=file if direction == "in" else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )


async def _manager(runtime: str, policy: str) -> AsyncIterator[tuple[AgentKernelManager, KernelSession]]:
    with tempfile.TemporaryDirectory(prefix="cellblock-jobs-") as folder:
        changes = {"runtime": runtime, "policy": policy, "data_dir": folder, "audit_log": f"{folder}/audit.jsonl"}
        settings = Settings.load().model_copy(update=changes)
        limits = KernelResourceLimits(max_cpu_percent=100, max_memory_mb=4 * FILE_MB)
        async with (
            AgentKernelManager(max_kernels=1, settings=settings, resource_limits=limits) as manager,
            manager.acquire_kernel("jobs", timeout=READY) as (_, session),
        ):
            yield manager, session


async def measure(runtimes: list[str], rounds: int) -> None:
    """Measure each runtime."""
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "jobs.toml")
        await asyncio.to_thread(policy.write_text, POLICY)
        for runtime in runtimes:
            async for manager, session in _manager(runtime, str(policy)):
                await measure_latency(runtime, manager, session)
                await measure_throughput(runtime, manager, session, rounds)


def main() -> None:
    """Parse the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", help="a runtime; repeatable; default: those of the engine")
    parser.add_argument("--rounds", type=int, default=3, help="transfers of each kind")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.runtime or engine_runtimes(), arguments.rounds))


if __name__ == "__main__":
    run_main(main)
