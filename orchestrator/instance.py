"""One running orchestrator on this host: its engine connection, its folder, its lease, and how it starts kernels."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import logging
import os
import secrets
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

from orchestrator.container.container import remove_by_name
from orchestrator.container.engine import FAILURES, Engine
from orchestrator.container.enginewatch import EngineWatch
from orchestrator.container.hostconfig import LOCK_LABEL
from orchestrator.container.lease import Lease, host_identity, instance_lease
from orchestrator.container.reaper import Leftover, clear_folder, leftovers, sweep_instance, sweep_late, sweep_orphans
from orchestrator.errors import (
    CellblockError,
    EngineError,
    EngineUnavailableError,
    ImageMissingError,
    KernelStartError,
    SettingsError,
)
from orchestrator.image.build import image_name
from orchestrator.kernel.kernel import Kernel, KernelConfig
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings
from orchestrator.store.audit import AuditLog
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)
_SWEEP_EVERY = 20.0  # seconds


class Instance:
    """What all kernels of one manager share. Opened and closed by the manager alone."""

    def __init__(self, config: KernelConfig, lease: Lease, *, may_fall_back: bool) -> None:
        self._config = config
        self._lease = lease
        self._may_fall_back = may_fall_back
        self._pid = os.getpid()
        self._kernels: WeakValueDictionary[str, Kernel] = WeakValueDictionary()
        self._inherited: dict[str, Lease] = {}  # dead instances whose kernels this one has adopted, or may yet
        self._watch = EngineWatch(config.engine, on_oom=self._on_oom, on_lost=self._on_lost)
        atexit.register(self._last_act)
        config.audit.write(
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
        """Connect, and check that kernels can be started.

        Raises:
            EngineUnavailableError, EnginePermissionError, ImageMissingError, UnknownRuntimeError: as they say.
            SettingsError: the state folder cannot be made.
        """
        wanted = policy.choose_runtime(settings.runtime)
        engine = await Engine.connect(settings.engine_timeout)
        try:
            image = await engine.resolve_image(await asyncio.to_thread(image_name, settings))
            runtime = await engine.resolve_runtime(wanted)
            instance, lease = _new_instance()
            try:
                folder = _make_folder(settings.state_path / f"i-{instance}")  # no await: nothing can come between
            except SettingsError:
                lease.release()
                raise
        except BaseException:
            engine.close()
            raise
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
            audit=AuditLog(settings.audit_path, fsync=policy.audit.fsync, rotate_at=settings.audit_rotate_mb * MIB),
            telemetry=telemetry or Telemetry(),
        )
        return cls(config, lease, may_fall_back=wanted == "auto" and runtime == "runsc")

    @property
    def id(self) -> str:
        return self._config.instance

    @property
    def runtime(self) -> str:
        return self._config.runtime

    @property
    def engine(self) -> Engine:
        return self._config.engine

    @property
    def config(self) -> KernelConfig:
        """What its kernels have in common."""
        return self._config

    async def start_kernel(self, config: KernelConfig | None = None) -> Kernel:
        """Start a kernel; with the runtime "auto", under runc when the very first one cannot start under runsc.

        Args:
            config: another than the instance's own.

        Raises:
            KernelStartError, EngineError: see ``Kernel.start``.
        """
        telemetry = self._config.telemetry
        try:
            with telemetry.span("start_kernel", runtime=self.runtime):
                kernel = await (self._start_or_fall_back() if config is None else Kernel.start(config))
        except CellblockError:
            telemetry.kernel_failed()
            raise
        self._kernels[kernel.container.name] = kernel
        return kernel

    async def inherit(self, kernel_ids: Collection[str]) -> tuple[list[Leftover], set[str]]:
        """Find those of these kernels that still run.

        Returns:
            Those whose process is dead, which are this instance's from now on; and the ids of those that are not to be
            touched from here: another process was quicker, or they have their folder elsewhere.

        Raises:
            EngineError: the engine does not answer.
        """
        engine = self.engine
        mine, others = [], set()
        for left in await engine.retry(leftovers, engine.client.api, kernel_ids):
            here = self._folder_of(left.instance).is_dir()
            if here and left.instance not in self._inherited and (lease := instance_lease(left.instance)) is not None:
                self._inherited[left.instance] = lease
            if here and left.instance in self._inherited:
                mine.append(left)
            else:
                others.add(left.kernel_id)
        return mine, others

    async def adopt(self, left: Leftover) -> Kernel:
        """Take over an inherited kernel.

        Raises:
            KernelStartError, EngineError: see ``Kernel.adopt``.
        """
        config = replace(self._config, instance=left.instance, folder=self._folder_of(left.instance))
        kernel = await Kernel.adopt(config, left)
        self._kernels[kernel.container.name] = kernel
        return kernel

    def would_start_alike(self, left: Leftover) -> bool:
        """Whether a kernel started now would have that one's image, runtime, policy and limits."""
        config = replace(self._config, instance=left.instance, folder=self._folder_of(left.instance))
        request = config.request(left.kernel_id, config.folder / left.kernel_id[:12] / "wire", left.uid)
        return bool(request["Labels"][LOCK_LABEL] == left.lock)

    async def sweep(self, *, everywhere: bool = False) -> int:
        """Remove what dead instances left on this host, but for the kernels that this one has adopted.

        Args:
            everywhere: also kernels that run, and that a next start with other folders could go on with.

        Returns:
            How many containers that were.

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
        return removed + await self.engine.retry(sweep_orphans, api, folder, None if everywhere else self._config.home)

    async def keep_clean(self) -> None:
        """Remove what the engine was too late, or unable, to make or remove when it was asked. Runs for ever."""
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
                _log.debug("the engine does not let itself be swept: %s", error)

    def disclaim(self) -> None:
        """Let go of the dead instances: what is theirs stays for the next start. The kernels must have been left."""
        while self._inherited:
            self._inherited.popitem()[1].release()

    def _folder_of(self, instance: str) -> Path:
        return self._config.folder.parent / f"i-{instance}"

    def _sweep_own(self) -> None:
        for instance in (self.id, *self._inherited):
            sweep_instance(self._config.engine.client.api, instance, self._folder_of(instance), self._config.left)

    async def _start_or_fall_back(self) -> Kernel:
        config = self._config
        try:
            kernel = await Kernel.start(config)
        except (KernelStartError, EngineError) as error:
            if not self._may_fall_back or config.runtime != "runsc" or not _speaks_against_runtime(error):
                raise
            _log.warning("gVisor is registered but cannot run a kernel, taking runc: %s", error)
            config.audit.write("runtime.fell_back", instance=self.id, to="runc", reason=str(error))
            self._config = replace(config, runtime="runc")
            return await Kernel.start(self._config)
        if config.runtime == self._config.runtime:
            self._may_fall_back = False
        return kernel

    def _on_oom(self, container: str) -> None:
        kernel = self._kernels.get(container)
        if kernel is not None:
            kernel.ran_out_of_memory()

    def _on_lost(self) -> None:
        self._config.audit.write("engine.lost", instance=self.id)
        for kernel in list(self._kernels.values()):
            kernel.lose_engine()

    async def close(self) -> None:
        """Remove whatever there is of this instance, but for kernels that were left, and let go of the engine.

        Raises:
            EngineError: the engine does not answer; the next start of any instance here sweeps up.
        """
        config = self._config
        try:
            await config.engine.retry(self._sweep_own)
        finally:
            self._let_go()
            atexit.unregister(self._last_act)  # only now: a Ctrl-C may come at any line

    def _last_act(self) -> None:
        """Called at the interpreter's end when ``close`` was not reached: Ctrl-C twice, or a forgotten shutdown.

        Here another Ctrl-C comes too late: it would leave half of what is to be removed.
        """
        if os.getpid() != self._pid:
            return  # a forked child that ends is not the end of the instance
        with contextlib.suppress(ValueError):  # not in the main thread, where no Ctrl-C arrives
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(*FAILURES):
            self._sweep_own()
        self._let_go()

    def _let_go(self) -> None:
        self._watch.close()
        for instance in (self.id, *self._inherited):
            clear_folder(self._folder_of(instance), self._config.left)
        with contextlib.suppress(OSError):
            self._config.folder.parent.rmdir()  # only when no other instance has a folder there
        self._config.engine.close()
        self._config.audit.write("instance.closed", instance=self.id)
        self._config.audit.close()
        for lease in (self._lease, *self._inherited.values()):
            lease.release()


def home_of(settings: Settings) -> str:
    """Return what stands for the folders of state and data, in the labels of containers."""
    return hashlib.sha256(f"{settings.state_path}\0{settings.data_path}".encode()).hexdigest()[:16]


def _speaks_against_runtime(error: KernelStartError | EngineError) -> bool:
    """Whether the runtime itself may be why: a slow, full or unreachable host is no reason to isolate less."""
    if isinstance(error, KernelStartError):
        return error.cause == "container"
    return not isinstance(error, EngineUnavailableError | ImageMissingError)


def _new_instance() -> tuple[str, Lease]:
    while True:
        instance = secrets.token_hex(6)
        if (lease := instance_lease(instance)) is not None:
            return instance, lease


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, mode=0o700)
        return folder
    except OSError as error:
        raise SettingsError(
            f"the state folder {folder} cannot be made: {error.strerror}.",
            remedy="Set CELLBLOCK_STATE_DIR to a folder that this user can write to and has room, with a short path.",
        ) from error
