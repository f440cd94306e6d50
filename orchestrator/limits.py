"""What a session may use, and counting against it. Pure: no clock but the monotonic one, no I/O."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class KernelResourceLimits:
    """Limits of every kernel of one manager.

    Attributes:
        max_cpu_percent: of one core; above 0, at most 100.
        max_memory_mb: MiB, the kernel's files in its tmpfs included; beyond it the kernel is ended ("oom").
        max_execution_time: seconds that one cell may take.
        max_output_size_mb: MiB that one cell may output; past it the head and the tail are kept, and the result says
            how much is missing.
        idle_timeout_seconds: a session that nobody has used for so long ends.

    Raises:
        ValueError: a limit is not positive, a size is infinite, or the CPU share exceeds 100 %.
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
        for value, name in ((self.max_memory_mb, "Memory limit"), (self.max_output_size_mb, "Output size")):
            if math.isinf(value):  # seconds may be: a cell or a session without an end
                raise ValueError(f"{name} must be finite")
        if self.max_cpu_percent > 100:
            raise ValueError("CPU percent cannot exceed 100")

    @property
    def max_output_bytes(self) -> int:
        return int(self.max_output_size_mb * MIB)


class Deadline:
    """A moment on the monotonic clock; steps of the wall clock do not move it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """What one cell may output; past any of it the head and the tail are kept.

    Attributes:
        bytes: as the outputs lie in memory; text in characters beyond Latin-1 takes two or four for each.
        messages: pieces of output, as the kernel sends them.
        displays: displays and values of last expressions.
    """

    bytes: int
    messages: int = 100_000
    displays: int = 200
