"""Places of a cluster's quotas: exact however many nodes race for them, and free when a node is fenced."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import KernelPoolExhaustedError
from orchestrator.store.history import Claim, History
from orchestrator.store.places import Place
from tests.unit.test_node_leases import end_lease, join, renew

PLACE = Place("team:default", 3)
RACERS = 12


@pytest.fixture
def nodes(url: str, tmp_path: Path) -> Iterator[list[History]]:
    """Two nodes over one database."""
    histories = [History.open(url, tmp_path, of_cluster=True) for _ in range(2)]
    for number, history in enumerate(histories, 1):
        join(history, f"n{number}")
    yield histories
    for history in histories:
        history.close()


def begun(history: History, number: int, agent: int, place: Place | None = PLACE) -> Claim | None:
    """Begin a session on a node. Return None if there is no place for it."""
    owner = f"node:n{number}/1/i"
    try:
        return history.add_session(
            f"s{agent}", f"team:a{agent}", owner=owner, kernel_id="k", runtime="runc", place=place
        )
    except KernelPoolExhaustedError:
        return None


def test_nodes_that_race_get_exactly_the_quota(nodes: list[History]) -> None:
    with ThreadPoolExecutor(RACERS) as threads:
        claims = list(threads.map(lambda agent: begun(nodes[agent % 2], agent % 2 + 1, agent), range(RACERS)))
    assert len([claim for claim in claims if claim is not None]) == PLACE.quota
    assert len(nodes[0].unended()) == nodes[0].places_taken(PLACE.charge) == PLACE.quota


def test_a_session_that_sleeps_leaves_its_place_and_takes_one_to_wake(nodes: list[History]) -> None:
    claims = [begun(nodes[0], 1, agent) for agent in range(3)]
    assert claims[0] is not None
    nodes[0].session_sleeps(claims[0])
    assert begun(nodes[1], 2, 3) is not None
    with pytest.raises(KernelPoolExhaustedError, match="has 3 kernels on the nodes of the cluster, its quota"):
        nodes[1].take_ownership("s0", None, "node:n2/1/i", place=PLACE)
    assert claims[1] is not None
    nodes[0].session_ends(claims[1], "end_session")
    assert nodes[1].take_ownership("s0", None, "node:n2/1/i", place=PLACE) is not None
    assert nodes[1].places_taken(PLACE.charge) == 3


def test_sessions_that_race_to_wake_get_exactly_the_quota(nodes: list[History]) -> None:
    for agent in range(RACERS):
        claim = begun(nodes[0], 1, agent, None)
        assert claim is not None
        nodes[0].session_sleeps(claim)

    def woken(agent: int) -> bool:
        try:
            owner = f"node:n{agent % 2 + 1}/1/i"
            return nodes[agent % 2].take_ownership(f"s{agent}", None, owner, place=PLACE) is not None
        except KernelPoolExhaustedError:
            return False

    with ThreadPoolExecutor(RACERS) as threads:
        assert sum(threads.map(woken, range(RACERS))) == PLACE.quota
    assert nodes[0].places_taken(PLACE.charge) == PLACE.quota


def test_the_places_of_a_node_come_free_when_it_is_fenced_and_not_before(nodes: list[History]) -> None:
    for agent in range(3):
        assert begun(nodes[0], 1, agent) is not None
    end_lease(nodes[0], "n1")
    assert begun(nodes[1], 2, 3) is None, "the node may renew its lease until another one fences it"
    renew(nodes[1], "n2", 1)
    assert begun(nodes[1], 2, 4) is not None
    assert nodes[1].places_taken(PLACE.charge) == 1


def test_other_groups_and_other_policies_have_places_of_their_own(nodes: list[History]) -> None:
    for agent in range(3):
        assert begun(nodes[0], 1, agent) is not None
    assert begun(nodes[1], 2, 3, Place("team:large", 1)) is not None
    assert begun(nodes[1], 2, 4, Place("others:default", 1)) is not None
    assert begun(nodes[1], 2, 5) is None
