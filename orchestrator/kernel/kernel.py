"""Kernel: what the rest of the orchestrator uses of a kernel.

``ContainerKernel`` is the real one, in a container. ``FakeKernel`` lives in memory, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.container.exits import Exit
from orchestrator.container.usage import Usage
from orchestrator.errors import KernelDiedError
from orchestrator.kernel.channel import Accept, Channel, Handler, Message
from orchestrator.outcome import Outcome, Stop


class Kernel(Protocol):
    """One kernel, from the moment that it is ready until after its end. It serves one agent and is discarded after.

    Everything that a kernel sends is a claim of hostile code. What the methods below say of its life, its end and its
    use comes from the host: the wire, the engine, the cgroup.

    It belongs to the event loop in which it was made. In any other, its coroutines and ``send`` raise
    WrongEventLoopError.

    Attributes:
        oom_kills_reported: ``Usage.oom_kills`` when a result last reported them. Set by the cell.
    """

    oom_kills_reported: int

    @property
    def kernel_id(self) -> str:
        """A name that no other kernel has."""

    @property
    def runtime(self) -> str:
        """The container runtime that it runs under, such as "runsc"."""

    @property
    def container_name(self) -> str:
        """The name of its container."""

    # Its life

    @property
    def is_alive(self) -> bool:
        """Whether its wire is connected. The kernel's own death disconnects it at once."""

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once the kernel is lost, or at once when it is lost already. Return what undoes this."""

    @property
    def disconnect_reason(self) -> str:
        """Why the wire was disconnected; "" while it is connected."""

    @property
    def violated(self) -> bool:
        """Whether the host disconnected the wire because the kernel broke the protocol or exceeded a bound."""

    @property
    def excess(self) -> bool:
        """Whether that was because the kernel sent more than it may."""

    async def exit(self) -> Exit:
        """Return how the kernel ended. Call it once the wire is disconnected; what still runs is killed then.

        Raises:
            EngineError: the engine does not answer, so the end is unknown.
        """

    def died_error(self, reason: Outcome) -> KernelDiedError:
        """Return the error for a caller who needs this kernel, which is gone.

        Args:
            reason: how it ended, such as ``Outcome.OOM``.
        """

    async def warm_up(self) -> None:
        """Run first cells that leave no trace, so that an agent's first cell is fast. Called by the pool.

        Raises:
            KernelDiedError: the kernel died.
            TimeoutError: the cells did not end in time.
        """

    async def stop(self) -> None:
        """End the kernel and remove everything of it. Idempotent.

        Raises:
            EngineError: the engine does not answer; the instance removes the container later.
        """

    def abandon(self) -> None:
        """Let the kernel run on without this process, so that the next start can adopt it."""

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
        """Send a request and return its id.

        Args:
            handler: called with every message whose parent is this request, until ``forget``.
            accept: called before a message is parsed, with its kind and the bytes that its content takes in memory at
                most; returns whether ``handler`` gets it. None: always.
            metadata: of the request; None: none.

        Raises:
            KernelDiedError: the kernel is gone.
        """

    def forget(self, message_id: str) -> None:
        """Drop all further messages for this request."""

    async def request(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        *,
        timeout: float | None,
        buffers: Sequence[bytes] = (),
    ) -> Message:
        """Send a request and return its reply.

        Args:
            kind: ends in "_request".
            timeout: seconds; None: the caller bounds the wait.

        Raises:
            KernelDiedError: the kernel died.
            TimeoutError: no reply came in time.
        """

    def hold_output(self, held: bool) -> None:
        """Read no outputs while ``held``, so that the kernel has to wait once its socket is full."""

    # How what it runs is stopped: see ``Interruption``

    async def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the running cell and SIGINT in its child processes; return when that is done.

        A kernel whose control thread cannot run does not answer: bound the wait. Does nothing when the kernel is gone.
        """

    async def interrupt_from_outside(self) -> None:
        """Send the kernel's process a SIGINT through the engine. Does nothing when the engine cannot."""

    def kill(self, why: Stop) -> None:
        """Disconnect a kernel that ignored its interrupts; ``exit`` kills what runs, and reports ``why``."""

    # What it uses

    def usage(self) -> Usage | None:
        """Return what the kernel uses now; None where this host cannot read it."""

    def reset_peak(self) -> None:
        """Start ``Usage.peak`` anew, where the host can."""

    async def measure(self) -> Usage:
        """Return what the kernel uses now, as this host reads it, or else the engine.

        Raises:
            EngineError: neither can.
        """

    # What is recorded of it

    def note(self, event: str, **details: Any) -> None:
        """Publish an event of this kernel to the feed."""

    def description(self) -> dict[str, Any]:
        """Return what the audit log says of the sandbox: container, runtime, image, policy and limits."""
