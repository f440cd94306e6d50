"""Measures how soon a timeout, a cancellation, an out-of-memory kill and a killed kernel are reported.

Run it with ``make reactions``. ``tests/faults/test_engine.py`` covers the death of the engine, on a separate engine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.subjects import data_folder, engine_runtimes
from orchestrator import AgentKernelManager, KernelResourceLimits, KernelTimeoutError, Settings
from orchestrator.kernel.containerkernel import ContainerKernel
from orchestrator.sessions.session import KernelSession

LIMIT = 2.0  # the time limit of a cell, in seconds
SLEEP = "import time; time.sleep(60)"
BUSY = "while True: pass"
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
# Prints the time before each allocation, so that the kill happened after the last time received.
BOMB = "import time\nx = []\nwhile True: print(time.time(), flush=True); x.append(b'x' * 2**22)"

Reaction = Callable[[AgentKernelManager, KernelSession], Awaitable[float]]
console = Console()


async def timeout_of(manager: AgentKernelManager, session: KernelSession, code: str) -> float:
    """Return the seconds from a cell's deadline to its interrupt."""
    stopped = None
    try:
        await manager.execute_code(session, code)
    except KernelTimeoutError as error:
        stopped = error.result.evidence.stopped_after_s
    assert stopped is not None, "the cell was not stopped"
    return stopped - LIMIT


async def cancellation_of(manager: AgentKernelManager, session: KernelSession, code: str) -> float:
    """Return the seconds from cancelling the task that awaits a cell to the end of the task."""
    task = asyncio.create_task(manager.execute_code(session, code))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    return time.monotonic() - begun


async def oom(manager: AgentKernelManager, session: KernelSession) -> float:
    """Return the seconds from the last sign of life of a kernel that runs out of memory to the result."""
    result = await manager.execute_code(session, BOMB)
    reported = time.time()
    assert result["outcome"] == "oom", result
    return reported - float(result["stdout"].split()[-1])


async def killed_kernel(manager: AgentKernelManager, session: KernelSession) -> float:
    """Return the seconds from an external SIGKILL of the container to the result."""
    running = asyncio.create_task(manager.execute_code(session, "for _ in range(10**12): pass"))
    await asyncio.sleep(0.3)
    assert isinstance(session.kernel, ContainerKernel)
    begun = time.monotonic()
    session.kernel.container.kill()
    result = await running
    assert result["outcome"] == "kernel_died", result
    return time.monotonic() - begun


REACTIONS: dict[str, tuple[Reaction, float]] = {
    "timeout of a sleeping cell": (lambda manager, session: timeout_of(manager, session, SLEEP), 0.1),
    "timeout of a busy cell": (lambda manager, session: timeout_of(manager, session, BUSY), 0.1),
    "cancellation of a sleeping cell": (lambda manager, session: cancellation_of(manager, session, SLEEP), 0.5),
    "cancellation of a busy cell": (lambda manager, session: cancellation_of(manager, session, BUSY), 0.5),
    "cancellation of a cell that ignores interrupts": (
        lambda manager, session: cancellation_of(manager, session, DEAF),
        0.5,
    ),
    "out of memory": (oom, 2.0),
    "killed kernel": (killed_kernel, 2.0),
}


@asynccontextmanager
async def manager_on(runtime: str) -> AsyncIterator[AgentKernelManager]:
    """Open a manager with a warm kernel and tight limits."""
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": 1, "audit_log": "off", "data_dir": data_folder(runtime)}
    )
    limits = KernelResourceLimits(max_execution_time=LIMIT, max_memory_mb=256)
    async with AgentKernelManager(max_kernels=3, resource_limits=limits, settings=settings) as manager:
        yield manager


async def measure(runtime: str, rounds: int, progress: Callable[[], None] = lambda: None) -> dict[str, list[float]]:
    """Return the seconds of each reaction in every round."""
    taken: dict[str, list[float]] = {name: [] for name in REACTIONS}
    async with manager_on(runtime) as manager:
        for number in range(rounds):
            for name, (reaction, _bound) in REACTIONS.items():
                agent = f"{name} {number}".replace(" ", "-").replace(":", "")
                async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                    taken[name].append(await reaction(manager, session))
                await manager.end_session(agent)
                progress()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.reactions --rounds 3")
    parser.add_argument("--rounds", type=int, default=10, help="rounds per runtime (default: %(default)s)")
    rounds = parser.parse_args().rounds
    runtimes = engine_runtimes()
    table = Table("reaction", "runtime", "median", "worst", "bound", title=f"{rounds} rounds, in ms (lower is better)")
    late = False
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task("measuring", total=len(runtimes) * rounds * len(REACTIONS))
        for runtime in runtimes:
            for name, taken in asyncio.run(measure(runtime, rounds, lambda: shown.advance(task))).items():
                bound = REACTIONS[name][1]
                figures = (f"{1000 * each:.0f}" for each in (statistics.median(taken), max(taken), bound))
                late = late or max(taken) > bound
                table.add_row(name, runtime, *figures, style="red" if max(taken) > bound else "")
    console.print(table)
    return int(late)


if __name__ == "__main__":
    run_main(main)
