"""What the data folder keeps: of one agent, up to its quota; of all, up to the size of the history."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from orchestrator import QuotaExceededError
from orchestrator.kernel.fakecell import FakeCell, printed
from orchestrator.limits import MIB
from orchestrator.output.events import ExecutionResult
from orchestrator.sessions.notebook import session_notebook
from orchestrator.sessions.retention import without_outputs
from orchestrator.store import shrinking
from orchestrator.store.blobs import FolderBlobs
from orchestrator.store.database import Database
from orchestrator.store.history import CheckpointRecord, Claim, History
from orchestrator.store.payloads import Payloads
from tests.conftest import make_manager
from tests.unit.sessionworld import World

QUOTA = 1_000_000  # bytes
OK = {"status": "ok", "outcome": "ok", "outputs": []}


@pytest.fixture
def history(url: str, tmp_path: Path) -> Iterator[History]:
    history = History.open(url, tmp_path, agent_quota=QUOTA)
    yield history
    history.close()


def begin(history: History, session: str, agent: str = "a") -> str:
    history.add_session(session, agent, owner=None, kernel_id="k", runtime="runc")
    return session


def run(history: History, session: str, number: int, output: str = "") -> None:
    history.begin_cell(Claim(session, 0), number, "1", "k")
    history.end_cell(Claim(session, 0), number, {**OK, "outputs": [{"text": output}]})


def saved(checkpoint: str, session: str, size: int, *, asked_for: bool) -> CheckpointRecord:
    return CheckpointRecord(checkpoint, session, 1.0, 0, asked_for, size, [])


def used(history: History, session: str) -> int:
    """Return what the agent of a session keeps, as a refused checkpoint of 10 MB says it."""
    with pytest.raises(QuotaExceededError) as caught:
        history.add_checkpoint(Claim(session, 0), saved("probe", session, 10 * QUOTA, asked_for=True))
    return caught.value.used_bytes


def test_a_cell_at_the_quota_is_refused_and_others_run(history: History) -> None:
    """Nothing of it is recorded, and the error says how much there is."""
    begin(history, "s1")
    begin(history, "other", "b")
    run(history, "s1", 1, "x" * (QUOTA + 1))
    with pytest.raises(QuotaExceededError, match="CELLBLOCK_AGENT_QUOTA_MB") as caught:
        history.begin_cell(Claim("s1", 0), 2, "2", "k")
    assert (caught.value.agent_id, caught.value.quota_bytes) == ("a", QUOTA)
    assert QUOTA < caught.value.used_bytes < QUOTA + 1000
    assert [cell.number for cell in history.cells("s1")] == [1]
    assert history.find("s1")[0].cells == 1
    run(history, "other", 1, "fine")


def test_the_total_is_that_of_all_its_rows(history: History) -> None:
    """Through cells, checkpoints, replaced and dropped checkpoints, forks and deletions."""
    begin(history, "s1")
    assert used(history, "s1") == 0
    run(history, "s1", 1, "x" * 100_000)
    run(history, "s1", 2, "x" * 100_000)  # stored once
    cells = history.find("s1")[0].bytes
    assert 100_000 < cells < 101_000
    assert used(history, "s1") == cells
    history.add_checkpoint(Claim("s1", 0), saved("c1", "s1", 1000, asked_for=False))
    history.add_checkpoint(Claim("s1", 0), saved("c2", "s1", 2000, asked_for=True))
    history.add_checkpoint(Claim("s1", 0), saved("c3", "s1", 3000, asked_for=False))
    assert used(history, "s1") == cells + 4000 + 1000
    assert history.drop_checkpoints(Claim("s1", 0)) == ["c3"]
    assert used(history, "s1") == cells + 2000
    begin(history, "s2")
    run(history, "s2", 1)
    more = history.find("s2")[0].bytes
    assert used(history, "s1") == cells + 2000 + more
    history.add_forks(Claim("s1", 0), [("f", saved("c4", "s3", 500, asked_for=False))], kernel_id="k", runtime="runc")
    assert used(history, "s3") == 500
    history.delete("s1")
    assert used(history, "s2") == more
    history.delete("s2")
    begin(history, "s4")
    assert used(history, "s4") == 0


def test_a_state_is_never_lost_for_a_quota(history: History) -> None:
    """A requested checkpoint is refused. One that lets a session sleep is not: it replaces the one before."""
    begin(history, "s1")
    history.add_checkpoint(Claim("s1", 0), saved("c1", "s1", QUOTA - 1, asked_for=True))
    history.check_quota("s1")
    history.add_checkpoint(Claim("s1", 0), saved("c2", "s1", 5 * QUOTA, asked_for=False))
    with pytest.raises(QuotaExceededError, match="no checkpoint was made"):
        history.check_quota("s1")
    history.add_checkpoint(Claim("s1", 0), saved("c3", "s1", 6 * QUOTA, asked_for=False))
    assert {record.checkpoint_id for record in history.checkpoints_of("s1")} == {"c1", "c3"}
    assert used(history, "s1") == 7 * QUOTA - 1 - 6 * QUOTA + 6 * QUOTA


def test_forks_beyond_a_quota_are_refused_together(history: History) -> None:
    begin(history, "s1")
    forks = [("f1", saved("c1", "s2", 10, asked_for=False)), ("f2", saved("c2", "s3", 2 * QUOTA, asked_for=False))]
    with pytest.raises(QuotaExceededError, match="'f2'"):
        history.add_forks(Claim("s1", 0), forks, kernel_id="k", runtime="runc")
    assert [record.session_id for record in history.sessions()] == ["s1"]


def test_code_counts_in_bytes(history: History) -> None:
    begin(history, "s1")
    history.begin_cell(Claim("s1", 0), 1, "\U0001f600" * 1000, "k")
    history.end_cell(Claim("s1", 0), 1, OK)
    assert history.find("s1")[0].bytes == history.total_bytes() == 4000 + len(json.dumps(OK))
    history.end_cell(Claim("s1", 0), 1, OK)
    assert history.cells("s1")[0].outcome == "ok"
    assert used(history, "s1") == history.find("s1")[0].bytes > 4000


def test_code_counts_that_ran_when_its_process_died(history: History) -> None:
    begin(history, "s1")
    history.begin_cell(Claim("s1", 0), 1, "x" * 1000, "k")
    history.end_running_cells(Claim("s1", 0), OK)
    history.end_running_cells(Claim("s1", 0), OK)
    assert history.find("s1")[0].bytes == history.total_bytes() == 1000


def test_an_earlier_database_counts_what_it_has(url: str, tmp_path: Path) -> None:
    """The total is made once, from the rows of schema 3."""
    history = History.open(url, tmp_path, agent_quota=QUOTA)
    for session in ("s1", "s2"):
        begin(history, session)
        run(history, session, 1, "x" * 1000)
    history.add_checkpoint(Claim("s1", 0), saved("c1", "s1", 7000, asked_for=True))
    before = used(history, "s1")
    history.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE agent_usage"))
        connection.execute(text("DROP TABLE home_usage"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 3"))
    engine.dispose()
    history = History.open(url, tmp_path, agent_quota=QUOTA)
    assert used(history, "s1") == before > 9000
    history.close()


async def test_an_agent_at_its_quota_sleeps_with_its_state_and_costs_no_other_a_kernel(tmp_path: Path) -> None:
    world = World(tmp_path, max_kernels=1, agent_quota=QUOTA)
    session = await world.acquire("a")
    world.kernel_of(session).cells["print"] = FakeCell([printed("x" * (QUOTA + 1))])
    await world.run(session, "print")
    world.kernel_of(session).state.data = b"newest"
    with pytest.raises(QuotaExceededError):
        await world.run(session, "1")
    with pytest.raises(QuotaExceededError):
        await world.checkpoint(session)
    other = await world.acquire("b")  # has the only kernel: a sleeps
    await world.run(other, "1")
    assert session.asleep
    await world.acquire("a")
    assert world.kernel_of(session).state.data == b"newest"
    await world.close()


@pytest.mark.one_runtime
async def test_a_quota_ends_with_a_deleted_session(runtime: str, data_folder: Path) -> None:
    """On a real kernel: the cell is refused at once, the kernel and its files stay, and the remedy helps."""
    async with make_manager(runtime, agent_quota_mb=1) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute(session, "x = 7; open('kept.txt', 'w').write('kept')")
            assert (await manager.execute(session, "print('y' * 1_100_000)")).outcome == "ok"
            with pytest.raises(QuotaExceededError) as caught:
                await manager.execute(session, "x")
            assert caught.value.quota_bytes == MIB < caught.value.used_bytes
            with pytest.raises(QuotaExceededError):
                await manager.checkpoint(session)
            await manager.get_file(session, "kept.txt", data_folder / "kept.txt")
            assert (data_folder / "kept.txt").read_text() == "kept"
        async with manager.acquire_kernel("neighbour", timeout=60) as (_kernel, neighbour):
            assert (await manager.execute(neighbour, "1 + 1")).result == "2"
        assert await manager.hibernate("agent")
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.restored is not None
        assert await manager.end_session("agent")
        history = History.open(manager.settings.history_url, data_folder)
        history.delete(session.session_id)
        history.close()
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert (await manager.execute(session, "6 * 7")).result == "42"


# Outputs of sessions that go on


def stored(folder: Path) -> int:
    """Return the bytes of the large outputs on the disk."""
    return sum(file.stat().st_size for file in (folder / "payloads").rglob("*") if file.is_file())


def swept(history: History, session: str) -> list[int]:
    return [cell.number for cell in history.cells(session) if "outputs_deleted" in cell.result]


def test_old_outputs_of_sessions_that_go_on_are_deleted_oldest_first(history: History, tmp_path: Path) -> None:
    """Of all sessions together; code, outcomes, checkpoints and each session's newest cell stay."""
    for session in ("s1", "s2"):
        begin(history, session, session)
    for number in range(1, 4):
        run(history, "s1", number, f"{number}" * 100_000)
        run(history, "s2", number, f"{number}" * 5000)  # in the row itself
    history.add_checkpoint(Claim("s1", 0), saved("c1", "s1", 1000, asked_for=False))
    before = used(history, "s1") + used(history, "s2")
    freed = history.sweep_outputs(before - 150_000, without_outputs)
    assert (swept(history, "s1"), swept(history, "s2")) == ([1, 2], [1])
    assert used(history, "s1") + used(history, "s2") == before - freed <= before - 150_000
    assert stored(tmp_path) == 100_000
    freed += history.sweep_outputs(1, without_outputs)
    assert (swept(history, "s1"), swept(history, "s2")) == ([1, 2], [1, 2])
    assert history.cells("s1")[2].result["outputs"] == [{"text": "3" * 100_000}]
    assert history.cells("s1")[0].code == "1"
    assert [record.checkpoint_id for record in history.checkpoints_of("s1")] == ["c1"]
    assert used(history, "s1") == history.find("s1")[0].bytes + 1000
    assert history.sweep_outputs(1, without_outputs) == 0


def test_an_output_that_a_later_cell_has_too_stays_for_it(history: History, tmp_path: Path) -> None:
    begin(history, "s1")
    for number in (1, 2):
        run(history, "s1", number, "x" * 100_000)
    history.sweep_outputs(1, without_outputs)
    assert swept(history, "s1") == [1]
    assert history.cells("s1")[1].result["outputs"] == [{"text": "x" * 100_000}]
    assert used(history, "s1") == history.find("s1")[0].bytes > 100_000
    run(history, "s1", 3, "y")
    history.sweep_outputs(1, without_outputs)
    assert stored(tmp_path) == 0


def test_running_cells_and_small_ones_are_left_alone(history: History) -> None:
    begin(history, "s1")
    run(history, "s1", 1, "small")
    history.begin_cell(Claim("s1", 0), 2, "#" * 10_000, "k")
    history.end_cell(Claim("s1", 0), 2, OK)  # large by its code
    history.begin_cell(Claim("s1", 0), 3, "1", "k")
    run(history, "s1", 4, "newest")
    assert history.sweep_outputs(1, without_outputs) == 0
    assert [cell.outcome for cell in history.cells("s1")] == ["ok", "ok", "running", "ok"]


def test_a_mark_takes_the_place_of_deleted_outputs(history: History) -> None:
    """The result says how the cell ended, an export shows the mark, and both can be read as before."""
    begin(history, "s1")
    failed = FAILED | {"outputs": [{"type": "stream", "output_type": "stream", "name": "stdout", "text": "x" * 50_000}]}
    many = FAILED | {"outputs": [{"type": "stream", "output_type": "stream", "name": "stdout", "text": "y"}] * 5000}
    for number, result in enumerate((failed, many, OK), start=1):
        history.begin_cell(Claim("s1", 0), number, "1 / 0", "k")
        history.end_cell(Claim("s1", 0), number, result)
    history.sweep_outputs(1, without_outputs)
    first, second, _ = history.cells("s1")
    assert first.result["outputs_deleted"] > 50_000
    read = ExecutionResult.from_dict(first.result)
    assert (read.outcome, read.duration_s, read.runtime) == ("error", 0.5, "runc")
    assert "[0.1 MB of outputs deleted: the history exceeded CELLBLOCK_HISTORY_MB]" in read.stdout
    assert read.error is not None
    assert (read.error.ename, len(read.error.evalue)) == ("ZeroDivisionError", 1000)
    assert second.outcome == second.result["outcome"] == "error"
    entries = [{"timestamp": 0.0, "code": cell.code, "result": cell.result} for cell in history.cells("s1")]
    text = json.dumps(session_notebook(entries, "t"))
    assert text.count("of outputs deleted") == 2
    assert "ZeroDivisionError" in text


FAILED: dict[str, Any] = {
    "status": "error",
    "outcome": "error",
    "msg_id": "m",
    "execution_count": 1,
    "duration_s": 0.5,
    "truncated": None,
    "kernel_state": "idle",
    "runtime": "runc",
    "mime_dropped": [],
    "evidence": {
        "exit_code": None,
        "signal": None,
        "oom_kills": 0,
        "interrupts": 0,
        "stopped_after_s": None,
        "output_bytes": 1,
        "output_messages": 1,
        "cpu_s": None,
        "peak_memory_mb": None,
    },
    "warnings": [],
    "error": {"ename": "ZeroDivisionError", "evalue": "z" * 2000, "traceback": ["t" * 100], "traceback_text": "t"},
}


class Interrupted(FolderBlobs):
    """Blobs that something happens to, once, right after an existing one was found."""

    then: Callable[[], object] | None = None

    def renew(self, name: str) -> bool:
        found = super().renew(name)
        then, self.then = self.then, None
        if then is not None:
            then()
        return found


def test_an_equal_output_that_ends_during_the_sweep_is_whole(url: str, tmp_path: Path) -> None:
    """Retention deletes the earlier one between the moment it is found and the moment the cell's row is written."""
    database, blobs = Database(url), Interrupted(tmp_path)
    database.migrate()
    history = History(database, "home", Payloads(blobs))
    begin(history, "s1")
    run(history, "s1", 1, "x" * 40_000)
    run(history, "s1", 2)
    blobs.then = lambda: history.sweep_outputs(1, without_outputs)
    run(history, "s1", 3, "x" * 40_000)
    assert blobs.then is None
    assert swept(history, "s1") == [1]
    assert history.cells("s1")[2].result["outputs"] == [{"text": "x" * 40_000}]
    assert history.find("s1")[0].bytes > 40_000
    history.close()


def test_the_oldest_outputs_are_found_by_an_index(tmp_path: Path) -> None:
    """A search does not read the cells that have no outputs left, however many they are."""
    searches: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "swept = 0" in statement and "LIMIT" in statement:
            searches.append((statement, parameters))

    history = History.open(f"sqlite:///{tmp_path}/history.db", tmp_path)
    begin(history, "s1")
    run(history, "s1", 1, "x" * 5000)
    run(history, "s1", 2)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        history.sweep_outputs(1, without_outputs)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        history.close()
    engine = create_engine(f"sqlite:///{tmp_path}/history.db")
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {searches[0][0]}", searches[0][1]).all())
    engine.dispose()
    assert "cells_with_outputs" in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.one_runtime
async def test_the_history_of_a_live_and_a_sleeping_session_shrinks(runtime: str, data_folder: Path) -> None:
    """On real kernels: retention keeps the size, and both sessions go on."""
    async with make_manager(runtime, history_mb=5) as manager:
        for agent in ("sleeper", "awake"):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                await manager.execute(session, "x = 7")
                for number in range(6):
                    await manager.execute(session, f"print('{number}' * 2_000_000)")
        assert await manager.hibernate("sleeper")
        assert stored(data_folder) > 20_000_000
        begun = time.monotonic()
        assert await manager.apply_retention() == 0
        assert time.monotonic() - begun < 10
        assert stored(data_folder) < 5_500_000
        for agent in ("sleeper", "awake"):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute(session, "x")).result == "7"
                history = await session.history()
                assert len(history) == 8
                assert "outputs deleted" in history[1]["result"]["stdout"]
                assert history[6]["result"]["stdout"] == "5" * 2_000_000 + "\n"


# The database's file


def fill(history: History, session: str, cells: int = 1500) -> None:
    """Add cells of 10 KB, which are in the rows themselves."""
    begin(history, session, session)
    for number in range(1, cells + 1):
        run(history, session, number, f"{number:05d}" * 2000)


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("history.db*"))


def test_the_file_shrinks_after_a_deletion(tmp_path: Path) -> None:
    """Also while another process has the database open, and its log is bounded."""
    history, other = (History.open(f"sqlite:///{tmp_path}/history.db", tmp_path) for _ in range(2))
    fill(history, "s1")
    fill(history, "s2", 10)
    before = (tmp_path / "history.db").stat().st_size
    assert before > 15_000_000
    history.delete("s1")
    assert history.shrink() > 0.9 * before
    run(other, "s2", 11)
    assert (tmp_path / "history.db").stat().st_size < 0.1 * before
    assert on_disk(tmp_path) < 7_000_000
    assert history.shrink() == 0
    assert len(other.cells("s2")) == 11
    history.close()
    other.close()


def test_a_cell_waits_for_one_small_step_of_the_shrinking(tmp_path: Path) -> None:
    """While 15 MB are given back, a neighbour's cells go on."""
    history, other = (History.open(f"sqlite:///{tmp_path}/history.db", tmp_path) for _ in range(2))
    fill(history, "s1")
    begin(other, "s2", "b")
    history.delete("s1")
    thread = threading.Thread(target=history.shrink)
    thread.start()
    number = 0
    while thread.is_alive():
        number += 1
        other.begin_cell(Claim("s2", 0), number, "1", "k")
    thread.join()
    history.shrink()  # nobody writes now, so that all of the log is written back
    assert number > 20
    assert (tmp_path / "history.db").stat().st_size < 3_000_000
    history.close()
    other.close()


def test_a_small_file_of_an_earlier_version_can_shrink(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "history.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE something (text TEXT)")
    connection.commit()
    connection.close()
    history = History.open(f"sqlite:///{tmp_path}/history.db", tmp_path)
    fill(history, "s1", 500)
    before = (tmp_path / "history.db").stat().st_size
    history.delete("s1")
    assert history.shrink() > 0.8 * before
    history.close()


def test_a_file_that_cannot_shrink_stays_as_it_is(tmp_path: Path) -> None:
    """It is not written again while another process writes."""
    writer, connection = (sqlite3.connect(tmp_path / "old.db", isolation_level=None) for _ in range(2))
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE old (text TEXT)")
    writer.execute("INSERT INTO old VALUES (?)", ["x" * 1_000_000])
    writer.execute("DELETE FROM old")
    assert shrinking.shrink(connection) == 0
    writer.execute("BEGIN IMMEDIATE")
    shrinking.make_shrinkable(connection)
    writer.execute("COMMIT")
    assert shrinking.shrink(connection) == 0
    shrinking.make_shrinkable(connection)
    writer.execute("INSERT INTO old VALUES (?)", ["x" * 1_000_000])
    writer.execute("DELETE FROM old")
    assert shrinking.shrink(connection) > 900_000
    assert connection.execute("PRAGMA synchronous").fetchone() == writer.execute("PRAGMA synchronous").fetchone()
    writer.close()
    connection.close()


def test_a_new_file_can_shrink_from_the_start(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    shrinking.use_incremental_vacuum(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE new (text TEXT)")
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()


def test_two_processes_make_one_database_that_shrinks(tmp_path: Path) -> None:
    opened: list[History] = []
    url = f"sqlite:///{tmp_path}/history.db"
    threads = [threading.Thread(target=lambda: opened.append(History.open(url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fill(opened[0], "s1", 100)
    opened[0].delete("s1")
    assert opened[1].shrink() > 500_000
    for history in opened:
        history.close()
