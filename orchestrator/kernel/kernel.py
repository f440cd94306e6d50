"""One kernel: its endpoint, guard, container and client, started and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestrator.container.container import Container
from orchestrator.container.engine import Engine
from orchestrator.container.exits import Exit
from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.container.lease import UserId
from orchestrator.container.reaper import Leftover
from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError, KernelDiedError, KernelStartError, UserIdTakenError
from orchestrator.kernel.channel import Accept, Channel, Handler, KernelClient, Message
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.loopshare import KernelShare, LoopShare
from orchestrator.limits import MIB, Deadline, KernelResourceLimits
from orchestrator.outcome import Outcome, Stop
from orchestrator.policy.policy import Policy
from orchestrator.store.audit import AuditLog, brief
from orchestrator.telemetry import Phases, Telemetry

_log = logging.getLogger(__name__)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# An honest kernel cuts text into pieces, and says so where a larger display is left out. Measured: receiving and
# reading a message of 5 MB takes 50 ms at worst, and three times its size.
_LARGEST_MESSAGE = 4 * MIB
# What the first real cell would otherwise pay for: the compiler's and the display machinery's first use. Measured: a
# first cell took 16 ms after one silent cell, 8 ms after these, and 5 ms is what later ones take; these take 90 ms. The
# last one takes away what they left in `Out` and `_`, and by IPython's own way: a `_` that it finds changed it would
# leave alone.
_FORGET = """
get_ipython().displayhook.flush()
del _0
get_ipython().push(dict.fromkeys(("_", "__", "___"), ""), interactive=False)
"""
_WARM_UP = [("1", False)] * 3 + [(_FORGET, True)]

_ADOPTION = 15.0  # seconds that a kernel has to dial again, and to be done with what it was doing
_HEED = 2.0  # seconds in which a cell should heed its interrupt; then it is interrupted once more, in another way
_LOOKS = 2  # an engine that hung may still make a container after it was first asked, again, to remove it
# Share of its time after which a kernel that has not connected in is given up and started anew. Rarely, on a loaded
# machine, one never does under gVisor: seen with 12 tasks for two cores. Of those that do the slowest took 9 s.
_PATIENCE = 0.5
_LONGEST_REASON = 500  # characters of an error that a kernel names
_USER_IDS = 5  # that are tried before a kernel is given up

ContainerRequest = Callable[[ContainerSpec, Policy, KernelResourceLimits], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What all kernels of one manager have in common.

    Attributes:
        folder: where each kernel's sockets get a folder of their own.
        start_timeout: seconds until a kernel must be ready.
        audit: told of every kernel's start, end and violations.
        loop_share: what the kernels divide among them.
        unremoved: names of the containers that should be gone, and that the engine did not remove when it was asked;
            for each, how many looks must find it gone.
        left: ids of the kernels that run on when their host has let go of them.
        telemetry: observes each start.
        container_request, guard: make the request for each container, and its guard. Only the negative controls of
            ``isolation/`` pass others.
    """

    engine: Engine
    image: str
    runtime: str
    policy: Policy
    limits: KernelResourceLimits
    instance: str
    host: tuple[str, str]
    home: str
    folder: Path
    uid_base: int
    uid_count: int
    start_timeout: float
    container_request: ContainerRequest = create_request
    guard: Callable[[int, KernelShare], Guard] = Guard
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    loop_share: LoopShare = field(default_factory=LoopShare)
    unremoved: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    telemetry: Telemetry = field(default_factory=Telemetry)

    @property
    def message_bound(self) -> int:
        """Bytes that one message may have: as much as a cell may put out, 4 MiB at most, and its envelope."""
        return min(self.limits.max_output_bytes, _LARGEST_MESSAGE) + MIB

    def request(self, kernel_id: str, wire: Path, uid: int) -> dict[str, Any]:
        """Return what the engine is asked for to make a kernel's container."""
        spec = ContainerSpec(
            name=_container_name(kernel_id),
            image=self.image,
            runtime=self.runtime,
            wire=wire,
            uid=uid,
            instance=self.instance,
            kernel_id=kernel_id,
            host=self.host,
            home=self.home,
        )
        return self.container_request(spec, self.policy, self.limits)


def _no_sockets(error: OSError) -> KernelStartError:
    return KernelStartError(
        f"the kernel's sockets cannot be made: {error}.",
        cause="host",
        remedy="See that CELLBLOCK_STATE_DIR can be written to and has room.",
    )


def _container_name(kernel_id: str) -> str:
    return f"cellblock-{kernel_id}"


class _SilentError(Exception):
    """A kernel has been started, and has not connected in for long."""

    def __init__(self, kernel: Kernel, seconds: float) -> None:
        super().__init__(
            f"kernel {kernel.kernel_id[:12]} has not connected in within {seconds:g} s "
            f"({kernel._guard.connected} of 5 channels connected)"
        )


class Kernel:
    """A running kernel in a container of its own. It serves one agent, and is discarded after.

    Attributes:
        kernel_id: unique; also in the container's name.
        runtime: the container runtime that it runs under.
        oom_kills_reported: ``Usage.oom_kills`` when a result last had them.
    """

    oom_kills_reported = 0

    def __init__(self, config: KernelConfig, endpoint: Endpoint, user: UserId, kernel_id: str) -> None:
        self._config = config
        self._endpoint = endpoint
        self._user = user
        self.kernel_id = kernel_id
        self.runtime = config.runtime
        self.container = Container(config.engine, _container_name(kernel_id), config.runtime)
        self._guard = config.guard(config.message_bound, config.loop_share.of_kernel())
        self._client = KernelClient(endpoint.key, self._guard, self._note_reject)
        self._exit: asyncio.Task[Exit] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._killed_for: Stop | None = None
        self._oom = False
        self._engine_lost = False

    @classmethod
    async def start(cls, config: KernelConfig) -> Self:
        """Start a kernel and wait until it is ready. On any failure nothing of it is left.

        Raises:
            KernelStartError: it did not become ready; the error holds the container's log.
            EngineError: the engine refused, or does not answer.
        """
        taken: set[int] = set()
        deadline, patience = Deadline(config.start_timeout), config.start_timeout * _PATIENCE
        while True:
            user = UserId.take(config.uid_base, config.uid_count, avoid=taken)
            try:
                return await cls._start_as(config, user, deadline, patience)
            except UserIdTakenError:
                taken.add(user.uid)
                if len(taken) == _USER_IDS:
                    raise
            except _SilentError as silent:
                _log.warning("%s; it is started anew.", silent)
                patience = math.inf

    @classmethod
    async def _start_as(cls, config: KernelConfig, user: UserId, deadline: Deadline, patience: float) -> Self:
        kernel_id = uuid.uuid4().hex
        try:
            endpoint = Endpoint.create(config.folder / kernel_id[:12], config.message_bound)
        except OSError as error:
            user.release()
            raise _no_sockets(error) from error
        kernel = cls(config, endpoint, user, kernel_id)
        try:
            await kernel._boot_in_time(deadline, patience)
        except BaseException:
            await kernel.stop()
            raise
        kernel.note("kernel.started", **kernel.description(), uid=user.uid)
        kernel.on_lost(kernel._note_end)
        return kernel

    async def warm_up(self) -> None:
        """Run first cells, which leave no trace. The pool calls it for a kernel that nobody waits for.

        Raises:
            KernelDiedError: the kernel went away.
            TimeoutError: they did not end in time.
        """
        phases = self._config.telemetry.kernel_phases(self.runtime)
        with phases.phase("first_cells"):
            async with asyncio.timeout(self._config.start_timeout):
                for code, silent in _WARM_UP:
                    await self._run_silently(code, silent=silent)

    @classmethod
    async def adopt(cls, config: KernelConfig, left: Leftover) -> Self:
        """Take over a kernel of a process that has died, with its variables. A cell that still runs is interrupted.

        Args:
            config: with the instance and the folder that it was started with.

        Raises:
            KernelStartError: it is not whole, or does not heed the interrupt; it is removed, or left for the sweep.
            EngineError: the engine does not answer.
            CancelledError: it is left as it is.
        """
        user = UserId.take_over(left.uid)
        if user is None:
            raise KernelStartError(f"user id {left.uid} is taken.", cause="host")
        try:
            endpoint = Endpoint.reopen(config.folder / left.kernel_id[:12])
        except (OSError, ValueError, KeyError, TypeError) as error:
            user.release()
            raise KernelStartError(f"the kernel's folder is not whole: {error}.", cause="host") from error
        kernel = cls(config, endpoint, user, left.kernel_id)
        try:
            async with asyncio.timeout(_ADOPTION):
                await kernel._take_over()
        except asyncio.CancelledError:
            kernel.abandon()
            raise
        except BaseException as error:
            await kernel.stop()
            if isinstance(error, TimeoutError | KernelDiedError | OSError):
                raise KernelStartError(
                    f"kernel {left.kernel_id[:12]} did not answer its new host.", cause="timeout"
                ) from error
            raise
        kernel.note("kernel.adopted", **kernel.description(), uid=left.uid)
        kernel.on_lost(kernel._note_end)
        return kernel

    @property
    def is_alive(self) -> bool:
        """Whether its wire stands. The kernel's own death cuts it at once."""
        return not self._guard.lost.is_set()

    def send(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        handler: Handler,
        buffers: Sequence[bytes] = (),
        accept: Accept = lambda _kind, _size: True,
    ) -> str:
        """See ``KernelClient.send``.

        Raises:
            KernelDiedError: the kernel is gone.
        """
        if not self.is_alive:
            raise self.died_error(Outcome.KERNEL_DIED)
        return self._client.send(channel, kind, content, handler, buffers, accept)

    def forget(self, message_id: str) -> None:
        self._client.forget(message_id)

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called once the kernel is gone; at once when it is. Returns what calls that off."""
        return self._guard.on_lost(callback)

    async def request(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        *,
        timeout: float | None,
        buffers: Sequence[bytes] = (),
    ) -> Message:
        """Send a request and wait for its reply.

        Raises:
            KernelDiedError: the kernel went away.
            TimeoutError: no reply within ``timeout`` seconds; with None the caller bounds the wait.
        """
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def receive(message: Message) -> None:
            if message.channel == channel and message.kind == kind.replace("_request", "_reply") and not reply.done():
                reply.set_result(message)

        def lost() -> None:
            if not reply.done():
                reply.set_exception(self.died_error(Outcome.KERNEL_DIED))

        message_id = self.send(channel, kind, content, receive, buffers)
        call_off = self.on_lost(lost)
        try:
            async with asyncio.timeout(timeout):
                return await reply
        finally:
            call_off()
            self.forget(message_id)
            reply.cancel()

    async def interrupt(self) -> None:
        """Have the kernel raise KeyboardInterrupt in the running cell and its child processes, and wait until it has.

        A kernel whose control thread cannot run does not answer: bound the wait.
        """
        with contextlib.suppress(KernelDiedError):
            await self.request("control", "interrupt_request", {}, timeout=None)

    async def interrupt_from_outside(self) -> None:
        """Have the engine send the kernel's process a SIGINT. Says nothing when it cannot."""
        with contextlib.suppress(EngineError):
            await self.container.interrupt()

    def ran_out_of_memory(self) -> None:
        """Called when the engine saw an out-of-memory kill in this container.

        Under runc the kernel's own process may live on, when one of its children was killed. Any other runtime may be
        stuck now, and no cell in it would end: there it is the end of the kernel.
        """
        self._oom = True
        if self.runtime != "runc":
            self._guard.disconnect("it ran out of memory")

    def lose_engine(self) -> None:
        """Called when the Docker engine is gone: nobody could end this kernel any more, or say how it ended."""
        self._engine_lost = True
        self._guard.disconnect("the Docker engine is gone")
        self.container.kill()

    def usage(self) -> Usage | None:
        """What the kernel uses now; None where this host cannot read it. See ``measure``."""
        return self.container.usage()

    def reset_peak(self) -> None:
        """Let ``Usage.peak`` begin anew, where the host can."""
        self.container.reset_peak()

    async def measure(self) -> Usage:
        """What the kernel uses now, from its cgroup, or from the engine.

        Raises:
            EngineError: neither tells.
        """
        return await self.container.measure()

    def hold_output(self, held: bool) -> None:
        """Leave outputs where they are, so that the kernel has to wait once little room is left; or take them again."""
        self._guard.hold("iopub", held)

    async def exit(self) -> Exit:
        """Say how the kernel ended, once its wire is cut. Whatever still runs of it is killed then.

        Raises:
            EngineError: the engine does not answer, so nobody can say.
        """
        if self._exit is None:
            self._exit = asyncio.create_task(self._find_exit())
        return await asyncio.shield(self._exit)

    @property
    def wire(self) -> Path:
        """The host's folder that its sandbox sees."""
        return self._endpoint.wire

    @property
    def disconnect_reason(self) -> str:
        """Why the wire was cut; "" while it stands."""
        return self._guard.reason

    @property
    def excess(self) -> bool:
        """Whether the guard cut the wire, because the kernel sent more than it may."""
        return self._guard.excess

    @property
    def violated(self) -> bool:
        """Whether the host cut the wire, because of what the kernel sent."""
        return self._guard.violated

    @property
    def instance(self) -> str:
        """The instance that its container is labelled with."""
        return self._config.instance

    @property
    def policy(self) -> Policy:
        return self._config.policy

    @property
    def telemetry(self) -> Telemetry:
        return self._config.telemetry

    @property
    def limits(self) -> KernelResourceLimits:
        return self._config.limits

    def note(self, event: str, **details: Any) -> None:
        """Add an entry on this kernel to the audit log, and without its code to the program's log."""
        self._config.audit.write(event, instance=self._config.instance, kernel=self.kernel_id, **details)
        if _log.isEnabledFor(logging.INFO):
            fields = {key: brief(value) for key, value in details.items() if key != "code"}
            _log.info(event, extra={"fields": {"kernel": self.kernel_id, **fields}})

    def description(self) -> dict[str, Any]:
        """What the audit log says of the sandbox that something ran in."""
        config, limits = self._config, self._config.limits
        return {
            "container": self.container.name,
            "runtime": self.runtime,
            "image": config.image,
            "policy": config.policy.digest,
            "limits": {
                "cpu_percent": limits.max_cpu_percent,
                "memory_mb": limits.max_memory_mb,
                "execution_time_s": limits.max_execution_time,
                "output_mb": limits.max_output_size_mb,
            },
        }

    def died_error(self, reason: Outcome) -> KernelDiedError:
        code = self._known_exit_code()
        told = "" if code is None else f" (exit code {code})"
        return KernelDiedError(
            f"kernel {self.kernel_id[:12]} is gone: {self.disconnect_reason}{told}.",
            kernel_id=self.kernel_id,
            reason=reason,
            exit_code=code,
            remedy="Acquire the agent's kernel again: it gets a fresh one.",
        )

    def _known_exit_code(self) -> int | None:
        found = self._exit
        if found is None or not found.done() or found.cancelled() or found.exception() is not None:
            return None
        return found.result().exit_code

    def kill(self, why: Stop) -> None:
        """Cut a kernel off at once whose cell did not heed its interrupt; ``exit`` then kills it."""
        self._killed_for = why
        self._guard.disconnect("its cell did not heed the interrupt")

    async def stop(self) -> None:
        """End the container and remove all that is left of the kernel. May be called at any time, and again.

        Raises:
            EngineError: the engine does not answer; the instance removes the container later.
        """
        if self._stopping is None:
            self._guard.disconnect("it was stopped")
            self._client.close()
            self._stopping = asyncio.create_task(self._remove())
        await asyncio.shield(self._stopping)

    def abandon(self) -> None:
        """Let go of the kernel and its folder as they are, as this process's end would: the next start may adopt it."""
        self._config.left.add(self.kernel_id)
        self._guard.disconnect("its host has let go of it")
        self._client.close()
        self.container.forget_process()
        self._user.release()

    def _note_reject(self, number: int) -> None:
        if str(number).strip("0") == "1":  # at 1, 10, 100: a hostile kernel must not fill the disk
            self.note("wire.rejected", malformed_messages=number)

    def _note_end(self) -> None:
        left = self.kernel_id in self._config.left
        event = "kernel.left" if left else "kernel.cut" if self._guard.violated else "kernel.ended"
        self.note(event, reason=self._guard.reason)

    async def _remove(self) -> None:
        try:
            await self.container.remove()
        except EngineError:
            self._config.unremoved[self.container.name] = _LOOKS
            raise
        finally:
            self.container.forget_process()
            self._endpoint.remove()
            self._user.release()  # even of a container that may still live: no other is started beside it as its user

    async def _boot_in_time(self, deadline: Deadline, patience: float) -> None:
        phases = self._config.telemetry.kernel_phases(self.runtime)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._boot(phases, patience)
        except TimeoutError:
            raise KernelStartError(
                f"a kernel was not ready within {self._config.start_timeout:g} s under {self.runtime} "
                f"(phase: {phases.current}; {self._guard.connected} of 5 channels connected).",
                cause="timeout",
                log=await self._log(),
            ) from None
        except KernelDiedError as error:
            await self._refuse_ended()
            raise KernelStartError(
                f"the kernel was lost while it started under {self.runtime} (phase: {phases.current}): "
                f"{self.disconnect_reason}.",
                cause="container",
                log=await self._log(),
            ) from error

    def _listen(self) -> None:
        try:
            self._guard.listen(self._endpoint, self._client.receive)
        except OSError as error:
            raise _no_sockets(error) from error

    async def _take_over(self) -> None:
        """Wait until the kernel has connected again, until no cell runs, and until no interrupt is on its way."""
        await self.container.find_process()
        self._listen()
        idle = asyncio.create_task(self._idle())
        asking = asyncio.create_task(self.interrupt())
        try:
            while not idle.done():  # an interrupt that comes before its cell has begun is none
                await asyncio.wait({idle}, timeout=_HEED)
                if not idle.done():
                    await self.interrupt_from_outside()
            await idle
            await asyncio.wait({asking}, timeout=_HEED)  # it may come after the cell's end, and hit what is asked next
            await self._idle()
        finally:
            asking.cancel()
            idle.cancel()
            await asyncio.gather(asking, idle, return_exceptions=True)

    async def _idle(self) -> None:
        """Wait until all that was asked before has ended: for the answer to an empty cell, and the end of its output.

        Not for a welcome: a kernel that dials again takes its host's subscription for the one that it knows.
        """
        done = asyncio.get_running_loop().create_future()
        missing = {"execute_reply", "status"}

        def receive(message: Message) -> None:
            if message.channel == "iopub" and message.content.get("execution_state") == "idle":
                missing.discard("status")
            elif message.channel == "shell":
                missing.discard(message.kind)
            if not missing and not done.done():
                done.set_result(None)

        def lost() -> None:
            if not done.done():
                done.set_exception(self.died_error(Outcome.KERNEL_DIED))

        content = {"code": "", "silent": True, "store_history": False, "allow_stdin": False}
        message_id = self.send("shell", "execute_request", content, receive)
        call_off = self.on_lost(lost)
        try:
            await done
        finally:
            call_off()
            self.forget(message_id)

    async def _run_silently(self, code: str, *, silent: bool = True) -> Message:
        """Run code of our own that leaves no trace in the history; the caller bounds the wait."""
        content = {"code": code, "silent": silent, "store_history": False, "allow_stdin": False}
        return await self.request("shell", "execute_request", content, timeout=None)

    async def _preload(self, module: str) -> None:
        """Import a module where no name of it is left behind; the caller bounds the wait.

        Raises:
            KernelStartError: it cannot be imported.
        """
        reply = await self._run_silently(f"__import__('importlib').import_module({module!r});")
        if reply.content.get("status") != "ok":
            error = f"{reply.content.get('ename')}: {reply.content.get('evalue')}"[:_LONGEST_REASON]
            raise KernelStartError(
                f"the policy preloads {module!r}, which this image cannot import: {_CONTROL.sub('?', error)}.",
                cause="policy",
                remedy="Take it from the policy's `preload`, or add it to the image.",
            )

    async def _boot(self, phases: Phases, patience: float) -> None:
        with phases.phase("sockets"):
            self._listen()
        with phases.phase("container"):
            await self.container.start(self._config.request(self.kernel_id, self.wire, self._user.uid))
        ready = asyncio.create_task(self._ready(phases, patience))
        watch = asyncio.create_task(self._watch_boot())
        try:
            await self.container.find_process()
            done, _ = await asyncio.wait({ready, watch}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            ready.cancel()
            watch.cancel()
            await asyncio.gather(ready, watch, return_exceptions=True)

    async def _ready(self, phases: Phases, patience: float) -> None:
        """Wait for the subscription to be in place, before which outputs would be lost, and import what is to be."""
        with phases.phase("dial_in"):
            try:
                async with asyncio.timeout(None if patience == math.inf else patience):
                    await self._welcomed()
            except TimeoutError:
                raise _SilentError(self, patience) from None
        with phases.phase("preload"):
            for module in self.policy.preload:
                await self._preload(module)

    async def _welcomed(self) -> None:
        """Wait for the kernel's welcome, or raise when the wire is cut before it."""
        welcome = self._client.welcome

        def lost() -> None:
            if not welcome.done():
                welcome.set_exception(self.died_error(Outcome.KERNEL_DIED))

        call_off = self.on_lost(lost)
        try:
            await welcome
        finally:
            call_off()

    async def _watch_boot(self) -> None:
        """Raise when the container ends before the kernel is ready: it has no connection yet."""
        while True:
            await asyncio.sleep(1.0)
            await self._refuse_ended()

    async def _refuse_ended(self) -> None:
        state = await self.container.state()
        if not state["Running"]:
            raise KernelStartError(
                f"the kernel's container ended while it started (exit code {state['ExitCode']}, "
                f"runtime {self.runtime}).",
                cause="container",
                log=await self._log(),
            )

    async def _find_exit(self) -> Exit:
        if self._engine_lost:
            return Exit(Outcome.ENGINE_LOST, None)
        if self._stopping is not None:
            return Exit(Outcome.KERNEL_DIED, None)
        if not self._ended_by_host():
            exit_state = await self.container.exit()
            if exit_state is not None:
                return exit_state
        # It lives, but its wire is cut: it ran out of memory, broke the protocol, hung up, or was condemned.
        await self.container.remove()
        return Exit(self._killed_for or (Outcome.OOM if self._oom else Outcome.KERNEL_DIED), None)

    def _ended_by_host(self) -> bool:
        return self._guard.violated or self._killed_for is not None or (self._oom and self.runtime != "runc")

    async def _log(self) -> str:
        try:
            return _CONTROL.sub("?", await self.container.log())
        except EngineError:
            return ""
