"""Servers of the tests' own: real processes, on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager
from orchestrator.remote.remotemanager import RemoteKernelManager
from orchestrator.remote.remotesession import RemoteSession

_STARTING = 60.0  # seconds
_ENDING = 60.0


@dataclass
class Server:
    """A running `cellblock serve`.

    Attributes:
        url: where it listens.
        environment: what it, and commands beside it, run with.
        log: the file of its standard error.
    """

    url: str
    process: subprocess.Popen[str]
    environment: Mapping[str, str]
    log: Path

    def command(self, *arguments: str) -> str:
        """Run `cellblock` on the server's data, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.entry", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, name: str, *options: str) -> str:
        """Make a token."""
        return self.command("token", "create", name, *options).strip().splitlines()[-1]

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.terminate()
        return self.process.wait(_ENDING)


@contextlib.contextmanager
def serving(
    folder: Path,
    *options: str,
    runtime: str = "runc",
    tokens: int = 0,
    module: str = "orchestrator.cli.entry",
    **settings: str,
) -> Iterator[Server]:
    """Run a server with its data below ``folder``, until the block ends.

    Args:
        module: what is run in place of `cellblock`.
    """
    environment = {
        **os.environ,
        "CELLBLOCK_DATA_DIR": str(folder / "data"),
        "CELLBLOCK_AUDIT_LOG": str(folder / "audit.jsonl"),
        "CELLBLOCK_RUNTIME": runtime,
        **settings,
    }
    if tokens:
        first = Server("", None, environment, folder / "log")  # type: ignore[arg-type] # only to run a command
        first.token("first")
    log = folder / "log"
    command = [sys.executable, "-m", module, "serve", "--port", "0", *options]
    with log.open("a") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield Server(_address(process, log), process, environment, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + _STARTING
    while time.monotonic() < deadline and (line := process.stdout.readline()):
        if found := re.match(r"serving on (\S+)", line):
            return found[1]
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without tokens, for all tests of a module. Under runc: what it adds does not know the runtime."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(server: Server) -> AsyncIterator[RemoteKernelManager]:
    """The manager of the server: what tests that are written for any manager get here."""
    async with AgentKernelManager.connect(server.url) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: RemoteKernelManager) -> AsyncIterator[RemoteSession]:
    """A session with an empty working directory."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.run_command(session, "chmod -R u+rwX . ; find /work -mindepth 1 -delete")
        yield session
