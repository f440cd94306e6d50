"""What the suites' bindings share: a manager on each runtime, and errors as Python's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from orchestrator import AgentKernelManager, FileTransferError, KernelResourceLimits, KernelSession, Settings

RUNTIMES = os.environ.get("CELLBLOCK_CONFORMANCE_RUNTIMES", "runc runsc").split()
_KINDS: dict[str, type[OSError]] = {
    "missing": FileNotFoundError,
    "permission": PermissionError,
    "exists": FileExistsError,
    "is_folder": IsADirectoryError,
    "not_a_folder": NotADirectoryError,
}


@contextlib.contextmanager
def builtin_errors() -> Iterator[None]:
    """Raise Python's own error in place of a FileTransferError."""
    try:
        yield
    except FileTransferError as error:
        raise _KINDS.get(error.fault, OSError)(error.message) from error


@contextlib.asynccontextmanager
async def one_session(runtime: str, data: Path) -> AsyncIterator[tuple[AgentKernelManager, KernelSession]]:
    """Yield a manager with a folder of its own, and one session."""
    changes = {"runtime": runtime, "warm_kernels": 0, "data_dir": str(data), "audit_log": "off"}
    settings = Settings.load().model_copy(update=changes)
    limits = KernelResourceLimits(max_output_size_mb=20)
    async with (
        AgentKernelManager(max_kernels=3, settings=settings, resource_limits=limits) as manager,
        manager.acquire_kernel("a", timeout=60) as (_, session),
    ):
        yield manager, session
