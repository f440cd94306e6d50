"""The pool: order, refill, room on the host, refusals, and the upkeep of ready kernels. On fake kernels."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest

from orchestrator.errors import (
    EngineTimeoutError,
    KernelPoolExhaustedError,
    KernelStartError,
    ManagerClosedError,
)
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB
from orchestrator.policy.sections import Group, Pool, Scheduling
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.pool.scheduler import UNLIMITED, LeaseRequest, Room, Scheduler
from orchestrator.pool.upkeep import Upkeep
from orchestrator.telemetry import Telemetry
from tests.unit.fakekernel import Factory

pytestmark = pytest.mark.alone


class CountingFactory(Factory):
    """Counts the starts, those that fail too."""

    attempts = 0

    async def __call__(self) -> Kernel:
        self.attempts += 1
        return await super().__call__()


@contextlib.asynccontextmanager
async def running(max_kernels: int = 10, *, start: Factory | None = None, **options: Any) -> AsyncIterator[KernelPool]:
    """Open a pool with its housekeeping, a second of which takes 20 ms."""
    pool = KernelPool(max_kernels, start=start or Factory(), tick=0.02, refill_delay=0.05, **options)
    keeping = asyncio.create_task(pool.run())
    try:
        pool.prewarm()
        yield pool
    finally:
        keeping.cancel()
        await pool.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def lease(pool: KernelPool, group: str = "", *, priority: int = 0, timeout: float = 5.0) -> KernelResource:
    resource = await pool.acquire(timeout, request=LeaseRequest(group, priority))
    resource.served = True
    return resource


def metrics(telemetry: Telemetry) -> str:
    return generate_latest(telemetry.registry).decode()


# Order


async def test_a_burst_is_served_in_order_and_loses_nobody() -> None:
    """Two hundred callers over five kernels, of whom some give up: the others get theirs in the order of asking."""
    order: list[int] = []
    async with running(5) as pool:

        async def call(number: int) -> None:
            resource = await lease(pool)
            order.append(number)
            await asyncio.sleep(0.001)
            pool.release(resource)

        tasks = [asyncio.create_task(call(number)) for number in range(200)]
        await asyncio.sleep(0)
        for task in tasks[50:200:10]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not pool.kernels)
    assert order == [number for number in range(200) if number < 50 or number % 10]


async def test_a_burst_of_ten_thousand_is_quick() -> None:
    """Each asks, waits and is served: under 2 ms of CPU each, as many as they are. Measured: 0.1 ms."""
    async with running(50) as pool:

        async def call() -> None:
            pool.release(await lease(pool, timeout=120))

        begun = time.process_time()
        await asyncio.gather(*(call() for _ in range(10_000)))
        assert time.process_time() - begun < 20


async def test_another_group_does_not_wait_behind_a_burst() -> None:
    async with running(2) as pool:
        held = [await lease(pool, "hog") for _ in range(2)]
        hogs = [asyncio.create_task(lease(pool, "hog")) for _ in range(20)]
        await asyncio.sleep(0)
        other = asyncio.create_task(lease(pool, "other"))
        await asyncio.sleep(0)
        pool.release(held[0])
        await until(other.done)
        assert not any(task.done() for task in hogs)
        for task in hogs:
            task.cancel()
        await asyncio.gather(*hogs, return_exceptions=True)


async def test_a_group_at_its_quota_waits_and_no_kernel_is_started_for_it() -> None:
    """It gets the next kernel of its own that comes free; meanwhile others are served."""
    start = Factory()
    async with running(5, start=start, scheduler=Scheduler(groups={"small": Group(quota=1)})) as pool:
        held = await lease(pool, "small")
        waiting = asyncio.create_task(lease(pool, "small"))
        await lease(pool, "other")
        assert not waiting.done()
        assert len(start.made) == 2
        assert (pool.shortage(with_warm=False), pool.quota_shortages()) == (-3, {"small": 1})
        pool.release(held)
        await waiting


async def test_a_group_at_its_quota_gets_a_ready_kernel_once_one_of_its_own_is_gone() -> None:
    """And not only one that would have to be started."""
    scheduler = Scheduler(groups={"small": Group(quota=1)})
    async with running(5, start=Factory(0.3), warm=1, scheduler=scheduler) as pool:
        held = await lease(pool, "small")
        await until(lambda: pool.available_count == 1)
        waiting = asyncio.create_task(lease(pool, "small"))
        await asyncio.sleep(0)
        pool.release(held)
        await until(waiting.done, 0.2)


async def test_a_caller_that_leaves_costs_its_group_nothing() -> None:
    """Whether it goes just before its turn, just after it, or gives its kernel back unused."""
    scheduler = Scheduler()
    async with running(1, scheduler=scheduler) as pool:
        unused = await pool.acquire(5, request=LeaseRequest("a"))
        before, after = (asyncio.create_task(lease(pool, "b")) for _ in range(2))
        await asyncio.sleep(0)
        before.cancel()
        pool.release(unused)  # passes over the first, and is the second's
        after.cancel()
        await asyncio.gather(before, after, return_exceptions=True)
        assert (scheduler.held("a"), scheduler.held("b"), pool.available_count) == (0, 0, 1)


async def test_a_kernel_that_an_agent_has_already_is_charged_to_its_group() -> None:
    """An adopted kernel counts for the group of all who have none, until its agent says which it is of."""
    scheduler = Scheduler(groups={"small": Group(quota=1)})
    async with running(5, scheduler=scheduler) as pool:
        adopted = KernelResource("adopted")
        adopted.acquire()
        adopted.served = True
        pool.add_kernel(adopted)
        assert scheduler.held("") == 1
        pool.charge(adopted, "small")
        assert (scheduler.held(""), scheduler.held("small")) == (0, 1)
        with pytest.raises(KernelPoolExhaustedError):
            await lease(pool, "small", timeout=0.05)
        waiting = asyncio.create_task(lease(pool, "small"))
        await asyncio.sleep(0)
        pool.charge(adopted, "other")  # and then for another one: its place is free
        await until(waiting.done)
        assert scheduler.expected_wait("small", 0.0) is None  # no kernel has come free yet
        await pool.discard(adopted)
        assert scheduler.held("other") == 0


# Refill


async def test_the_pool_fills_up_to_its_target_in_parallel_and_again_behind_leases() -> None:
    start = Factory(0.05)
    async with running(start=start, warm=4) as pool:
        await until(lambda: pool.available_count == 4)
        assert start.most == 4
        for _ in range(3):
            await lease(pool)
        await until(lambda: pool.available_count == 4)
        assert len(pool.kernels) == 7


async def test_a_refill_leaves_the_agent_that_was_just_served_alone() -> None:
    """No start for 0.3 s (here 0.05 s) after a lease, however many follow; then all that is missing at once."""
    start = Factory(0.02)
    async with running(start=start, warm=3) as pool:
        await until(lambda: pool.available_count == 3)
        for _ in range(3):
            await lease(pool)
        await asyncio.sleep(0.02)
        assert start.starting == 0
        await until(lambda: start.starting == 3)


async def test_starts_are_bounded_and_refills_more_than_starts_for_callers() -> None:
    """The host says how many: four for callers, one ahead of need; the callers' come first."""
    start = Factory(0.02)
    room = replace(UNLIMITED, at_once=4, ahead=1)
    async with running(20, start=start, warm=3, room=lambda _kernels, _starting: room) as pool:
        await until(lambda: pool.available_count == 3)
        assert start.most == 1
        await asyncio.gather(*(lease(pool) for _ in range(12)))
        assert start.most == 4
        await until(lambda: pool.available_count == 3)


async def test_first_cells_are_run_while_nobody_waits() -> None:
    """They cost a caller that waits more than they would spare it."""
    start = Factory()
    async with running(start=start, warm=1) as pool:
        await until(lambda: pool.available_count == 1)
        assert [kernel.warmed for kernel in start.made] == [True]
        await asyncio.gather(lease(pool), lease(pool))
        assert [kernel.warmed for kernel in start.made][:2] == [True, False]


async def test_a_kernel_that_does_not_survive_its_first_cells_is_ended() -> None:
    start = Factory()
    start.answers = False
    async with running(start=start, warm=1) as pool:
        await until(lambda: len(start.made) >= 2)
        assert pool.available_count == 0
        start.answers = True
        await until(lambda: pool.available_count == 1)
        assert all(kernel.stopped for kernel in start.made[:-1])


async def test_failing_refills_are_tried_less_and_less_often_and_a_caller_gets_the_error() -> None:
    """The delay of 0.05 s doubles: at most four attempts in 0.35 s, where 7 would fit without doubling."""
    start = CountingFactory()
    start.failure = KernelStartError("broken", cause="host")
    async with running(start=start, warm=1) as pool:
        with pytest.raises(KernelStartError, match="broken"):
            await lease(pool)
        before = start.attempts
        await asyncio.sleep(0.35)
        assert 1 <= start.attempts - before <= 4
        start.failure = None
        await lease(pool)


async def test_a_start_that_the_engine_was_too_slow_for_is_no_exhausted_pool() -> None:
    """``EngineTimeoutError`` is a ``TimeoutError`` too, and not the caller's own."""
    start = Factory()
    start.failure = EngineTimeoutError("hung")
    async with running(start=start) as pool:
        with pytest.raises(EngineTimeoutError):
            await lease(pool)


# Room on the host


class HostCapacity:
    """Has memory for so many kernels."""

    def __init__(self, kernels: int) -> None:
        self.places = kernels

    def room(self, kernels: int, _starting: int) -> Room:
        free = self.places - kernels
        return Room(free, "memory", 1024 * MIB, max(free, 0) * 1024 * MIB, 4, 4)


async def test_no_more_kernels_than_the_host_has_memory_for() -> None:
    """The error says so, with the bytes; once there is room the next who asked gets a kernel."""
    host = HostCapacity(2)
    async with running(10, warm=1, room=host.room) as pool:
        await lease(pool), await lease(pool)
        assert pool.shortage(with_warm=True) == 1
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await lease(pool, timeout=0.05)
        error = caught.value
        assert (error.reason, error.needed_bytes, error.free_bytes) == ("memory", 1024 * MIB, 0)
        assert "1024 MiB" in error.message
        assert "memory_overcommit" in error.remedy
        waiting = asyncio.create_task(lease(pool))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        host.places = 3
        await until(waiting.done)
        assert len(pool.kernels) == 3


# Refusals


async def test_an_exhausted_pool_says_why_and_how_long_one_would_wait() -> None:
    """Kernels came free every 20 ms or so: that is what one more is told."""
    async with running(1) as pool:
        for _ in range(5):
            resource = await lease(pool)
            await asyncio.sleep(0.02)
            pool.release(resource)
        await lease(pool)
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await lease(pool, timeout=0.05)
    error = caught.value
    assert (error.reason, error.waited, error.max_kernels, error.needed_bytes) == ("max_kernels", 0.05, 1, None)
    assert error.expected_wait is not None
    assert 0.02 < error.expected_wait < 1
    assert "Estimated wait: " in error.message


async def test_with_the_strategy_fail_nobody_waits_for_anothers_kernel_but_for_a_start() -> None:
    telemetry = Telemetry()
    async with running(2, start=Factory(0.05), rules=Pool(exhausted="fail"), telemetry=telemetry) as pool:
        resources = await asyncio.gather(lease(pool), lease(pool))
        begun = time.monotonic()
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await lease(pool)
        assert time.monotonic() - begun < 0.05
        assert (caught.value.reason, caught.value.waited) == ("max_kernels", 0.0)
        pool.release(resources[0])
        await asyncio.sleep(0)
        await lease(pool)  # one is ending: its place is as good as free
    assert 'cellblock_leases_refused_total{reason="max_kernels"} 1.0' in metrics(telemetry)


async def test_with_the_strategy_fail_a_kernel_that_is_being_given_up_is_waited_for() -> None:
    async with running(1, rules=Pool(exhausted="fail")) as pool:
        held = await lease(pool)

        def reclaim() -> Counter[str]:
            asyncio.get_running_loop().call_later(0.02, pool.release, held)
            return Counter({"": 1})

        pool.reclaim_with(reclaim)
        await lease(pool)


async def test_with_the_strategy_fail_a_group_at_its_quota_is_told_so() -> None:
    scheduler = Scheduler(Scheduling(group_quota=1))
    async with running(5, rules=Pool(exhausted="fail"), scheduler=scheduler) as pool:
        await lease(pool, "a")
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await lease(pool, "a")
        assert caught.value.reason == "quota"
        assert "group 'a' holds 1" in caught.value.message
        pool.release(await lease(pool, "b"))
        await asyncio.sleep(0)
        await lease(pool, "b")  # the kernel that is ending was its own
        pool.reclaim_with(lambda: Counter({"b": 1}))
        with pytest.raises(KernelPoolExhaustedError):
            await lease(pool, "a")
        with pytest.raises(KernelPoolExhaustedError) as waited:
            await lease(pool, "b", timeout=0.05)
        assert waited.value.waited == 0.05


async def test_past_the_queues_limit_callers_are_refused_at_once() -> None:
    async with running(1, rules=Pool(queue=2)) as pool:
        held = await lease(pool)
        waiting = [asyncio.create_task(lease(pool)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await lease(pool)
        assert caught.value.reason == "queue"
        assert pool.counts()["waiting"] == 2
        pool.release(held)
        pool.release(await waiting[0])
        await waiting[1]


# Kernels that wait


async def test_a_waiting_kernel_that_does_not_answer_is_replaced() -> None:
    """One that answers stays, and is asked no more often than the policy says."""
    telemetry, start = Telemetry(), Factory()
    async with running(start=start, warm=2, rules=Pool(check_every_s=1), telemetry=telemetry) as pool:
        await until(lambda: pool.available_count == 2)
        mute, sound = start.made
        mute.answers = False
        for resource in pool.kernels.values():
            resource.checked -= 1
        await until(lambda: mute.stopped)
        await until(lambda: pool.available_count == 2)
        await asyncio.sleep(0.1)
        assert (sound.asked, sound.is_alive) == (1, True)
    assert 'cellblock_ready_kernels_replaced_total{reason="silent"} 1.0' in metrics(telemetry)


@pytest.mark.parametrize("leased", [True, False])
async def test_a_kernel_that_is_leased_while_it_is_checked_stays(leased: bool) -> None:
    """A running cell may keep it from answering; the cell's own time limit covers that."""
    factory = Factory()
    factory.answers = False
    kernel = await factory()
    resource = KernelResource("k", kernel)
    resource.checked -= 1
    replaced: list[str] = []
    upkeep = Upkeep(Pool(check_every_s=1), lambda _resource, reason: replaced.append(reason))
    upkeep.check_due([resource])
    if leased:
        resource.acquire()
    await asyncio.sleep(0.01)
    assert replaced == ([] if leased else ["silent"])


async def test_a_kernel_that_is_being_removed_is_not_leased() -> None:
    async with running() as pool:
        ending = KernelResource("ending")
        ending.is_shutting_down = True
        pool.add_kernel(ending)
        assert (pool.counts()["ending"], pool.available_count) == (1, 0)
        assert await lease(pool) is not ending


async def test_a_kernel_that_has_waited_too_long_is_replaced_once_a_fresh_one_is_ready() -> None:
    """There are never fewer ready than the target."""
    start = Factory(0.05)
    telemetry = Telemetry()
    async with running(start=start, warm=2, rules=Pool(max_age_s=60), telemetry=telemetry) as pool:
        await until(lambda: pool.available_count == 2)
        old = list(start.made)
        for resource in pool.kernels.values():
            resource.begun -= 61
        least = 2
        while not all(kernel.stopped for kernel in old):
            least = min(least, pool.available_count)
            await asyncio.sleep(0.002)
        assert least == 2
        await until(lambda: len(pool.kernels) == 2)
    assert 'cellblock_ready_kernels_replaced_total{reason="age"} 2.0' in metrics(telemetry)


async def test_a_full_pool_replaces_old_kernels_one_after_another() -> None:
    """There is no room for a fresh one beside them; the target is missed by one at most."""
    start = Factory(0.02)
    async with running(2, start=start, warm=2, rules=Pool(max_age_s=60)) as pool:
        await until(lambda: pool.available_count == 2)
        old = list(start.made)
        for resource in pool.kernels.values():
            resource.begun -= 61
        least = 2
        while not all(kernel.stopped for kernel in old):
            least = min(least, pool.available_count)
            await asyncio.sleep(0.002)
        assert least == 1
        await until(lambda: pool.available_count == 2)


async def test_a_waiting_kernel_that_dies_is_replaced() -> None:
    start = Factory()
    async with running(start=start, warm=1) as pool:
        await until(lambda: pool.available_count == 1)
        start.made[0].die()
        assert pool.available_count == 0
        await until(lambda: pool.available_count == 1)


# The rest


async def test_the_hit_rate_is_in_the_metrics() -> None:
    telemetry = Telemetry()
    async with running(warm=1, telemetry=telemetry) as pool:
        await until(lambda: pool.available_count == 1)
        await asyncio.gather(*(lease(pool) for _ in range(3)))
    text = metrics(telemetry)
    assert 'cellblock_leases_total{ready="yes"} 1.0' in text
    assert 'cellblock_leases_total{ready="no"} 2.0' in text


async def test_who_waits_when_the_pool_closes_is_told() -> None:
    start = Factory()
    async with running(1, start=start) as pool:
        await lease(pool)
        waiting = asyncio.create_task(lease(pool))
        await asyncio.sleep(0)
    with pytest.raises(ManagerClosedError):
        await waiting
    assert not start.living
