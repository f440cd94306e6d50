"""Instance: one running orchestrator on this host. Owns its engine connection, folder and lease, and starts kernels."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import logging
import os
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

from orchestrator.container.container import remove_by_name
from orchestrator.container.engine import FAILURES, Engine
from orchestrator.container.enginewatch import EngineWatch
from orchestrator.container.folders import instance_folder, kernel_folder, wire_folder
from orchestrator.container.hostconfig import RESTRICTIONS_LABEL
from orchestrator.container.lease import InstanceLease, UserId, host_identity, instance_lease
from orchestrator.container.newinstance import visible_instance
from orchestrator.container.reaper import (
    Leftover,
    clear_folder,
    leftovers,
    remove_free_locks,
    sweep_instance,
    sweep_late,
    sweep_orphans,
)
from orchestrator.errors import (
    CellblockError,
    EngineError,
    EngineUnavailableError,
    ImageMissingError,
    KernelStartError,
)
from orchestrator.eventfeed import EventFeed
from orchestrator.image.recipe import Recipe
from orchestrator.kernel import adoption, startup
from orchestrator.kernel.containerkernel import ContainerKernel
from orchestrator.kernel.kernelconfig import KernelConfig
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.logs import log_event
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings
from orchestrator.store.audit import AuditLog
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)
_SWEEP_EVERY = 20.0  # seconds


class Instance:
    """One running orchestrator. Opened and closed by its manager."""

    def __init__(
        self, config: KernelConfig, lease: InstanceLease, audit: AuditLog, data: Path, *, may_fall_back: bool
    ) -> None:
        self._config = config
        self._data = data
        self._audit = audit
        self._lease = lease
        self._may_fall_back = may_fall_back
        self._pid = os.getpid()
        self._kernels: WeakValueDictionary[str, ContainerKernel] = WeakValueDictionary()
        self._inherited: dict[str, InstanceLease] = {}  # of dead instances whose kernels were adopted, or may be
        self._watch = EngineWatch(config.engine, on_oom=self._on_oom, on_lost=self._on_lost)
        atexit.register(self._last_act)
        config.feed.publish(
            "instance.opened",
            instance=config.instance,
            pid=self._pid,
            uid=os.getuid(),
            runtime=config.runtime,
            image=config.image,
            policy=config.policy.digest,
        )

    @classmethod
    async def open(
        cls, settings: Settings, policy: Policy, limits: KernelResourceLimits, telemetry: Telemetry | None = None
    ) -> Self:
        """Connect to the engine, check that kernels can be started, and take a new instance id.

        Raises:
            EngineUnavailableError, EnginePermissionError: the engine does not answer, or not to this user.
            EngineUnsupportedError: the engine is rootless, maps user ids, or is Podman.
            ImageMissingError, UnknownRuntimeError: the engine has no such sandbox image, or runtime.
            SettingsError, StoreError: the state or data folder cannot be used; see ``visible_instance``.
        """
        wanted = policy.choose_runtime(settings.runtime)
        engine = await Engine.connect(settings.engine_timeout)
        try:
            await engine.refuse_unsupported()
            image = await engine.resolve_image(await asyncio.to_thread(_image_name, settings, policy))
            runtime = await engine.resolve_runtime(wanted)
            instance, lease, folder = await visible_instance(engine, settings)
        except BaseException:
            engine.close()
            raise
        telemetry = telemetry or Telemetry()
        audit = _audit_log(settings, policy)
        config = KernelConfig(
            engine=engine,
            image=image,
            runtime=runtime,
            policy=policy,
            limits=limits,
            instance=instance,
            host=host_identity(),
            home=home_of(settings),
            folder=folder,
            uid_base=settings.uid_base,
            uid_count=settings.uid_count,
            start_timeout=settings.start_timeout,
            feed=EventFeed(audit.receive, telemetry.receive, log_event),
            telemetry=telemetry,
        )
        return cls(config, lease, audit, settings.data_path, may_fall_back=wanted == "auto" and runtime == "runsc")

    @property
    def id(self) -> str:
        return self._config.instance

    @property
    def folder(self) -> Path:
        """Its folder on this host, closed to other users."""
        return self._config.folder

    @property
    def runtime(self) -> str:
        return self._config.runtime

    @property
    def engine(self) -> Engine:
        return self._config.engine

    @property
    def config(self) -> KernelConfig:
        """The configuration that its kernels have in common."""
        return self._config

    def note(self, event: str, **details: Any) -> None:
        """Publish an event of this instance to the feed."""
        self._config.feed.publish(event, instance=self.id, **details)

    async def start_kernel(self, config: KernelConfig | None = None) -> ContainerKernel:
        """Start a kernel and return it when it is ready.

        With the runtime "auto", the instance falls back to runc when its first kernel cannot start under runsc.

        Args:
            config: used instead of the instance's own.

        Raises:
            KernelStartError, EngineError: see ``startup.start``.
        """
        try:
            with self._config.telemetry.span("start_kernel", runtime=self.runtime):
                kernel = await (self._start_or_fall_back() if config is None else startup.start(config))
        except CellblockError as error:
            self._config.feed.publish("kernel.failed", instance=self.id, reason=str(error))
            raise
        self._kernels[kernel.container_name] = kernel
        return kernel

    async def inherit(self, kernel_ids: Collection[str]) -> tuple[list[Leftover], set[str]]:
        """Find which of these kernels still run, and take over those of dead processes.

        Returns:
            The kernels that belong to this instance now; and the ids of those that must not be touched, since another
            process was quicker or their folder is elsewhere.

        Raises:
            EngineError: the engine does not answer.
        """
        engine = self.engine
        mine, others = [], set()
        for left in await engine.retry(leftovers, engine.client.api, kernel_ids):
            here = self._folder_of(left.instance).is_dir()
            if here and left.instance not in self._inherited and (lease := self._lease_of(left.instance)) is not None:
                self._inherited[left.instance] = lease
            if here and left.instance in self._inherited:
                mine.append(left)
                self._config.left.add(left.kernel_id)  # until it is adopted: an early shutdown leaves it running
            else:
                others.add(left.kernel_id)
        return mine, others

    async def adopt(self, left: Leftover) -> ContainerKernel:
        """Take over an inherited kernel.

        Raises:
            KernelStartError, EngineError: see ``adoption.adopt``.
        """
        config = replace(self._config, instance=left.instance, folder=self._folder_of(left.instance))
        self._config.left.discard(left.kernel_id)
        kernel = await adoption.adopt(config, left)
        self._kernels[kernel.container_name] = kernel
        return kernel

    def would_start_alike(self, left: Leftover) -> bool:
        """Return whether a kernel started now would have the same image, runtime, policy and limits as that one."""
        host = (self._config.host[0], left.namespace)  # a label of the container, and so in the digest
        config = replace(self._config, instance=left.instance, folder=self._folder_of(left.instance), host=host)
        request = config.request(left.kernel_id, wire_folder(kernel_folder(config.folder, left.kernel_id)), left.uid)
        return bool(request["Labels"][RESTRICTIONS_LABEL] == left.restrictions)

    async def sweep(self, *, everywhere: bool = False) -> int:
        """Remove what dead instances left on this host, except the kernels that this one has adopted.

        Args:
            everywhere: remove also running kernels that an orchestrator with other folders could adopt.

        Returns:
            How many containers were removed.

        Raises:
            EngineError: the engine does not answer.
        """
        api = self.engine.client.api
        adopted: dict[str, list[str]] = {}
        for kernel in self._kernels.values():
            adopted.setdefault(kernel.instance, []).append(kernel.kernel_id)
        removed = 0
        for instance, lease in list(self._inherited.items()):
            if instance in adopted:
                folder, keep = self._folder_of(instance), adopted[instance]
                removed += await self.engine.retry(sweep_instance, api, instance, folder, keep)
            else:
                lease.release()
                del self._inherited[instance]
        folder = self._config.folder.parent
        await asyncio.to_thread(remove_free_locks, self._data)
        return removed + await self.engine.retry(sweep_orphans, api, folder, None if everywhere else self._config.home)

    async def keep_clean(self) -> None:
        """Remove containers that the engine created late or could not remove when asked. Runs until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            api, unremoved = self.engine.client.api, self._config.unremoved
            try:
                for name in list(unremoved):
                    await self.engine.call(remove_by_name, api, name)
                    unremoved[name] -= 1
                    if not unremoved[name]:
                        del unremoved[name]
                await self.engine.call(sweep_late, api)
            except EngineError as error:
                _log.debug("the engine could not remove what is left over: %s", error)

    def disclaim(self) -> None:
        """Release the dead instances, so that the next start can take them over. Abandon their kernels before."""
        while self._inherited:
            self._inherited.popitem()[1].release()

    def _lease_of(self, instance: str) -> InstanceLease | None:
        return instance_lease(instance, (self._config.folder.parent, self._data))

    def _folder_of(self, instance: str) -> Path:
        return instance_folder(self._config.folder.parent, instance)

    def _sweep_own(self) -> None:
        for instance in (self.id, *self._inherited):
            sweep_instance(self._config.engine.client.api, instance, self._folder_of(instance), self._config.left)

    async def _start_or_fall_back(self) -> ContainerKernel:
        config = self._config
        try:
            kernel = await startup.start(config)
        except (KernelStartError, EngineError) as error:
            if not self._may_fall_back or config.runtime != "runsc" or not _speaks_against_runtime(error):
                raise
            _log.warning("gVisor is registered but cannot run a kernel, taking runc: %s", error)
            config.feed.publish("runtime.fell_back", instance=self.id, to="runc", reason=str(error))
            self._config = replace(config, runtime="runc")
            return await startup.start(self._config)
        if config.runtime == self._config.runtime:
            self._may_fall_back = False
        return kernel

    def _on_oom(self, container: str) -> None:
        kernel = self._kernels.get(container)
        if kernel is not None:
            kernel.ran_out_of_memory()

    def _on_lost(self) -> None:
        self._config.feed.publish("engine.lost", instance=self.id)
        for kernel in list(self._kernels.values()):
            kernel.lose_engine()

    async def close(self) -> None:
        """Remove everything of this instance except abandoned kernels, and disconnect from the engine.

        Raises:
            EngineError: the engine does not answer. The next start of any instance on this host removes the rest.
        """
        config = self._config
        try:
            await config.engine.retry(self._sweep_own)
        finally:
            self._release()
            atexit.unregister(self._last_act)  # only now: a Ctrl-C may come at any line

    def _last_act(self) -> None:
        """Clean up at the interpreter's end when ``close`` was not reached: after a second Ctrl-C, or no shutdown.

        Ctrl-C is ignored here: it would leave half of the containers.
        """
        if os.getpid() != self._pid:
            return  # a forked child that ends is not the end of the instance
        with contextlib.suppress(ValueError):  # not in the main thread, where no Ctrl-C arrives
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(*FAILURES):
            self._sweep_own()
        UserId.release_all()
        self._release()

    def _release(self) -> None:
        self._watch.close()
        for instance in (self.id, *self._inherited):
            clear_folder(self._folder_of(instance), self._config.left)
        self._config.engine.close()
        self._config.feed.publish("instance.closed", instance=self.id)
        self._audit.close()
        for lease in (self._lease, *self._inherited.values()):
            lease.release()
        with contextlib.suppress(OSError):
            self._config.folder.parent.rmdir()  # only when no other instance has a folder there


def home_of(settings: Settings) -> str:
    """Return the digest of the state and data folders that labels the containers."""
    return hashlib.sha256(f"{settings.state_path}\0{settings.data_path}".encode()).hexdigest()[:16]


def _speaks_against_runtime(error: KernelStartError | EngineError) -> bool:
    """Return whether the runtime may be the cause. A slow, full or unreachable host is no reason to isolate less."""
    if isinstance(error, KernelStartError):
        return error.cause == "container"
    return not isinstance(error, EngineUnavailableError | ImageMissingError)


def _image_name(settings: Settings, policy: Policy) -> str:
    return Recipe.of(settings, policy.image).name


def _audit_log(settings: Settings, policy: Policy) -> AuditLog:
    return AuditLog(
        settings.audit_path,
        fsync=policy.audit.fsync,
        rotate_at=settings.audit_rotate_mb * MIB,
        keep=settings.audit_files,
    )
