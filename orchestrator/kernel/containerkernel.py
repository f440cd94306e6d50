"""ContainerKernel: a kernel in a container of its own, with its endpoint, guard and client.

``startup`` and ``adoption`` make it. It never decides who gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.container.container import Container
from orchestrator.container.exits import Exit
from orchestrator.container.lease import UserId
from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError, KernelDiedError, KernelStartError
from orchestrator.homeloop import HomeLoop
from orchestrator.kernel.channel import Accept, Channel, Handler, Message
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.kernelclient import KernelClient
from orchestrator.kernel.kernelconfig import KernelConfig, container_name
from orchestrator.kernel.lost import failing_when_lost
from orchestrator.kernel.warmup import run_first_cells
from orchestrator.kernel.wire import Wire
from orchestrator.outcome import Outcome, Stop

_log = logging.getLogger(__name__)
_LOOKS = 2  # sweeps that look for an unremoved container: an engine that hung may make it after the first one


class ContainerKernel(Kernel):
    """A running kernel in a container. See ``Kernel``.

    Attributes:
        config: what it was started with.
        user: the user id that it runs as.
    """

    oom_kills_reported = 0

    def __init__(self, config: KernelConfig, endpoint: Endpoint, user: UserId, kernel_id: str) -> None:
        self.config = config
        self.user = user
        self.container = Container(config.engine, container_name(kernel_id), config.runtime)
        self._kernel_id = kernel_id
        self._endpoint = endpoint
        self._guard = config.guard(config.message_bound, config.loop_share.of_kernel())
        self._wire = Wire(endpoint.key, self._guard, self._note_reject)
        self._client = KernelClient(self._wire)
        self._exit: asyncio.Task[Exit] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._killed_for: Stop | None = None
        self._oom = False
        self._engine_lost = False
        self._home = HomeLoop.of_caller()

    @property
    def kernel_id(self) -> str:
        return self._kernel_id

    @property
    def runtime(self) -> str:
        return self.config.runtime

    @property
    def container_name(self) -> str:
        return self.container.name

    @property
    def instance(self) -> str:
        """The instance that its container is labelled with."""
        return self.config.instance

    @property
    def wire(self) -> Path:
        """The host's folder that its sandbox sees."""
        return self._endpoint.wire

    # Its life

    def listen(self) -> None:
        """Listen for the kernel's connections. Called once, by ``startup`` or ``adoption``.

        Raises:
            KernelStartError: a socket could not be made.
        """
        try:
            self._guard.listen(self._endpoint, self._wire.receive)
        except OSError as error:
            raise no_sockets(error) from error

    @property
    def connected(self) -> int:
        """How many of the five channels the kernel has connected."""
        return self._guard.connected

    @property
    def rejected(self) -> int:
        """How many of the kernel's messages were dropped because they were malformed or wrongly signed."""
        return self._wire.rejected

    async def welcomed(self) -> None:
        """Wait until the kernel has confirmed the subscription to its outputs; before that they would be lost.

        Raises:
            KernelDiedError: the wire was disconnected before.
        """
        with failing_when_lost(self, self._wire.welcome):
            await self._wire.welcome

    def enter_service(self, event: str) -> None:
        """Note in the audit log that the kernel is ready, and later its end."""
        self.note(event, **self.description(), uid=self.user.uid)
        self.on_lost(self._note_end)

    @property
    def is_alive(self) -> bool:
        return not self._guard.lost.is_set()

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._guard.on_lost(callback)

    @property
    def disconnect_reason(self) -> str:
        return self._guard.reason

    @property
    def violated(self) -> bool:
        return self._guard.violated

    @property
    def excess(self) -> bool:
        return self._guard.excess

    async def exit(self) -> Exit:
        self._home.check()
        if self._exit is None:
            self._exit = asyncio.create_task(self._find_exit())
        return await asyncio.shield(self._exit)

    def died_error(self, reason: Outcome) -> KernelDiedError:
        code = self._known_exit_code()
        ended = "" if code is None else f" (exit code {code})"
        return KernelDiedError(
            f"kernel {self.kernel_id[:12]} is gone: {self.disconnect_reason}{ended}.",
            kernel_id=self.kernel_id,
            reason=reason,
            exit_code=code,
            remedy="Acquire the agent's kernel again: it gets a fresh one.",
        )

    async def warm_up(self) -> None:
        self._home.check()
        with self.config.telemetry.kernel_phases(self.runtime).phase("first_cells"):
            async with asyncio.timeout(self.config.start_timeout):
                await run_first_cells(self)

    async def stop(self) -> None:
        self._home.check()
        if self._stopping is None:
            self._guard.disconnect("it was stopped")
            self._wire.close()
            self._stopping = asyncio.create_task(self._remove())
        await asyncio.shield(self._stopping)

    def abandon(self) -> None:
        self.config.left.add(self.kernel_id)
        self._guard.disconnect("its orchestrator abandoned it")
        self._wire.close()
        self.container.forget_process()
        self.user.release()

    # What is sent to it

    def send(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        handler: Handler,
        buffers: Sequence[bytes] = (),
        accept: Accept | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        self._home.check()
        if not self.is_alive:
            raise self.died_error(Outcome.KERNEL_DIED)
        return self._client.send(channel, kind, content, handler, buffers, accept, metadata)

    def forget(self, message_id: str) -> None:
        self._client.forget(message_id)

    async def request(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        *,
        timeout: float | None,
        buffers: Sequence[bytes] = (),
    ) -> Message:
        self._home.check()
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        wanted = kind.replace("_request", "_reply")

        def receive(message: Message) -> None:
            if message.channel == channel and message.kind == wanted and not reply.done():
                reply.set_result(message)

        message_id = self.send(channel, kind, content, receive, buffers)
        try:
            with failing_when_lost(self, reply):
                async with asyncio.timeout(timeout):
                    return await reply
        finally:
            self.forget(message_id)
            reply.cancel()

    def hold_output(self, held: bool) -> None:
        self._guard.hold("iopub", held)

    # How what it runs is stopped

    async def interrupt(self) -> None:
        self._home.check()
        with contextlib.suppress(KernelDiedError):
            await self.request("control", "interrupt_request", {}, timeout=None)

    async def interrupt_from_outside(self) -> None:
        self._home.check()
        with contextlib.suppress(EngineError):
            await self.container.interrupt()

    def kill(self, why: Stop) -> None:
        self._killed_for = why
        self._guard.disconnect("its cell ignored the interrupt")

    def ran_out_of_memory(self) -> None:
        """Note that the engine saw an out-of-memory kill in this container. Called by the instance.

        Under runc the kernel's own process may live on, when one of its children was killed. Any other runtime may be
        stuck, so that no cell in it would end: there the kernel is disconnected.
        """
        self._oom = True
        if self.runtime != "runc":
            self._guard.disconnect("it ran out of memory")

    def lose_engine(self) -> None:
        """Disconnect the kernel and kill its process. Called by the instance when the Docker engine is gone.

        Without an engine nothing could end the kernel, and its end would stay unknown.
        """
        self._engine_lost = True
        self._guard.disconnect("the Docker engine is gone")
        self.container.kill()

    # What it uses

    def usage(self) -> Usage | None:
        return self.container.usage()

    def reset_peak(self) -> None:
        self.container.reset_peak()

    async def measure(self) -> Usage:
        self._home.check()
        return await self.container.measure()

    # What is recorded of it

    def note(self, event: str, **details: Any) -> None:
        self.config.feed.publish(event, instance=self.instance, kernel=self.kernel_id, **details)

    def description(self) -> dict[str, Any]:
        config, limits = self.config, self.config.limits
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

    def _note_reject(self, number: int) -> None:
        if str(number).strip("0") == "1":  # at 1, 10, 100: a hostile kernel must not fill the disk
            self.note("wire.rejected", malformed_messages=number)

    def _note_end(self) -> None:
        left = self.kernel_id in self.config.left
        event = "kernel.left" if left else "kernel.cut" if self._guard.violated else "kernel.ended"
        self.note(event, reason=self._guard.reason)

    # Its end

    async def _remove(self) -> None:
        try:
            await self.container.remove()
        except EngineError:
            self.config.unremoved[self.container.name] = _LOOKS
            raise
        finally:
            self.container.forget_process()
            self._endpoint.remove()
            self.user.release()  # also when the container may live: ``Container.start`` refuses a user id that is taken

    def _known_exit_code(self) -> int | None:
        found = self._exit
        if found is None or not found.done() or found.cancelled() or found.exception() is not None:
            return None
        return found.result().exit_code

    async def _find_exit(self) -> Exit:
        if self._engine_lost:
            return Exit(Outcome.ENGINE_LOST, None)
        if self._stopping is not None:
            return Exit(Outcome.KERNEL_DIED, None)
        if not self._ended_by_host():
            exit_state = await self.container.exit()
            if exit_state is not None:
                return exit_state
        # It runs without a wire: it ran out of memory, broke the protocol, closed its connection, or was to be killed.
        await self.container.remove()
        return Exit(self._killed_for or (Outcome.OOM if self._oom else Outcome.KERNEL_DIED), None)

    def _ended_by_host(self) -> bool:
        return self._guard.violated or self._killed_for is not None or (self._oom and self.runtime != "runc")


def no_sockets(error: OSError) -> KernelStartError:
    """Return the error for a kernel whose folder or sockets cannot be made."""
    return KernelStartError(
        f"the kernel's sockets cannot be made: {error}.",
        cause="host",
        remedy="Check that CELLBLOCK_STATE_DIR is writable and has free space.",
    )
