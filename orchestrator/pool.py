"""KernelPool: kernels kept ready, handed out in the order of asking, never more than ``max_kernels`` at once.

Invariants:
- a kernel that served an agent never returns: ``release`` discards it;
- kernels that are starting, ready, leased or still being removed all count;
- only the pool and the manager end kernels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

from orchestrator.errors import CellblockError, KernelPoolExhaustedError, ManagerClosedError
from orchestrator.kernel.kernel import Kernel

_log = logging.getLogger(__name__)

# Seconds before a lease is refilled while nobody waits: starting a container takes a whole core for most of a second,
# and the agent that has just got its kernel is about to use it.
_REFILL_DELAY = 0.3
_LONGEST_DELAY = 60.0  # seconds between two attempts to refill while every start fails


class KernelResource:
    """One place in the pool, and the kernel that fills it.

    Attributes:
        kernel: None for a resource that only stands for a kernel.
        created_at, last_used_at: seconds since the epoch.
        begun: monotonic seconds of its making.
        served: whether an agent has had it; then it is discarded on release.
    """

    def __init__(self, kernel_id: str, kernel: Kernel | None = None) -> None:
        self.kernel_id = kernel_id
        self.kernel = kernel
        self.is_available = True
        self.is_shutting_down = False
        self.served = False
        self.created_at = time.time()
        self.begun = time.monotonic()
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
    """At most ``max_kernels`` kernels.

    Args:
        start: makes a kernel; without it the pool only hands out what ``add_kernel`` gave it.
        warm: kernels to keep ready beyond those in use.
    """

    def __init__(
        self, max_kernels: int = 10, *, start: Callable[[], Awaitable[Kernel]] | None = None, warm: int = 0
    ) -> None:
        if max_kernels < 1:
            raise ValueError("max_kernels must be at least 1")
        self.max_kernels = max_kernels
        self.kernels: dict[str, KernelResource] = {}
        self._start = start
        self._warm = warm
        self._waiters: deque[asyncio.Future[KernelResource]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._discarding: set[asyncio.Task[None]] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._failures = 0  # starts that failed in a row
        self._closed = False

    @property
    def available_count(self) -> int:
        """How many kernels are ready and not taken."""
        return sum(1 for _ in self._ready())

    def counts(self) -> dict[str, int]:
        """How many kernels there may be, are in each state, and how many callers wait for one."""
        ready = self.available_count
        ending = sum(1 for resource in self.kernels.values() if resource.is_shutting_down)
        return {
            "max": self.max_kernels,
            "ready": ready,
            "leased": len(self.kernels) - ready - ending,
            "starting": len(self._starting),
            "ending": ending,
            "waiting": sum(1 for waiter in self._waiters if not waiter.done()),
        }

    def shortage(self, *, with_warm: bool) -> int:
        """How many kernels have to be given up so that everybody who waits gets one.

        Args:
            with_warm: and so that as many are kept ready as should be.
        """
        ending = sum(1 for resource in self.kernels.values() if resource.is_shutting_down)
        free = self.max_kernels - len(self.kernels) + ending + self.available_count
        waiting = sum(1 for waiter in self._waiters if not waiter.done())
        return waiting + (self._warm if with_warm else 0) - free

    def add_kernel(self, kernel: KernelResource) -> None:
        """Add a ready kernel.

        Raises:
            ValueError: the pool has one of this id.
        """
        if kernel.kernel_id in self.kernels:
            raise ValueError(f"Kernel with ID {kernel.kernel_id} already exists")
        self.kernels[kernel.kernel_id] = kernel
        self._hand_out()

    async def acquire(self, timeout: float | None = None) -> KernelResource:
        """Take a kernel; whoever asked first gets the first.

        Args:
            timeout: seconds to wait for one, its start included; None waits for ever.

        Raises:
            KernelPoolExhaustedError: none became free, or ready, in time.
            KernelStartError, EngineError: one was started for this caller, and failed.
            ManagerClosedError: the pool is closed.
        """
        if self._closed:
            raise ManagerClosedError("the kernel pool is closed.")
        waiter: asyncio.Future[KernelResource] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._hand_out()
        self._balance()
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            self._give_back(waiter)
            raise self._exhausted(timeout or 0.0) from None
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def release(self, kernel: KernelResource) -> None:
        """Give a kernel back. One that served an agent is discarded, in the background."""
        if kernel.served or (kernel.kernel is not None and not kernel.kernel.is_alive):
            self._spawn(self._discarding, self.discard(kernel))
            return
        kernel.release()
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
            self._balance()

    def leave(self, resource: KernelResource) -> None:
        """Forget a kernel, which runs on for the next start."""
        self.kernels.pop(resource.kernel_id, None)
        if resource.kernel is not None:
            resource.kernel.leave()

    def prewarm(self) -> None:
        """Begin to fill the pool up to ``warm`` ready kernels."""
        self._balance(at_once=True)

    async def close(self) -> None:
        """End every kernel, ready, leased or starting; those who wait get ManagerClosedError."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ManagerClosedError("the kernel pool was closed."))
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(self.discard(resource) for resource in list(self.kernels.values())))
        await asyncio.gather(*self._discarding, return_exceptions=True)

    def _ready(self) -> Any:
        for resource in self.kernels.values():
            alive = resource.kernel is None or resource.kernel.is_alive
            if resource.is_available and not resource.is_shutting_down and alive:
                yield resource

    def _hand_out(self) -> None:
        while self._waiters and (resource := next(self._ready(), None)) is not None:
            waiter = self._waiters.popleft()
            if not waiter.done():
                resource.acquire()
                waiter.set_result(resource)

    def _balance(self, *, at_once: bool = False) -> None:
        """Start what is wanted and fits: at once for those who wait, a little later to refill."""
        if self._closed or self._start is None:
            return
        wanted = sum(1 for waiter in self._waiters if not waiter.done())
        self._start_up_to(wanted + self._warm if at_once else wanted)
        if not at_once and self._refill is None and self._missing(self._warm):
            delay = min(_REFILL_DELAY * 2**self._failures, _LONGEST_DELAY)
            self._refill = asyncio.get_running_loop().call_later(delay, self._refill_now)

    def _refill_now(self) -> None:
        self._refill = None
        self._balance(at_once=True)

    def _missing(self, wanted: int) -> int:
        coming = len(self._starting) + self.available_count
        room = self.max_kernels - len(self.kernels) - len(self._starting)
        return max(0, min(wanted - coming, room))

    def _start_up_to(self, wanted: int) -> None:
        for _ in range(self._missing(wanted)):
            self._spawn(self._starting, self._start_one())

    async def _start_one(self) -> None:
        assert self._start is not None
        try:
            kernel = await self._start()
        except Exception as error:  # noqa: BLE001 - whatever it was, somebody waits for this kernel and must be told
            self._failures = min(self._failures + 1, 10)
            self._tell(error)
            return
        self._failures = 0
        resource = KernelResource(kernel.kernel_id, kernel)
        kernel.when_lost(lambda: self._died(resource))
        self.add_kernel(resource)

    def _tell(self, error: Exception) -> None:
        """Tell the oldest waiter of a failed start, unless enough others are under way for all who wait."""
        waiting = sum(1 for waiter in self._waiters if not waiter.done())
        if waiting <= len(self._starting) - 1:  # this start still counts as one of them
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return
        _log.warning("a kernel could not be started ahead of need: %s", error)

    def _died(self, resource: KernelResource) -> None:
        """A kernel that nobody had taken ended; a leased one is its session's affair."""
        if resource.is_available and not resource.is_shutting_down and not self._closed:
            self._spawn(self._discarding, self.discard(resource))

    def _give_back(self, waiter: asyncio.Future[KernelResource]) -> None:
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.release(waiter.result())

    def _exhausted(self, waited: float) -> KernelPoolExhaustedError:
        leased = sum(1 for resource in self.kernels.values() if not resource.is_available)
        return KernelPoolExhaustedError(
            f"no kernel became free within {waited:g} s: {leased} of {self.max_kernels} belong to agents, "
            f"{len(self._starting)} are starting.",
            max_kernels=self.max_kernels,
            waited=waited,
            remedy="End a session with `await manager.end_session(agent_id)`, wait longer, or raise max_kernels.",
        )

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: self._balance() if tasks is self._starting else None)
