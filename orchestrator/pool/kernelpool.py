"""KernelPool: kernels kept ready, handed out in the scheduler's order, never more than ``max_kernels`` at once.

Invariants:
- A kernel that served an agent never returns: ``release`` discards it.
- Kernels that are starting, ready, leased or being removed all count.
- Only the pool and the manager end kernels.
- A ready kernel goes to the caller that the scheduler names, before anything else happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from orchestrator.errors import CellblockError, KernelPoolExhaustedError, ManagerClosedError, Scarcity
from orchestrator.homeloop import HomeLoop
from orchestrator.kernel.kernel import Kernel
from orchestrator.policy.sections import Pool
from orchestrator.pool.kernelresource import KernelResource
from orchestrator.pool.refill import Refill
from orchestrator.pool.refusal import Refusal
from orchestrator.pool.scheduler import UNLIMITED, LeaseRequest, Room, Scheduler, Ticket
from orchestrator.pool.upkeep import Upkeep
from orchestrator.telemetry import Telemetry

__all__ = ["KernelPool", "KernelResource"]

_log = logging.getLogger(__name__)

# Seconds from a lease to the start of its successor while nobody waits: starting a container takes a whole core for
# most of a second, and the agent that has just got its kernel is about to use it.
_REFILL_DELAY = 0.3
_TICK = 1.0  # seconds between two looks at the ready kernels and at the room on the host


class KernelPool:
    """At most ``max_kernels`` kernels, and no more than the host has room for.

    Args:
        start: starts a kernel; None: the pool only hands out kernels that ``add_kernel`` was given.
        warm: kernels to keep ready beyond those in use.
        rules: how old a ready kernel may become, how often it must answer, and how many callers may wait.
        scheduler: says who gets the next kernel; None: first come, first served.
        room: called before kernels are started, with the numbers of existing and of starting kernels; returns how many
            more the host has room for.
        tick: seconds between two looks at the ready kernels and at the room on the host.
        refill_delay: seconds from a lease to the start of its successor; doubled after each start that fails.
    """

    def __init__(
        self,
        max_kernels: int = 10,
        *,
        start: Callable[[], Awaitable[Kernel]] | None = None,
        warm: int = 0,
        rules: Pool | None = None,
        scheduler: Scheduler | None = None,
        room: Callable[[int, int], Room] = lambda _kernels, _starting: UNLIMITED,
        telemetry: Telemetry | None = None,
        tick: float = _TICK,
        refill_delay: float = _REFILL_DELAY,
    ) -> None:
        if max_kernels < 1:
            raise ValueError("max_kernels must be at least 1")
        self.max_kernels = max_kernels
        self.kernels: dict[str, KernelResource] = {}
        self._warm = 0  # until ``prewarm``
        self._target = warm
        self._tick = tick
        self._rules = rules or Pool()
        self._scheduler = Scheduler() if scheduler is None else scheduler
        self._ask_room = room
        self._telemetry = telemetry or Telemetry()
        self._reclaim: Callable[[], Counter[str]] = Counter
        self._waiters: dict[Ticket, asyncio.Future[KernelResource]] = {}
        self._discarding: set[asyncio.Task[None]] = set()
        self._upkeep = Upkeep(self._rules, self._replace)
        self._refill = Refill(
            start,
            refill_delay,
            has_waiters=lambda: self._scheduler.eligible > 0,
            started=self._add_started,
            failed=self._report_failed_start,
            ended=self._balance,
        )
        self._closed = False
        self._home = HomeLoop()

    def reclaim_with(self, reclaim: Callable[[], Counter[str]]) -> None:
        """Call ``reclaim`` before a caller is refused; it returns how many kernels each group is giving up."""
        self._reclaim = reclaim

    @property
    def available_count(self) -> int:
        """How many kernels are ready and not leased."""
        return sum(1 for _ in self._ready())

    def counts(self) -> dict[str, int]:
        """Return the largest number of kernels, how many are in each state, and how many callers wait."""
        ready, ending = self.available_count, self._ending()
        return {
            "max": self.max_kernels,
            "ready": ready,
            "leased": len(self.kernels) - ready - ending,
            "starting": self._refill.starting,
            "ending": ending,
            "waiting": len(self._scheduler),
        }

    def shortage(self, *, with_warm: bool) -> int:
        """Return how many sessions must give up their kernels so that each caller below its quota gets one.

        Args:
            with_warm: count the kernels that should be kept ready, too.
        """
        coming = max(self._room().kernels, 0) + self._refill.starting + self._ending() + self.available_count
        return self._scheduler.eligible + (self._warm if with_warm else 0) - coming

    def quota_shortages(self) -> dict[str, int]:
        """Return how many of its own kernels each group at its quota must give up, so that its callers get one each."""
        return {
            group: short
            for group, waiting in self._scheduler.blocked.items()
            if (short := waiting - self._ending(group)) > 0
        }

    def add_kernel(self, kernel: KernelResource) -> None:
        """Add a kernel that is ready or leased.

        Raises:
            ValueError: the pool has a kernel with this id.
        """
        if kernel.kernel_id in self.kernels:
            raise ValueError(f"Kernel with ID {kernel.kernel_id} already exists")
        self.kernels[kernel.kernel_id] = kernel
        if not kernel.is_available:
            self.charge(kernel, "")
        self._hand_out()

    def charge(self, kernel: KernelResource, group: str) -> None:
        """Charge a leased kernel to a group, even over quota."""
        if kernel.group == group:
            return
        if kernel.group is not None:
            self._scheduler.release(kernel.group)
        kernel.group = group
        self._scheduler.hold(group)
        self._hand_out()
        self._balance()

    async def acquire(self, timeout: float | None = None, *, request: LeaseRequest | None = None) -> KernelResource:
        """Lease a kernel when it is this caller's turn: see ``scheduler``.

        Args:
            timeout: seconds to wait, including a start; None: without a limit.

        Raises:
            KernelPoolExhaustedError: no kernel became ready in time, or the policy refuses callers that would wait.
            KernelStartError, EngineError: the start of a kernel for this caller failed.
            ManagerClosedError: the pool is closed.
            WrongEventLoopError: the pool is used in another event loop.
        """
        self._home.enter()
        if self._closed:
            raise ManagerClosedError
        ticket = self._scheduler.ask(request or LeaseRequest(), time.monotonic())
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._hand_out()
        ready = waiter.done()
        try:
            self._balance()
            if not ready:
                self._refuse_if_hopeless(ticket)
            resource = await self._wait(waiter, ticket, timeout)
        finally:
            self._withdraw(ticket)
        self._telemetry.handed_out(ready=ready)
        return resource

    def release(self, kernel: KernelResource) -> None:
        """Give a kernel back. One that served an agent is discarded, in the background."""
        if kernel.served or (kernel.kernel is not None and not kernel.kernel.is_alive):
            self._discard_later(kernel)
            return
        kernel.release()
        self._discharge(kernel)
        self._hand_out()

    async def discard(self, resource: KernelResource) -> None:
        """End a kernel. Its place is free once its container and folder are gone."""
        resource.is_shutting_down = True
        try:
            if resource.kernel is not None:
                await resource.kernel.stop()
        except CellblockError as error:
            _log.warning("kernel %s could not be removed yet: %s", resource.kernel_id, error)
        finally:
            self.kernels.pop(resource.kernel_id, None)
            self._discharge(resource)
            self._hand_out()
            self._balance()

    def abandon(self, resource: KernelResource) -> None:
        """Forget a kernel and let it run on for the next start."""
        self.kernels.pop(resource.kernel_id, None)
        self._discharge(resource)
        if resource.kernel is not None:
            resource.kernel.abandon()

    def prewarm(self) -> None:
        """Begin to fill the pool up to ``warm`` ready kernels."""
        self._warm = self._target
        self._balance()

    async def run(self) -> None:
        """Look at the ready kernels and at the room on the host each second, until cancelled."""
        while True:
            await asyncio.sleep(self._tick)
            self._upkeep.check_due(list(self._ready()))
            self._retire()
            self._balance()

    async def close(self) -> None:
        """End every kernel, ready, leased or starting. Callers that wait get ManagerClosedError."""
        self._closed = True
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(ManagerClosedError())
        await asyncio.gather(self._refill.close(), self._upkeep.close())
        await asyncio.gather(*(self.discard(resource) for resource in list(self.kernels.values())))
        await asyncio.gather(*self._discarding, return_exceptions=True)

    # Callers

    def _ready(self) -> Iterator[KernelResource]:
        for resource in self.kernels.values():
            alive = resource.kernel is None or resource.kernel.is_alive
            if resource.is_available and not resource.is_shutting_down and alive:
                yield resource

    def _hand_out(self) -> None:
        while not self._closed and self._scheduler.eligible and (resource := next(self._ready(), None)) is not None:
            waiter, group = self._next_waiter()
            if waiter is not None:
                resource.acquire()
                resource.group = group
                self._refill.put_off()
                waiter.set_result(resource)

    def _next_waiter(self) -> tuple[asyncio.Future[KernelResource] | None, str]:
        """Take the next caller from the queue, and charge its group; None if that caller has just gone."""
        ticket = self._scheduler.next()
        assert ticket is not None
        waiter, group = self._waiters.pop(ticket), ticket.request.group
        if waiter.done():
            self._scheduler.release(group)
            return None, group
        return waiter, group

    async def _wait(
        self, waiter: asyncio.Future[KernelResource], ticket: Ticket, timeout: float | None
    ) -> KernelResource:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await waiter
        except BaseException as error:
            self._give_back(waiter)
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._refusal(self._scarce(ticket), ticket, timeout or 0.0) from None
            raise

    def _withdraw(self, ticket: Ticket) -> None:
        if self._waiters.pop(ticket, None) is not None:
            self._scheduler.withdraw(ticket)

    def _discharge(self, resource: KernelResource) -> None:
        """Stop charging a group for the kernel. A kernel that served an agent counts for the pace of leases."""
        if resource.group is not None:
            self._scheduler.release(resource.group, time.monotonic() if resource.served else None)
            resource.group = None

    def _give_back(self, waiter: asyncio.Future[KernelResource]) -> None:
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.release(waiter.result())

    def _refuse_if_hopeless(self, ticket: Ticket) -> None:
        """Refuse a caller at once if too many wait, or if the policy says "fail" and no kernel is coming.

        Raises:
            KernelPoolExhaustedError: it is refused.
        """
        if len(self._scheduler) > self._rules.queue:
            raise self._refusal("queue", ticket, 0.0)
        if self._rules.exhausted == "fail" and self._is_hopeless(ticket.request.group):
            raise self._refusal(self._scarce(ticket), ticket, 0.0)

    def _is_hopeless(self, group: str) -> bool:
        """Return whether more callers wait than kernels are ready, starting or being given up."""
        reclaimed = self._reclaim()
        blocked = self._scheduler.blocked.get(group, 0) - self._ending(group) - reclaimed[group]
        return blocked > 0 or self.shortage(with_warm=False) > reclaimed.total()

    def _scarce(self, ticket: Ticket) -> Scarcity:
        """Return what is scarce for a caller that waits."""
        if self._scheduler.blocked.get(ticket.request.group):
            return "quota"
        if self._refill.starting >= self._scheduler.eligible:
            return "starting"
        room = self._room()
        if len(self.kernels) + self._refill.starting >= self.max_kernels or not self._refill.can_start:
            return "max_kernels"
        return "starting" if room.kernels > 0 else room.short_of

    def _refusal(self, reason: Scarcity, ticket: Ticket, waited: float) -> KernelPoolExhaustedError:
        group = ticket.request.group
        self._telemetry.refused(reason)
        return Refusal(
            reason,
            group,
            held=self._scheduler.held(group),
            waited=waited,
            expected_wait=self._scheduler.expected_wait(group, time.monotonic()),
            room=self._room(),
            max_kernels=self.max_kernels,
            leased=sum(1 for resource in self.kernels.values() if not resource.is_available),
            starting=self._refill.starting,
            queue=self._rules.queue,
        ).error()

    # Kernels

    def _ending(self, group: str | None = None) -> int:
        ending = (resource for resource in self.kernels.values() if resource.is_shutting_down)
        return sum(1 for resource in ending if group is None or resource.group == group)

    def _room(self) -> Room:
        """Return what may be started now, within ``max_kernels``."""
        kernels = len(self.kernels) + self._refill.starting
        room = self._ask_room(kernels, self._refill.starting)
        places = self.max_kernels - kernels if self._refill.can_start else 0
        return replace(room, kernels=min(room.kernels, places))

    def _balance(self) -> None:
        """Start the kernels that are wanted and fit."""
        if self._closed or not self._refill.can_start:
            return
        ready = self.available_count
        self._refill.balance(
            self._room(),
            waiting=self._scheduler.eligible,
            ready=ready,
            fresh=ready - len(self._upkeep.stale(self._ready())),
            warm=self._warm,
        )

    def _add_started(self, kernel: Kernel) -> None:
        resource = KernelResource(kernel.kernel_id, kernel)
        kernel.on_lost(lambda: self._replace_dead(resource))
        self.add_kernel(resource)

    def _report_failed_start(self, error: Exception) -> None:
        """Give the error to the next caller, unless enough other starts are under way for all callers."""
        if self._scheduler.eligible <= self._refill.starting:
            return
        while self._scheduler.eligible:
            waiter, group = self._next_waiter()
            if waiter is not None:
                self._scheduler.release(group)
                waiter.set_exception(error)
                return
        _log.warning("a kernel could not be started ahead of need: %s", error)

    def _replace_dead(self, resource: KernelResource) -> None:
        """Called when a kernel's connection is lost. A leased kernel is left to its session."""
        if resource.is_available and not resource.is_shutting_down and not self._closed:
            self._replace(resource, "died")

    def _replace(self, resource: KernelResource, reason: str) -> None:
        """End a ready kernel in the background. From now on nobody gets it."""
        resource.is_shutting_down = True
        self._telemetry.replaced(reason)
        self._discard_later(resource)

    def _retire(self) -> None:
        """Replace ready kernels that are too old: those above the target, or one if no successor fits beside it."""
        surplus = self.available_count - self._warm
        if surplus <= 0 and self._room().kernels <= 0 and not self._refill.starting and not self._ending():
            surplus = 1
        self._upkeep.retire(self._upkeep.stale(self._ready()), surplus)

    def _discard_later(self, resource: KernelResource) -> None:
        task = asyncio.get_running_loop().create_task(self.discard(resource))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)
