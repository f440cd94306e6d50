"""Upkeep: finds the ready kernels that no longer answer, or are too old, and has them replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from orchestrator.errors import KernelDiedError
from orchestrator.kernel.kernel import Kernel
from orchestrator.policy.sections import Pool
from orchestrator.pool.kernelresource import KernelResource

_log = logging.getLogger(__name__)
_ANSWER = 5.0  # seconds in which a ready kernel must answer


class Upkeep:
    """Looks after kernels that are ready and not leased.

    Args:
        rules: how old a ready kernel may become, and how often it must answer.
        replace: ends a kernel that has no agent, in the background; called with the reason, "silent" or "age".
    """

    def __init__(self, rules: Pool, replace: Callable[[KernelResource, str], None]) -> None:
        self._rules = rules
        self._replace = replace
        self._checking: set[asyncio.Task[None]] = set()

    def check_due(self, ready: Iterable[KernelResource]) -> None:
        """Ask each kernel that last answered more than ``check_every_s`` ago whether it still does."""
        now = time.monotonic()
        for resource in ready:
            if resource.kernel is not None and now - resource.checked >= self._rules.check_every_s:
                resource.checked = now
                task = asyncio.get_running_loop().create_task(self._check(resource, resource.kernel))
                self._checking.add(task)
                task.add_done_callback(self._checking.discard)

    def stale(self, ready: Iterable[KernelResource]) -> list[KernelResource]:
        """Return the kernels that are too old, the oldest first."""
        oldest = time.monotonic() - self._rules.max_age_s
        return [resource for resource in ready if resource.kernel is not None and resource.begun < oldest]

    def retire(self, stale: list[KernelResource], surplus: int) -> None:
        """Replace as many stale kernels as there are ready kernels above the target."""
        for resource in stale[: max(surplus, 0)]:
            self._replace(resource, "age")

    async def close(self) -> None:
        """Cancel the checks."""
        for task in self._checking:
            task.cancel()
        await asyncio.gather(*self._checking, return_exceptions=True)

    async def _check(self, resource: KernelResource, kernel: Kernel) -> None:
        """Ask the kernel's main thread: its control thread answers even when the main thread hangs."""
        try:
            await kernel.request("shell", "kernel_info_request", {}, timeout=_ANSWER)
        except KernelDiedError:
            return  # the pool hears of it through `on_lost`
        except TimeoutError:
            if resource.is_available and not resource.is_shutting_down:  # a leased kernel may be busy with a cell
                _log.warning("kernel %s did not answer while it was ready; it is replaced", resource.kernel_id)
                self._replace(resource, "silent")
