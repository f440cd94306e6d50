"""What a node tells of its groups, what it believes of other nodes, and whose turn it is then."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.sections import Group, Scheduling
from orchestrator.pool.scheduler import BY_AGE, Elsewhere, LeaseRequest, Scheduler, Ticket
from orchestrator.pool.shares import MOST_GROUPS, held_elsewhere, told
from orchestrator.store.noderecord import Capacity, NodeRecord

LEASE = 6.0
ROOM = Capacity(kernels=4, free=0, memory_free_mb=0, cores=2.0, load=0.5)


def node(name: str, held: Any, left_s: float = LEASE) -> NodeRecord:
    return NodeRecord(name, 1, "", "up", left_s, "", 1, replace(ROOM, held=held))


def order(scheduler: Scheduler, count: int) -> list[str]:
    tickets = [scheduler.next() for _ in range(count)]
    return [ticket.request.group for ticket in tickets if ticket is not None]


def test_a_node_tells_of_those_groups_that_hold_the_most() -> None:
    """Of its managers together, and of no more groups than ``MOST_GROUPS``."""
    many = {f"group-{number}": number for number in range(1, 1000)}
    found = told([{"default": many, "strict": {"a": 1}}, {"default": {"group-1": 2000}}, {"idle": {}}])
    assert found["strict"] == {"a": 1}
    assert (len(found["default"]), found["default"]["group-1"], min(found["default"].values())) == (
        MOST_GROUPS, 2001, 999 - MOST_GROUPS + 2,
    )  # fmt: skip
    assert "idle" not in found


def test_the_other_nodes_count_while_their_leases_last() -> None:
    """Not the node itself, not other policies, and no node that left or whose lease has ended since the reading."""
    nodes = [
        node("mine", {"default": {"a": 100}}),
        node("n1", {"default": {"a": 1, "b": 2}, "strict": {"a": 50}}),
        node("n2", {"default": {"a": 3}}),
        node("ending", {"default": {"a": 7}}, left_s=1.0),
        node("ended", {"default": {"a": 1000}}, left_s=0.0),
        replace(node("left", {"default": {"a": 1000}}), state="down"),
        node("other", {"strict": {"a": 1000}}),
    ]
    assert held_elsewhere(nodes, "mine", "default") == Elsewhere({"a": 11, "b": 2}, 3)
    assert held_elsewhere(nodes, "mine", "default", age_s=1.0) == Elsewhere({"a": 4, "b": 2}, 2)
    assert held_elsewhere(nodes, "mine", "default", age_s=LEASE) == Elsewhere()


def test_an_older_node_tells_nothing_and_a_newer_one_more_than_is_read() -> None:
    older = {name: value for name, value in ROOM.as_dict().items() if name != "held"}
    newer = {**replace(ROOM, held={"default": {"a": 1}}).as_dict(), "shares": {"a": 1}}
    nodes = [
        replace(node(name, None), capacity=Capacity.of(json.loads(json.dumps(said))))
        for name, said in (("older", older), ("newer", newer))
    ]
    assert held_elsewhere(nodes, "mine", "default") == Elsewhere({"a": 1}, 1)


def test_a_group_that_has_much_elsewhere_waits_behind_one_that_has_little() -> None:
    scheduler = Scheduler()
    for now in range(3):
        scheduler.ask(LeaseRequest("rich"), float(now))
    scheduler.ask(LeaseRequest("poor"), 9.0)
    scheduler.count_elsewhere(Elsewhere({"rich": 5, "poor": 1}, 2))
    assert order(scheduler, 2) == ["poor", "rich"]
    scheduler.count_elsewhere(Elsewhere({"poor": 5}, 2))
    scheduler.ask(LeaseRequest("poor"), 9.0)
    assert order(scheduler, 1) == ["rich"]


def test_weights_hold_over_the_nodes_and_quotas_as_they_did() -> None:
    """A quota counts what is held here: over the nodes, the store counts it."""
    scheduler = Scheduler(Scheduling(group_quota=2), {"heavy": Group(weight=3, quota=0)})
    for now in range(5):
        scheduler.ask(LeaseRequest("light"), float(now))
        scheduler.ask(LeaseRequest("heavy"), float(now))
    scheduler.count_elsewhere(Elsewhere({"light": 3, "heavy": 6}, 2))
    assert scheduler.eligible == 2 + 5
    assert order(scheduler, 2) == ["heavy", "heavy"], "2 and 2.7 kernels for its weight, with 3"
    assert Counter(order(scheduler, 9)) == {"light": 2, "heavy": 3}


def test_the_expected_wait_counts_what_is_held_elsewhere() -> None:
    """So a caller goes to the node where its group's turn comes first."""
    scheduler = Scheduler()
    for now in range(11):
        scheduler.hold("")
        scheduler.release("", float(now))
    for _ in range(4):
        scheduler.ask(LeaseRequest("other"), 10.0)
    assert scheduler.expected_wait("new", 10.0) == pytest.approx(1)
    scheduler.count_elsewhere(Elsewhere({"new": 3}))
    assert scheduler.expected_wait("new", 10.0) == pytest.approx(4)


asks = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), min_size=1, max_size=40)


@given(asks, st.data())
def test_a_node_without_others_serves_as_a_host_does(claims: list[tuple[str, int]], data: st.DataObject) -> None:
    """However often it hears that there is nobody else."""
    host, alone = Scheduler(), Scheduler()
    for now, request in enumerate(claims):
        for each in (host, alone):
            each.ask(LeaseRequest(*request), float(now))
    while host.eligible:
        if data.draw(st.booleans()):
            alone.count_elsewhere(held_elsewhere([node("mine", {"default": {"a": 5}})], "mine", "default"))
        served = host.next(), alone.next()
        assert served[0] is not None
        assert served[1] is not None
        assert (served[0].request, served[0].rank) == (served[1].request, served[1].rank)
        if data.draw(st.booleans()):
            for each in (host, alone):
                each.release(served[0].request.group, 0.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
lies = json_values | st.fixed_dictionaries({"default": st.dictionaries(st.sampled_from("abc"), json_values)})


@given(asks, st.lists(st.lists(lies, max_size=4), min_size=1, max_size=5), st.data())
def test_nobody_starves_whatever_other_nodes_tell(
    claims: list[tuple[str, int]], readings: list[list[Any]], data: st.DataObject
) -> None:
    """A caller behind k others by age is given one of the next 8 (k + 1) kernels; none is kept back."""
    scheduler = Scheduler()
    tickets = [scheduler.ask(LeaseRequest(*request), float(now)) for now, request in enumerate(claims)]
    place = {ticket: number for number, ticket in enumerate(sorted(tickets, key=lambda ticket: ticket.rank))}
    given_at: dict[Ticket, int] = {}
    while len(given_at) < len(tickets):
        said = data.draw(st.sampled_from(readings))
        nodes = [node(str(number), held) for number, held in enumerate(said)]
        scheduler.count_elsewhere(held_elsewhere(nodes, "mine", "default"))
        ticket = scheduler.next()
        assert ticket is not None
        given_at[ticket] = len(given_at) + 1
        if data.draw(st.booleans()):
            scheduler.release(ticket.request.group, 0.0)
    assert all(given_at[ticket] <= BY_AGE * (ahead + 1) for ticket, ahead in place.items())


def test_lies_are_forgotten_with_the_next_reading_without_them() -> None:
    scheduler = Scheduler()
    for group in "ab":
        scheduler.ask(LeaseRequest(group), 0.0)
    scheduler.count_elsewhere(held_elsewhere([node("liar", {"default": {"a": 10**6}})], "mine", "default"))
    scheduler.count_elsewhere(held_elsewhere([node("liar", {"default": {"a": 10**6}}, 0.0)], "mine", "default"))
    assert order(scheduler, 1) == ["a"]
