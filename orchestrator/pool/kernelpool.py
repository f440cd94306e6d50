"""KernelPool: kernels kept ready, handed out in the scheduler's order, never more than ``max_kernels`` at once.

Invariants:
- a kernel that served an agent never returns: ``release`` discards it;
- kernels that are starting, ready, leased or still being removed all count;
- only the pool and the manager end kernels;
- a kernel that is ready goes to whoever the scheduler names, before anything else happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, Self

from orchestrator.errors import (
    CellblockError,
    KernelDiedError,
    KernelPoolExhaustedError,
    ManagerClosedError,
    Scarcity,
)
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB
from orchestrator.policy.policy import Pool
from orchestrator.pool.scheduler import UNLIMITED, LeaseRequest, Room, Scheduler, Ticket
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)

# Seconds before a lease is refilled while nobody waits: starting a container takes a whole core for most of a second,
# and the agent that has just got its kernel is about to use it.
_REFILL_DELAY = 0.3
_LONGEST_DELAY = 60.0  # seconds between two attempts to refill while every start fails
_TICK = 1.0  # seconds between two looks at the kernels that wait, and at the room on the host
_ANSWER = 5.0  # seconds in which a kernel that nobody uses must answer
_END_A_SESSION = "End a session with `await manager.end_session(agent_id)`, wait longer, or raise max_kernels."
_REMEDIES: dict[Scarcity, str] = {
    "memory": "End a session, free memory on the host, or change limits.memory_mb, scheduling.memory_reserve_mb or "
    "scheduling.memory_overcommit in the policy.",
    "cpu": "End a session, or raise scheduling.cpu_overcommit in the policy.",
    "quota": "End a session of the group, wait longer, or raise its quota in the policy.",
    "queue": "Try again later, or raise pool.queue in the policy.",
    "starting": "Wait longer; `cellblock doctor` says whether kernels start here.",
}


class KernelResource:
    """One place in the pool, and the kernel that fills it.

    Attributes:
        kernel: None for a resource that only stands for a kernel.
        created_at, last_used_at: seconds since the epoch.
        begun: monotonic seconds of its making.
        checked: monotonic seconds of its last sign of life.
        group: of the agent that has it, which is charged for it; None while nobody is.
        served: whether an agent has had it; then it is discarded on release.
    """

    def __init__(self, kernel_id: str, kernel: Kernel | None = None) -> None:
        self.kernel_id = kernel_id
        self.kernel = kernel
        self.is_available = True
        self.is_shutting_down = False
        self.served = False
        self.created_at = time.time()
        self.begun = self.checked = time.monotonic()
        self.group: str | None = None
        self.last_used_at: float | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            RuntimeError: it is taken, or being shut down.
        """
        if not self.is_available or self.is_shutting_down:
            raise RuntimeError("Kernel is not available")
        self.is_available = False
        self.last_used_at = time.time()

    def release(self) -> None:
        """Give it back.

        Raises:
            RuntimeError: nobody has taken it.
        """
        if self.is_available:
            raise RuntimeError("Kernel is already available")
        self.is_available = True
        self.last_used_at = time.time()

    async def __aenter__(self) -> Self:
        self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()


class KernelPool:
    """At most ``max_kernels`` kernels, and no more than the host has room for.

    Args:
        start: makes a kernel; without it the pool only hands out what ``add_kernel`` gave it.
        warm: kernels to keep ready beyond those in use.
        rules: how old a kernel that waits may become, how often it must answer, and what becomes of callers.
        scheduler: who gets the next kernel; without one it is first come, first served.
        room: called before kernels are started, with the numbers of kernels that there are and that are starting;
            tells how many more the host has room for.
        tick: seconds between two looks at the kernels that wait, and at the room on the host.
        refill_delay: seconds after a lease until its successor is started; doubled after each start that fails.
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
        self._start = start
        self._warm = warm
        self._tick = tick
        self._refill_delay = refill_delay
        self._rules = rules or Pool()
        self._scheduler = Scheduler() if scheduler is None else scheduler
        self._ask_room = room
        self._telemetry = telemetry or Telemetry()
        self._reclaim: Callable[[], Counter[str]] = Counter
        self._waiters: dict[Ticket, asyncio.Future[KernelResource]] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._discarding: set[asyncio.Task[None]] = set()
        self._checking: set[asyncio.Task[None]] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._refill_at = 0.0  # monotonic seconds before which no kernel is started ahead of need
        self._failures = 0  # starts that failed in a row
        self._closed = False

    def reclaim_with(self, reclaim: Callable[[], Counter[str]]) -> None:
        """Have ``reclaim`` called before a caller is refused: how many kernels does each group then give up?"""
        self._reclaim = reclaim

    @property
    def available_count(self) -> int:
        """How many kernels are ready and not taken."""
        return sum(1 for _ in self._ready())

    def counts(self) -> dict[str, int]:
        """How many kernels there may be, are in each state, and how many callers wait for one."""
        ready, ending = self.available_count, self._ending()
        return {
            "max": self.max_kernels,
            "ready": ready,
            "leased": len(self.kernels) - ready - ending,
            "starting": len(self._starting),
            "ending": ending,
            "waiting": len(self._scheduler),
        }

    def shortage(self, *, with_warm: bool) -> int:
        """How many kernels have to be given up so that everybody who waits gets one, but for those at a quota.

        Args:
            with_warm: and so that as many are kept ready as should be.
        """
        coming = max(self._room().kernels, 0) + len(self._starting) + self._ending() + self.available_count
        return self._scheduler.eligible + (self._warm if with_warm else 0) - coming

    def quota_shortages(self) -> dict[str, int]:
        """How many kernels each group at its quota has to give up itself, so that all who wait in it get one."""
        return {
            group: short
            for group, waiting in self._scheduler.blocked.items()
            if (short := waiting - self._ending(group)) > 0
        }

    def add_kernel(self, kernel: KernelResource) -> None:
        """Add a kernel that is ready, or that somebody has.

        Raises:
            ValueError: the pool has one of this id.
        """
        if kernel.kernel_id in self.kernels:
            raise ValueError(f"Kernel with ID {kernel.kernel_id} already exists")
        self.kernels[kernel.kernel_id] = kernel
        if not kernel.is_available:
            self.charge(kernel, "")
        self._hand_out()

    def charge(self, kernel: KernelResource, group: str) -> None:
        """Have a kernel that somebody has count as a group's, be it past its quota."""
        if kernel.group == group:
            return
        if kernel.group is not None:
            self._scheduler.release(kernel.group)
        kernel.group = group
        self._scheduler.hold(group)
        self._hand_out()
        self._balance()

    async def acquire(self, timeout: float | None = None, *, request: LeaseRequest | None = None) -> KernelResource:
        """Take a kernel, when it is this caller's turn: see ``scheduler``.

        Args:
            timeout: seconds to wait for one, its start included; None waits for ever.

        Raises:
            KernelPoolExhaustedError: none became free, or ready, in time; or the policy lets nobody wait for one.
            KernelStartError, EngineError: one was started for this caller, and failed.
            ManagerClosedError: the pool is closed.
        """
        if self._closed:
            raise ManagerClosedError("the kernel pool is closed.")
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
            self._spawn(self._discarding, self.discard(kernel))
            return
        kernel.release()
        self._discharge(kernel)
        self._hand_out()

    async def discard(self, resource: KernelResource) -> None:
        """End a kernel. Its place is free once nothing of it is left."""
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
        """Forget a kernel, which runs on for the next start."""
        self.kernels.pop(resource.kernel_id, None)
        if resource.kernel is not None:
            resource.kernel.abandon()

    def prewarm(self) -> None:
        """Begin to fill the pool up to ``warm`` ready kernels."""
        self._balance()

    async def run(self) -> None:
        """Each second look at the kernels that wait, and at the room that the host has, until cancelled."""
        while True:
            await asyncio.sleep(self._tick)
            self._check_due()
            self._retire()
            self._balance()

    async def close(self) -> None:
        """End every kernel, ready, leased or starting; those who wait get ManagerClosedError."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(ManagerClosedError("the kernel pool was closed."))
        for task in self._starting | self._checking:
            task.cancel()
        await asyncio.gather(*self._starting, *self._checking, return_exceptions=True)
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
                self._put_off_refill(self._refill_delay)
                waiter.set_result(resource)

    def _next_waiter(self) -> tuple[asyncio.Future[KernelResource] | None, str]:
        """Take whose turn it is from the queue, and charge the group; None for one that has just gone."""
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
        """Charge nobody for a kernel any more. One that served has come free for others."""
        if resource.group is not None:
            self._scheduler.release(resource.group, time.monotonic() if resource.served else None)
            resource.group = None

    def _give_back(self, waiter: asyncio.Future[KernelResource]) -> None:
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.release(waiter.result())

    def _refuse_if_hopeless(self, ticket: Ticket) -> None:
        """Refuse a caller at once where too many wait already, or where the policy lets none wait for others' kernels.

        Raises:
            KernelPoolExhaustedError: so it is.
        """
        if len(self._scheduler) > self._rules.queue:
            raise self._refusal("queue", ticket, 0.0)
        if self._rules.exhausted == "fail" and self._is_hopeless(ticket.request.group):
            raise self._refusal(self._scarce(ticket), ticket, 0.0)

    def _is_hopeless(self, group: str) -> bool:
        """Whether more callers wait than kernels are ready, being made or being given up."""
        reclaimed = self._reclaim()
        blocked = self._scheduler.blocked.get(group, 0) - self._ending(group) - reclaimed[group]
        return blocked > 0 or self.shortage(with_warm=False) > reclaimed.total()

    def _scarce(self, ticket: Ticket) -> Scarcity:
        """What a caller that waits has too little of."""
        if self._scheduler.blocked.get(ticket.request.group):
            return "quota"
        if len(self._starting) >= self._scheduler.eligible:
            return "starting"
        room = self._room()
        if len(self.kernels) + len(self._starting) >= self.max_kernels or self._start is None:
            return "max_kernels"
        return "starting" if room.kernels > 0 else room.short_of

    def _refusal(self, reason: Scarcity, ticket: Ticket, waited: float) -> KernelPoolExhaustedError:
        group = ticket.request.group
        expected = self._scheduler.expected_wait(group, time.monotonic())
        room = self._room()
        self._telemetry.refused(reason)
        happened = f"no kernel became free within {waited:g} s" if waited else "no kernel is free"
        outlook = "" if expected is None else f" One more that waits now would wait about {expected:.2g} s."
        return KernelPoolExhaustedError(
            f"{happened}: {self._why(reason, group, room)}.{outlook}",
            max_kernels=self.max_kernels,
            waited=waited,
            reason=reason,
            expected_wait=expected,
            needed_bytes=room.needed if reason == "memory" else None,
            free_bytes=room.free if reason == "memory" else None,
            remedy=_REMEDIES.get(reason, _END_A_SESSION),
        )

    def _why(self, reason: Scarcity, group: str, room: Room) -> str:
        leased = sum(1 for resource in self.kernels.values() if not resource.is_available)
        kernels = f"{leased} of {self.max_kernels} belong to agents, {len(self._starting)} are starting"
        whys = {
            "quota": f"group {group!r} holds {self._scheduler.held(group)}, which is its quota",
            "queue": f"{self._rules.queue} callers wait already, which is the most; {kernels}",
            "memory": f"one more is promised {room.needed // MIB} MiB of memory, and {room.free // MIB} MiB "
            f"of the host's are neither used, reserved nor promised; {kernels}",
            "cpu": f"the host's cores are promised to the kernels that there are; {kernels}",
        }
        return whys.get(reason, kernels)

    # Kernels

    def _ending(self, group: str | None = None) -> int:
        ending = (resource for resource in self.kernels.values() if resource.is_shutting_down)
        return sum(1 for resource in ending if group is None or resource.group == group)

    def _room(self) -> Room:
        """What may be started now, ``max_kernels`` included."""
        kernels = len(self.kernels) + len(self._starting)
        room = self._ask_room(kernels, len(self._starting))
        places = 0 if self._start is None else self.max_kernels - kernels
        return replace(room, kernels=min(room.kernels, places))

    def _balance(self) -> None:
        """Start what is wanted and fits: at once for those who wait, a little after the last lease to refill."""
        if self._closed or self._start is None:
            return
        room, ready, waiting = self._room(), self.available_count, self._scheduler.eligible
        started = self._start_up_to(min(waiting - ready - len(self._starting), room.kernels), room.at_once)
        fresh = ready - len(self._stale())
        missing = min(waiting + self._warm - fresh - len(self._starting), room.kernels - started)
        delay = self._refill_at - time.monotonic()
        if missing > 0 and delay <= 0:
            self._start_up_to(missing, room.ahead)
        elif missing > 0 and self._refill is None:
            self._refill = asyncio.get_running_loop().call_later(delay, self._refill_now)

    def _refill_now(self) -> None:
        self._refill = None
        self._balance()

    def _put_off_refill(self, seconds: float) -> None:
        """Refill no sooner than in so many seconds; leases one after another put it off only once."""
        now = time.monotonic()
        if now >= self._refill_at:
            self._refill_at = now + seconds

    def _start_up_to(self, wanted: int, at_once: int) -> int:
        count = max(0, min(wanted, at_once - len(self._starting)))
        for _ in range(count):
            self._spawn(self._starting, self._start_one())
        return count

    async def _start_one(self) -> None:
        try:
            kernel = await self._start_counted()
        except Exception as error:  # noqa: BLE001 - whatever it was, somebody waits for this kernel and must be told
            self._failures = min(self._failures + 1, 10)
            self._put_off_refill(min(self._refill_delay * 2**self._failures, _LONGEST_DELAY))
            self._tell(error)
            return
        self._failures = 0
        resource = KernelResource(kernel.kernel_id, kernel)
        kernel.on_lost(lambda: self._died(resource))
        self.add_kernel(resource)

    async def _start_counted(self) -> Kernel:
        """Start a kernel, which from its very end on is not counted as starting: whoever gets it may look at once."""
        assert self._start is not None
        try:
            kernel = await self._start()
            if not self._scheduler.eligible:
                await self._warm_up(kernel)
            return kernel
        finally:
            self._starting.discard(asyncio.current_task())

    @staticmethod
    async def _warm_up(kernel: Kernel) -> None:
        try:
            await kernel.warm_up()
        except BaseException:
            await kernel.stop()
            raise

    def _tell(self, error: Exception) -> None:
        """Tell whose turn it is of a failed start, unless enough others are under way for all who wait."""
        if self._scheduler.eligible <= len(self._starting):
            return
        while self._scheduler.eligible:
            waiter, group = self._next_waiter()
            if waiter is not None:
                self._scheduler.release(group)
                waiter.set_exception(error)
                return
        _log.warning("a kernel could not be started ahead of need: %s", error)

    def _died(self, resource: KernelResource) -> None:
        """A kernel that nobody had taken ended; a leased one is its session's affair."""
        if resource.is_available and not resource.is_shutting_down and not self._closed:
            self._end(resource, "died")

    def _end(self, resource: KernelResource, reason: str) -> None:
        """End a kernel that nobody has, in the background; nobody gets it from now on."""
        resource.is_shutting_down = True
        self._telemetry.replaced(reason)
        self._spawn(self._discarding, self.discard(resource))

    def _stale(self) -> list[KernelResource]:
        """The ready kernels that are too old, the oldest first."""
        born = time.monotonic() - self._rules.max_age_s
        return [resource for resource in self._ready() if resource.kernel is not None and resource.begun < born]

    def _retire(self) -> None:
        """End ready kernels that are too old: as many as fresh ones stand in for, or one where no other way is left."""
        stale = self._stale()
        surplus = self.available_count - self._warm
        if surplus <= 0 and self._room().kernels <= 0 and not self._starting and not self._ending():
            surplus = 1
        for resource in stale[: max(surplus, 0)]:
            self._end(resource, "age")

    def _check_due(self) -> None:
        """Ask the ready kernels that have not been heard of for long whether they still answer."""
        now = time.monotonic()
        for resource in self._ready():
            if resource.kernel is not None and now - resource.checked >= self._rules.check_every_s:
                resource.checked = now
                self._spawn(self._checking, self._check(resource, resource.kernel))

    async def _check(self, resource: KernelResource, kernel: Kernel) -> None:
        """Have a ready kernel's main thread answer; its control thread would also when the main one is stuck."""
        try:
            await kernel.request("shell", "kernel_info_request", {}, timeout=_ANSWER)
        except KernelDiedError:
            return  # `_died` has heard of it
        except TimeoutError:
            if resource.is_available and not resource.is_shutting_down:  # an agent's kernel may be busy with a cell
                _log.warning("kernel %s did not answer while it was waiting; it is replaced", resource.kernel_id)
                self._end(resource, "silent")

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: self._balance() if tasks is self._starting else None)
