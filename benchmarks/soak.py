"""Runs thousands of leases with random faults, and checks that no resource use grows.

Run it with ``make soak``: 2,000 leases of ten cells each under runc, about 15 minutes. Every sixth lease has a fault
of ``soakfaults``: a kernel that is killed or runs out of memory, a hostile cell, a flood of output, a hibernation, ...
After each fault, a session that may not lose its variables is asked for one, and the first result after a lost kernel
has to say so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import statistics
import tempfile
import threading
import time
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from docker import DockerClient
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.soakfaults import KINDS, outcome_of
from benchmarks.subjects import READY
from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession, Settings
from orchestrator.container.engine import connect
from orchestrator.container.folders import instance_folder
from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.isolation.measure import quantile
from orchestrator.store.history import BESIDE

AGENTS = 4  # at once
CELLS = 10  # per lease
FAULTS = 6  # one lease in this many has a fault
KERNELS, WARM = 6, 2
THREADS = 6  # of asyncio's thread pool, its maximum on two cores
LIMITS = KernelResourceLimits(max_cpu_percent=100, max_memory_mb=256, max_execution_time=3, max_output_size_mb=1)
SHIMS = ("containerd-shim", "runsc-sandbox", "runsc-gofer")
SETTLE = 4  # counts of the shims at most, a second apart, until each has a container; the lowest is used
SLOPE = 1.0  # MiB by which resident memory may grow per 1,000 leases
SLOWER = 1.5  # maximum p99 of the last tenth of the cells, divided by that of the first tenth

console = Console()


@dataclass
class Sample:
    """The resources of the process and its engine while no lease is open.

    Attributes:
        leases: how many leases there were before.
        folders: entries in the instance's folder.
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
    """The results of a soak.

    Attributes:
        latencies: seconds of each trivial cell.
        untrue: a line for each wrong result or outcome.
        lost: a line for each session that lost its variables where it may not, or without a word.
    """

    samples: list[Sample] = field(default_factory=list)
    latencies: array[float] = field(default_factory=lambda: array("d"))  # a list would grow by 0.4 MiB in 1,000 leases
    faults: Counter[str] = field(default_factory=Counter)
    untrue: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


async def lease(manager: AgentKernelManager, number: int, name: str, soak: Soak) -> None:
    """Run the cells of one lease, and the fault of this name; "" for none."""
    agent, kind = f"agent-{number}", KINDS.get(name)
    async with manager.acquire_kernel(agent, timeout=READY) as (_kernel, session):
        await manager.execute_code(session, f"mark = {number}")
        for value in range(CELLS - 1 - bool(kind)):
            begun = time.perf_counter()
            result = await manager.execute_code(session, f"{value} + {number}")
            soak.latencies.append(time.perf_counter() - begun)
            if result["result"] != str(value + number):
                soak.untrue.append(f"{agent}: {value} + {number} gave {result}")
        if kind is not None and not kind.unleased:
            await _strike(manager, session, name, soak)
    if kind is not None and kind.unleased:
        await _strike(manager, session, name, soak)
    if kind is not None:
        await _check_kept(manager, agent, name, number, soak)
    await manager.end_session(agent)


async def _strike(manager: AgentKernelManager, session: KernelSession, name: str, soak: Soak) -> None:
    soak.faults[name] += 1
    outcome = await KINDS[name].strike(manager, session)
    if outcome not in KINDS[name].outcomes:
        soak.untrue.append(f"{session.agent_id}: {name} was reported as {outcome}")


async def _check_kept(manager: AgentKernelManager, agent: str, name: str, number: int, soak: Soak) -> None:
    """Check that the session still has its variable, or that the first result of its new kernel says what is gone."""
    async with manager.acquire_kernel(agent, timeout=READY) as (_kernel, session):
        outcome = await outcome_of(manager, session, "1") if name == "callback spins later" else "ok"
        result = await manager.execute_code(session, "globals().get('mark')")
    kept = result["result"] == str(number)
    said = any("is gone" in warning or "are gone" in warning for warning in result["warnings"])
    if (
        outcome not in ("ok", "timeout")
        or result["outcome"] != "ok"
        or kept == said
        or (KINDS[name].keeps and not kept)
    ):
        soak.lost.append(
            f"{agent}: after {name}: {outcome}, {result['outcome']}, {result['result']}, {result['warnings']}"
        )


def faults_of(chance: random.Random, leases: int, every: int) -> list[str]:
    """Return the name of each lease's fault; "" for none. One lease in ``every`` has one, of each kind in turn."""
    names: list[str] = []
    order: list[str] = []
    for _ in range(leases):
        if chance.randrange(every):
            names.append("")
            continue
        if not order:
            order = list(KINDS)
            chance.shuffle(order)
        names.append(order.pop())
    return names


async def quiet(manager: AgentKernelManager) -> None:
    """Wait until the pool has refilled and no kernel is ending."""
    async with asyncio.timeout(READY):
        while (counts := manager.pool.counts())["ready"] != WARM or counts["starting"] or counts["ending"]:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)


def sample_of(leases: int, instance: str, folder: Path) -> Sample:
    """Return the resources after ``leases`` leases. Blocks for some seconds."""
    me = psutil.Process()
    gc.collect()  # so that unreachable objects do not count
    client = connect(30)
    try:
        containers = client.containers.list(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
        shims = _settled_shims(client, instance)
    finally:
        client.close()
    return Sample(
        leases,
        len(containers),
        shims,
        me.num_fds(),
        me.num_threads() - _engine_threads(),
        0,
        len(os.listdir(folder)),
        me.memory_info().rss / 2**20,
    )


def _engine_threads() -> int:
    """Return the threads for calls to the engine: they begin when many calls meet, and there is a fixed maximum."""
    return sum(thread.name.startswith("cellblock-engine_") for thread in threading.enumerate())


def _settled_shims(client: DockerClient, instance: str) -> int:
    """Return the number of shims, without those of other instances. One without a container takes a moment to exit."""
    counts = []
    for _ in range(SETTLE):
        time.sleep(1)
        commands = [process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])]
        shims = [" ".join(command) for command in commands if Path(command[0]).name.startswith(SHIMS)]
        living = {container["Id"]: container["Labels"].get(INSTANCE_LABEL) for container in client.api.containers()}
        others = [container for container, label in living.items() if label != instance]
        mine = [shim for shim in shims if not any(container in shim for container in others)]
        counts.append(len(mine))
        if all(any(container in shim for container in living) for shim in mine):
            break
    return min(counts)


async def soak(runtime: str, leases: int, seed: int, folder: Path, *, faults: int = FAULTS, parts: int = 20) -> Soak:
    """Open and close ``leases`` leases, and take samples in between.

    Args:
        folder: holds the sessions' history and checkpoints.
        faults: one lease in this many has a fault.
        parts: the number of samples.
    """
    seen, kinds = Soak(), faults_of(random.Random(seed), leases, faults)  # noqa: S311 - not a secret
    settings = Settings.load().model_copy(
        update={"runtime": runtime, "warm_kernels": WARM, "data_dir": str(folder / "data"), "audit_log": "off"}
    )
    # asyncio starts the threads of its pool when they are needed. Start all of them before the first count.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.2) for _ in range(THREADS)))
    async with AgentKernelManager(max_kernels=KERNELS, resource_limits=LIMITS, settings=settings) as manager:
        await _start_threads(manager)
        with Progress(console=console, transient=True) as shown:
            task = shown.add_task(f"leases under {runtime}", total=leases)
            numbers = iter(range(leases))

            async def work(until: int) -> None:
                for number in numbers:
                    await lease(manager, number, kinds[number], seen)
                    shown.advance(task)
                    if number >= until:
                        return

            for part in range(parts):
                until = (part + 1) * leases // parts - AGENTS
                await asyncio.gather(*(work(until) for _ in range(AGENTS)))
                await quiet(manager)
                done, instance = int(shown.tasks[0].completed), manager.instance_id
                home = instance_folder(settings.state_path, instance)
                sample = await asyncio.to_thread(sample_of, done, instance, home)
                sample.tasks = len(asyncio.all_tasks())
                seen.samples.append(sample)
    return seen


async def _start_threads(manager: AgentKernelManager) -> None:
    """Start the history's threads for large outputs, which also begin when they are needed."""
    async with manager.acquire_kernel("threads", timeout=READY) as (_kernel, session):
        assert session.store is not None
        await asyncio.gather(*(session.store.run_beside(lambda _store: time.sleep(0.2)) for _ in range(BESIDE)))
    await manager.end_session("threads")


def growth(seen: Soak) -> list[str]:
    """Return a line for each resource that grew after the first tenth of the samples."""
    first, last = asdict(seen.samples[len(seen.samples) // 10]), asdict(seen.samples[-1])
    counted = ("containers", "shims", "descriptors", "threads", "tasks", "folders")
    return [f"{name} grew from {first[name]} to {last[name]}" for name in counted if last[name] > first[name]]


def judge(seen: Soak) -> list[str]:
    """Return a line for each wrong result and for each resource that grew."""
    wrong = seen.untrue + seen.lost + growth(seen)
    if (slope := memory_slope(seen.samples)) > SLOPE:
        wrong.append(f"memory grew by {slope:.2f} MiB per 1,000 leases")
    if (slower := slowdown(seen)) > SLOWER:
        wrong.append(f"the last tenth's p99 is {slower:.2f} times the first's")
    return wrong


def memory_slope(samples: list[Sample]) -> float:
    """Return the growth of resident memory in MiB per 1,000 leases, over the second half of the samples.

    It is the Theil-Sen estimate, the median of the slopes between every two samples, which ignores single peaks.
    """
    pairs = itertools.combinations(samples[len(samples) // 2 :], 2)
    slopes = [(later.rss_mb - sooner.rss_mb) / (later.leases - sooner.leases) for sooner, later in pairs]
    return 1000 * statistics.median(slopes) if slopes else 0.0


def tenths(seen: Soak) -> tuple[list[float], list[float]]:
    """Return the latencies of the first and of the last tenth of the cells."""
    size = max(1, len(seen.latencies) // 10)
    return list(seen.latencies[:size]), list(seen.latencies[-size:])


def slowdown(seen: Soak) -> float:
    first, last = (quantile(tenth, 0.99) for tenth in tenths(seen))
    return last / first


def show(seen: Soak, runtime: str) -> None:
    table = Table(title=f"resources between leases under {runtime} (lower is better)", title_justify="left")
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
        f"{len(seen.latencies):,} trivial cells; p99 grew {slowdown(seen):.2f} times (bound {SLOWER:g}); "
        f"memory {memory_slope(seen.samples):+.2f} MiB per 1,000 leases (bound {SLOPE:g})"
    )
    console.print("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(seen.faults.items())))


def main() -> int:
    """Run the soak and print its results. Exit status: 0 if nothing grew and every result was right, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.soak --leases 200")
    parser.add_argument("--leases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--runtime", default="runc", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the random faults (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all samples and latencies to this file as JSON")
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
