"""Injects faults into a working cluster, one after another, and checks what its clients were told.

Run it with ``make cluster-faults``; ``test_cluster_faults.py`` is a short version. A seed gives the kinds, nodes and
lengths of the faults, and the clients' choices; what they meet is not repeatable to the millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import command
from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.errors import CellblockError
from orchestrator.remote.remotesession import RemoteSession
from tests.cluster.faultycluster import LEASE, FaultyCluster, FaultyNode, faulty_cluster
from tests.cluster.faultyserver import CLOCK
from tests.cluster.historychecker import Told, check

NODES = 2
AGENTS = 4
CHECKPOINTS = 0.02  # of the cells
RESTORED = 50  # checkpoints of each agent are restored in the end, at most; one takes seconds
CLEANED = 60.0  # seconds after the end until nothing may be left
RECOVERED = 120.0  # seconds until each agent must have a result again
SPREAD = 30.0  # seconds until each node has agents again; else the next fault comes without
HOUR = 3600
CELL = "token = '{}'; tokens = globals().get('tokens', []); tokens.append(token); ' '.join(tokens)"
KINDS = (
    "killed",
    "frozen shortly",
    "frozen past its lease",
    "database cut off",
    "questions to the database lost",
    "answers of the database lost",
    "clients cut off",
    "database restarted",
    "database paused",
    "clock an hour ahead",
    "clock an hour behind",
    "disk full",
)
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass
class Fault:
    """One fault that was injected.

    Attributes:
        node: the name of the node that has it; "": the database.
        began, ended: seconds since the epoch.
        slowest: the longest time, in seconds, that an agent waited from one result to the next.
    """

    kind: str
    node: str
    began: float
    ended: float = 0.0
    slowest: float = 0.0


@dataclass
class Findings:
    """What a run has shown."""

    faults: list[Fault] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    times: list[tuple[float, float, str]] = field(default_factory=list)  # when, how long, the session
    wrong: list[str] = field(default_factory=list)
    owners: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def checkpoints(self) -> list[Told]:
        return [one for one in self.told if one.checkpoint]


class ClusterFaults:
    """One run over a cluster."""

    def __init__(self, cluster: FaultyCluster, manager: ClusterKernelManager, seed: int) -> None:
        self.found = Findings()
        self._cluster = cluster
        self._manager = manager
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311 - the seed reproduces a run
        self._results: dict[str, float] = {}
        self._moving: set[str] = set()
        self._stopped = False
        self._ending = False

    def stop(self) -> None:
        """Inject no further fault: ``run`` judges what there is."""
        self._stopped = True

    async def run(self, kinds: list[str], progress: Progress | None = None) -> Findings:
        """Inject faults while clients work, check what they were told, and end all sessions."""
        agents = [f"agent-{number}" for number in range(AGENTS)]
        working = [asyncio.create_task(self._work(agent)) for agent in agents]
        try:
            await self._recovered(time.time(), agents)
            task = None if progress is None else progress.add_task("faults", total=len(kinds))
            for kind in kinds:
                if self._stopped:
                    break
                await self._spread(agents)
                await self._inject(kind, agents)
                if progress is not None and task is not None:
                    progress.advance(task)
        finally:
            self._ending = True
            done, late = await asyncio.wait(working, timeout=RECOVERED)
            for one in late:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        self.found.wrong += [f"a client failed: {one.exception()!r}" for one in done if one.exception() is not None]
        self.found.wrong += [f"{len(late)} clients still wait"] * bool(late)
        self.found.owners = await asyncio.to_thread(self._cluster.owners)
        self.found.wrong += check(
            self.found.told, await asyncio.to_thread(self._cluster.rows), await asyncio.to_thread(self._cluster.changes)
        )
        await asyncio.gather(*(self._restore(agent) for agent in agents))
        await self._cleaned()
        return self.found

    # The clients

    async def _work(self, agent: str) -> None:
        chance = random.Random(f"{self._seed} {agent}")  # noqa: S311 - the seed reproduces a run
        number = 0
        while not self._ending:
            try:
                async with self._manager.acquire_kernel(agent, timeout=30) as (_kernel, session):
                    said = session.cell_count == 0
                    for _ in range(chance.randrange(1, 5)):
                        number += 1
                        token = f"{agent}.{number}"
                        asks = chance.random() < CHECKPOINTS
                        said = await self._turn(session, agent, token, said=said, checkpoint=asks)
                        await asyncio.sleep(0.1)
                if agent in self._moving:
                    self._moving.discard(agent)
                    await self._manager.hibernate(agent)
            except CellblockError as error:
                self.found.refused.append((time.time(), type(error).__name__))
                await asyncio.sleep(0.2)

    async def _turn(self, session: RemoteSession, agent: str, token: str, *, said: bool, checkpoint: bool) -> bool:
        """Run one cell, and make a checkpoint. Return what the next result need not say again."""
        place = len(self.found.told)
        self.found.told.append(Told(agent, session.session_id, token, None))
        began = time.monotonic()
        result = await self._manager.execute(session, CELL.format(token), timeout=60)
        if result.outcome != "ok":
            self.found.refused.append((time.time(), result.outcome))
            return said
        now, tokens = time.time(), tuple(str(result.result).strip("'").split())
        said = said or any("continues from its checkpoint" in line for line in result.warnings)
        told = Told(agent, session.session_id, token, tokens, said, at=now)
        self.found.told[place] = told
        self.found.times.append((now, time.monotonic() - began, session.session_id))
        self._results[agent] = now
        if checkpoint:
            await self._manager.write_file(session, "token", token)
            made = await self._manager.checkpoint(session)
            self.found.told[place] = Told(agent, told.session, token, tokens, said, made.checkpoint_id, now)
        return False

    async def _recovered(self, since: float, agents: list[str]) -> None:
        """Wait until each agent has had a result since a time."""
        end = time.monotonic() + RECOVERED
        while any(self._results.get(agent, 0) < since for agent in agents):
            if time.monotonic() > end:
                late = [agent for agent in agents if self._results.get(agent, 0) < since]
                self.found.wrong.append(f"no result in {RECOVERED:.0f} s: {late}, {self.found.refused[-3:]}")
                return
            await asyncio.sleep(0.05)

    async def _spread(self, agents: list[str]) -> None:
        """Have each node hold agents: half of a node's go to sleep, and wake where there is most room."""
        end = time.monotonic() + SPREAD
        while time.monotonic() < end:
            held: dict[str, list[str]] = {node.node_id: [] for node in self._cluster.nodes}
            for agent in agents:
                held.get(await self._manager.node_of(agent) or "", []).append(agent)
            if all(held.values()):
                break
            fullest = max(held.values(), key=len)
            if sum(map(len, held.values())) == len(agents) and not self._moving:
                self._moving.update(fullest[: len(fullest) // 2])
            await asyncio.sleep(0.5)
        self._moving.clear()

    # The faults

    async def _inject(self, kind: str, agents: list[str]) -> None:
        chosen, agent = self._chance.choice(self._cluster.nodes), self._chance.choice(agents)
        owner = await self._manager.node_of(agent)  # a fault of an idle node shows little
        node = next((node for node in self._cluster.nodes if node.node_id == owner), chosen)
        fault = Fault(kind, "" if kind.startswith("database r") or kind == "database paused" else node.node_id, 0.0)
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        fault.began = time.time()
        self.found.faults.append(fault)
        try:
            await self._hurt(kind, node)
        finally:
            self._cluster.database.go_on()
            node.heal()
        fault.ended = time.time()
        await self._recovered(fault.ended, agents)
        fault.slowest = max(self._gap(agent, fault) for agent in agents)

    def _gap(self, agent: str, fault: Fault) -> float:
        """Return the longest time between two results of an agent, in seconds, that a fault has a part in."""
        times = [one.at for one in self.found.told if one.agent == agent and one.tokens is not None]
        gaps = [after - at for at, after in pairwise(times) if after > fault.began and at < fault.ended]
        return max(gaps, default=0.0)

    async def _hurt(self, kind: str, node: FaultyNode) -> None:
        long = LEASE * self._chance.uniform(1.5, 3.0)
        ways = {"database cut off": "both", "questions to the database lost": "questions"}
        if kind == "killed":
            await asyncio.to_thread(node.kill)
            await asyncio.sleep(self._chance.choice([0.0, long]))
            await asyncio.to_thread(node.start)
        elif kind.startswith("frozen"):
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE * self._chance.uniform(0.2, 0.6) if kind == "frozen shortly" else long)
        elif kind in ways or kind.startswith("answers"):
            node.database.freeze("both" if kind == "database cut off" else "questions" if kind in ways else "answers")
            await asyncio.sleep(long * self._chance.choice([1.0, 3.0]))
            if self._chance.random() < 0.5:
                node.database.cut()  # else what was held arrives late
        elif kind == "clients cut off":
            node.clients.freeze(self._chance.choice(["both", "questions", "answers"]))
            await asyncio.sleep(long)
            node.clients.cut()
        elif kind == "database restarted":
            await asyncio.to_thread(self._cluster.database.restart)
        elif kind == "database paused":
            self._cluster.database.pause()
            await asyncio.sleep(self._chance.choice([LEASE / 2, long]))
        elif kind == "disk full":
            await asyncio.to_thread(node.fill)
            await asyncio.sleep(long)
        else:
            (node.folder / CLOCK).write_text(f"{HOUR if kind.endswith('ahead') else -HOUR}")
            await asyncio.sleep(long)

    # The end

    async def _restore(self, agent: str) -> None:
        made = [one for one in self.found.checkpoints if one.agent == agent]
        for one in made[:: len(made) // RESTORED + 1]:
            try:
                async with self._manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                    await self._manager.restore(session, one.checkpoint)
                    result = await self._manager.execute(session, "' '.join(tokens) + '|' + open('token').read()")
                if str(result.result).strip("'") != f"{' '.join(one.tokens or ())}|{one.token}":
                    self.found.wrong.append(f"checkpoint of {one.token}: {result.result}, {result.outcome}")
            except CellblockError as error:
                self.found.wrong.append(f"checkpoint of {one.token}: {error}")
        await self._manager.end_session(agent)

    async def _cleaned(self) -> None:
        end = time.monotonic() + CLEANED
        while (left := await asyncio.to_thread(self._cluster.orphans)) and time.monotonic() < end:
            await asyncio.sleep(0.5)
        self.found.wrong += [f"{CLEANED:.0f} s after the end: {one}" for one in left]


def kinds_of(times: int, seed: int) -> list[str]:
    """Return the kinds of a run's faults: each as often as the others, in an order of the seed."""
    chance = random.Random(seed)  # noqa: S311 - the seed reproduces a run
    kinds = [KINDS[number % len(KINDS)] for number in range(times)]
    chance.shuffle(kinds)
    return kinds


def table_of(found: Findings) -> Table:
    """Return a table by kind of fault."""
    table = Table("fault", "count", "calls refused", "unacknowledged cells", "cells to redo", "slowest next result s")
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in found.faults:
        by_kind[fault.kind].append(fault)
    starts = [fault.began for fault in found.faults] + [float("inf")]
    until = {id(fault): end for fault, end in zip(found.faults, starts[1:], strict=True)}
    lost = to_redo(found.told)
    for kind, faults in by_kind.items():
        spans = [(fault.began, until[id(fault)]) for fault in faults]
        refused = [name for at, name in found.refused if any(begin <= at < end for begin, end in spans)]
        died = sum(name == "kernel_died" for name in refused)
        redone = sum(cells for at, cells in lost if any(begin <= at < end for begin, end in spans))
        slowest = max(fault.slowest for fault in faults)
        table.add_row(kind, str(len(faults)), str(len(refused) - died), str(died), str(redone), f"{slowest:.1f}")
    return table


def to_redo(told: Iterable[Told]) -> list[tuple[float, int]]:
    """Return when agents got a kernel without all their acknowledged cells, and how many of them it lacks."""
    found: list[tuple[float, int]] = []
    before: dict[str, tuple[str, ...]] = {}
    for one in told:
        if one.tokens is not None:
            if lacking := set(before.get(one.agent, ())) - set(one.tokens):
                found.append((one.at, len(lacking)))
            before[one.agent] = one.tokens
    return found


def latencies(found: Findings) -> str:
    """Return the p99 of cells on other nodes while one has a fault, beside that of cells without any fault."""
    during: list[float] = []
    quiet: list[float] = []
    for at, took, session in found.times:
        owner = next((node for since, of, node in reversed(found.owners) if of == session and since <= at), "")
        hit = [fault for fault in found.faults if fault.began <= at and at - took <= fault.ended]
        if not hit:
            quiet.append(took)
        elif all(fault.node and fault.node != owner for fault in hit):
            during.append(took)
    shown = [f"{sorted(each)[int(len(each) * 0.99)]:.2f} s of {len(each)}" if each else "-" for each in (during, quiet)]
    return f"p99 of a cell on other nodes during a fault: {shown[0]}; without a fault: {shown[1]}"


async def run(times: int, seed: int, nodes: int = NODES, progress: Progress | None = None) -> Findings:
    """Run a cluster, and inject faults into it. An interrupt ends the injection; what there is is judged."""
    cluster_of = faulty_cluster(nodes)
    cluster = await asyncio.to_thread(cluster_of.__enter__)
    try:
        async with ClusterKernelManager(store_url=cluster.database.url, seed=seed) as manager:
            faults = ClusterFaults(cluster, manager, seed)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, faults.stop)
            return await faults.run(kinds_of(times, seed), progress)
    finally:
        await asyncio.to_thread(cluster_of.__exit__, None, None, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=NODES)
    arguments = parser.parse_args()
    with Progress(console=console, transient=True) as shown:
        found = asyncio.run(run(arguments.times, arguments.seed, arguments.nodes, shown))
    for line in found.wrong[:40]:
        console.print(line, style="red", markup=False)
    console.print(table_of(found))
    acknowledged = sum(one.tokens is not None for one in found.told)
    console.print(
        f"{len(found.faults)} faults, {acknowledged} acknowledged cells, {len(found.checkpoints)} checkpoints, "
        f"{len(found.wrong)} findings. {latencies(found)}"
    )
    return int(bool(found.wrong))


if __name__ == "__main__":
    command.run_main(main)
