"""Compares the fair scheduler with first come, first served: 10,000 agents share 1,000 kernels.

Run it with ``make schedule``. An event simulation drives the real ``orchestrator/pool/scheduler.py``; it starts no
kernel.

Measured input: the times that real kernels take to start, to run a cell and to end (``servicetimes.json``).
Assumed input:

- an agent runs a heavy-tailed number of cells (Pareto, exponent 1.5, at least 10), each as long as a measured one;
- there are twenty groups. One, the hog, has 40 % of the agents, which all ask in the first second. The other agents
  ask at random times, at a rate that would use 70 % of the kernels; the largest group has six times as many as the
  smallest;
- one agent in twenty is urgent, by one step of priority;
- a kernel serves one agent, then ends and is replaced.

Reported figures:

- utilisation: the share of kernel time that was leased, while agents waited. The rest are starts and ends, and idle
  time, which must be 0 while agents wait;
- waits: of all agents, of the agents outside the hog (others), and of the urgent agents outside the hog;
- fairness: Jain's index (sum x)^2 / (n sum x^2) over the n groups that hold or want kernels, where x is the kernels of
  a group divided by its max-min fair share. It is 1 if all groups get the same share of what is due to them, and 1/n
  if one group gets everything. The figure is the mean over the moments while agents waited;
- starved: agents that waited longer than all kernels together need for the work of all agents;
- estimate: the expected wait that the scheduler reported divided by the real wait, for agents outside the hog that
  waited for 0.5 s or more. (The hog asks before kernels become free at a steady rate.)
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.servicetimes import ServiceTimes
from orchestrator.isolation.measure import quantile
from orchestrator.pool.scheduler import LeaseRequest, Scheduler, Ticket

HOG = "hog"
HOGS = 0.4  # share of all agents
LOAD = 0.7  # share of all kernels that the other agents would use
URGENT = 0.05  # share of all agents
CELLS, TAIL = 10, 1.5  # the minimum number of cells, and the Pareto exponent
MOST_CELLS = 5000
SAMPLES = 400  # about how often fairness is sampled


_HIGHER = ("utilisation", "fairness")
# The figures of each table, by name.
_BETTER: dict[str, Callable[[str], bool]] = {
    "higher is better": lambda name: name in _HIGHER,
    "lower is better": lambda name: name not in _HIGHER and not name.startswith("estimate"),
    "1 is exact": lambda name: name.startswith("estimate"),
}


class Order(Protocol):
    """Decides who gets the next kernel: ``Scheduler`` or ``FirstComeFirstServed``."""

    def ask(self, request: LeaseRequest, now: float) -> Ticket: ...
    def next(self) -> Ticket | None: ...
    def release(self, group: str, now: float | None = None) -> None: ...
    def expected_wait(self, group: str, now: float) -> float | None: ...


class FirstComeFirstServed:
    """Serves requests in the order in which they come."""

    def __init__(self) -> None:
        self._queue: deque[Ticket] = deque()

    def ask(self, request: LeaseRequest, now: float) -> Ticket:
        self._queue.append(Ticket(request, now, (now, 0)))
        return self._queue[-1]

    def next(self) -> Ticket | None:
        return self._queue.popleft() if self._queue else None

    def release(self, group: str, now: float | None = None) -> None:
        return

    def expected_wait(self, group: str, now: float) -> float | None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Agent:
    """One agent of the simulation.

    Attributes:
        asks_at: when it asks for a kernel, in seconds from the start.
        needs: for how many seconds it uses its kernel.
        turnover: the seconds that the end of its kernel and the start of the next one take.
    """

    request: LeaseRequest
    asks_at: float
    needs: float
    turnover: float


@dataclass
class Run:
    """The result of a simulation.

    Attributes:
        waits: how long each agent waited, in seconds.
        leased, turning, idle: kernel-seconds while agents waited: leased, ending or starting, and ready.
        fairness: Jain's index at the sampled moments while agents waited.
        estimates: the expected wait that was reported to each agent, in seconds.
    """

    waits: dict[Agent, float] = field(default_factory=dict)
    leased: float = 0.0
    turning: float = 0.0
    idle: float = 0.0
    fairness: list[float] = field(default_factory=list)
    estimates: dict[Agent, float] = field(default_factory=dict)


def agents(count: int, kernels: int, groups: int, seed: int, times: ServiceTimes) -> list[Agent]:
    """Return the agents in the order in which they ask."""
    chance = random.Random(seed)  # noqa: S311 - the same agents each time
    hogs = round(HOGS * count)
    needs = [_work(chance, times) for _ in range(count)]
    turnovers = [chance.choice(times.end) + chance.choice(times.start) for _ in range(count)]
    span = (sum(needs[hogs:]) + sum(turnovers[hogs:])) / (LOAD * kernels)
    names = [f"group-{number}" for number in range(1, groups)]
    others = chance.choices(names, [1 + 5 * number / len(names) for number in range(len(names))], k=count - hogs)
    made = [
        Agent(
            LeaseRequest(group, int(chance.random() < URGENT)),
            chance.random() * (1.0 if group == HOG else span),
            needs[number],
            turnovers[number],
        )
        for number, group in enumerate([HOG] * hogs + others)
    ]
    return sorted(made, key=lambda agent: agent.asks_at)


def _work(chance: random.Random, times: ServiceTimes) -> float:
    cells = min(int(CELLS * chance.paretovariate(TAIL)), MOST_CELLS)
    return sum(chance.choices(times.cell, k=cells))


class Simulation:
    """Simulates one order until every agent has had its kernel."""

    def __init__(self, order: Order, agents: Sequence[Agent], kernels: int) -> None:
        self._order = order
        self._kernels = kernels
        self._ready = kernels
        self._held: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._asked: dict[Ticket, Agent] = {}
        self._numbers = itertools.count()
        self._now = 0.0
        self._every = agents[-1].asks_at / SAMPLES
        self._sample_at = 0.0
        self._events: list[tuple[float, int, str, Agent]] = []
        for agent in agents:
            self._at(agent.asks_at, "asks", agent)
        self.run = Run()

    def play(self) -> Run:
        """Run the simulation and return its result."""
        while self._events:
            at, _, kind, agent = heapq.heappop(self._events)
            self._pass_time(at)
            match kind:
                case "asks":
                    self._ask(agent)
                case "ends":
                    self._order.release(agent.request.group, at)
                    self._held[agent.request.group] -= 1
                    self._at(at + agent.turnover, "is replaced", agent)
                case _:
                    self._ready += 1
            self._serve()
        return self.run

    def _at(self, when: float, kind: str, agent: Agent) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, agent))

    def _ask(self, agent: Agent) -> None:
        estimate = self._order.expected_wait(agent.request.group, self._now)
        if estimate is not None:
            self.run.estimates[agent] = estimate
        self._asked[self._order.ask(agent.request, self._now)] = agent
        self._waiting[agent.request.group] += 1

    def _serve(self) -> None:
        while self._ready and (ticket := self._order.next()) is not None:
            agent = self._asked.pop(ticket)
            group = agent.request.group
            self._ready -= 1
            self._waiting[group] -= 1
            self._held[group] += 1
            self.run.waits[agent] = self._now - agent.asks_at
            self._at(self._now + agent.needs, "ends", agent)

    def _pass_time(self, now: float) -> None:
        span, self._now = now - self._now, now
        if not self._asked:
            return
        leased = self._held.total()
        self.run.leased += span * leased
        self.run.idle += span * self._ready
        self.run.turning += span * (self._kernels - leased - self._ready)
        if now >= self._sample_at:
            self._sample_at = now + self._every
            self.run.fairness.append(jain(self._held, self._held + self._waiting))


def jain(held: Mapping[str, int], wanted: Mapping[str, int]) -> float:
    """Return Jain's index of the groups' kernels, each divided by the group's max-min fair share."""
    due = fair_shares(sum(held.values()), wanted)
    parts = [held[group] / share for group, share in due.items() if share]
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts)) if any(parts) else 1.0


def fair_shares(kernels: float, wanted: Mapping[str, int]) -> dict[str, float]:
    """Return the max-min fair shares: the smallest demand is met first, the rest is divided among the others."""
    shares: dict[str, float] = {}
    for number, group in enumerate(sorted(wanted, key=lambda group: wanted[group])):
        shares[group] = min(wanted[group], kernels / (len(wanted) - number))
        kernels -= shares[group]
    return shares


@dataclass(frozen=True)
class Figures:
    """The reported figures of one order, in seconds and as shares of 1."""

    utilisation: float
    idle: float
    wait_p50_s: float
    wait_p99_s: float
    wait_most_s: float
    others_p50_s: float
    others_p99_s: float
    urgent_p99_s: float
    hog_p50_s: float
    fairness: float
    starved: int
    estimate_p10: float | None
    estimate_p50: float | None
    estimate_p90: float | None


def figures(run: Run, kernels: int) -> Figures:
    """Return the figures of one simulation."""
    waits = list(run.waits.values())
    others = [wait for agent, wait in run.waits.items() if agent.request.group != HOG]
    urgent = [wait for agent, wait in run.waits.items() if agent.request.group != HOG and agent.request.priority]
    hogs = [wait for agent, wait in run.waits.items() if agent.request.group == HOG]
    work = math.fsum(agent.needs + agent.turnover for agent in run.waits) / kernels
    waited = [agent for agent in run.estimates if agent.request.group != HOG and run.waits[agent] >= 0.5]
    estimates = [run.estimates[agent] / run.waits[agent] for agent in waited]
    whole = run.leased + run.turning + run.idle
    return Figures(
        utilisation=run.leased / whole,
        idle=run.idle / whole,
        wait_p50_s=quantile(waits, 0.5),
        wait_p99_s=quantile(waits, 0.99),
        wait_most_s=max(waits),
        others_p50_s=quantile(others, 0.5),
        others_p99_s=quantile(others, 0.99),
        urgent_p99_s=quantile(urgent, 0.99),
        hog_p50_s=quantile(hogs, 0.5),
        fairness=math.fsum(run.fairness) / len(run.fairness),
        starved=sum(wait > work for wait in waits),
        estimate_p10=quantile(estimates, 0.1) if estimates else None,
        estimate_p50=quantile(estimates, 0.5) if estimates else None,
        estimate_p90=quantile(estimates, 0.9) if estimates else None,
    )


def compare(count: int, kernels: int, groups: int, seed: int, times: ServiceTimes) -> dict[str, Figures]:
    """Simulate the same agents under each order."""
    asking = agents(count, kernels, groups, seed, times)
    orders: dict[str, Order] = {"first come, first served": FirstComeFirstServed(), "fair scheduler": Scheduler()}
    return {name: figures(Simulation(order, asking, kernels).play(), kernels) for name, order in orders.items()}


def report(compared: Mapping[str, Figures], console: Console) -> None:
    """Print a table of the figures for each group of ``_BETTER``."""
    rows = list(asdict(next(iter(compared.values()))))
    for better, chosen in _BETTER.items():
        table = Table(better, *compared)
        for row in (row for row in rows if chosen(row)):
            values = [getattr(found, row) for found in compared.values()]
            table.add_row(row.replace("_", " "), *map(_shown, values))
        console.print(table)


def _shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python -m benchmarks.scheduling --agents 1000 --kernels 100",
    )
    parser.add_argument("--agents", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--kernels", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument("--groups", type=int, default=20, help="groups of agents (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random agents (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as JSON")
    options = parser.parse_args()
    compared = compare(options.agents, options.kernels, options.groups, options.seed, ServiceTimes.load())
    report(compared, Console())
    if options.json:
        options.json.write_text(json.dumps({name: asdict(found) for name, found in compared.items()}, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
