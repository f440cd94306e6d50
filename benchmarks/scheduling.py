"""Who waits how long: ten thousand agents over a thousand kernels, once first come first served, once as we do it.

Run it with ``make schedule``. A simulation of events drives the real ``orchestrator/pool/scheduler.py``; no kernel is
started.

What is measured: how long a kernel takes to start, to run a cell and to end (``servicetimes.json``, of real kernels).
What is assumed:

- an agent runs a heavy-tailed number of cells (Pareto, exponent 1.5, at least 10), each as long as a measured one;
- twenty groups. One, the hog, has 40 % of the agents, and all of them ask in the first second. The others' come
  at random times, at a rate that would use 70 % of the kernels; the largest of them has six times the least;
- one agent in twenty is urgent, by one step of priority;
- a kernel serves one agent, then ends, and a fresh one is started in its place.

What is reported:

- utilisation: of the time of all kernels while somebody waited, the part in which agents had them. The rest are
  starts and ends; a kernel that was ready while somebody waited would be a fault ("idle", always 0);
- waits, of all, of the agents outside the hog, and of the urgent ones among those;
- fairness: at one moment, x = the kernels that a group has / those that max-min fairness would give it, of the kernels
  that agents have, by what it has and waits for. Jain's index of that is (sum x)^2 / (n sum x^2), over the n groups
  that have or want some: 1 when all get the same part of their due, 1/n when one gets all. The mean over moments
  while somebody waited;
- starved: agents that waited longer than all kernels together need for the work of all agents;
- told: of agents outside the hog that waited for 0.5 s or more, the wait that the scheduler expected when they asked /
  the real one. (The hog's ask before kernels come free at the pace at which they will.)
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
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
HOGS = 0.4  # of all agents
LOAD = 0.7  # of all kernels, that the others would use
URGENT = 0.05  # of all agents
CELLS, TAIL = 10, 1.5  # the least number of cells, and the exponent of how many more
MOST_CELLS = 5000
LOOKS = 400  # moments at which fairness is judged, about


class Order(Protocol):
    """Who gets the next kernel: ``Scheduler``, or what it is compared with."""

    def ask(self, request: LeaseRequest, now: float) -> Ticket: ...
    def next(self) -> Ticket | None: ...
    def release(self, group: str, now: float | None = None) -> None: ...
    def expected_wait(self, group: str, now: float) -> float | None: ...


class FirstComeFirstServed:
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
    """Asks for a kernel at a time, and has it for some seconds; its kernel's end and the next one's start follow."""

    request: LeaseRequest
    asks_at: float
    needs: float
    turnover: float


@dataclass
class Run:
    """What came of one order.

    Attributes:
        waits: seconds, of each agent.
        leased, turning, idle: kernel-seconds while somebody waited: in agents' hands, ending or starting, ready.
        fairness: Jain's index, at moments while somebody waited.
        told: seconds that each agent was told it would wait, where the order could say.
    """

    waits: dict[Agent, float] = field(default_factory=dict)
    leased: float = 0.0
    turning: float = 0.0
    idle: float = 0.0
    fairness: list[float] = field(default_factory=list)
    told: dict[Agent, float] = field(default_factory=dict)


def agents(count: int, kernels: int, groups: int, seed: int, times: ServiceTimes) -> list[Agent]:
    """Make the agents, in the order of asking."""
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
    """One order, over all agents, from the first that asks to the last that gets its kernel."""

    def __init__(self, order: Order, agents: Sequence[Agent], kernels: int) -> None:
        self._order = order
        self._kernels = kernels
        self._ready = kernels
        self._held: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._asked: dict[Ticket, Agent] = {}
        self._numbers = itertools.count()
        self._now = 0.0
        self._every = agents[-1].asks_at / LOOKS
        self._look_at = 0.0
        self._events: list[tuple[float, int, str, Agent]] = []
        for agent in agents:
            self._at(agent.asks_at, "asks", agent)
        self.run = Run()

    def play(self) -> Run:
        while self._events:
            at, _, kind, agent = heapq.heappop(self._events)
            self._pass_time(at)
            match kind:
                case "asks":
                    self._ask(agent)
                case "leaves":
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
        told = self._order.expected_wait(agent.request.group, self._now)
        if told is not None:
            self.run.told[agent] = told
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
            self._at(self._now + agent.needs, "leaves", agent)

    def _pass_time(self, now: float) -> None:
        span, self._now = now - self._now, now
        if not self._asked:
            return
        leased = self._held.total()
        self.run.leased += span * leased
        self.run.idle += span * self._ready
        self.run.turning += span * (self._kernels - leased - self._ready)
        if now >= self._look_at:
            self._look_at = now + self._every
            self.run.fairness.append(jain(self._held, self._held + self._waiting))


def jain(held: Mapping[str, int], wanted: Mapping[str, int]) -> float:
    """Jain's index of what groups have, each beside its max-min fair share of all that is had."""
    due = fair_shares(sum(held.values()), wanted)
    parts = [held[group] / share for group, share in due.items() if share]
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts)) if any(parts) else 1.0


def fair_shares(kernels: float, wanted: Mapping[str, int]) -> dict[str, float]:
    """Divide kernels: whoever wants least is served first, and what it leaves is divided among the others."""
    shares: dict[str, float] = {}
    for number, group in enumerate(sorted(wanted, key=lambda group: wanted[group])):
        shares[group] = min(wanted[group], kernels / (len(wanted) - number))
        kernels -= shares[group]
    return shares


@dataclass(frozen=True)
class Figures:
    """What is reported of one order; seconds, and parts of 1."""

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
    told_p10: float | None
    told_p50: float | None
    told_p90: float | None


def figures(run: Run, kernels: int) -> Figures:
    waits = list(run.waits.values())
    others = [wait for agent, wait in run.waits.items() if agent.request.group != HOG]
    urgent = [wait for agent, wait in run.waits.items() if agent.request.group != HOG and agent.request.priority]
    hogs = [wait for agent, wait in run.waits.items() if agent.request.group == HOG]
    work = math.fsum(agent.needs + agent.turnover for agent in run.waits) / kernels
    waited = {agent: run.waits[agent] for agent in run.told if agent.request.group != HOG and run.waits[agent] >= 0.5}
    told = [run.told[agent] / wait for agent, wait in waited.items()]
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
        told_p10=quantile(told, 0.1) if told else None,
        told_p50=quantile(told, 0.5) if told else None,
        told_p90=quantile(told, 0.9) if told else None,
    )


def compare(count: int, kernels: int, groups: int, seed: int, times: ServiceTimes) -> dict[str, Figures]:
    """Let the same agents ask under either order."""
    asking = agents(count, kernels, groups, seed, times)
    orders: dict[str, Order] = {"first come, first served": FirstComeFirstServed(), "fair scheduler": Scheduler()}
    return {name: figures(Simulation(order, asking, kernels).play(), kernels) for name, order in orders.items()}


def report(compared: Mapping[str, Figures], console: Console) -> None:
    table = Table("", *compared, title_justify="left")
    for row in asdict(next(iter(compared.values()))):
        values = [getattr(found, row) for found in compared.values()]
        table.add_row(row.replace("_", " "), *map(_shown, values))
    console.print(table)


def _shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--kernels", type=int, default=1_000)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    compared = compare(options.agents, options.kernels, options.groups, options.seed, ServiceTimes.load())
    report(compared, Console())
    if options.json:
        options.json.write_text(json.dumps({name: asdict(found) for name, found in compared.items()}, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
