"""Nodes: leases by the database's clock, and what a node whose lease has ended may still write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.errors import NodeLeaseError, NotOwnerError
from orchestrator.store.history import Claim, History
from orchestrator.store.noderecord import Capacity
from tests.unit.test_fence import OK, STALE

CAPACITY = Capacity(kernels=4, free=3, memory_free_mb=1000, cores=2.0, load=0.5, warm={"default": 1}, image="i")


def join(history: History, node: str = "n1", lease_s: float = 60.0) -> int:
    epoch = history.join_cluster(node, url="http://h", version="1", protocol=1, lease_s=lease_s, capacity=CAPACITY)
    history.write_as(node, epoch)
    return epoch


def end_lease(history: History, node: str) -> None:
    """Let the lease end, as the database's clock does."""
    with history._database.writing() as connection:
        connection.execute(text("UPDATE nodes SET lease_until = lease_until - 1000 WHERE node_id = :n"), {"n": node})


def renew(history: History, node: str, epoch: int) -> list[tuple[str, int, str]] | None:
    found = history.renew_lease(node, epoch, lease_s=60.0, state="up", capacity=CAPACITY)
    return None if found is None else [(record.node_id, record.epoch, record.state) for record in found]


@pytest.fixture
def node(url: str, tmp_path: Path) -> Iterator[History]:
    """Return the history of node n1, which owns session s1."""
    history = History.open(url, tmp_path)
    join(history)
    mine = history.add_session("s1", "agent", owner="n1/1", kernel_id="k1", runtime="runc")
    assert mine is not None
    history.begin_cell(mine, 1, "1", "k1")
    history.begin_command(mine, "k1", ["true"], shell=False)
    yield history
    history.close()


@pytest.fixture
def peer(node: History, url: str, tmp_path: Path) -> Iterator[History]:
    history = History.open(url, tmp_path)
    join(history, "n2")
    yield history
    history.close()


def test_a_node_is_what_it_said_last(node: History) -> None:
    (record,) = node.nodes()
    assert (record.node_id, record.epoch, record.state, record.url) == ("n1", 1, "up", "http://h")
    assert record.capacity == CAPACITY
    assert 30 < record.lease_left_s <= 60
    assert renew(node, "n1", 1) == [("n1", 1, "up")]
    node.leave_cluster("n1", 1)
    assert [(record.state, record.epoch) for record in node.nodes()] == [("down", 2)]
    assert renew(node, "n1", 1) is None


ACQUIRING: dict[str, Callable[[History, Claim], Any]] = {
    "take_ownership": lambda history, mine: history.take_ownership("s1", "n1/1", "n1/2"),
    "add_session": lambda history, mine: history.add_session(
        "s9", "other", owner="n1/1", kernel_id="k", runtime="runc"
    ),
}


@pytest.mark.parametrize("write", [*STALE, *ACQUIRING])
def test_a_node_whose_lease_has_ended_acknowledges_nothing(write: str, node: History) -> None:
    """Although nobody has taken its session over yet, and its own clock may say that the lease goes on."""
    end_lease(node, "n1")
    with pytest.raises(NodeLeaseError, match="lease of this node has ended"):
        {**STALE, **ACQUIRING}[write](node, Claim("s1", 1))
    assert [cell.outcome for cell in node.cells("s1")] == ["running"]


def test_a_lease_that_is_renewed_in_time_lets_what_is_owed_be_written(node: History) -> None:
    """The database was away for longer than the lease, and no peer was quicker: nothing is lost."""
    end_lease(node, "n1")
    with pytest.raises(NodeLeaseError):
        node.end_cell(Claim("s1", 1), 1, OK)
    assert renew(node, "n1", 1) == [("n1", 1, "up")]
    node.begin_cell(Claim("s1", 1), 2, "2", "k1")
    assert [cell.outcome for cell in node.cells("s1")] == ["ok", "running"]


def test_a_peer_fences_a_late_node_once_and_for_all(node: History, peer: History) -> None:
    end_lease(node, "n1")
    assert renew(peer, "n2", 1) == [("n1", 2, "down"), ("n2", 1, "up")]
    assert renew(node, "n1", 1) is None
    with pytest.raises(NodeLeaseError):
        node.begin_cell(Claim("s1", 1), 2, "2", "k1")
    theirs = peer.take_ownership("s1", "n1/1", "n2/1")
    assert theirs == Claim("s1", 2)
    assert join(node) == 3
    with pytest.raises(NotOwnerError):
        node.end_cell(Claim("s1", 1), 1, OK)


def let_pass(history: History, seconds: float) -> None:
    """Put what the database knows about times into the past, as if it had answered nobody meanwhile."""
    with history._database.writing() as connection:
        query = "UPDATE nodes SET lease_until = lease_until - :s, answering_since = answering_since - :s"
        connection.execute(text(query), {"s": seconds})


@pytest.mark.parametrize("outage_s", [65.0, 100.0, 290.0])
def test_after_an_outage_each_node_can_renew_first(node: History, peer: History, outage_s: float) -> None:
    """The lease is 60 s. Until it renews, the node acknowledges nothing; what it owes is written then."""
    let_pass(peer, 30)
    assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
    let_pass(peer, outage_s - 30)
    assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
    with pytest.raises(NodeLeaseError):
        node.end_cell(Claim("s1", 1), 1, OK)
    let_pass(peer, 9)
    assert renew(node, "n1", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
    node.begin_cell(Claim("s1", 1), 2, "2", "k1")
    assert [cell.outcome for cell in node.cells("s1")] == ["ok", "running"]


def test_a_node_that_joins_after_an_outage_hides_it_from_nobody(node: History, peer: History) -> None:
    let_pass(peer, 100)
    assert join(peer, "n3") == 1
    assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up"), ("n3", 1, "up")]
    assert renew(node, "n1", 1) is not None


def test_a_node_that_does_not_come_back_is_fenced_one_lease_after_the_outage(node: History, peer: History) -> None:
    let_pass(peer, 100)
    for _ in range(3):
        assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
        let_pass(peer, 20)
    assert renew(peer, "n2", 1) == [("n1", 2, "down"), ("n2", 1, "up")]
    assert renew(node, "n1", 1) is None


def test_a_lost_node_is_fenced_without_delay_while_the_database_answers(node: History, peer: History) -> None:
    for _ in range(3):
        assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
        let_pass(peer, 20)
    assert renew(peer, "n2", 1) == [("n1", 2, "down"), ("n2", 1, "up")]


def test_outages_without_end_do_not_spare_a_lost_node_for_ever(node: History, peer: History) -> None:
    """Five leases after its own has ended, a node that lives has ended its kernels."""
    for _ in range(3):
        let_pass(peer, 100)
        assert renew(peer, "n2", 1) == [("n1", 1, "up"), ("n2", 1, "up")]
    let_pass(peer, 100)
    assert renew(peer, "n2", 1) == [("n1", 2, "down"), ("n2", 1, "up")]


def test_a_lease_is_measured_by_the_database(node: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour off is a node like others."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert renew(node, "n1", 1) == [("n1", 1, "up")]
    node.begin_cell(Claim("s1", 1), 2, "2", "k1")
    assert 30 < node.nodes()[0].lease_left_s <= 60
