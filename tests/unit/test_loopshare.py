"""The event loop's time, divided among kernels: one that has used it rests, longer beside others. Clock injected."""

from __future__ import annotations

import pytest

from orchestrator.kernel.loopshare import KernelShare, LoopShare


class Clock:
    """A clock that work moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(clock: Clock, share: KernelShare, seconds: float) -> float:
    """Use the loop for so many seconds; return the rest that follows."""
    share.begin()
    clock.now += seconds
    share.end()
    return share.rest


def test_light_work_never_rests(clock: Clock) -> None:
    share = LoopShare(clock).of_kernel()
    for _ in range(1000):
        assert work(clock, share, 0.0005) == 0.0
        clock.now += 0.02


def test_a_slice_that_is_used_up_is_followed_by_a_rest(clock: Clock) -> None:
    share = LoopShare(clock).of_kernel()
    rests = [work(clock, share, 0.0005) for _ in range(4)]
    assert rests[:3] == [0.0, 0.0, 0.0]
    assert 0 < rests[3] <= 0.002


def test_beside_others_a_rest_is_longer_than_what_was_used_by_all(clock: Clock) -> None:
    """Three floods together leave more than half of the loop to a fourth kernel."""
    together = LoopShare(clock)
    shares = [together.of_kernel() for _ in range(3)]
    for share in shares:
        work(clock, share, 0.001)
    rest = work(clock, shares[0], 0.002)
    assert rest > 2 * 3 * 0.002


def test_a_message_that_alone_holds_the_loop_for_long_is_made_rarer(clock: Clock) -> None:
    """Beside others: not one in a hundred of their cells, of 5 ms each, is to meet one."""
    together = LoopShare(clock)
    mine, other = together.of_kernel(), together.of_kernel()
    work(clock, other, 0.0001)
    light = work(clock, mine, 0.004) / 0.004
    clock.now += 0.2
    work(clock, other, 0.0001)
    heavy = work(clock, mine, 0.02) / 0.02
    assert heavy >= 5 * light


def test_a_closed_share_does_not_count_as_another(clock: Clock) -> None:
    together = LoopShare(clock)
    mine, other = together.of_kernel(), together.of_kernel()
    work(clock, other, 0.001)
    other.close()
    assert work(clock, mine, 0.002) <= 0.002


def test_work_during_a_rest_does_not_end_it(clock: Clock) -> None:
    """Several channels of one kernel share one rest."""
    share = LoopShare(clock).of_kernel()
    rest = work(clock, share, 0.01)
    assert 0 < work(clock, share, 0.001) < rest
