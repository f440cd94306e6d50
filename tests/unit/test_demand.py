"""When a cluster asks Ray's autoscaler for nodes, how many, and which node it keeps."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.autoscaling import Autoscaling
from orchestrator.cluster.demand import IDLE, PATIENCE, Demand
from orchestrator.store.noderecord import Capacity, NodeRecord
from tests.cluster.fakedirectory import ROOMY, record


def node(name: str, *, waiting: int = 0, free: int = 10) -> NodeRecord:
    """Return a node with places for ten kernels."""
    return replace(record(name, f"http://{name}"), capacity=replace(ROOMY, free=free, waiting=waiting))


def test_nodes_are_asked_for_once_callers_have_waited() -> None:
    """As many as the waiting callers need, never more than the most; a wait of a moment is no reason."""
    demand = Demand(4)
    waiting = [node("a", waiting=12, free=0), node("b", free=0)]
    assert demand.wanted(waiting, 0.0) == 0
    assert demand.wanted([node("a"), node("b")], 1.0) == 0
    assert demand.wanted(waiting, 2.0) == 0
    assert demand.wanted(waiting, 2.0 + PATIENCE) == 4
    assert Demand(3, patience=0).wanted(waiting, 0.0) == 3
    assert Demand(9, patience=0).wanted([*waiting, replace(node("c", waiting=99), state="down")], 0.0) == 4


def test_the_request_is_withdrawn_when_the_queue_stays_empty() -> None:
    """Not before: the nodes that were asked for are still to come."""
    demand = Demand(4, patience=0)
    assert demand.wanted([node("a", waiting=1)], 0.0) == 2
    assert demand.wanted([node("a")], 1.0) == 2
    assert demand.wanted([node("a", waiting=1)], IDLE) == 2
    assert demand.wanted([node("a")], IDLE + 1) == 2
    assert demand.wanted([node("a")], 2 * IDLE + 1) == 0


class Recorded:
    """An ``Autoscaler`` that notes what it is asked."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.held = False

    def request(self, nodes: int) -> None:
        self.requests.append(nodes)

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False


class NoDirectory:
    """A directory that nobody reads."""

    async def nodes(self) -> list[NodeRecord]:
        return []

    async def owner_of(self, agent_id: str) -> None:
        return None


def test_one_node_asks_for_all() -> None:
    """The first by name, and the next one once it is lost. What it finds asked for by its predecessor is replaced."""
    ray = Recorded()
    second = Autoscaling(NoDirectory(), "http://b", Demand(4, patience=0), ray)
    nodes = [node("a", waiting=1), node("b")]
    second.look(nodes, 0.0)
    assert ray.requests == []
    second.look([replace(nodes[0], lease_left_s=-1.0), replace(nodes[1], capacity=waiting(1))], 1.0)
    second.look([replace(nodes[0], lease_left_s=-1.0), replace(nodes[1], capacity=waiting(1))], 2.0)
    assert ray.requests == [3]
    second.look([nodes[1]], 3.0 + IDLE)
    second.look([nodes[1]], 4.0 + 2 * IDLE)
    assert ray.requests == [3, 0]


def waiting(number: int) -> Capacity:
    return replace(ROOMY, waiting=number)


def test_a_node_with_sessions_is_kept() -> None:
    """It is let go once it has had none for a while."""
    ray = Recorded()
    scaling = Autoscaling(NoDirectory(), "http://a", Demand(4), ray, kept=60)
    start = scaling._busy_at
    scaling.look([node("a", free=9)], start + 100)
    assert ray.held
    scaling.look([node("a")], start + 150)
    assert ray.held
    scaling.look([node("a")], start + 161)
    assert not ray.held
    scaling.look([node("a", free=9)], start + 162)
    assert ray.held
