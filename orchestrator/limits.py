"""What a session may use, and counting against it. Pure: no clock but the monotonic one, no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass

MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class KernelResourceLimits:
    """Limits of every kernel of one manager.

    Attributes:
        max_cpu_percent: of one core; above 0, at most 100.
        max_memory_mb: MiB, the kernel's files in its tmpfs included; beyond it the kernel is ended ("oom").
        max_execution_time: seconds that one cell may take.
        max_output_size_mb: MiB that one cell may output; what exceeds it is dropped, and the result says so.
        idle_timeout_seconds: a session that nobody has used for so long ends.

    Raises:
        ValueError: a limit is not positive, or the CPU share exceeds 100 %.
    """

    max_cpu_percent: float = 80.0
    max_memory_mb: int = 1024
    max_execution_time: float = 30.0
    max_output_size_mb: float = 10
    idle_timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        # `not (x > 0)` and not `x <= 0`: NaN fails too.
        for value, name in (
            (self.max_cpu_percent, "CPU percent"),
            (self.max_memory_mb, "Memory limit"),
            (self.max_execution_time, "Execution time"),
            (self.max_output_size_mb, "Output size"),
            (self.idle_timeout_seconds, "Idle timeout"),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be positive")
        if self.max_cpu_percent > 100:
            raise ValueError("CPU percent cannot exceed 100")

    @property
    def max_output_bytes(self) -> int:
        return int(self.max_output_size_mb * MEGABYTE)


class Deadline:
    """A moment on the monotonic clock; steps of the wall clock do not move it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        return self.remaining() == 0.0


class OutputBudget:
    """Bytes that one cell may still output, counted as they lie in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.dropped = 0

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes may come."""
        return self.used + size <= self.limit

    def take(self, size: int) -> bool:
        """Count ``size`` bytes; False when they do not fit, and then they count as dropped."""
        if not self.fits(size):
            return self.drop(size)
        self.used += size
        return True

    def drop(self, size: int) -> bool:
        """Count ``size`` bytes as dropped. Always False."""
        self.dropped += size
        return False
