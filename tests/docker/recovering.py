"""A program with sessions of its own, to be ended in the middle of its work."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from tests.conftest import REPOSITORY

_PROGRAM = """
import asyncio, contextlib
from orchestrator import AgentKernelManager

async def main():
    async with AgentKernelManager(max_kernels=4) as manager, contextlib.AsyncExitStack() as held:
        sessions = {}
        for agent in ("idle", "kept", "busy"):
            _, sessions[agent] = await held.enter_async_context(manager.acquire_kernel("PREFIX" + agent))
            await manager.execute_code(sessions[agent], f"name = {agent!r}; open('file', 'w').write(name)")
        await manager.checkpoint(sessions["kept"])
        await manager.execute_code(sessions["kept"], "numbers = (n for n in range(9)); next(numbers)")
        print("ready", flush=True)
        await manager.execute_code(sessions["busy"], BUSY)

asyncio.run(main())
"""
HEEDS = "import time\nturns = 0\nwhile True:\n    turns += 1\n    time.sleep(0.01)"
DEAF = """
import time
while True:
    try:
        time.sleep(0.1)
    except KeyboardInterrupt:
        pass
"""


@contextlib.contextmanager
def program(runtime: str, busy: str = HEEDS, prefix: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start the program, in the test's own data folder, and wait until its last cell is about to run.

    Args:
        prefix: of its agents' ids. Two live programs in one data folder need agents of their own.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.replace("BUSY", repr(busy)).replace("PREFIX", prefix)],
        cwd=REPOSITORY,
        env=os.environ | {"CELLBLOCK_RUNTIME": runtime},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
