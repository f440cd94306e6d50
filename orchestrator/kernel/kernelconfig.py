"""KernelConfig: what all kernels of one instance have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.container.engine import Engine
from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.eventfeed import EventFeed
from orchestrator.kernel.guard import Guard
from orchestrator.kernel.loopshare import KernelShare, LoopShare
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.telemetry import Telemetry

# An honest kernel cuts text into pieces, and reports a display that it leaves out for its size. Measured: receiving and
# reading a message of 5 MB takes 50 ms at worst, and three times its size.
_LARGEST_MESSAGE = 4 * MIB

ContainerRequest = Callable[[ContainerSpec, Policy, KernelResourceLimits], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What all kernels of one instance have in common.

    Attributes:
        folder: the instance's folder, in which each kernel gets one of its own.
        start_timeout: seconds in which a kernel must be ready.
        feed: gets the events of every kernel.
        loop_share: divides the event loop among the kernels.
        unremoved: names of containers that the engine did not remove when asked; for each, how often the sweep has to
            look for it before it counts as gone.
        left: ids of the kernels that were abandoned and run on.
        telemetry: observes each start.
        container_request, guard: make the engine's request for each container, and its guard. Only the negative
            controls of ``isolation/`` and tests pass others.
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
    feed: EventFeed = field(default_factory=EventFeed)
    loop_share: LoopShare = field(default_factory=LoopShare)
    unremoved: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    telemetry: Telemetry = field(default_factory=Telemetry)

    @property
    def state_folder(self) -> Path:
        """The folder of all instances, which has the leases of user ids."""
        return self.folder.parent

    @property
    def message_bound(self) -> int:
        """Bytes that one message may have: a cell's output limit, at most 4 MiB, and 1 MiB for the envelope."""
        return min(self.limits.max_output_bytes, _LARGEST_MESSAGE) + MIB

    def request(self, kernel_id: str, wire: Path, uid: int) -> dict[str, Any]:
        """Return the engine's request for a kernel's container."""
        spec = ContainerSpec(
            name=container_name(kernel_id),
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


def container_name(kernel_id: str) -> str:
    """Return the name of a kernel's container."""
    return f"cellblock-{kernel_id}"
