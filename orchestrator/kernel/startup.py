"""The start of a kernel: its user id, its container, its first connection, and what its policy preloads."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid

from orchestrator.container.folders import kernel_folder
from orchestrator.container.lease import UserId
from orchestrator.errors import EngineError, KernelDiedError, KernelStartError, UserIdTakenError
from orchestrator.kernel.containerkernel import ContainerKernel, no_sockets
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.kernelconfig import KernelConfig
from orchestrator.kernel.warmup import preload
from orchestrator.limits import Deadline
from orchestrator.output.printable import printable_lines
from orchestrator.telemetry import Phases

_log = logging.getLogger(__name__)
# Share of the time after which a kernel that has not connected is removed and started anew. On a loaded machine one
# rarely never connects under gVisor: seen with 12 tasks for two cores. The slowest of those that did took 9 s.
_PATIENCE = 0.5
_USER_IDS = 5  # user ids to try before the start fails
_POLL = 1.0  # seconds between two looks at whether a starting container still runs


class _SilentError(Exception):
    """A kernel was started, and has not connected for long."""

    def __init__(self, kernel: ContainerKernel, seconds: float) -> None:
        super().__init__(
            f"kernel {kernel.kernel_id[:12]} has not connected within {seconds:g} s "
            f"({kernel.connected} of 5 channels connected)"
        )


async def start(config: KernelConfig) -> ContainerKernel:
    """Start a kernel and return it when it is ready. On failure everything of it is removed.

    Raises:
        KernelStartError: it did not become ready; the error has the container's log.
        EngineError: the engine refused, or does not answer.
    """
    taken: set[int] = set()
    deadline, patience = Deadline(config.start_timeout), config.start_timeout * _PATIENCE
    while True:
        try:
            user = UserId.take(config.state_folder, config.uid_base, config.uid_count, avoid=taken)
        except OSError as error:
            raise no_sockets(error) from error
        try:
            return await _start_as(config, user, deadline, patience)
        except UserIdTakenError:
            taken.add(user.uid)
            if len(taken) == _USER_IDS:
                raise
        except _SilentError as silent:
            _log.warning("%s; it is started anew.", silent)
            patience = math.inf


async def _start_as(config: KernelConfig, user: UserId, deadline: Deadline, patience: float) -> ContainerKernel:
    kernel_id = uuid.uuid4().hex
    try:
        endpoint = Endpoint.create(kernel_folder(config.folder, kernel_id), config.message_bound, user.uid)
    except OSError as error:
        user.release()
        raise no_sockets(error) from error
    kernel = ContainerKernel(config, endpoint, user, kernel_id)
    try:
        await _boot_in_time(kernel, deadline, patience)
    except BaseException:
        await kernel.stop()
        raise
    kernel.enter_service("kernel.started")
    return kernel


async def _boot_in_time(kernel: ContainerKernel, deadline: Deadline, patience: float) -> None:
    phases = kernel.config.telemetry.kernel_phases(kernel.runtime)
    try:
        async with asyncio.timeout(deadline.remaining()):
            await _boot(kernel, phases, patience)
    except TimeoutError:
        raise KernelStartError(
            f"a kernel was not ready within {kernel.config.start_timeout:g} s under {kernel.runtime} "
            f"(phase: {phases.current}; {kernel.connected} of 5 channels connected).",
            cause="timeout",
            log=await _log_of(kernel),
        ) from None
    except KernelDiedError as error:
        await _refuse_ended(kernel)
        raise KernelStartError(
            f"the kernel was lost while it started under {kernel.runtime} (phase: {phases.current}): "
            f"{kernel.disconnect_reason}.",
            cause="container",
            log=await _log_of(kernel),
        ) from error


async def _boot(kernel: ContainerKernel, phases: Phases, patience: float) -> None:
    with phases.phase("sockets"):
        kernel.listen()
    with phases.phase("container"):
        await kernel.container.start(kernel.config.request(kernel.kernel_id, kernel.wire, kernel.user.uid))
    ready = asyncio.create_task(_ready(kernel, phases, patience))
    watch = asyncio.create_task(_watch(kernel))
    try:
        await kernel.container.find_process()
        done, _ = await asyncio.wait({ready, watch}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        ready.cancel()
        watch.cancel()
        await asyncio.gather(ready, watch, return_exceptions=True)


async def _ready(kernel: ContainerKernel, phases: Phases, patience: float) -> None:
    with phases.phase("dial_in"):
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                await kernel.welcomed()
        except TimeoutError:
            raise _SilentError(kernel, patience) from None
    with phases.phase("preload"):
        for module in kernel.config.policy.preload:
            await preload(kernel, module)


async def _watch(kernel: ContainerKernel) -> None:
    """Raise KernelStartError when the container ends: a kernel that has not connected cannot be lost."""
    while True:
        await asyncio.sleep(_POLL)
        await _refuse_ended(kernel)


async def _refuse_ended(kernel: ContainerKernel) -> None:
    state = await kernel.container.state()
    if not state["Running"]:
        raise KernelStartError(
            f"the kernel's container ended while it started (exit code {state['ExitCode']}, runtime {kernel.runtime}).",
            cause="container",
            log=await _log_of(kernel),
        )


async def _log_of(kernel: ContainerKernel) -> str:
    try:
        return printable_lines(await kernel.container.log())
    except EngineError:
        return ""
