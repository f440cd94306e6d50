"""Who gets the next kernel, and whether the host has room for one more. Pure: no clock, no I/O, nothing waits.

The order of callers, each with a group and a priority:

- a kernel that comes free goes to the group that holds the fewest for its weight (max-min fairness), never past the
  group's quota;
- within a group, to the caller that asked first; one step of priority is worth ``aging_s`` seconds of waiting;
- every eighth kernel goes to the caller that is first by that measure in all groups.

The last makes starvation impossible: a caller behind k others gets one of the next 8 (k + 1) kernels, whatever other
groups do, unless its own group is at its quota. With one group and one priority all of this is first come, first
served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Literal, TypeVar

from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.policy import Group, Scheduling

BY_AGE = 8  # every so many kernels one goes by age alone: what a group can hold beyond its share is 1/8 of all
_PACE = 64  # kernels that came free, from which the pace is told
_SLACK = 64  # stale entries that a heap may have, whatever its size

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """For whom a kernel is asked: a group of agents, "" being that of all who name none, and a priority in it."""

    group: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One caller's place among those who wait.

    Attributes:
        asked: when, in the seconds of the caller's clock.
        rank: the least goes first.
    """

    request: LeaseRequest
    asked: float
    rank: tuple[float, int]


class _Ranking(Generic[T]):
    """Items by rank, the least first; no two have the same rank. Every operation takes O(log n), amortised.

    What is ranked anew, or discarded, leaves a stale entry on the heap. It goes when it comes up, or with all others
    when they outnumber the living.
    """

    def __init__(self) -> None:
        self._ranks: dict[T, Any] = {}
        self._heap: list[tuple[Any, T]] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def put(self, item: T, rank: Any) -> None:
        if self._ranks.get(item) != rank:
            self._ranks[item] = rank
            heappush(self._heap, (rank, item))
            self._compact()

    def discard(self, item: T) -> None:
        if self._ranks.pop(item, None) is not None:
            self._compact()

    def __iter__(self) -> Iterator[T]:
        return iter(self._ranks)

    def first(self) -> T | None:
        while self._heap and self._ranks.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._ranks) + _SLACK:
            self._heap = [(rank, item) for item, rank in self._ranks.items()]
            heapify(self._heap)


@dataclass(slots=True)
class _Share:
    """One group: what it may have, what it holds, and who waits in it."""

    weight: float
    quota: float
    held: int = 0
    waiting: _Ranking[Ticket] = field(default_factory=_Ranking)
    eligible: int = 0  # of those who wait, how many its quota lets through

    def served_below(self, level: float) -> float:
        """How many of those who wait are served before the group holds so many for its weight."""
        return min(self.eligible, max(level * self.weight - self.held, 0.0))


class Scheduler:
    """The callers that wait for kernels, and what their groups hold.

    Invariants:
    - ``next`` returns a ticket exactly when ``eligible`` is not 0: a kernel never idles while somebody may have it;
    - no group is given more than its quota.

    Args:
        groups: weight and quota of the groups that have their own; others have weight 1 and ``rules.group_quota``.

    Attributes:
        eligible: how many callers could be given a kernel now, were there kernels.
        blocked: how many wait for their own group to come below its quota, by group.
    """

    def __init__(self, rules: Scheduling | None = None, groups: Mapping[str, Group] | None = None) -> None:
        self._rules = rules or Scheduling()
        self._groups = groups or {}
        self._shares: dict[str, _Share] = {}
        self._by_share: _Ranking[str] = _Ranking()
        self._by_age: _Ranking[str] = _Ranking()
        self._number = 0
        self._given = 0
        self._waiting = 0
        self._freed: deque[float] = deque(maxlen=_PACE)
        self.eligible = 0
        self.blocked: dict[str, int] = {}

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def held(self, group: str) -> int:
        """How many kernels a group holds."""
        return self._shares[group].held if group in self._shares else 0

    def ask(self, request: LeaseRequest, now: float) -> Ticket:
        """Queue up."""
        self._number += 1
        ticket = Ticket(request, now, (now - request.priority * self._rules.aging_s, self._number))
        self._share(request.group).waiting.put(ticket, ticket.rank)
        self._waiting += 1
        self._changed(request.group)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Leave the queue; does nothing for one that has been given its kernel."""
        share = self._shares.get(ticket.request.group)
        if share is None:
            return
        before = len(share.waiting)
        share.waiting.discard(ticket)
        self._waiting -= before - len(share.waiting)
        self._changed(ticket.request.group)

    def next(self) -> Ticket | None:
        """Give a kernel: return whose it is, which holds it from now on; None where nobody may have one."""
        ranking = self._by_age if self._given % BY_AGE == BY_AGE - 1 else self._by_share
        group = ranking.first()
        if group is None:
            return None
        share = self._shares[group]
        ticket = share.waiting.first()
        assert ticket is not None
        share.waiting.discard(ticket)
        share.held += 1
        self._waiting -= 1
        self._given += 1
        self._changed(group)
        return ticket

    def hold(self, group: str) -> None:
        """Count a kernel that a group has without having asked here, be it past its quota."""
        self._share(group).held += 1
        self._changed(group)

    def release(self, group: str, now: float | None = None) -> None:
        """Count one kernel less for a group.

        Args:
            now: when it came free for others; None where it did not serve.
        """
        self._shares[group].held -= 1
        if now is not None:
            self._freed.append(now)
        self._changed(group)

    def expected_wait(self, group: str, now: float) -> float | None:
        """Seconds that one more caller of a group would wait; None while fewer than two kernels have come free.

        Were kernels to come free as the last ones did, and were nobody to ask after this caller: it waits for those
        before it in its group, and for those of other groups whose turn is before its own. At its quota, for as many
        kernels of its own group.
        """
        if len(self._freed) < 2:
            return None
        pace = (now - self._freed[0]) / (len(self._freed) - 1)
        share = self._share(group)
        level = (share.held + len(share.waiting)) / share.weight
        others = (self._shares[other] for other in self._by_age if other != group)
        turns = 1.0 + len(share.waiting) + sum(other.served_below(level) for other in others)
        if share.held >= share.quota:
            everyone = sum(each.held for each in self._shares.values())
            turns = max(turns, (len(share.waiting) + 1) * everyone / max(share.held, 1))
        self._changed(group)
        return turns * pace

    def _share(self, group: str) -> _Share:
        if group not in self._shares:
            own = self._groups.get(group, Group())
            quota = self._rules.group_quota if own.quota is None else own.quota
            self._shares[group] = _Share(own.weight, quota or math.inf)
        return self._shares[group]

    def _changed(self, group: str) -> None:
        """Rank a group anew. One that neither holds nor waits is forgotten: names of groups come from outside."""
        share = self._shares[group]
        self.eligible -= share.eligible
        share.eligible = int(min(len(share.waiting), max(share.quota - share.held, 0)))
        self.eligible += share.eligible
        head = share.waiting.first()
        if head is None or not share.eligible:
            self._by_share.discard(group)
            self._by_age.discard(group)
        else:
            self._by_share.put(group, (share.held / share.weight, head.rank))
            self._by_age.put(group, head.rank)
        self.blocked.pop(group, None)
        if len(share.waiting) > share.eligible:
            self.blocked[group] = len(share.waiting) - share.eligible
        if head is None and not share.held:
            del self._shares[group]


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """The machine at one moment.

    Attributes:
        memory_free: bytes that can be had without swapping, the page cache included.
        memory_of_kernels: bytes that the kernels of this pool use.
        cpus: cores.
        cpus_idle: how many of them had nothing to do lately.
    """

    memory_free: int
    memory_of_kernels: int
    cpus: float
    cpus_idle: float


@dataclass(frozen=True, slots=True)
class Room:
    """What a pool may still start on its host.

    Attributes:
        kernels: how many more; below 0 where others have taken what was promised to the kernels.
        short_of: what is scarcer.
        needed, free: bytes of memory that one more is promised, and that are not yet promised.
        at_once: how many may be starting together while callers wait.
        ahead: how many may be starting together while nobody waits.
    """

    kernels: int
    short_of: Literal["memory", "cpu"]
    needed: int
    free: int
    at_once: int
    ahead: int


UNLIMITED = Room(kernels=2**31, short_of="memory", needed=0, free=0, at_once=2**31, ahead=2**31)


class Admission:
    """Whether the host has room for one more kernel.

    Every kernel is promised its limits. The sum of the promises stays below what the machine has for kernels: what is
    free now and what they use already, less the reserve, times the overcommit. Where memory is promised twice, there
    must also be some: for one more kernel, and for each that is just starting, its limit divided by the overcommit.

    The first kernel of a pool is always admitted: a host too small for one at its limits still runs one.
    """

    def __init__(self, limits: KernelResourceLimits, rules: Scheduling) -> None:
        self._memory = limits.max_memory_mb * MIB
        self._cpu = limits.max_cpu_percent / 100
        self._rules = rules

    def room(self, host: HostCapacity, kernels: int, starting: int) -> Room:
        """Tell the room beside ``kernels``, of which ``starting`` have not taken any memory yet."""
        rules = self._rules
        available = host.memory_free - rules.memory_reserve_mb * MIB
        free = int(rules.memory_overcommit * (available + host.memory_of_kernels)) - kernels * self._memory
        there = int(rules.memory_overcommit * available) - starting * self._memory
        by_memory = min(free, there) // self._memory
        by_cpu = math.floor(rules.cpu_overcommit * host.cpus / self._cpu) - kernels
        more = min(by_memory, by_cpu)
        return Room(
            kernels=max(more, 1) if kernels == 0 else more,
            short_of="memory" if by_memory <= by_cpu else "cpu",
            needed=self._memory,
            free=max(min(free, there), 0),
            # A start takes a whole core for most of a second: more at once make all of them late, the first too.
            at_once=max(math.ceil(host.cpus), 2),
            ahead=max(math.floor(host.cpus_idle), 1),
        )
