"""What a session may use, and deadlines on the monotonic clock. Pure: no other clock, no I/O."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class KernelResourceLimits:
    """Limits of every kernel of one manager.

    Attributes:
        max_cpu_percent: share of one core; above 0, at most 100.
        max_memory_mb: MiB, including the files in the kernel's tmpfs; above that the kernel is killed ("oom").
        max_execution_time: seconds that one cell may take.
        max_output_size_mb: MiB that one cell may output; above that the head and the tail are kept, and the result
            says how much is missing.
        idle_timeout_seconds: an unused session hibernates or ends after that time.

    Raises:
        ValueError: a limit is not positive, a size is infinite, or the CPU share exceeds 100 %.
    """

    max_cpu_percent: float = 80.0
    max_memory_mb: int = 1024
    max_execution_time: float = 30.0
    max_output_size_mb: float = 10
    idle_timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        # `not x > 0` instead of `x <= 0`, so that NaN fails too.
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
            if math.isinf(value):  # seconds may be infinite: a cell or a session without a limit
                raise ValueError(f"{name} must be finite")
        if self.max_cpu_percent > 100:
            raise ValueError("CPU percent cannot exceed 100")

    def within(self, timeout: float | None, output_limit: int | None) -> KernelResourceLimits:
        """Return the limits of one call: its own where they are lower.

        Args:
            timeout: seconds; None: these limits' own.
            output_limit: bytes; None: these limits' own.

        Raises:
            ValueError: one is not above 0.
        """
        for value, name in ((timeout, "timeout"), (output_limit, "output_limit")):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0.")
        if timeout is None and output_limit is None:
            return self
        # Compared as bytes: a huge whole number has no float.
        own = output_limit is not None and output_limit < self.max_output_size_mb * MIB
        size = output_limit / MIB if own and output_limit is not None else self.max_output_size_mb
        time_s = self.max_execution_time if timeout is None else min(timeout, self.max_execution_time)
        return replace(self, max_execution_time=time_s, max_output_size_mb=size)

    @property
    def max_output_bytes(self) -> int:
        return int(self.max_output_size_mb * MIB)


class Deadline:
    """A moment on the monotonic clock, ``seconds`` from now. Changes of the wall clock do not move it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, never less than 0."""
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """What one cell may output; above any of the limits the head and the tail are kept.

    Attributes:
        bytes: of the outputs in memory, where a character beyond Latin-1 takes two or four bytes.
        messages: pieces of output that the kernel sends.
        displays: displays and values of last expressions.
    """

    bytes: int
    messages: int = 100_000
    displays: int = 200
