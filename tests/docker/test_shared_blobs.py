"""Two hosts with data folders of their own share a database and a store: one wakes what the other has put to sleep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.conftest import REPOSITORY
from tests.objectserver import object_server

_PROGRAM = """
import asyncio, json, sys
from orchestrator import AgentKernelManager
from orchestrator.store.history import History

async def sleep():
    async with AgentKernelManager(max_kernels=1) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_, session):
            await manager.execute_code(session, "state = 'of the first host'; open('file', 'w').write('kept')")
            result = await manager.execute_code(session, "print('large ' * 100_000)")
            assert result["status"] == "ok", result
        assert await manager.hibernate("agent")
        store = session.store
        [checkpoint] = await store.run(History.checkpoints_of, session.session_id)
        return {"session": session.session_id, "checkpoint": checkpoint.checkpoint_id, "bytes": checkpoint.bytes}

async def wake(first):
    async with AgentKernelManager(max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_, session):
            restored = await manager.restore(session, first["checkpoint"])
            result = await manager.execute_code(session, "state + ', ' + open('file').read()")
            store = session.store
            cells = await store.run_beside(History.cells, first["session"])
            await manager.apply_retention()
            return {"value": result["result"], "lost": len(restored.lost), "stdout": len(cells[1].result["stdout"])}

work = sleep() if len(sys.argv) == 1 else wake(json.loads(sys.argv[1]))
print(json.dumps(asyncio.run(work)))
"""


@pytest.fixture(params=["database", "s3"])
def shared(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[dict[str, str]]:
    """Return the settings that two hosts have in common."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    settings = {"CELLBLOCK_STORE_URL": postgres_url, "CELLBLOCK_WARM_KERNELS": "0"}
    if request.param == "database":
        yield settings | {"CELLBLOCK_BLOBS": "database"}
    else:
        with object_server() as server:
            server.make_bucket("cluster")
            yield settings | server.variables | {"CELLBLOCK_BLOBS": "s3://cluster/blobs"}


class Host:
    """A host with folders of its own, which no other host reads."""

    def __init__(self, folder: Path, state: Path, runtime: str, shared: dict[str, str]) -> None:
        for each in (folder, state):
            each.mkdir(mode=0o700)
        own = {"CELLBLOCK_DATA_DIR": str(folder), "CELLBLOCK_STATE_DIR": str(state), "CELLBLOCK_RUNTIME": runtime}
        self.folder = folder
        self.environment = os.environ | shared | own

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments],
            cwd=REPOSITORY, env=self.environment | more, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip


@pytest.mark.one_runtime
def test_a_host_reads_what_another_has_put_to_sleep(
    runtime: str, shared: dict[str, str], state: Path, tmp_path: Path
) -> None:
    """Its checkpoint with variables and files, and its large output; neither data folder has any of them.

    A host with a key of its own is refused at its start.
    """
    one, two = (Host(tmp_path / name, state / name, runtime, shared) for name in ("one", "two"))
    first = _printed(one.run())
    assert _files_of(one.folder) == set()
    second = _printed(two.run(json.dumps(first)))
    assert second == {"value": "'of the first host, kept'", "lost": 0, "stdout": 600_001}
    assert _files_of(two.folder) == set()
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    refused = two.run(json.dumps(first), CELLBLOCK_CLUSTER_KEY_FILE=str(key))
    assert "sign checkpoints with another key" in refused.stderr


def _printed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def _files_of(folder: Path) -> set[Path]:
    """Return the checkpoints and outputs of a data folder."""
    return {file for name in ("checkpoints", "payloads") for file in (folder / name).rglob("*") if file.is_file()}
