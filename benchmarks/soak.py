"""Thousands of leases and cells with random faults, and what is left of them: nothing may grow.

Run it with ``make soak``: 2,000 leases of ten cells each under runc, about a quarter of an hour. Every sixth lease
has a fault: a kernel killed from outside, by its own code, for want of memory, or by a deadline that it is deaf to; an
interrupt, a cancelled caller, a flood of output, sleep and waking.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.subjects import READY
from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession, KernelTimeoutError, Settings
from orchestrator.container.engine import connect
from orchestrator.container.folders import instance_folder
from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.errors import KernelDiedError
from orchestrator.isolation.measure import quantile

AGENTS = 4  # at once
CELLS = 10  # of a lease
FAULTS = 6  # one lease in so many has one
KERNELS, WARM = 6, 2
THREADS = 6  # of asyncio's pool, as many as it may have on two cores
LIMITS = KernelResourceLimits(max_cpu_percent=100, max_memory_mb=256, max_execution_time=3, max_output_size_mb=1)
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
SHIMS = ("containerd-shim", "runsc-sandbox", "runsc-gofer")
SETTLE = 4  # looks, a second apart, of which the one with the fewest shims counts
SLOPE = 1.0  # MiB by which resident memory may grow in a thousand leases
LATE = 1.5  # the last tenth's p99, as a ratio to the first's

console = Console()
Fault = Callable[[AgentKernelManager, KernelSession], Awaitable[str]]


async def outcome_of(manager: AgentKernelManager, session: KernelSession, code: str) -> str:
    try:
        return str((await manager.execute_code(session, code))["outcome"])
    except KernelTimeoutError as error:
        return error.result.outcome
    except KernelDiedError:
        return "kernel_died"


async def killed(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(_kill, f"cellblock-{session.kernel_id}")
    return await running


def _kill(name: str) -> None:
    client = connect(30)
    try:
        client.containers.get(name).kill()
    finally:
        client.close()


async def cancelled(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return "cancelled"


async def interrupted(manager: AgentKernelManager, session: KernelSession) -> str:
    running = asyncio.create_task(outcome_of(manager, session, "import time; time.sleep(2.5)"))
    await asyncio.sleep(0.1)
    manager.interrupt(session)
    return await running


async def slept(manager: AgentKernelManager, session: KernelSession) -> str:
    assert await outcome_of(manager, session, "kept = list(range(1000))") == "ok"
    assert await manager.hibernate(session.agent_id)
    async with manager.acquire_kernel(session.agent_id, timeout=READY) as (_kernel, woken):
        return await outcome_of(manager, woken, "assert sum(kept) == 499500")


def cell(code: str) -> Fault:
    async def fault(manager: AgentKernelManager, session: KernelSession) -> str:
        return await outcome_of(manager, session, code)

    return fault


# Each with the outcomes that are true of it.
KINDS: dict[str, tuple[Fault, set[str]]] = {
    "killed from outside": (killed, {"kernel_died"}),
    "ended itself": (cell("import os; os._exit(3)"), {"kernel_died"}),
    "out of memory": (cell("x = []\nwhile True: x.append(bytearray(2**24))"), {"oom", "error"}),
    "deaf to its deadline": (cell(DEAF), {"timeout"}),
    "past its deadline": (cell("while True: pass"), {"timeout"}),
    "cancelled": (cancelled, {"cancelled"}),
    "interrupted": (interrupted, {"interrupted"}),
    "flood": (cell("print(('x' * 99 + chr(10)) * 50_000)"), {"ok"}),
    "an error": (cell("1 / 0"), {"error"}),
    "slept and woken": (slept, {"ok"}),
}


@dataclass
class Sample:
    """What the process and its engine hold while no lease is open, after so many.

    Attributes:
        folders: entries in the kernels' folder.
    """

    leases: int
    containers: int
    shims: int
    descriptors: int
    threads: int
    tasks: int
    folders: int
    rss_mb: float


@dataclass
class Soak:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    latencies: array[float] = field(default_factory=lambda: array("d"))  # a list would grow by 0.4 MiB in 1,000 leases
    faults: Counter[str] = field(default_factory=Counter)
    untrue: list[str] = field(default_factory=list)


async def lease(manager: AgentKernelManager, number: int, chance: random.Random, faults: int, soak: Soak) -> None:
    agent, kind = f"agent-{number}", ""
    if chance.randrange(faults) == 0:
        kind = chance.choice(list(KINDS))
    async with manager.acquire_kernel(agent, timeout=READY) as (_kernel, session):
        for value in range(CELLS - bool(kind)):
            begun = time.perf_counter()
            result = await manager.execute_code(session, f"{value} + {number}")
            soak.latencies.append(time.perf_counter() - begun)
            if result["result"] != str(value + number):
                soak.untrue.append(f"{agent}: {value} + {number} gave {result}")
        if kind and kind != "slept and woken":
            await _strike(manager, session, kind, soak)
    if kind == "slept and woken":  # nobody may be using it
        await _strike(manager, session, kind, soak)
    await manager.end_session(agent)


async def _strike(manager: AgentKernelManager, session: KernelSession, kind: str, soak: Soak) -> None:
    fault, true = KINDS[kind]
    outcome = await fault(manager, session)
    soak.faults[kind] += 1
    if outcome not in true:
        soak.untrue.append(f"{session.agent_id}: {kind} was told as {outcome}")


async def quiet(manager: AgentKernelManager) -> None:
    """Wait until the pool is full again and nothing is being removed."""
    async with asyncio.timeout(READY):
        while (counts := manager.pool.counts())["ready"] != WARM or counts["starting"] or counts["ending"]:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)


def look(leases: int, instance: str, folder: Path) -> Sample:
    me = psutil.Process()
    gc.collect()  # what waits for the collector is not held
    client = connect(30)
    try:
        containers = client.containers.list(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
    finally:
        client.close()
    shims = min(_shims() for _ in range(SETTLE))
    return Sample(
        leases,
        len(containers),
        shims,
        me.num_fds(),
        me.num_threads(),
        0,
        len(os.listdir(folder)),
        me.memory_info().rss / 2**20,
    )


def _shims() -> int:
    time.sleep(1)  # one that has nothing left to do takes its time to go
    commands = (process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"]))
    return sum(1 for command in commands if Path(command[0]).name.startswith(SHIMS))


async def soak(runtime: str, leases: int, seed: int, folder: Path, *, faults: int = FAULTS, parts: int = 20) -> Soak:
    """Open and close so many leases, and look in between.

    Args:
        folder: for the sessions' history and checkpoints.
        faults: one lease in so many has one.
        parts: how often to look.
    """
    seen, chance = Soak(), random.Random(seed)  # noqa: S311 - moments, not secrets
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": WARM, "data_dir": str(folder / "data"), "audit_log": "off"}
    )
    # asyncio makes the threads of its pool one by one, as they are needed; here all are made before they are counted.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.2) for _ in range(THREADS)))
    async with AgentKernelManager(max_kernels=KERNELS, resource_limits=LIMITS, settings=settings) as manager:
        with Progress(console=console, transient=True) as shown:
            task = shown.add_task(f"leases under {runtime}", total=leases)
            numbers = iter(range(leases))

            async def work(until: int) -> None:
                for number in numbers:
                    await lease(manager, number, chance, faults, seen)
                    shown.advance(task)
                    if number >= until:
                        return

            for part in range(parts):
                until = (part + 1) * leases // parts - AGENTS
                await asyncio.gather(*(work(until) for _ in range(AGENTS)))
                await quiet(manager)
                done, instance = int(shown.tasks[0].completed), manager.instance_id
                sample = await asyncio.to_thread(look, done, instance, instance_folder(settings.state_path, instance))
                sample.tasks = len(asyncio.all_tasks())
                seen.samples.append(sample)
    return seen


def growth(seen: Soak) -> list[str]:
    """Say of what there is more in the end than after the first tenth: pools make their threads as they need them."""
    first, last = asdict(seen.samples[len(seen.samples) // 10]), asdict(seen.samples[-1])
    counted = ("containers", "shims", "descriptors", "threads", "tasks", "folders")
    return [f"{name} grew from {first[name]} to {last[name]}" for name in counted if last[name] > first[name]]


def judge(seen: Soak) -> list[str]:
    """Say what has grown, and what was untrue; nothing when all is well."""
    wrong = seen.untrue + growth(seen)
    if (slope := memory_slope(seen.samples)) > SLOPE:
        wrong.append(f"memory grew by {slope:.2f} MiB in a thousand leases")
    if (late := lateness(seen)) > LATE:
        wrong.append(f"the last tenth's p99 is {late:.2f} times the first's")
    return wrong


def memory_slope(samples: list[Sample]) -> float:
    """Return MiB in a thousand leases, of the second half: what a process needs once it has by then.

    The median of the slopes between each two looks (Theil and Sen's): one that fell into a peak does not count.
    """
    pairs = itertools.combinations(samples[len(samples) // 2 :], 2)
    slopes = [(later.rss_mb - sooner.rss_mb) / (later.leases - sooner.leases) for sooner, later in pairs]
    return 1000 * statistics.median(slopes) if slopes else 0.0


def tenths(seen: Soak) -> tuple[list[float], list[float]]:
    size = max(1, len(seen.latencies) // 10)
    return list(seen.latencies[:size]), list(seen.latencies[-size:])


def lateness(seen: Soak) -> float:
    first, last = (quantile(tenth, 0.99) for tenth in tenths(seen))
    return last / first


def show(seen: Soak, runtime: str) -> None:
    table = Table(title=f"what is held between leases under {runtime}", title_justify="left")
    for column in asdict(seen.samples[0]):
        table.add_column(column, justify="right")
    for sample in seen.samples:
        table.add_row(
            *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in asdict(sample).values())
        )
    console.print(table)
    for share in (0.5, 0.99):
        first, last = (1000 * quantile(tenth, share) for tenth in tenths(seen))
        console.print(f"trivial cells: p{100 * share:g} {first:.1f} → {last:.1f} ms (first and last tenth)")
    console.print(
        f"{len(seen.latencies):,} trivial cells; p99 grew {lateness(seen):.2f} times (bound {LATE:g}); "
        f"memory {memory_slope(seen.samples):+.2f} MiB in a thousand leases (bound {SLOPE:g})"
    )
    console.print("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(seen.faults.items())))


def main() -> int:
    """Soak, and judge. The exit code is 1 when something grew, or was untrue."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.soak --leases 200")
    parser.add_argument("--leases", type=int, default=2000)
    parser.add_argument("--runtime", default="runc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for what was seen")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        seen = asyncio.run(soak(options.runtime, options.leases, options.seed, Path(folder)))
    show(seen, options.runtime)
    if options.json:
        found = asdict(seen) | {"faults": dict(seen.faults), "latencies": list(seen.latencies)}
        options.json.write_text(json.dumps(found) + "\n")
    wrong = judge(seen)
    for line in wrong:
        console.print(f"[red]{line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_main(main)
