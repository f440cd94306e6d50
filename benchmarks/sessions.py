"""Checks that many sessions on few kernels keep their state, and measures the cost of waking a session.

Run it with ``make sessions``: 200 sessions on four kernels. The time of a wake is compared with the sum of its parts:
the lease of a warm kernel, measured in turn with it, and the loading of the state.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.subjects import data_folder, engine_runtimes
from orchestrator import AgentKernelManager, Settings

BOUND = 1.5  # maximum time of a wake, divided by the time of a lease plus the loading of the state
OWN_STATE = """
import os, pandas as pd, matplotlib.pyplot as plt
me = {me}
rows = pd.DataFrame({{'me': [me] * 50, 'square': [n * n + me for n in range(50)]}})
figure, axes = plt.subplots()
axes.plot(rows['square']); axes.set_title(f'figure of {{me}}')
class Mine:
    owner = me
    def who(self): return f'instance of {{self.owner}}', self.number
mine = Mine(); mine.number = me * 3
os.makedirs(f'folder-{{me}}', exist_ok=True)
open(f'folder-{{me}}/notes.txt', 'w').write(f'notes of {{me}}')
plt.close('all')
"""
FOUND = """
print((
    int(rows['me'].iloc[0]), int(rows['square'].sum()), axes.get_title(),
    list(axes.lines[0].get_ydata()) == list(rows['square']), figure.axes[0] is axes, mine.who(), isinstance(mine, Mine),
    sorted(os.listdir('.')), open(f'folder-{me}/notes.txt').read(),
))
"""

console = Console()


def expected(me: int) -> str:
    """Return what ``FOUND`` prints in the session with the number ``me``."""
    total = sum(n * n + me for n in range(50))
    return repr(
        (
            me, total, f"figure of {me}", True, True, (f"instance of {me}", me * 3), True, [f"folder-{me}"],
            f"notes of {me}",
        )
    )  # fmt: skip


@dataclass
class WakeTimes:
    """The measured times, in seconds, and the sessions with wrong state.

    Attributes:
        wrong: a line for each session that did not find its own state.
        wakes: each ``acquire_kernel`` of a sleeping session, with a warm kernel ready.
        loads: the part of each wake that loaded the state.
        leases: each ``acquire_kernel`` of a new agent, measured in turn with the wakes.
    """

    wrong: list[str] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    leases: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median wake divided by the sum of the median lease and the median load."""
        return statistics.median(self.wakes) / (statistics.median(self.leases) + statistics.median(self.loads))


async def measure(runtime: str, sessions: int, kernels: int, progress: Progress) -> WakeTimes:
    """Give each session its own state, then wake all sessions in random order and check their state."""
    found = WakeTimes()
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": 1, "data_dir": data_folder(runtime)}
    )
    order = list(range(sessions))
    random.Random(sessions).shuffle(order)  # noqa: S311 - the same order each time
    async with AgentKernelManager(max_kernels=kernels, settings=settings) as manager:
        task = progress.add_task(f"{sessions} sessions over {kernels} kernels under {runtime}", total=2 * sessions)
        for me in range(sessions):
            async with manager.acquire_kernel(f"agent-{me}", timeout=120) as (_kernel, session):
                result = await manager.execute_code(session, OWN_STATE.format(me=me))
                assert result["status"] == "ok", result
            progress.advance(task)
        for me in order:
            found.leases.append(await _lease(manager))
            await _quiet(manager)
            begun = time.perf_counter()
            async with manager.acquire_kernel(f"agent-{me}", timeout=120) as (_kernel, session):
                took = time.perf_counter() - begun
                result = await manager.execute_code(session, FOUND)
                if result["stdout"].strip() != expected(me):
                    found.wrong.append(f"agent-{me}: {result['stdout']} {result['error']}")
                if session.restored is not None:
                    found.wakes.append(took)
                    found.loads.append(session.restored.seconds)
            progress.advance(task)
        assert len(manager.pool.kernels) <= kernels
        for me in range(sessions):
            await manager.end_session(f"agent-{me}")
    return found


async def _lease(manager: AgentKernelManager) -> float:
    """Return the seconds that a new agent waits for a warm kernel; the session is ended afterwards."""
    await _quiet(manager)
    begun = time.perf_counter()
    async with manager.acquire_kernel("new-agent", timeout=120):
        took = time.perf_counter() - begun
    await manager.end_session("new-agent")
    return took


async def _quiet(manager: AgentKernelManager) -> None:
    """Wait until a kernel is ready and no other kernel is starting or ending."""
    async with asyncio.timeout(120):
        while (counts := manager.pool.counts())["ready"] < 1 or counts["starting"] or counts["ending"]:
            await asyncio.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.sessions --sessions 20")
    parser.add_argument("--sessions", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--kernels", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--runtime", action="append", help="repeatable; default: all runtimes of the engine")
    arguments = parser.parse_args()
    table = Table("runtime", "sessions", "wrong", "wakes", "wake p50 s", "lease p50 s", "load p50 s", "ratio", "bound")
    failed = False
    for runtime in arguments.runtime or engine_runtimes():
        with Progress(console=console, transient=True) as progress:
            found = asyncio.run(measure(runtime, arguments.sessions, arguments.kernels, progress))
        for wrong in found.wrong[:10]:
            console.print(wrong, style="red", markup=False)
        medians = (statistics.median(seconds) for seconds in (found.wakes, found.leases, found.loads))
        table.add_row(
            runtime,
            str(arguments.sessions),
            str(len(found.wrong)),
            str(len(found.wakes)),
            *(f"{seconds:.3f}" for seconds in medians),
            f"{found.ratio:.2f}",
            f"{BOUND:g}",
        )
        failed = failed or bool(found.wrong) or found.ratio > BOUND
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    run_main(main)
