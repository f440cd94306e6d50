"""How soon an agent is told: a deadline, a cancellation, a kernel out of memory or killed, each beside its bound.

Run it with ``make reactions``. The engine's own end is in ``tests/faults/test_engine.py``, on an engine of its own.
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

LIMIT = 2.0  # seconds a cell has
SLEEP = "import time; time.sleep(60)"
BUSY = "while True: pass"
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
# It says what time it is before each step: the kill came after the last that was heard.
BOMB = "import time\nx = []\nwhile True: print(time.time(), flush=True); x.append(b'x' * 2**22)"

Reaction = Callable[[AgentKernelManager, KernelSession], Awaitable[float]]
console = Console()


async def timeout_of(manager: AgentKernelManager, session: KernelSession, code: str) -> float:
    """Seconds from a cell's deadline to its interrupt."""
    stopped = None
    try:
        await manager.execute_code(session, code)
    except KernelTimeoutError as error:
        stopped = error.result.evidence.stopped_after_s
    assert stopped is not None, "the cell was not stopped"
    return stopped - LIMIT


async def cancellation_of(manager: AgentKernelManager, session: KernelSession, code: str) -> float:
    """Seconds from cancelling the awaiting task to its end."""
    task = asyncio.create_task(manager.execute_code(session, code))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    return time.monotonic() - begun


async def oom(manager: AgentKernelManager, session: KernelSession) -> float:
    """Seconds from the last moment at which the kernel lived to the result."""
    result = await manager.execute_code(session, BOMB)
    told = time.time()
    assert result["outcome"] == "oom", result
    return told - float(result["stdout"].split()[-1])


async def killed_kernel(manager: AgentKernelManager, session: KernelSession) -> float:
    """Seconds from a SIGKILL of the container's process, from outside, to the result."""
    running = asyncio.create_task(manager.execute_code(session, "for _ in range(10**12): pass"))
    await asyncio.sleep(0.3)
    assert isinstance(session.kernel, ContainerKernel)
    begun = time.monotonic()
    session.kernel.container.kill()
    result = await running
    assert result["outcome"] == "kernel_died", result
    return time.monotonic() - begun


REACTIONS: dict[str, tuple[Reaction, float]] = {
    "deadline of a sleeping cell noticed": (lambda manager, session: timeout_of(manager, session, SLEEP), 0.1),
    "deadline of a busy cell noticed": (lambda manager, session: timeout_of(manager, session, BUSY), 0.1),
    "cancelled: a sleeping cell": (lambda manager, session: cancellation_of(manager, session, SLEEP), 0.5),
    "cancelled: a busy cell": (lambda manager, session: cancellation_of(manager, session, BUSY), 0.5),
    "cancelled: a cell deaf to interrupts": (lambda manager, session: cancellation_of(manager, session, DEAF), 0.5),
    "out of memory told": (oom, 2.0),
    "killed kernel told": (killed_kernel, 2.0),
}


@asynccontextmanager
async def manager_on(runtime: str) -> AsyncIterator[AgentKernelManager]:
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": 1, "audit_log": "off", "data_dir": data_folder(runtime)}
    )
    limits = KernelResourceLimits(max_execution_time=LIMIT, max_memory_mb=256)
    async with AgentKernelManager(max_kernels=3, resource_limits=limits, settings=settings) as manager:
        yield manager


async def measure(runtime: str, rounds: int, progress: Callable[[], None] = lambda: None) -> dict[str, list[float]]:
    """Return, for each reaction, its seconds in every round."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    runtimes = engine_runtimes()
    table = Table("reaction", "runtime", "median", "worst", "bound", title=f"{rounds} rounds, in milliseconds")
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
