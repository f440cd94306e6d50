"""The order in which callers get kernels, and whether the host has room: by example, by property, and for speed."""

from __future__ import annotations

import ast
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.sections import Group, Scheduling
from orchestrator.pool.scheduler import BY_AGE, Admission, HostCapacity, LeaseRequest, Scheduler, Ticket

GIGABYTE = 1024 * MIB


def order(scheduler: Scheduler, count: int) -> list[str]:
    """Return the groups of the next ``count`` callers; none of them gives its kernel back."""
    tickets = [scheduler.next() for _ in range(count)]
    return [ticket.request.group for ticket in tickets if ticket is not None]


def test_without_groups_and_priorities_it_is_first_come_first_served() -> None:
    scheduler = Scheduler()
    tickets = [scheduler.ask(LeaseRequest(), float(now)) for now in range(100)]
    assert [scheduler.next() for _ in range(100)] == tickets
    assert scheduler.next() is None


def test_who_leaves_the_queue_is_passed_over_and_counts_no_more() -> None:
    """Leaving twice, or after the kernel was given, changes nothing."""
    scheduler = Scheduler()
    first, second, third = (scheduler.ask(LeaseRequest(), float(now)) for now in range(3))
    scheduler.withdraw(second)
    scheduler.withdraw(second)
    assert (len(scheduler), scheduler.eligible) == (2, 2)
    assert [scheduler.next(), scheduler.next(), scheduler.next()] == [first, third, None]
    scheduler.withdraw(first)
    assert (len(scheduler), scheduler.held("")) == (0, 2)


def test_a_group_with_a_thousand_callers_does_not_hold_up_another() -> None:
    """The next kernel goes to the group that holds fewer, though a thousand asked before."""
    scheduler = Scheduler()
    for now in range(1000):
        scheduler.ask(LeaseRequest("hog"), float(now))
    assert order(scheduler, 5) == ["hog"] * 5
    scheduler.ask(LeaseRequest("late"), 2000.0)
    assert order(scheduler, 1) == ["late"]


def test_shares_follow_weights() -> None:
    """Of 40 kernels a group of weight 3 gets three times another's, within what goes by age alone."""
    scheduler = Scheduler(groups={"heavy": Group(weight=3)})
    for now in range(100):
        scheduler.ask(LeaseRequest("light"), float(now))
        scheduler.ask(LeaseRequest("heavy"), now + 0.5)
    got = Counter(order(scheduler, 40))
    assert 28 <= got["heavy"] <= 30
    assert got.total() == 40


def test_a_quota_is_never_exceeded_and_blocks_nobody_else() -> None:
    """A group at its quota is passed over, and goes on once it has given a kernel back."""
    scheduler = Scheduler(Scheduling(group_quota=2), {"free": Group(quota=0), "big": Group(quota=3)})
    for now in range(5):
        for group in ("small", "big", "free"):
            scheduler.ask(LeaseRequest(group), float(now))
    assert scheduler.eligible == 2 + 3 + 5
    assert scheduler.blocked == {"small": 3, "big": 2}
    assert Counter(order(scheduler, 15)) == {"small": 2, "big": 3, "free": 5}
    assert scheduler.next() is None
    scheduler.release("small", 9.0)
    assert order(scheduler, 1) == ["small"]


def test_priority_goes_first_and_waiting_outweighs_it_in_the_end() -> None:
    """One step of priority is worth ``aging_s`` seconds of waiting, not a second more."""
    scheduler = Scheduler(Scheduling(aging_s=10))
    patient = scheduler.ask(LeaseRequest(), 0.0)
    urgent = scheduler.ask(LeaseRequest(priority=2), 19.0)
    too_late = scheduler.ask(LeaseRequest(priority=2), 21.0)
    assert [scheduler.next() for _ in range(3)] == [urgent, patient, too_late]


def test_a_group_that_holds_much_is_not_starved_by_ones_that_come_and_go() -> None:
    """Others are always below its share, and always have somebody waiting: by age its caller still gets the eighth."""
    scheduler = Scheduler()
    for _ in range(50):
        scheduler.hold("holder")
    mine = scheduler.ask(LeaseRequest("holder"), 0.0)
    for number in range(BY_AGE):
        scheduler.ask(LeaseRequest(f"visitor-{number}"), 1.0 + number)
        ticket = scheduler.next()
        assert ticket is not None
        if ticket is mine:
            return
        scheduler.release(ticket.request.group, 1.0 + number)
    pytest.fail("it starves")


def memory_of(action: Callable[[int], None], count: int) -> int:
    """Return the bytes by which ``count`` actions made the process grow, after a first hundred."""
    for number in range(100):
        action(number)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100, 100 + count):
            action(number)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_empty_groups_take_no_memory() -> None:
    """The names of groups come from outside. 2,000 groups that have come and gone take less than 20 bytes each."""
    scheduler = Scheduler()

    def visit(number: int) -> None:
        scheduler.ask(LeaseRequest(f"group-{number}"), 0.0)
        scheduler.next()
        scheduler.release(f"group-{number}", 1.0)
        scheduler.expected_wait(f"unknown-{number}", 2.0)

    assert memory_of(visit, 2000) < 40_000


def test_callers_that_have_left_take_no_memory() -> None:
    """One caller waits for long while 2,000 others come and go behind it, and its group's share changes each time."""
    scheduler = Scheduler()
    scheduler.ask(LeaseRequest("patient"), 0.0)

    def pass_by(number: int) -> None:
        scheduler.withdraw(scheduler.ask(LeaseRequest("patient"), 1.0 + number))
        scheduler.hold("patient")
        if number % 2:
            scheduler.release("patient")

    assert memory_of(pass_by, 2000) < 40_000


def test_the_expected_wait_is_told_from_the_pace_the_shares_and_the_queue() -> None:
    """Kernels come free every 2 s: the tenth of a group waits for ten, the first of one with three for four."""
    scheduler = Scheduler()
    assert scheduler.expected_wait("", 0.0) is None
    for now in range(11):
        scheduler.hold("")
        scheduler.release("", 2.0 * now)
    for _ in range(9):
        scheduler.ask(LeaseRequest("busy"), 20.0)
    assert scheduler.expected_wait("busy", 20.0) == pytest.approx(20)
    assert scheduler.expected_wait("new", 20.0) == pytest.approx(2)
    for _ in range(3):
        scheduler.hold("new")
    assert scheduler.expected_wait("new", 20.0) == pytest.approx(8)


def test_the_expected_wait_grows_while_nothing_comes_free() -> None:
    scheduler = Scheduler()
    for now in range(3):
        scheduler.hold("")
        scheduler.release("", float(now))
    assert (scheduler.expected_wait("", 2.0) or 0) < (scheduler.expected_wait("", 60.0) or 0)


def test_the_expected_wait_at_a_quota_counts_the_groups_own_kernels_alone() -> None:
    """One of ten kernels is the group's: it comes free a tenth as often as any."""
    scheduler = Scheduler(groups={"mine": Group(quota=1)})
    for now in range(11):
        scheduler.hold("others")
        scheduler.release("others", float(now))
    for _ in range(9):
        scheduler.hold("others")
    scheduler.hold("mine")
    assert scheduler.expected_wait("mine", 10.0) == pytest.approx(10)


asks = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(-3, 3)), min_size=1, max_size=60)


@given(asks, st.dictionaries(st.sampled_from("abcde"), st.floats(0.1, 10), max_size=5), st.data())
def test_nobody_starves(claims: list[tuple[str, int]], weights: dict[str, float], data: st.DataObject) -> None:
    """A caller behind k others by age is given one of the next 8 (k + 1) kernels, whoever gives back what."""
    scheduler = Scheduler(groups={group: Group(weight=weight) for group, weight in weights.items()})
    for group in "abcde":
        for _ in range(data.draw(st.integers(0, 5))):
            scheduler.hold(group)
    tickets = [scheduler.ask(LeaseRequest(*request), float(now)) for now, request in enumerate(claims)]
    place = {ticket: number for number, ticket in enumerate(sorted(tickets, key=lambda ticket: ticket.rank))}
    given_at: dict[Ticket, int] = {}
    while (ticket := scheduler.next()) is not None:
        given_at[ticket] = len(given_at) + 1
        if data.draw(st.booleans()):
            scheduler.release(ticket.request.group, 0.0)
    assert all(given_at[ticket] <= BY_AGE * (ahead + 1) for ticket, ahead in place.items())


@given(asks)
def test_within_a_group_nobody_overtakes_an_equal(claims: list[tuple[str, int]]) -> None:
    scheduler = Scheduler()
    for now, request in enumerate(claims):
        scheduler.ask(LeaseRequest(*request), float(now))
    last: dict[LeaseRequest, float] = {}
    while (ticket := scheduler.next()) is not None:
        assert ticket.asked > last.get(ticket.request, -1.0)
        last[ticket.request] = ticket.asked


class Queueing(RuleBasedStateMachine):
    """Any sequence of calls, beside a model that counts by hand."""

    tickets = Bundle("tickets")
    held = Bundle("held")
    QUOTAS = {"a": 1, "b": 3, "c": 0}  # noqa: RUF012 - hypothesis takes attributes of the class

    def __init__(self) -> None:
        super().__init__()
        groups = {name: Group(quota=quota, weight=1 + quota) for name, quota in self.QUOTAS.items()}
        self.scheduler = Scheduler(Scheduling(group_quota=2), groups)
        self.waiting: Counter[str] = Counter()
        self.holding: Counter[str] = Counter()
        self.gone: set[Ticket] = set()
        self.now = 0.0

    def quota(self, group: str) -> float:
        return self.QUOTAS.get(group, 2) or float("inf")

    @rule(target=tickets, group=st.sampled_from("abcd"), priority=st.integers(-2, 2))
    def ask(self, group: str, priority: int) -> Ticket:
        self.now += 1
        self.waiting[group] += 1
        return self.scheduler.ask(LeaseRequest(group, priority), self.now)

    @rule(ticket=tickets)
    def withdraw(self, ticket: Ticket) -> None:
        self.scheduler.withdraw(ticket)
        if ticket not in self.gone:
            self.gone.add(ticket)
            self.waiting[ticket.request.group] -= 1

    @precondition(lambda self: self.scheduler.eligible)
    @rule(target=held)
    def give(self) -> str:
        ticket = self.scheduler.next()
        assert ticket is not None
        assert ticket not in self.gone
        group = ticket.request.group
        assert self.holding[group] < self.quota(group)
        self.gone.add(ticket)
        self.waiting[group] -= 1
        self.holding[group] += 1
        return group

    @precondition(lambda self: not self.scheduler.eligible)
    @rule()
    def give_nobody(self) -> None:
        assert self.scheduler.next() is None

    @rule(group=consumes(held))
    def release(self, group: str) -> None:
        self.scheduler.release(group, self.now)
        self.holding[group] -= 1

    @invariant()
    def the_counts_are_true(self) -> None:
        """A kernel is never kept from somebody whose group may have it: that is what ``eligible`` counts."""
        may = {group: min(count, self.quota(group) - self.holding[group]) for group, count in self.waiting.items()}
        assert self.scheduler.eligible == sum(may.values())
        assert len(self.scheduler) == self.waiting.total()
        assert self.scheduler.blocked == {g: n - may[g] for g, n in self.waiting.items() if n > may[g]}
        assert all(self.scheduler.held(group) == self.holding[group] for group in "abcd")


TestQueueing = Queueing.TestCase


def test_ten_thousand_callers_cost_no_more_each_than_a_hundred() -> None:
    """Asking, leaving and being served are O(log n): a hundred times the callers take less than 500 times the time."""

    def seconds(callers: int) -> float:
        scheduler = Scheduler()
        begun = time.process_time()
        tickets = [
            scheduler.ask(LeaseRequest(f"group-{number % (callers // 10)}"), float(number)) for number in range(callers)
        ]
        for ticket in tickets[::2]:
            scheduler.withdraw(ticket)
        while (served := scheduler.next()) is not None:
            scheduler.release(served.request.group, 0.0)
        return time.process_time() - begun

    few = min(seconds(100) for _ in range(20))
    assert min(seconds(10_000) for _ in range(2)) < 500 * few


def test_the_scheduler_is_pure(repository: Path) -> None:
    """It imports nothing that could tell the time, wait, or read anything."""
    tree = ast.parse((repository / "orchestrator" / "pool" / "scheduler.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {
        "__future__", "collections", "collections.abc", "dataclasses", "heapq", "math", "typing",
        "orchestrator.limits", "orchestrator.policy.sections",
    }  # fmt: skip


LIMITS = KernelResourceLimits(max_memory_mb=1024, max_cpu_percent=50)


def host(free: float, used: float = 0, cpus: float = 4, idle: float = 4) -> HostCapacity:
    """Sizes in GiB."""
    return HostCapacity(int(free * GIGABYTE), int(used * GIGABYTE), cpus, idle)


def test_the_sum_of_limits_stays_below_what_is_free_less_the_reserve() -> None:
    """8 GiB free, 1 reserved: seven kernels of 1 GiB. What they use already counts as theirs, not as somebody's."""
    admission = Admission(LIMITS, Scheduling(memory_reserve_mb=1024))
    assert admission.room(host(8), 0, 0).kernels == 7
    assert admission.room(host(8), 5, 5).kernels == 2
    assert admission.room(host(5, used=3), 5, 0).kernels == 2
    room = admission.room(host(5), 5, 0)  # another process took 3 GiB meanwhile
    assert (room.kernels, room.short_of, room.needed, room.free) == (-1, "memory", GIGABYTE, 0)


def test_overcommitted_memory_must_be_there_for_those_that_start() -> None:
    """Twice the memory may be promised, but with 2 GiB left of it four may start, and not ten."""
    admission = Admission(LIMITS, Scheduling(memory_reserve_mb=0, memory_overcommit=2))
    assert admission.room(host(8), 0, 0).kernels == 16
    assert admission.room(host(2, used=8), 10, 0).kernels == 4
    assert admission.room(host(2, used=8), 10, 3).kernels == 1


def test_cpu_is_overcommitted_by_policy() -> None:
    admission = Admission(LIMITS, Scheduling(cpu_overcommit=2))
    room = admission.room(host(100), 15, 0)
    assert (room.kernels, room.short_of) == (1, "cpu")


def test_a_host_too_small_for_one_kernel_still_runs_one() -> None:
    admission = Admission(LIMITS, Scheduling())
    assert admission.room(host(0.5), 0, 0).kernels == 1
    assert admission.room(host(0.5), 1, 1).kernels < 1


def test_starts_at_once_are_bounded_by_cores_and_refills_by_idle_ones() -> None:
    admission = Admission(LIMITS, Scheduling())
    busy, quiet = admission.room(host(8, cpus=8, idle=0.3), 1, 0), admission.room(host(8, cpus=8, idle=6.9), 1, 0)
    assert (busy.at_once, busy.ahead) == (8, 1)
    assert (quiet.at_once, quiet.ahead) == (8, 6)


@given(st.floats(0, 64), st.floats(0, 64), st.integers(0, 100), st.floats(0.1, 4), st.integers(0, 8192))
def test_promises_never_pass_the_hosts_memory(
    free: float, used: float, kernels: int, overcommit: float, reserve: int
) -> None:
    """Whoever starts as many as there is room for stays within the overcommitted sum; but for a first kernel."""
    admission = Admission(LIMITS, Scheduling(memory_overcommit=overcommit, memory_reserve_mb=reserve))
    more = admission.room(host(free, used), kernels, 0).kernels
    total = kernels + more
    if more > 0 and total > 1:
        assert total * GIGABYTE <= overcommit * ((free + used) * GIGABYTE - reserve * MIB) + 1
