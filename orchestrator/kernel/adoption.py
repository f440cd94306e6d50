"""The adoption of a kernel whose orchestrator has died: with its variables, and without the cell that it ran."""

from __future__ import annotations

import asyncio

from orchestrator.container.folders import kernel_folder
from orchestrator.container.lease import UserId
from orchestrator.container.reaper import Leftover
from orchestrator.errors import KernelDiedError, KernelStartError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.containerkernel import ContainerKernel, no_sockets
from orchestrator.kernel.endpoint import Endpoint
from orchestrator.kernel.interruption import Interruption
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.kernelconfig import KernelConfig
from orchestrator.kernel.lost import failing_when_lost
from orchestrator.kernel.warmup import silent_cell

_SWEPT = (0.01, 0.1)  # seconds until a lock file that a sweep held is gone
_ADOPTION = 15.0  # seconds in which a kernel has to connect again and to end what it was doing


async def adopt(config: KernelConfig, left: Leftover) -> ContainerKernel:
    """Take over a kernel of a process that has died. A cell that still runs is interrupted.

    Args:
        config: has the instance and the folder that the kernel was started with.

    Raises:
        KernelStartError: the kernel's folder is not whole, or the kernel ignores the interrupt. It is removed now or by
            the sweep.
        EngineError: the engine does not answer.
        CancelledError: the kernel is abandoned.
    """
    user = await _take_over_user(config, left)
    try:
        endpoint = Endpoint.reopen(kernel_folder(config.folder, left.kernel_id))
    except (OSError, ValueError, KeyError, TypeError) as error:
        user.release()
        raise KernelStartError(f"the kernel's folder is not whole: {error}.", cause="host") from error
    kernel = ContainerKernel(config, endpoint, user, left.kernel_id)
    try:
        async with asyncio.timeout(_ADOPTION):
            await _take_over(kernel)
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
    kernel.enter_service("kernel.adopted")
    return kernel


async def _take_over_user(config: KernelConfig, left: Leftover) -> UserId:
    """Take over the kernel's user id. Another process's sweep holds a lock file for a moment before it removes it."""
    for pause in (*_SWEPT, 0):
        try:
            if (user := UserId.take_over(config.state_folder, left.uid)) is not None:
                return user
            await asyncio.sleep(pause)
        except OSError as error:
            raise no_sockets(error) from error
        except asyncio.CancelledError:
            config.left.add(left.kernel_id)
            raise
    raise KernelStartError(f"user id {left.uid} is taken.", cause="host")


async def _take_over(kernel: ContainerKernel) -> None:
    """Wait until the kernel has connected again, until no cell runs, and until no interrupt is pending."""
    await kernel.container.find_process()
    kernel.listen()
    idle = asyncio.create_task(_idle(kernel))
    interruption = Interruption(kernel, lambda: not idle.done())
    try:
        interruption.stop(kill=None)
        await idle
        await interruption.settled()  # one that comes after the cell's end would hit what is asked next
        await _idle(kernel)
    finally:
        interruption.cancel()
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)


async def _idle(kernel: Kernel) -> None:
    """Wait until the kernel has ended all earlier requests: for the reply to an empty cell, and the end of its output.

    It does not wait for a welcome: a kernel that connects again takes the new subscription for the one that it knows.

    Raises:
        KernelDiedError: the kernel died.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    missing = {"execute_reply", "status"}

    def receive(message: Message) -> None:
        if message.channel == "iopub" and message.content.get("execution_state") == "idle":
            missing.discard("status")
        elif message.channel == "shell":
            missing.discard(message.kind)
        if not missing and not done.done():
            done.set_result(None)

    message_id = kernel.send("shell", "execute_request", silent_cell(""), receive)
    try:
        with failing_when_lost(kernel, done):
            await done
    finally:
        kernel.forget(message_id)
