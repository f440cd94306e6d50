"""The simulation of ``make schedule``, smaller: what our order promises, beside first come first served."""

from __future__ import annotations

import pytest

from benchmarks.clusterscheduling import figures
from benchmarks.scheduling import Figures, compare, fair_shares, jain
from benchmarks.servicetimes import ServiceTimes

TIMES = ServiceTimes(start=[0.8, 1.0], cell=[0.005, 0.02, 0.1, 0.4], end=[0.1, 0.2])


@pytest.fixture(scope="module", params=range(3))
def compared(request: pytest.FixtureRequest) -> tuple[Figures, Figures]:
    """First come first served, and ours: 1,000 agents of ten groups over 100 kernels."""
    plain, ours = compare(1000, 100, 10, request.param, TIMES).values()
    return plain, ours


def test_no_kernel_is_ready_while_somebody_waits(compared: tuple[Figures, Figures]) -> None:
    """And so the kernels are used as well as first come first served uses them."""
    plain, ours = compared
    assert plain.idle == ours.idle == 0
    assert ours.utilisation == pytest.approx(plain.utilisation, abs=0.02)


def test_nobody_starves(compared: tuple[Figures, Figures]) -> None:
    plain, ours = compared
    assert plain.starved == ours.starved == 0


def test_a_group_that_floods_the_queue_pays_for_it_itself(compared: tuple[Figures, Figures]) -> None:
    """Shares are near what is due to each, and the others hardly notice it."""
    plain, ours = compared
    assert ours.fairness > 0.9 > plain.fairness
    assert ours.others_p50_s < 0.1 * plain.others_p50_s
    assert ours.others_p99_s < 0.5 * plain.others_p99_s
    assert ours.hog_p50_s > plain.hog_p50_s


def test_the_same_seed_gives_the_same_figures() -> None:
    assert compare(300, 30, 5, 7, TIMES) == compare(300, 30, 5, 7, TIMES)


def test_fair_shares_are_max_min() -> None:
    """Who wants little gets it; the rest is divided evenly, and no more is given than there is."""
    assert fair_shares(10, {"a": 2, "b": 8, "c": 9}) == {"a": 2, "b": 4, "c": 4}
    assert fair_shares(30, {"a": 2, "b": 8, "c": 9}) == {"a": 2, "b": 8, "c": 9}


def test_jains_index_is_one_for_due_shares_and_one_nth_when_one_has_all() -> None:
    wanted = {"a": 100, "b": 100, "c": 100, "d": 2}
    assert jain({"a": 10, "b": 10, "c": 10, "d": 2}, wanted) == pytest.approx(1)
    assert jain({"a": 32, "b": 0, "c": 0, "d": 0}, wanted) == pytest.approx(1 / 4)


def test_over_nodes_each_group_has_its_share_wherever_its_callers_wait() -> None:
    """A group whose callers wait at fewer nodes has less where each node counts its own kernels alone."""
    alone, telling = (figures("uneven", 3.0, 1, tells=tells, samples=40) for tells in (False, True))
    assert alone.held["c"] < 35
    assert telling.held["c"] > 50
    assert telling.fairness > 0.98 > alone.fairness


def test_nodes_that_know_the_same_do_not_all_give_one_group_what_it_lacks() -> None:
    """Kernels that are given back within the lag: the shares do not swing."""
    assert figures("even", 3.0, 1, tells=True, samples=40).fairness > 0.97
