"""CellUsage: what a kernel used before a cell and after it, as the host reads it."""

from __future__ import annotations

from orchestrator.container.usage import Usage
from orchestrator.kernel.kernel import Kernel


class CellUsage:
    """One cell's readings. Make it before the cell is sent.

    Attributes:
        before, after: the readings; None where the host has none.
        killed_before: processes of earlier cells that ran out of memory, and that no result has reported.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.before = kernel.usage()
        self.after: Usage | None = None
        self.killed_before = 0 if self.before is None else self.before.oom_kills - kernel.oom_kills_reported
        kernel.reset_peak()

    def measure(self) -> None:
        """Read it again. A reading that fails leaves the last one."""
        self.after = self._kernel.usage() or self.after
        if self.after is not None:
            self._kernel.oom_kills_reported = self.after.oom_kills
