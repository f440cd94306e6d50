"""The sessions' disk is full, of bytes or of inodes: errors are reported, nothing is torn, and work resumes with space.

Most tests run under one runtime: only the handling of an aborted checkpoint in the kernel depends on the runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from orchestrator import AgentKernelManager, KernelPoolExhaustedError, KernelResourceLimits, KernelSession
from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.errors import FileTransferError, KernelStartError, ManagerClosedError, SettingsError, StoreError
from orchestrator.settings import Settings
from orchestrator.store import auditreading
from orchestrator.store.history import CellRecord, History
from tests.conftest import REPOSITORY, make_manager, one_session
from tests.docker.recovering import program
from tests.faults.smalldisk import Kind, SmallDisk, small_disk

LARGE = "print('x' * 200_000)"  # its output gets its own file
BALLAST = "import os; ballast = os.urandom(3 * 2**20)"  # a state that needs space
MOST_CELLS = 200  # a full disk may still take this many, in blocks that the database already has
FILES = 16  # files to send: more audit entries than fit in the log's last block
EXACT_STEPS = 24  # blocks that are freed one by one

both_kinds = pytest.mark.parametrize("kind", ["bytes", "inodes"])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """Mount a small disk for the data folder and the audit log."""
    with small_disk() as made:
        monkeypatch.setenv("CELLBLOCK_DATA_DIR", str(made.folder / "data"))
        monkeypatch.setenv("CELLBLOCK_AUDIT_LOG", str(made.folder / "audit.jsonl"))
        yield made


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a state folder on another disk."""
    folder = tmp_path_factory.mktemp("s")
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(folder))
    return folder


def containers(instance: str = "") -> list[str]:
    """Return the names of the containers of one instance."""
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
        return [container["Names"][0] for container in found]
    finally:
        client.close()


def cells_of(session_id: str) -> list[CellRecord]:
    settings = Settings.load()
    history = History.open(settings.history_url, settings.data_path)
    try:
        return history.cells(session_id)
    finally:
        history.close()


def assert_whole(disk: SmallDisk) -> None:
    """Check that no file, database page or log line on the disk is partly written."""
    assert not [name for name in disk.files() if name.endswith((".part", ".new"))]
    if (disk.folder / "data" / "history.db").exists():
        with contextlib.closing(sqlite3.connect(disk.folder / "data" / "history.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    verdict = auditreading.verify(disk.folder / "audit.jsonl")
    assert verdict.fault is None
    assert not [note for note in verdict.notes if "killed writer" in note]


def assert_checkpoints_are_noted(disk: SmallDisk) -> None:
    """Check that every checkpoint file has its row, and every row its file."""
    with contextlib.closing(sqlite3.connect(disk.folder / "data" / "history.db")) as database:
        noted = {row[0] for row in database.execute("SELECT checkpoint_id FROM checkpoints")}
    assert {file.name for file in (disk.folder / "data" / "checkpoints").iterdir()} == noted


def assert_gaps_are_told(disk: SmallDisk, session_id: str, cells: int, kind: Kind) -> None:
    """Check that each cell's start and end, and each file, is in the log once or was counted as dropped."""
    entries = list(auditreading.read(disk.folder / "audit.jsonl"))
    noted = [
        (entry["event"], entry["cell"])
        for entry in entries
        if entry.get("session") == session_id and entry["event"] in ("cell.started", "cell.ended")
    ]
    assert len(noted) == len(set(noted))
    files = sum(entry["event"] == "file.in" for entry in entries)
    dropped = sum(entry.get("dropped_before", 0) for entry in entries)
    assert 2 * cells - len(noted) + FILES - files <= dropped
    assert (files < FILES) == (kind == "bytes")


class Told:
    """Runs cells that count themselves, and keeps the result of each."""

    def __init__(self, manager: AgentKernelManager, session: KernelSession) -> None:
        self._manager = manager
        self._session = session
        self.ran = 0
        self.results: dict[int, dict[str, Any]] = {}

    async def cell(self, code: str = "") -> StoreError | None:
        """Run one cell; return the error if it did not run or its result could not be stored."""
        try:
            result = await self._manager.execute_code(self._session, f"ran += 1\n{code}")
        except StoreError as error:
            if error.result is not None:
                self._note(error.result.as_dict())
            return error
        self._note(result)
        return None

    def _note(self, result: dict[str, Any]) -> None:
        assert result["status"] == "ok", result
        self.ran += 1
        self.results[self._session.cell_count] = result


async def count(manager: AgentKernelManager, session: KernelSession) -> int:
    result = await manager.execute_code(session, "ran")
    assert result["status"] == "ok", result
    return int(result["result"])


@pytest.mark.one_runtime
async def test_a_session_outlasts_a_full_disk(disk: SmallDisk, runtime: str) -> None:
    """Each call reports what it could not store, stored data is intact, and the rest is stored once there is space."""
    await outlast(disk, runtime, "bytes")


async def test_a_session_outlasts_a_disk_without_inodes(disk: SmallDisk) -> None:
    """Without inodes only operations that need a new file fail."""
    await outlast(disk, "runc", "inodes")


async def outlast(disk: SmallDisk, runtime: str, kind: Kind) -> None:
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute_code(session, f"ran = 0; {BALLAST}")
            told = Told(manager, session)
            assert await told.cell() is None
            disk.fill(kind)
            error = await told.cell(LARGE)
            assert error is not None
            assert "room" in error.remedy
            for _ in range(MOST_CELLS if kind == "bytes" else 3):
                if await told.cell() is not None:
                    break
            before = disk.files()
            with pytest.raises(StoreError, match="room"):
                await manager.checkpoint(session)
            with pytest.raises(StoreError, match="room"):
                await manager.fork(session, 2)
            with pytest.raises(StoreError, match="room"):
                manager.save_checkpoint(session, disk.folder / "saved.json")
            with pytest.raises(StoreError, match="room"):
                manager.save_session_as_notebook(session, disk.folder / "saved.ipynb")
            for _ in range(FILES):
                await manager.put_file(session, b"x" * 100_000, "file")
            with pytest.raises(FileTransferError, match="No space left"):
                await manager.get_file(session, "file", disk.folder / "file")
            exported = await asyncio.to_thread(export, session, disk.folder / "exported.ipynb")
            assert exported.returncode == 1
            assert "room" in " ".join(exported.stderr.split())
            with contextlib.suppress(StoreError):  # a row or two may fit into free space in the database
                async with manager.acquire_kernel("other", timeout=60):
                    pass
            assert disk.files() <= before | {"data/history.db-wal", "data/history.db-shm"}
            assert_whole(disk)
            assert_checkpoints_are_noted(disk)
        with contextlib.suppress(StoreError):
            await manager.end_session("other")
        assert not await manager.hibernate("agent")
        assert_checkpoints_are_noted(disk)

        disk.make_room()
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, again):
            assert again is session
            assert session.restored is None
            assert await count(manager, session) == told.ran
            assert await told.cell(LARGE) is None
            assert (await manager.checkpoint(session)).complete
            forks = await manager.fork(session, 2)
            assert [fork.agent_id for fork in forks] == ["agent~1", "agent~2"]
            assert await count(manager, forks[1]) == told.ran
        assert manager.pool.counts()["leased"] <= 2
    kept = {cell.number: cell for cell in cells_of(session.session_id)}
    assert not [cell for cell in kept.values() if cell.outcome == "running"]
    assert {number: kept[number].result for number in told.results} == told.results
    assert_whole(disk)
    assert_gaps_are_told(disk, session.session_id, len(kept), kind)


def export(session: KernelSession, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli.app",
        "sessions",
        "export",
        session.session_id,
        "--out",
        str(out),
    ]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


async def test_checkpoints_and_forks_are_noted_or_gone(disk: SmallDisk) -> None:
    """While space returns block by block, no file lacks its row, and forks are created all or none."""
    async with one_session("runc") as (manager, session):
        await manager.execute_code(session, "ran = 6")
        for make in (manager.checkpoint, functools.partial(manager.fork, count=3)):
            disk.fill("bytes")
            told = Told(manager, session)
            for _ in range(MOST_CELLS):
                if await told.cell() is not None:
                    break
            before, refused = sessions_in(disk), 0
            while await is_refused(make(session)):
                assert_checkpoints_are_noted(disk)
                assert sessions_in(disk) == before
                refused += 1
                disk.give("bytes", 1 + refused // 2)  # rows that an attempt writes stay in the database
            assert refused > 2
            disk.make_room()
        assert sessions_in(disk) == before + 3
    assert_checkpoints_are_noted(disk)
    assert_whole(disk)


async def is_refused(work: Awaitable[object]) -> bool:
    """Return whether the call fails with a StoreError."""
    try:
        await work
    except StoreError:
        return True
    return False


def sessions_in(disk: SmallDisk) -> int:
    with contextlib.closing(sqlite3.connect(disk.folder / "data" / "history.db")) as database:
        return int(database.execute("SELECT count(*) FROM sessions").fetchone()[0])


async def test_a_session_that_cannot_sleep_stays_awake(disk: SmallDisk) -> None:
    """A kernel whose state cannot be written is not taken for idleness or for another agent until there is space."""
    limits = KernelResourceLimits(idle_timeout_seconds=1)
    async with make_manager("runc", max_kernels=1, limits=limits) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute_code(session, f"ran = 7; {BALLAST}")
            disk.fill("bytes")
        await asyncio.sleep(2)
        with pytest.raises(KernelPoolExhaustedError):
            async with manager.acquire_kernel("other", timeout=2):
                pass
        assert manager.sessions["agent"] is session
        assert not session.asleep
        assert_whole(disk)
        assert_checkpoints_are_noted(disk)
        disk.make_room()
        async with asyncio.timeout(30):
            while not session.asleep:
                await asyncio.sleep(0.1)
            async with manager.acquire_kernel("other"):
                pass
        assert await count(manager, session) == 7
        assert len(session.notices) == len(set(session.notices))


async def test_a_kernel_that_dies_on_a_full_disk_frees_its_place(disk: SmallDisk) -> None:
    """The session is refused without holding a place, and wakes from its checkpoint once there is space."""
    async with make_manager("runc", max_kernels=1) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute_code(session, "ran = 5")
            await manager.checkpoint(session)
            disk.fill("bytes")
            told = Told(manager, session)
            for _ in range(MOST_CELLS):
                if await told.cell() is not None:
                    break
            os.kill(pid_of(session), signal.SIGKILL)
            async with asyncio.timeout(10):
                while session.kernel is not None and session.kernel.is_alive:
                    await asyncio.sleep(0.05)
        for _ in range(2):
            with pytest.raises(StoreError):
                async with manager.acquire_kernel("agent", timeout=60):
                    pass
        async with asyncio.timeout(10):
            while manager.pool.counts()["leased"]:
                await asyncio.sleep(0.1)
        disk.make_room()
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, again):
            assert again.session_id == session.session_id
            assert again.restored is not None
            assert await count(manager, again) == 5
        assert len(manager.pool.kernels) == 1
    assert_whole(disk)


def pid_of(session: KernelSession) -> int:
    client = docker.from_env()
    try:
        name = session.live_kernel().container_name
        return int(client.api.inspect_container(name)["State"]["Pid"])
    finally:
        client.close()


async def test_waking_takes_up_where_the_disk_let_it(disk: SmallDisk) -> None:
    """While space returns block by block, each wake succeeds or fails as a whole, and the session is never lost."""
    async with make_manager("runc", max_kernels=1, warm=1) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute_code(session, "ran = 3")
        assert await manager.hibernate("agent")
        disk.fill("bytes")
        refused = 0
        for _ in range(EXACT_STEPS):
            try:
                async with manager.acquire_kernel("agent", timeout=60) as (_kernel, again):
                    assert again.session_id == session.session_id
                    break
            except StoreError:
                refused += 1
                disk.give("bytes", 1)
        assert refused >= 1
        disk.make_room()
        assert await count(manager, session) == 3
    assert_whole(disk)


async def test_restoring_leaves_the_session_as_it_was(disk: SmallDisk) -> None:
    """A restore that cannot be recorded changes nothing, and its kernel is released."""
    async with one_session("runc", max_kernels=2) as (manager, session):
        await manager.execute_code(session, "ran = 1")
        made = await manager.checkpoint(session)
        await manager.execute_code(session, "ran = 2")
        disk.fill("bytes")
        told = Told(manager, session)
        for _ in range(MOST_CELLS):
            if await told.cell() is not None:
                break
        with pytest.raises(StoreError):
            await manager.restore(session, made, timeout=60)
        async with asyncio.timeout(10):
            while len(manager.pool.kernels) > 1:
                await asyncio.sleep(0.1)
        disk.make_room()
        assert await count(manager, session) == 2 + told.ran
        await manager.restore(session, made, timeout=60)
        assert await count(manager, session) == 1
    assert_whole(disk)


async def test_shutting_down_on_a_full_disk(disk: SmallDisk) -> None:
    """The shutdown finishes without leftover containers, and the next process finds what was stored."""
    manager = make_manager("runc", max_kernels=2)
    async with manager.acquire_kernel("kept", timeout=60) as (_kernel, session):
        await manager.execute_code(session, f"ran = 4; {BALLAST}")
        await manager.checkpoint(session)
    async with manager.acquire_kernel("other", timeout=60) as (_kernel, other):
        await manager.execute_code(other, "1")
    instance = manager.instance_id
    disk.fill("bytes")
    async with asyncio.timeout(60):
        await manager.shutdown()
    assert containers(instance) == []
    assert_whole(disk)
    with pytest.raises(StoreError, match="room"):
        await make_manager("runc").start()
    disk.make_room()
    async with make_manager("runc") as manager, manager.acquire_kernel("kept", timeout=60) as (_kernel, again):
        assert again.session_id == session.session_id
        assert await count(manager, again) == 4
    assert_whole(disk)
    assert_checkpoints_are_noted(disk)


@pytest.mark.one_runtime
async def test_a_shutdown_that_keeps_sessions_leaves_to_their_kernels_what_it_cannot_write(
    disk: SmallDisk, state: Path, runtime: str
) -> None:
    """A session with an old checkpoint and one without any keep their kernels for the next start."""
    manager = make_manager(runtime, max_kernels=3, warm=1)
    for agent in ("kept", "other"):
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute_code(session, f"ran = 4; {BALLAST}")
            if agent == "kept":
                await manager.checkpoint(session)
            await manager.execute_code(session, "ran = 5; numbers = (n for n in range(9)); next(numbers)")
    instance = manager.instance_id
    left = {f"/cellblock-{session.kernel_id}" for session in manager.sessions.values()}
    disk.fill("bytes")
    async with asyncio.timeout(60):
        await manager.shutdown(keep_sessions=True)
    with pytest.raises(ManagerClosedError):
        await manager.execute_code(session, "ran")
    assert set(containers(instance)) == left
    assert_whole(disk)
    disk.make_room()
    async with make_manager(runtime, max_kernels=3) as manager:
        assert {f"/cellblock-{session.kernel_id}" for session in manager.sessions.values()} == left
        for agent in ("kept", "other"):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute_code(session, "ran, next(numbers)"))["result"] == "(5, 1)"
    assert containers(instance) == []
    assert not list(state.rglob("*"))
    assert_whole(disk)
    assert_checkpoints_are_noted(disk)


async def test_starting_on_a_full_disk_harms_nothing(disk: SmallDisk, state: Path) -> None:
    """A process that cannot adopt sessions for lack of space leaves their kernels running, and adopts them later."""
    with program("runc") as process:
        process.kill()
    disk.fill("bytes")
    manager = make_manager("runc", max_kernels=4)
    for _ in range(2):
        with pytest.raises(StoreError, match="room"):
            await manager.start()
    assert_whole(disk)
    disk.make_room()
    async with asyncio.timeout(60), manager:
        assert set(manager.sessions) == {"idle", "kept", "busy"}
        async with manager.acquire_kernel("kept") as (_kernel, session):
            assert (await manager.execute_code(session, "name, next(numbers)"))["result"] == "('kept', 1)"
    assert not list(state.rglob("*"))
    assert_whole(disk)


@pytest.mark.alone
async def test_a_start_takes_no_kernel_whose_state_cannot_be_written(
    disk: SmallDisk, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two of three sessions must hibernate; each start that fails for lack of space leaves them to the next start.

    The history is elsewhere: it would fail first, and leave no start that fails at a checkpoint.
    """
    monkeypatch.setenv("CELLBLOCK_STORE_URL", f"sqlite:///{tmp_path}/history.db")
    with program("runc") as process:
        process.kill()
    disk.fill("bytes")
    manager = make_manager("runc", max_kernels=1)
    adopted = 0
    for _ in range(10 * EXACT_STEPS):
        try:
            await manager.start()
            break
        except StoreError as error:
            adopted += "checkpoint" in error.message
            assert manager.sessions == {}
            disk.give("bytes", 2)
    assert adopted >= 1
    disk.make_room()
    async with asyncio.timeout(60), manager:
        for agent in ("idle", "kept", "busy"):
            async with manager.acquire_kernel(agent) as (_kernel, session):
                assert (await manager.execute_code(session, "name"))["result"] == repr(agent)
    assert not list(state.rglob("*"))
    assert_whole(disk)


@both_kinds
async def test_the_very_first_start(disk: SmallDisk, kind: Kind) -> None:
    """The first start on a full disk fails cleanly, and succeeds once there is space."""
    disk.fill(kind)
    manager = make_manager("runc")
    for _ in range(10 * EXACT_STEPS):
        try:
            await manager.start()
            break
        except StoreError:
            disk.give(kind, 1)
    disk.make_room()
    try:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
    finally:
        await manager.shutdown()
    assert_whole(disk)


async def test_a_full_state_folder(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without space for its sockets does not start, and its partial files are removed."""
    monkeypatch.setenv("CELLBLOCK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(disk.folder / "state"))
    monkeypatch.setenv("CELLBLOCK_AUDIT_LOG", "off")
    async with make_manager("runc", max_kernels=1) as manager:
        empty = disk.files()
        disk.fill("inodes")
        refused = 0
        for _ in range(EXACT_STEPS):
            error: KernelStartError | None = None
            try:
                async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                    assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
            except KernelStartError as caught:
                error = caught
            if error is None:
                break
            assert error.cause == "host"
            assert "No space left" in str(error)
            assert "CELLBLOCK_STATE_DIR" in error.remedy
            assert disk.files() == empty
            assert containers(manager.instance_id) == []
            refused += 1
            disk.give("inodes", 1)
        assert 5 < refused < EXACT_STEPS
        await manager.end_session("agent")
        disk.make_room()
        disk.fill("bytes")
        with pytest.raises(KernelStartError, match="No space left"):
            async with manager.acquire_kernel("agent", timeout=60):
                pass
        assert disk.files() == empty
    disk.make_room()
    disk.fill("inodes")
    for _ in range(3):  # its folder, its control socket
        with pytest.raises(SettingsError, match="No space left"):
            await make_manager("runc").start()
        assert disk.files() <= {"state"}
        disk.give("inodes", 1)
