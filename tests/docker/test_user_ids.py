"""User ids: no two live containers of one engine have the same, whoever started them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator.container.hostconfig import USER_LABEL
from orchestrator.container.lease import UserId
from orchestrator.errors import KernelStartError, UserIdTakenError
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings
from tests.conftest import make_manager

BASE = 310_000  # beyond every other test's range


@pytest.fixture
def strangers() -> Iterator[list[str]]:
    """A container that somebody else created with the first id; this process knows nothing of it."""
    client = docker.from_env()
    labels = {USER_LABEL: str(BASE)}
    container = client.containers.create(
        Recipe.of(Settings.load(), Image()).name, ["true"], labels=labels, network_mode="none"
    )
    try:
        yield [str(container.name)]
    finally:
        container.remove(force=True)
        client.close()


async def uid_of(runtime: str, count: int) -> int:
    manager = make_manager(runtime, max_kernels=1, uid_base=BASE, uid_count=count)
    async with manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        return int((await manager.execute_code(session, "import os; os.getuid()"))["result"])


async def test_an_id_that_anothers_container_has_is_not_given(runtime: str, strangers: list[str]) -> None:
    """Of two ids one is taken, by a container of which no lease tells: it is always the other."""
    assert [await uid_of(runtime, 2) for _ in range(3)] == [BASE + 1] * 3


async def test_a_kernel_that_can_have_no_id_is_a_typed_error(runtime: str, strangers: list[str]) -> None:
    with pytest.raises(KernelStartError) as caught:
        await uid_of(runtime, 1)
    assert isinstance(caught.value, UserIdTakenError) or "user ids" in caught.value.message
    client = docker.from_env()
    try:
        left = await asyncio.to_thread(client.containers.list, all=True, filters={"label": f"{USER_LABEL}={BASE}"})
        assert [container.name for container in left] == strangers
    finally:
        client.close()


def test_an_id_that_another_process_has_taken_is_not_given(tmp_path: Path) -> None:
    """Leases are seen by every process with the same state folder, and end with theirs."""
    program = (
        "import pathlib, sys\nfrom orchestrator.container.lease import UserId\n"
        f"user = UserId.take(pathlib.Path(sys.argv[1]), {BASE}, 1)\nprint('taken', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        for _ in range(20):
            mine = UserId.take(tmp_path, BASE, 3)
            mine.release()
            assert mine.uid in (BASE + 1, BASE + 2)
        with pytest.raises(KernelStartError):
            UserId.take(tmp_path, BASE, 1)
        other.kill()
    UserId.take(tmp_path, BASE, 1).release()
