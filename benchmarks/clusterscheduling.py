"""Simulates three groups that compete over a cluster whose nodes tell each other what groups hold, or do not.

Run it with ``make schedule``. The real ``orchestrator/pool/scheduler.py`` and ``shares.py`` run on each of 20 simulated
nodes of 10 kernels; no kernel is started.

Assumed input:

- each group always has callers that wait at each node of its own. "uneven": a has the first 14 nodes, b the last 14,
  and c the 8 that both have. "even": each has all nodes;
- an agent has its kernel for 3, 30 or 300 s on average, exponentially distributed;
- a node tells what its groups hold, and learns what the others told, every 2 s. The nodes do so at different moments.

Reported figures, from the time of ten such averages on:

- a, b, c: the kernels that each group holds, in the mean. A third of all, 66.7, is due to each;
- fairness: Jain's index, as in ``benchmarks/scheduling.py``; the mean over all moments, and the lowest.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.scheduling import jain
from orchestrator.pool.scheduler import LeaseRequest, Scheduler
from orchestrator.pool.shares import held_elsewhere, told
from orchestrator.protocol import PROTOCOL
from orchestrator.store.noderecord import Capacity, NodeRecord

NODES, PLACES = 20, 10
RENEWAL = 2.0  # seconds between two renewals of a node's lease
LASTS = (3.0, 30.0, 300.0)  # seconds
SAMPLES = 200  # moments
REACH: Mapping[str, Mapping[str, range]] = {
    "uneven": {"a": range(14), "b": range(6, 20), "c": range(6, 14)},
    "even": {group: range(NODES) for group in "abc"},
}
_POLICY = "default"


@dataclass(frozen=True, slots=True)
class Figures:
    """See the module's docstring."""

    reach: str
    lasts_s: float
    tells: bool
    held: Mapping[str, float]
    fairness: float
    lowest: float


class Simulation:
    """Nodes whose kernels are always wanted.

    Args:
        tells: whether the nodes tell each other what groups hold.
    """

    def __init__(self, reach: Mapping[str, Sequence[int]], lasts: float, seed: int, *, tells: bool) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - a simulation
        self._lasts, self._tells = lasts, tells
        self._nodes = [Scheduler() for _ in range(NODES)]
        self._records = [_record(number, node) for number, node in enumerate(self._nodes)]
        self._held: Counter[str] = Counter()
        self._events: list[tuple[float, int, str | None]] = []  # when, the node, and whose kernel ends; None: it renews
        for number, node in enumerate(self._nodes):
            heapq.heappush(self._events, (RENEWAL * number / NODES, number, None))
            for group in (group for group, numbers in reach.items() if number in numbers):
                for _ in range(PLACES):
                    node.ask(LeaseRequest(group), 0.0)
            for _ in range(PLACES):
                self._serve(number, 0.0)

    def moments(self) -> Iterator[Counter[str]]:
        """Yield what the groups hold, once in a while."""
        step = self._lasts / 4
        at = 10 * self._lasts
        while True:
            now, number, group = heapq.heappop(self._events)
            while at < now:
                yield Counter(self._held)
                at += step
            if group is None:
                self._renew(number)
                heapq.heappush(self._events, (now + RENEWAL, number, None))
            else:
                self._nodes[number].release(group, now)
                self._held[group] -= 1
                self._serve(number, now)

    def _renew(self, number: int) -> None:
        if self._tells:
            self._records[number] = _record(number, self._nodes[number])
            self._nodes[number].count_elsewhere(held_elsewhere(self._records, str(number), _POLICY))

    def _serve(self, number: int, now: float) -> None:
        """Give a kernel to the next caller, in whose place another one of its group begins to wait."""
        ticket = self._nodes[number].next()
        assert ticket is not None
        group = ticket.request.group
        self._nodes[number].ask(LeaseRequest(group), now)
        self._held[group] += 1
        heapq.heappush(self._events, (now + self._chance.expovariate(1 / self._lasts), number, group))


def _record(number: int, node: Scheduler) -> NodeRecord:
    capacity = Capacity(PLACES, 0, 0, 1.0, 0.0, held=told([{_POLICY: node.holders()}]))
    return NodeRecord(str(number), 1, "", "up", 3 * RENEWAL, "", PROTOCOL, capacity)


def figures(reach: str, lasts: float, seed: int, *, tells: bool, samples: int = SAMPLES) -> Figures:
    """Return the figures of one simulation."""
    simulation = Simulation(REACH[reach], lasts, seed, tells=tells)
    moments = [moment for moment, _ in zip(simulation.moments(), range(samples), strict=False)]
    wanted = dict.fromkeys("abc", NODES * PLACES)
    fairness = [jain(moment, wanted) for moment in moments]
    held = {group: statistics.fmean(moment[group] for moment in moments) for group in wanted}
    return Figures(reach, lasts, tells, held, math.fsum(fairness) / len(fairness), min(fairness))


def compare(seed: int) -> list[Figures]:
    """Return the figures of nodes that do not tell, and of nodes that do, for each input."""
    return [figures(reach, lasts, seed, tells=tells) for reach in REACH for lasts in LASTS for tells in (False, True)]


def report(compared: Sequence[Figures], console: Console) -> None:
    """Print the figures. Of the fairness, higher is better."""
    table = Table("callers", "kernel lasts", "nodes tell", "a", "b", "c", "fairness", "lowest")
    for each in compared:
        held = (f"{each.held[group]:.1f}" for group in "abc")
        tells = "yes" if each.tells else "no"
        table.add_row(each.reach, f"{each.lasts_s:g} s", tells, *held, f"{each.fairness:.3f}", f"{each.lowest:.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures to this file as JSON")
    options = parser.parse_args()
    compared = compare(options.seed)
    report(compared, Console())
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in compared], indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
