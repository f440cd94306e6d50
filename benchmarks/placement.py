"""Simulates where a cluster's sessions go: 1,000 nodes of 100 kernels each, and callers that decide on their own.

Run it with ``make placement``. It drives the real ``orchestrator/cluster/placement.py`` with a fake clock; it starts no
kernel and needs no store.

Assumed input:

- a node has 100 places, 32 cores and 512 GiB; one in four has half of it. It tells its capacity every 3 s, when it
  renews its lease. The nodes do so at different moments;
- 40 callers read the directory at most once a second each, and place sessions from that reading;
- the sessions come at random, first in a burst of 60 s that fills the cluster to the given load, then at the rate at
  which they end. One lasts 300 s on average, exponentially distributed;
- a node that has no place refuses, and the caller asks the next one in its order.

Reported figures, for the minute after the burst:

- utilisation: of the places of a node; its mean, and its standard deviation over the nodes (spread), in percent;
- refusals: of full nodes, for each session; the mean, and the most that one session met;
- time: of the CPU, that the caller takes for one decision, with its share of the reading, in microseconds.

Compared orders: ``sampled``, which is the real one; ``random``; and ``best``, which takes the best of all nodes.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.command import run_main
from orchestrator.cluster.placement import Need, Placement, score
from orchestrator.protocol import PROTOCOL
from orchestrator.store.noderecord import Capacity, NodeRecord

NEED = Need("default", memory_mb=2048)
RENEWAL = 3.0  # seconds between two renewals of a node's lease
READING = 1.0  # seconds for which a caller uses a reading
LEASE = 10.0  # seconds
CALLERS = 40
LASTS = 300.0  # seconds
BURST, MEASURED = 60.0, 60.0  # seconds
LOADS = (0.7, 0.9, 0.98)
STEP = 0.05  # seconds


class Order(Protocol):
    """The nodes of one reading, in the order in which a caller asks them."""

    def order(
        self, need: Need, chance: random.Random, *, age_s: float = 0.0, placed: Mapping[str, int] | None = None
    ) -> Iterator[NodeRecord]: ...


class AtRandom:
    """Asks a random node, and then another one, perhaps the same."""

    def __init__(self, nodes: list[NodeRecord]) -> None:
        self._nodes = nodes

    def order(
        self, need: Need, chance: random.Random, *, age_s: float = 0.0, placed: Mapping[str, int] | None = None
    ) -> Iterator[NodeRecord]:
        return (chance.choice(self._nodes) for _ in self._nodes)


class BestOfAll:
    """Asks the nodes in the order of their scores. Every caller has the same."""

    def __init__(self, nodes: list[NodeRecord]) -> None:
        self._nodes = sorted(nodes, key=lambda node: score(node, NEED))

    def order(
        self, need: Need, chance: random.Random, *, age_s: float = 0.0, placed: Mapping[str, int] | None = None
    ) -> Iterator[NodeRecord]:
        return iter(self._nodes)


ORDERS: dict[str, type[Placement] | type[AtRandom] | type[BestOfAll]] = {
    "sampled": Placement,
    "random": AtRandom,
    "best": BestOfAll,
}


@dataclass
class Host:
    """A node as it is, beside what its record says."""

    number: int
    places: int
    taken: int = 0

    def record(self) -> NodeRecord:
        """Return what the node writes when it renews its lease."""
        free, share = self.places - self.taken, self.places / 100
        capacity = Capacity(
            kernels=self.places,
            free=free,
            memory_free_mb=int(512 * 1024 * share) - self.taken * NEED.memory_mb,
            cores=32 * share,
            load=0.1 * self.taken,
            warm={"default": min(2, free)},
        )
        return NodeRecord(str(self.number), 1, "", "up", LEASE, "", PROTOCOL, capacity)


@dataclass
class Caller:
    """A process that places sessions."""

    read_at: float = -READING
    order: Order = field(default_factory=lambda: Placement([]))
    placed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Figures:
    """See the module's docstring."""

    load: float
    sessions: int
    unplaced: int
    utilisation: float
    spread: float
    refusals: float
    most_refusals: int
    microseconds: float


class Simulation:
    """One run: a cluster, its callers, and the sessions that live."""

    def __init__(self, name: str, nodes: int, load: float, seed: int) -> None:
        self._kind = ORDERS[name]
        self._load = load
        self._chance = random.Random(seed)  # noqa: S311 - a simulation
        self._hosts = [Host(number, 50 if number % 4 == 0 else 100) for number in range(nodes)]
        self._records = [host.record() for host in self._hosts]
        self._callers = [Caller() for _ in range(CALLERS)]
        self._ends: list[tuple[float, int]] = []
        self._refusals: list[int] = []
        self._unplaced = 0
        self._spent = 0.0

    def run(self) -> Figures:
        """Return the figures of the minute after the burst."""
        target = self._load * sum(host.places for host in self._hosts)
        spreads, means = [], []
        for step in range(int((BURST + MEASURED) / STEP)):
            now = step * STEP
            if now >= BURST and now - STEP < BURST:
                self._refusals, self._unplaced, self._spent = [], 0, 0.0
            self._tick(step, now)
            rate = (len(self._ends) / LASTS + target / BURST) if now < BURST else target / LASTS
            for _ in range(self._arrivals(rate * STEP)):
                self._place(now)
            if now >= BURST and step % 20 == 0:
                used = [100 * host.taken / host.places for host in self._hosts]
                means.append(statistics.fmean(used))
                spreads.append(statistics.pstdev(used))
        return Figures(
            self._load,
            len(self._refusals),
            self._unplaced,
            statistics.fmean(means),
            statistics.fmean(spreads),
            statistics.fmean(self._refusals),
            max(self._refusals),
            1e6 * self._spent / len(self._refusals),
        )

    def _tick(self, step: int, now: float) -> None:
        """End sessions, and let those nodes renew whose turn it is."""
        while self._ends and self._ends[0][0] <= now:
            self._hosts[heapq.heappop(self._ends)[1]].taken -= 1
        period = int(RENEWAL / STEP)
        for number in range(step % period, len(self._hosts), period):
            self._records[number] = self._hosts[number].record()

    def _arrivals(self, mean: float) -> int:
        """Return how many sessions come, Poisson-distributed."""
        at = itertools.accumulate(iter(lambda: self._chance.expovariate(mean), None))
        return sum(1 for _ in itertools.takewhile(lambda moment: moment < 1, at))

    def _place(self, now: float) -> None:
        caller = self._chance.choice(self._callers)
        began = time.thread_time()
        if now - caller.read_at >= READING:
            caller.read_at, caller.order, caller.placed = now, self._kind(list(self._records)), Counter()
        refused = 0
        for node in caller.order.order(NEED, self._chance, age_s=now - caller.read_at, placed=caller.placed):
            host = self._hosts[int(node.node_id)]
            if host.taken < host.places:
                host.taken += 1
                caller.placed[node.node_id] += 1
                heapq.heappush(self._ends, (now + self._chance.expovariate(1 / LASTS), host.number))
                break
            refused += 1
        else:
            self._unplaced += 1
        self._spent += time.thread_time() - began
        self._refusals.append(refused)


def compare(nodes: int, seed: int) -> dict[str, list[Figures]]:
    """Return the figures of each order, at each load."""
    return {name: [Simulation(name, nodes, load, seed).run() for load in LOADS] for name in ORDERS}


def report(compared: Mapping[str, list[Figures]], console: Console) -> None:
    """Print the figures. Of all but the load and the utilisation, lower is better."""
    table = Table("order", "load", "sessions", "unplaced", "utilisation %", "spread %", "refusals", "most", "time us")
    for name, runs in compared.items():
        for each in runs:
            table.add_row(
                name,
                f"{each.load:.0%}",
                f"{each.sessions:,}",
                str(each.unplaced),
                f"{each.utilisation:.1f}",
                f"{each.spread:.2f}",
                f"{each.refusals:.4f}",
                str(each.most_refusals),
                f"{each.microseconds:.0f}",
            )
    console.print(table, crop=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures to this file as JSON")
    options = parser.parse_args()
    compared = compare(options.nodes, options.seed)
    report(compared, Console())
    if options.json:
        rows = {name: [asdict(each) for each in runs] for name, runs in compared.items()}
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
