"""Waiting for something of a kernel that may die meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from orchestrator.kernel.kernel import Kernel
from orchestrator.outcome import Outcome


@contextlib.contextmanager
def failing_when_lost(kernel: Kernel, future: asyncio.Future[Any]) -> Iterator[None]:
    """While the context is open, fail ``future`` with KernelDiedError as soon as the kernel is lost."""

    def fail() -> None:
        if not future.done():
            future.set_exception(kernel.died_error(Outcome.KERNEL_DIED))

    undo = kernel.on_lost(fail)
    try:
        yield
    finally:
        undo()
