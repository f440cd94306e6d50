"""``inspect_ai.util._sandbox.self_check``, unmodified, over a sandbox environment of a few lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
)
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from orchestrator import AgentKernelManager, KernelSession
from tests.conformance.bindings import RUNTIMES, builtin_errors, one_session

# What needs root, or another user than the sandbox's.
UNSUPPORTED = {
    "test_exec_as_user": "a sandbox has one user",
}


class CellblockSandbox(SandboxEnvironment):
    """One session as inspect's sandbox."""

    def __init__(self, manager: AgentKernelManager, session: KernelSession) -> None:
        self._manager, self._session = manager, session

    async def exec(
        self, cmd: list[str], input: Any = None, cwd: Any = None, env: Any = None, user: Any = None,
        timeout: Any = None, timeout_retry: bool = True, concurrency: bool = True,
    ) -> ExecResult[str]:  # fmt: skip
        if user is not None:
            raise SandboxUserUnsupportedError("a sandbox has one user")
        result = await self._manager.run_command(
            self._session, cmd, stdin=input or b"", cwd=cwd or "", env=env, timeout=timeout
        )
        if result.timed_out:
            raise TimeoutError
        if result.exit_code == 126 and "Permission denied" in result.stderr_text:
            raise PermissionError(result.stderr_text)
        return ExecResult(result.ok, result.exit_code or 0, result.stdout.decode(), result.stderr.decode())

    async def write_file(self, file: str, contents: Any) -> None:
        with builtin_errors():
            await self._manager.write_file(self._session, file, contents)

    async def read_file(self, file: str, text: bool = True) -> Any:
        with builtin_errors():
            limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
            found = await self._manager.read_file(self._session, file, limit=2**31, length=limit + 1)
        if len(found) > limit:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return found.decode() if text else found

    @classmethod
    async def sample_cleanup(cls, task_name: str, config: Any, environments: Any, interrupted: bool) -> None:
        """Nothing to do: the session ends with its manager."""


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def sandbox_env(runtime: str, request: Any, tmp_path: Path) -> AsyncIterator[SandboxEnvironment]:
    if (reason := UNSUPPORTED.get(request.node.originalname)) is not None:
        request.node.add_marker(pytest.mark.xfail(reason=reason))
    async with one_session(runtime, tmp_path) as (manager, session):
        yield CellblockSandbox(manager, session)
