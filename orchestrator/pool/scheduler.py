"""Who gets the next kernel, and whether the host has room for one more. Pure: no clock, no I/O, nothing waits.

The order of callers, each with a group and a priority:

- A free kernel goes to the group that holds the fewest kernels for its weight (max-min fairness), never over its
  quota.
- Within a group, it goes to the caller that asked first. One step of priority is worth ``aging_s`` seconds of waiting.
- Every eighth kernel goes to the caller that is first by age and priority in all groups.

In a cluster, each node has a queue of its own. A group is charged also for what it holds on the other nodes, as far as
``count_elsewhere`` was told. This moves its turn, and nothing else.

The rule of the eighth kernel makes starvation impossible: a caller behind k others gets one of the next 8 (k + 1)
kernels, whatever other groups and other nodes do, unless its own group is at its quota. With one group and one
priority, the order is first come, first served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Literal, TypeVar

from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.sections import Group, Scheduling

BY_AGE = 8  # of so many kernels, one goes by age alone: a group can hold at most 1/8 of all beyond its share
_PACE = 64  # the last so many freed kernels give the pace
_SLACK = 64  # stale entries that a heap of any size may have

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Who requests a kernel: a group of agents ("" for agents without a group) and a priority within it."""

    group: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One caller's place in the queue.

    Attributes:
        asked: when the caller asked, in seconds of the caller's clock.
        rank: the caller with the lowest rank goes first.
    """

    request: LeaseRequest
    asked: float
    rank: tuple[float, int]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What groups hold on the other nodes of a cluster, some seconds ago.

    Attributes:
        held: kernels, by group.
        nodes: that have such kernels.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    nodes: int = 0

    @property
    def charge(self) -> float:
        """What a group is charged for each kernel that it gets here from now on.

        The other nodes know no more than this one, and serve the same group. If each charged 1, all together would
        give it far more than it lacks, before they hear of each other again. Of 0, 0.25, 0.5 and 1 for each node, 0.5
        is fair both where all nodes have callers of all groups and where they do not (``make schedule``).
        """
        return 1 + 0.5 * self.nodes


class _Ranking(Generic[T]):
    """Items by rank, the lowest first; no two have the same rank. Every operation takes O(log n), amortised.

    An item that is ranked again or discarded leaves a stale entry on the heap. A stale entry goes when it reaches the
    top, or with all others when they outnumber the current ones.
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
    """One group: its weight and quota, how many kernels it holds, and its callers.

    Attributes:
        base: what it is charged beside the kernels that it holds here.
        charge: what it is charged for each of these.
    """

    weight: float
    quota: float
    base: float
    charge: float
    held: int = 0
    waiting: _Ranking[Ticket] = field(default_factory=_Ranking)
    eligible: int = 0  # how many of its callers its quota admits now

    def after(self, more: int) -> float:
        """Return the level after ``more`` kernels."""
        return (self.base + self.charge * (self.held + more)) / self.weight

    def served_below(self, level: float) -> float:
        """Return how many of its callers are served before the group is at this level."""
        return min(self.eligible, max((level * self.weight - self.base) / self.charge - self.held, 0.0))


class Scheduler:
    """The callers that wait for kernels, and what their groups hold.

    Invariants:
    - ``next`` returns a ticket exactly when ``eligible`` is not 0: no kernel idles while a caller may have it.
    - No group gets more kernels than its quota.

    Args:
        groups: weight and quota of named groups; other groups have weight 1 and ``rules.group_quota``.

    Attributes:
        eligible: how many callers could get a kernel now if there were enough kernels.
        blocked: by group, how many callers wait because their group is at its quota.
    """

    def __init__(self, rules: Scheduling | None = None, groups: Mapping[str, Group] | None = None) -> None:
        self._rules = rules or Scheduling()
        self._groups = groups or {}
        self._shares: dict[str, _Share] = {}
        self._elsewhere = Elsewhere()
        self._by_share: _Ranking[str] = _Ranking()
        self._by_age: _Ranking[str] = _Ranking()
        self._number = 0
        self._given = 0
        self._waiting = 0
        self._freed: deque[float] = deque(maxlen=_PACE)
        self.eligible = 0
        self.blocked: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many callers wait."""
        return self._waiting

    def held(self, group: str) -> int:
        """Return how many kernels a group holds."""
        return self._shares[group].held if group in self._shares else 0

    def holders(self) -> dict[str, int]:
        """Return how many kernels each group holds that holds any."""
        return {group: share.held for group, share in self._shares.items() if share.held}

    def count_elsewhere(self, elsewhere: Elsewhere) -> None:
        """Charge groups from now on also for what they hold on the other nodes of the cluster. Call it once a reading.

        It never keeps a kernel from a caller: quotas and ``eligible`` count what is held here.
        """
        self._elsewhere = elsewhere
        for group, share in list(self._shares.items()):
            share.charge = elsewhere.charge
            share.base = elsewhere.held.get(group, 0) + share.held * (1 - share.charge)
            self._changed(group)

    def ask(self, request: LeaseRequest, now: float) -> Ticket:
        """Add a caller to the queue."""
        self._number += 1
        ticket = Ticket(request, now, (now - request.priority * self._rules.aging_s, self._number))
        self._share(request.group).waiting.put(ticket, ticket.rank)
        self._waiting += 1
        self._changed(request.group)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Remove a caller from the queue. Idempotent, also after the caller got its kernel."""
        share = self._shares.get(ticket.request.group)
        if share is None:
            return
        before = len(share.waiting)
        share.waiting.discard(ticket)
        self._waiting -= before - len(share.waiting)
        self._changed(ticket.request.group)

    def next(self) -> Ticket | None:
        """Give a kernel to the next caller: charge its group, and return its ticket; None if none may have one."""
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
        """Charge a group for a kernel that it did not request here, even over quota."""
        self._share(group).held += 1
        self._changed(group)

    def release(self, group: str, now: float | None = None) -> None:
        """Stop charging a group for one kernel.

        Args:
            now: when the kernel came free; None if no agent used it, so that it does not count for the pace.
        """
        self._shares[group].held -= 1
        if now is not None:
            self._freed.append(now)
        self._changed(group)

    def expected_wait(self, group: str, now: float) -> float | None:
        """Estimate the wait of one more caller of a group, in seconds; None until two kernels have come free.

        Assumes that kernels come free at the pace of the last 64, and that nobody asks later. The caller waits for the
        callers before it in its group, and for those of other groups whose turn comes first. At its quota, it waits
        for kernels of its own group.
        """
        if len(self._freed) < 2:
            return None
        pace = (now - self._freed[0]) / (len(self._freed) - 1)
        share = self._share(group)
        level = share.after(len(share.waiting))
        others = (self._shares[other] for other in self._by_age if other != group)
        turns = 1.0 + len(share.waiting) + sum(other.served_below(level) for other in others)
        if share.held >= share.quota:
            everyone = sum(each.held for each in self._shares.values())
            turns = max(turns, (len(share.waiting) + 1) * everyone / max(share.held, 1))
        self._changed(group)
        return turns * pace

    def _share(self, group: str) -> _Share:
        if group not in self._shares:
            own, elsewhere = self._groups.get(group, Group()), self._elsewhere
            quota = self._rules.group_quota if own.quota is None else own.quota
            self._shares[group] = _Share(own.weight, quota or math.inf, elsewhere.held.get(group, 0), elsewhere.charge)
        return self._shares[group]

    def _changed(self, group: str) -> None:
        """Rank a group again, and forget it if it is empty: callers may invent any number of group names."""
        share = self._shares[group]
        self.eligible -= share.eligible
        share.eligible = int(min(len(share.waiting), max(share.quota - share.held, 0)))
        self.eligible += share.eligible
        head = share.waiting.first()
        if head is None or not share.eligible:
            self._by_share.discard(group)
            self._by_age.discard(group)
        else:
            self._by_share.put(group, (share.after(0), head.rank))
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
        memory_free: bytes available without swapping, including the page cache.
        memory_of_kernels: bytes that the kernels of this pool use.
        cpus: cores.
        cpus_idle: how many of them idled recently.
    """

    memory_free: int
    memory_of_kernels: int
    cpus: float
    cpus_idle: float


@dataclass(frozen=True, slots=True)
class Room:
    """What a pool may still start on its host.

    Attributes:
        kernels: how many more kernels fit; below 0 if other processes use what was promised to kernels.
        short_of: the scarcer resource.
        needed, free: bytes of memory that one more kernel needs, and that are free and not promised.
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
    """Says whether the host has room for one more kernel.

    Every kernel is promised its limits. The sum of the promises stays below (free memory + memory of the kernels -
    reserve) * overcommit. With overcommit, some memory must also be free: for one more kernel and for each that is
    starting, its limit divided by the overcommit.

    The first kernel of a pool is always admitted: a host that is too small for one kernel at its limits still runs one.
    """

    def __init__(self, limits: KernelResourceLimits, rules: Scheduling) -> None:
        self._memory = limits.max_memory_mb * MIB
        self._cpu = limits.max_cpu_percent / 100
        self._rules = rules

    def room(self, host: HostCapacity, kernels: int, starting: int) -> Room:
        """Return the room beside ``kernels`` kernels, of which ``starting`` do not use memory yet."""
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
            # A start takes a whole core for most of a second: more at once delay all of them, including the first.
            at_once=max(math.ceil(host.cpus), 2),
            ahead=max(math.floor(host.cpus_idle), 1),
        )
