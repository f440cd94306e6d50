"""``pydantic_ai.workspaces.conformance.WorkspaceBackendSuite``, unmodified, over a backend of a few lines."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.workspaces import CommandResult, FileEntry, WorkspaceRef
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite
from pydantic_ai.workspaces.protocol import WorkspaceTimeoutError, WorkspaceUnavailableError, validate_timeout

from orchestrator import AgentKernelManager, FileInfo, KernelDiedError, KernelSession, SessionEndedError
from tests.conformance.bindings import RUNTIMES, builtin_errors, one_session


class CellblockBackend:
    """One agent's session as pydantic's workspace: a new one, or that of a ref."""

    def __init__(self, manager: AgentKernelManager, ref: WorkspaceRef | None = None) -> None:
        self._manager = manager
        self._agent = secrets.token_hex(8) if ref is None else ref.id
        self._attaches = ref is not None
        self._lock = asyncio.Lock()
        self.ref = ref

    async def _session(self) -> KernelSession:
        async with self._lock:
            if self._attaches and self._agent not in self._manager.sessions:
                raise WorkspaceUnavailableError("the session has ended")
            async with self._manager.acquire_kernel(self._agent, timeout=60) as (_, session):
                self.ref, self._attaches = WorkspaceRef(provider="cellblock", id=self._agent), True
                return session

    async def destroy(self) -> None:
        await self._manager.end_session(self._agent)

    async def working_dir(self) -> str:
        await self._session()
        return "/work"

    async def realpath(self, path: str) -> str:
        found: str = (await self.run(["realpath", "-m", path])).stdout
        return found.rstrip("\n")

    async def run(self, command: Any, *, shell: bool = False, env: Any = None, timeout: float | None = None) -> Any:
        validate_timeout(timeout)
        if isinstance(command, str) != shell:
            raise TypeError("a string needs shell=True, and arguments do not")
        try:
            result = await self._manager.run_command(await self._session(), command, env=env, timeout=timeout)
        except (KernelDiedError, SessionEndedError) as error:
            raise WorkspaceUnavailableError(str(error)) from error
        out, err = result.stdout_text, result.stderr_text
        if result.timed_out:
            raise WorkspaceTimeoutError("the command timed out", stdout=out, stderr=err)
        if result.exit_code is None:
            raise WorkspaceUnavailableError(f"the command ended as {result.outcome}")
        return CommandResult(exit_code=result.exit_code, stdout=out, stderr=err)

    async def read_bytes(self, path: str) -> bytes:
        with builtin_errors():
            return await self._manager.read_file(await self._session(), path)

    async def write_bytes(self, path: str, data: bytes) -> None:
        with builtin_errors():
            await self._manager.write_file(await self._session(), path, data)

    async def _entry(self, info: FileInfo) -> FileEntry:
        found = info
        if info.kind == "link":
            try:
                found = await self._manager.stat_file(await self._session(), info.path, follow_links=True)
            except OSError:
                found = info
        size = found.size if found.kind == "file" else None
        return FileEntry(name=info.name, path=info.path, is_dir=found.is_dir, size=size)

    async def stat(self, path: str) -> FileEntry:
        with builtin_errors():
            return await self._entry(await self._manager.stat_file(await self._session(), path))

    async def list_dir(self, path: str) -> list[FileEntry]:
        with builtin_errors():
            return [await self._entry(info) for info in await self._manager.list_files(await self._session(), path)]

    async def make_dir(self, path: str) -> None:
        with builtin_errors():
            await self._manager.make_dir(await self._session(), path)

    async def remove(self, path: str) -> None:
        if path in ("/", "/work"):
            raise ValueError(f"{path} is the working directory, or above it")
        with builtin_errors():
            await self._manager.remove(await self._session(), path, recursive=True)

    async def exists(self, path: str) -> bool:
        with builtin_errors():
            return await self._manager.exists(await self._session(), path)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestCellblock(WorkspaceBackendSuite):
    """The suite, once under each runtime."""

    @pytest.fixture
    async def manager(self, runtime: str, tmp_path: Path) -> AsyncIterator[AgentKernelManager]:
        async with one_session(runtime, tmp_path) as (manager, _):
            yield manager

    @pytest.fixture
    async def backend(self, manager: AgentKernelManager) -> Any:
        return CellblockBackend(manager)

    @pytest.fixture
    def fresh_backend(self, manager: AgentKernelManager) -> Any:
        return lambda: CellblockBackend(manager)

    @pytest.fixture
    def attach_backend(self, manager: AgentKernelManager) -> Any:
        return lambda ref: CellblockBackend(manager, ref)

    @pytest.fixture
    def destroy_environment(self) -> Any:
        return CellblockBackend.destroy
