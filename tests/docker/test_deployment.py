"""The parts of docs/tasks/deployment.md that a test can execute: health check, backup, restore."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, make_manager

SCRIPTS = REPOSITORY / "examples" / "deployment"


async def script(name: str, *arguments: str, **environment: str) -> int:
    """Run a script of the page, with this environment's `cellblock`, and return its exit status."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        str(SCRIPTS / name),
        *arguments,
        env=os.environ | {"PATH": path} | environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await asyncio.wait_for(process.wait(), 120)


async def test_a_restored_backup_wakes_sessions(runtime: str, tmp_path: Path, state: Path) -> None:
    """After a stop, a backup, the loss of the folder and a restore, the agent has its variables and files."""
    data, archive = tmp_path / "data", tmp_path / "backup.tar.gz"
    settings: dict[str, Any] = {"data_dir": str(data), "state_dir": str(state)}
    async with make_manager(runtime, **settings) as manager:
        async with manager.acquire_kernel("agent", timeout=120) as (_kernel, session):
            await manager.execute(session, "x = 41\nopen('f.txt', 'w').write('kept')")
            await manager.checkpoint(session)
        assert await script("health.sh", CELLBLOCK_STATE_DIR=str(state)) == 0
    assert await script("health.sh", CELLBLOCK_STATE_DIR=str(state)) == 1
    assert await script("backup.sh", str(data), str(archive)) == 0
    assert archive.stat().st_mode & 0o077 == 0
    assert await script("restore.sh", str(archive), str(data)) == 1  # never over a folder that is in use
    shutil.rmtree(data)
    assert await script("restore.sh", str(archive), str(data)) == 0
    async with (
        make_manager(runtime, **settings) as manager,
        manager.acquire_kernel("agent", timeout=120) as (_kernel, session),
    ):
        result = await manager.execute(session, "(x + 1, open('f.txt').read())")
    assert result.result == "(42, 'kept')"
