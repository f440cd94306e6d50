"""Placement: the order in which nodes are asked, for any nodes."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.placement import LEASE_FOR_NEW, SAMPLED, Need, Placement, score
from orchestrator.store.noderecord import Capacity, NodeRecord

NEED = Need("default", memory_mb=512)
CAPACITIES = st.builds(
    Capacity,
    kernels=st.integers(0, 100),
    free=st.integers(0, 100),
    memory_free_mb=st.integers(0, 100_000),
    cores=st.floats(0, 128),
    load=st.floats(0, 256),
    warm=st.dictionaries(st.sampled_from(["default", "data"]), st.integers(0, 5)),
    image=st.sampled_from(["", "cellblock-sandbox:a"]),
)
NODES = st.lists(
    st.builds(
        NodeRecord,
        node_id=st.integers(0, 10**6).map(str),
        epoch=st.integers(1, 5),
        url=st.just("http://127.0.0.1:1"),
        state=st.sampled_from(["up", "draining", "down"]),
        lease_left_s=st.floats(-5, 20),
        version=st.just("0.1.0"),
        protocol=st.just(1),
        capacity=CAPACITIES,
    ),
    max_size=12,
    unique_by=lambda node: node.node_id,
)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a sample


def node(number: int, capacity: Capacity) -> NodeRecord:
    return NodeRecord(str(number), 1, "http://127.0.0.1:1", "up", 10.0, "0.1.0", 1, capacity)


def free(kernels: int, memory_mb: int = 50_000, **more: int) -> Capacity:
    return Capacity(100, kernels, memory_mb, 16.0, 1.0, warm=more)


@given(NODES, st.integers(), st.floats(0, 10))
def test_each_node_that_takes_something_new_comes_once_and_no_other(
    nodes: list[NodeRecord], seed: int, age_s: float
) -> None:
    """A node that drains, is down, or has too little left of its lease gets nothing new."""
    given = list(Placement(nodes).order(NEED, seeded(seed), age_s=age_s))
    expected = {each.node_id for each in nodes if each.state == "up" and each.lease_left_s - age_s >= LEASE_FOR_NEW}
    assert Counter(each.node_id for each in given) == Counter(expected)


@given(NODES, st.integers())
def test_the_same_seed_gives_the_same_order(nodes: list[NodeRecord], seed: int) -> None:
    orders = [list(Placement(nodes).order(NEED, seeded(seed))) for _ in range(2)]
    assert orders[0] == orders[1]


@given(NODES, st.integers())
def test_warm_before_cold_and_room_before_full(nodes: list[NodeRecord], seed: int) -> None:
    """A node without a free place, or with too little memory, is asked last: it may put an idle session to sleep."""

    def rank(each: NodeRecord) -> int:
        capacity = each.capacity
        if capacity.free < 1 or capacity.memory_free_mb < NEED.memory_mb:
            return 2
        return 0 if capacity.warm.get("default", 0) > 0 else 1

    ranks = [rank(each) for each in Placement(nodes).order(NEED, seeded(seed))]
    assert ranks == sorted(ranks)


@given(NODES, st.integers())
def test_each_sample_is_sorted_by_score(nodes: list[NodeRecord], seed: int) -> None:
    plain = [node(number, free(1 + number, 1000 + each.capacity.memory_free_mb)) for number, each in enumerate(nodes)]
    order = list(Placement(plain).order(NEED, seeded(seed)))
    for first in range(0, len(order), SAMPLED):
        scores = [score(each, NEED) for each in order[first : first + SAMPLED]]
        assert scores == sorted(scores)


def test_a_warm_kernel_of_another_image_is_none() -> None:
    other = Capacity(10, 5, 50_000, 16.0, 0.0, {"default": 3}, "cellblock-sandbox:other")
    wanted = Capacity(10, 1, 600, 1.0, 1.0, {"default": 1}, "cellblock-sandbox:wanted")
    need = Need("default", "cellblock-sandbox:wanted", 512)
    for seed in range(20):
        first, *_ = Placement([node(1, other), node(2, wanted)]).order(need, seeded(seed))
        assert first.node_id == "2"


def test_what_this_caller_has_placed_counts() -> None:
    """Two free places and one warm kernel: the third session finds the node full."""
    placement = Placement([node(1, free(2, default=1)), node(2, free(1))])
    firsts = [next(placement.order(NEED, seeded(1), placed={"1": placed})).node_id for placed in (0, 2)]
    assert firsts == ["1", "2"]


def test_many_callers_spread_over_the_nodes() -> None:
    """They all have the same reading, in which one node is the best of all: it gets its share of the samples only."""
    nodes = [node(number, free(50)) for number in range(99)] + [node(99, free(100, 90_000))]
    chance = seeded(7)
    placement = Placement(nodes)
    firsts = Counter(next(placement.order(NEED, chance)).node_id for _ in range(3000))
    assert firsts["99"] < 0.05 * 3000
    assert max(count for node_id, count in firsts.items() if node_id != "99") < 80


def test_a_decision_looks_at_few_nodes() -> None:
    """Its cost does not grow with the cluster."""

    class Counted(list[NodeRecord]):
        looks = 0

        def __getitem__(self, index: object) -> NodeRecord:  # type: ignore[override]
            Counted.looks += 1
            return super().__getitem__(index)  # type: ignore[call-overload,no-any-return]

    placement = Placement([])
    placement._up = Counted(node(number, free(50)) for number in range(10_000))
    assert len(list(itertools.islice(placement.order(NEED, seeded(1)), SAMPLED))) == SAMPLED
    assert Counted.looks <= 2 * SAMPLED
