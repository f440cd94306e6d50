"""Parts: what one manager consists of, connected with each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

from orchestrator.image.build import package_source
from orchestrator.instance import Instance
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.operator.controlsocket import ControlSocket, control_clients
from orchestrator.operator.monitor import Monitor
from orchestrator.operator.operations import Operations
from orchestrator.policy.policy import Policy
from orchestrator.pool.hostload import HostLoad
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.pool.scheduler import Admission, Scheduler
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.clusterquotas import ClusterQuotas
from orchestrator.sessions.elsewhere import HANDOVER, hand_over
from orchestrator.sessions.forking import Forking
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restoring import Restoring
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings
from orchestrator.store.noderecord import Capacity
from orchestrator.telemetry import Telemetry
from orchestrator.wiring.background import Background


class Parts:
    """The parts of one manager.

    Attributes:
        instance: None before the start, and after a start that failed.
    """

    def __init__(
        self, max_kernels: int, settings: Settings, policy: Policy, resource_limits: KernelResourceLimits
    ) -> None:
        self._settings, self._policy, self._limits = settings, policy, resource_limits
        self.instance: Instance | None = None
        self.background = Background()
        self.telemetry = Telemetry()
        self.monitor = Monitor(self._live_kernels, resource_limits.max_memory_mb, policy.limits.warn_percent)
        self._host = HostLoad(self._memory_of_kernels)
        self.scheduler = Scheduler(policy.scheduling, policy.groups)
        self.pool = self._make_pool(max_kernels)
        self.registry = SessionRegistry(self.pool, policy, self.background.spawn, package_source(settings, policy))
        self.hibernation = Hibernation(self.registry, self.pool, resource_limits, policy, self.background.spawn)
        quotas = ClusterQuotas(self.registry, policy, settings.policy)
        self.acquiring = Acquiring(self.registry, self.hibernation, self.pool, quotas)
        self.restoring = Restoring(self.registry, self.acquiring, self.hibernation, self.pool)
        self.forking = Forking(self.registry)
        self.telemetry.watch_pool(self.pool.counts)
        self.operations = Operations(
            pool=self.pool,
            sessions=self.registry.sessions,
            monitor=self.monitor,
            limits=resource_limits,
            instance=self._describe,
            end_session=self.acquiring.end,
            hibernate=lambda session: self.hibernation.hibernate(session, "hibernate"),
            held_back=self.registry.backoff.waits,
            held=self.held,
        )
        commands = {**self.operations.commands(), HANDOVER: self._hand_over}
        self.control = ControlSocket(commands, self.operations.conversations())

    @contextlib.contextmanager
    def held(self, session: KernelSession) -> Iterator[None]:
        """Keep a session awake, if it is."""
        try:
            with session.in_use():
                yield
        finally:
            self.hibernation.make_room()

    @property
    def runtime(self) -> str:
        """The container runtime of new kernels; "" before the start."""
        return "" if self.instance is None else self.instance.runtime

    @property
    def instance_id(self) -> str:
        """The id of this manager's instance; "" before the start."""
        return "" if self.instance is None else self.instance.id

    def live_instance(self) -> Instance:
        """Return the instance. Call it after the start."""
        assert self.instance is not None
        return self.instance

    async def ask(self, instance: str, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request to the control socket of another instance on this host."""
        for client in await asyncio.to_thread(control_clients, self._settings.state_path):
            if client.instance == instance:
                return await client.ask(request, timeout)
        return {"error": "its control socket is not in this process's state folder"}

    def capacity(self) -> Capacity:
        """Return what new sessions may have now."""
        counts = self.pool.counts()
        host = self._host.read()
        return Capacity(
            kernels=counts["max"],
            free=counts["max"] - counts["leased"] - counts["ending"],
            memory_free_mb=host.memory_free // MIB,
            cores=float(host.cpus),
            load=host.cpus - host.cpus_idle,
            warm={self._settings.policy: counts["ready"]},
            image="" if self.instance is None else self.instance.config.image,
            waiting=counts["waiting"],
            held={self._settings.policy: self.scheduler.holders()},
        )

    async def _hand_over(self, request: dict[str, Any]) -> dict[str, Any]:
        return await hand_over(self.registry, str(request.get("agent")))

    def _make_pool(self, max_kernels: int) -> KernelPool:
        policy, warm = self._policy, self._settings.warm_kernels
        host = self._host
        admission = Admission(self._limits, policy.scheduling)
        return KernelPool(
            max_kernels,
            start=self._start_kernel,
            warm=policy.pool.warm if warm is None else warm,
            rules=policy.pool,
            scheduler=self.scheduler,
            room=lambda kernels, starting: admission.room(host.read(), kernels, starting),
            telemetry=self.telemetry,
        )

    async def _start_kernel(self) -> Kernel:
        return await self.live_instance().start_kernel()

    def _memory_of_kernels(self) -> int:
        """Return the bytes that the pool's kernels used at their last samples."""
        latest = self.monitor.latest
        return sum(latest[kernel_id].usage.memory for kernel_id in self.pool.kernels if kernel_id in latest)

    def _live_kernels(self) -> list[Kernel]:
        kernels = (resource.kernel for resource in self.pool.kernels.values())
        return [kernel for kernel in kernels if kernel is not None and kernel.is_alive]

    def _describe(self) -> dict[str, Any]:
        return {
            "instance": self.instance_id,
            "pid": os.getpid(),
            "runtime": self.runtime,
            "policy": self._settings.policy,
        }
