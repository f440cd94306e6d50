"""Why a caller gets no kernel, as an error that says what is scarce and what helps. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import KernelPoolExhaustedError, Scarcity
from orchestrator.limits import MIB
from orchestrator.pool.scheduler import Room

_END_A_SESSION = "End a session with `await manager.end_session(agent_id)`, wait longer, or raise max_kernels."
_REMEDIES: dict[Scarcity, str] = {
    "memory": "End a session, free memory on the host, or change limits.memory_mb, scheduling.memory_reserve_mb or "
    "scheduling.memory_overcommit in the policy.",
    "cpu": "End a session, or raise scheduling.cpu_overcommit in the policy.",
    "quota": "End a session of the group, wait longer, or raise its quota in the policy.",
    "queue": "Try again later, or raise pool.queue in the policy.",
    "starting": "Wait longer; `cellblock doctor` says whether kernels start here.",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """The pool at the moment of a refusal.

    Attributes:
        reason: what is scarce.
        group: the caller's group.
        held: how many kernels the group has.
        waited: seconds that the caller waited; 0 when it was refused at once.
        expected_wait: seconds that one more caller of the group would wait; None while that is unknown.
        queue: how many callers may wait at the same time.
    """

    reason: Scarcity
    group: str
    held: int
    waited: float
    expected_wait: float | None
    room: Room
    max_kernels: int
    leased: int
    starting: int
    queue: int

    def error(self) -> KernelPoolExhaustedError:
        """Return the error that the caller gets."""
        happened = f"no kernel became free within {self.waited:g} s" if self.waited else "no kernel is free"
        outlook = "" if self.expected_wait is None else f" Estimated wait: {self.expected_wait:.2g} s."
        lacks_memory = self.reason == "memory"
        return KernelPoolExhaustedError(
            f"{happened}: {self._cause()}.{outlook}",
            max_kernels=self.max_kernels,
            waited=self.waited,
            reason=self.reason,
            expected_wait=self.expected_wait,
            needed_bytes=self.room.needed if lacks_memory else None,
            free_bytes=self.room.free if lacks_memory else None,
            remedy=_REMEDIES.get(self.reason, _END_A_SESSION),
        )

    def _cause(self) -> str:
        kernels = f"{self.leased} of {self.max_kernels} kernels belong to agents, and {self.starting} are starting"
        causes = {
            "quota": f"group {self.group!r} holds {self.held} kernels, its quota",
            "queue": f"{self.queue} callers wait already, the limit; {kernels}",
            "memory": f"another kernel needs {self.room.needed // MIB} MiB of memory, and the host has "
            f"{self.room.free // MIB} MiB that are not used, reserved or promised to a kernel; {kernels}",
            "cpu": f"all cores of the host are promised to kernels; {kernels}",
        }
        return causes.get(self.reason, kernels)
