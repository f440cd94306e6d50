"""KernelResource: one place in the pool."""

from __future__ import annotations

import time
from typing import Self

from orchestrator.kernel.kernel import Kernel


class KernelResource:
    """One place in the pool, and the kernel that fills it.

    Attributes:
        kernel: None for a place without a kernel, as the reference's users make them.
        created_at, last_used_at: seconds since the epoch.
        begun: monotonic seconds of its creation.
        checked: monotonic seconds of its last sign of life.
        group: the group that is charged for it; None while it is not leased.
        served: whether an agent has had it; then it is discarded on release.
    """

    def __init__(self, kernel_id: str, kernel: Kernel | None = None) -> None:
        self.kernel_id = kernel_id
        self.kernel = kernel
        self.is_available = True
        self.is_shutting_down = False
        self.served = False
        self.created_at = time.time()
        self.begun = self.checked = time.monotonic()
        self.group: str | None = None
        self.last_used_at: float | None = None

    def acquire(self) -> None:
        """Lease it.

        Raises:
            RuntimeError: it is leased, or being shut down.
        """
        if not self.is_available or self.is_shutting_down:
            raise RuntimeError("Kernel is not available")
        self.is_available = False
        self.last_used_at = time.time()

    def release(self) -> None:
        """Give it back.

        Raises:
            RuntimeError: it is not leased.
        """
        if self.is_available:
            raise RuntimeError("Kernel is already available")
        self.is_available = True
        self.last_used_at = time.time()

    async def __aenter__(self) -> Self:
        self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
