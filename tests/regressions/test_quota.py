"""What one agent may keep in the data folder, and what an agent at its quota costs: nothing of another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from orchestrator import QuotaExceededError
from orchestrator.kernel.fakecell import FakeCell, printed
from orchestrator.limits import MIB
from orchestrator.store.history import CheckpointRecord, History
from tests.conftest import make_manager
from tests.postgres import postgres_server
from tests.unit.sessionworld import World

QUOTA = 1_000_000  # bytes
OK = {"status": "ok", "outcome": "ok", "outputs": []}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    url: str = request.getfixturevalue("postgres_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def history(url: str, tmp_path: Path) -> Iterator[History]:
    history = History.open(url, tmp_path, agent_quota=QUOTA)
    yield history
    history.close()


def begin(history: History, session: str, agent: str = "a") -> str:
    history.add_session(session, agent, owner=None, kernel_id="k", runtime="runc")
    return session


def run(history: History, session: str, number: int, output: str = "") -> None:
    history.begin_cell(session, number, "1", "k")
    history.end_cell(session, number, {**OK, "outputs": [{"text": output}]})


def saved(checkpoint: str, session: str, size: int, *, asked_for: bool) -> CheckpointRecord:
    return CheckpointRecord(checkpoint, session, 1.0, 0, asked_for, size, [])


def used(history: History, session: str) -> int:
    """Return what the agent of a session keeps, as a refused checkpoint of 10 MB says it."""
    with pytest.raises(QuotaExceededError) as caught:
        history.add_checkpoint(saved("probe", session, 10 * QUOTA, asked_for=True))
    return caught.value.used_bytes


def test_a_cell_at_the_quota_is_refused_and_others_run(history: History) -> None:
    """Nothing of it is recorded, and the error says how much there is."""
    begin(history, "s1")
    begin(history, "other", "b")
    run(history, "s1", 1, "x" * (QUOTA + 1))
    with pytest.raises(QuotaExceededError, match="CELLBLOCK_AGENT_QUOTA_MB") as caught:
        history.begin_cell("s1", 2, "2", "k")
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
    history.add_checkpoint(saved("c1", "s1", 1000, asked_for=False))
    history.add_checkpoint(saved("c2", "s1", 2000, asked_for=True))
    history.add_checkpoint(saved("c3", "s1", 3000, asked_for=False))
    assert used(history, "s1") == cells + 4000 + 1000
    assert history.drop_checkpoints("s1") == ["c3"]
    assert used(history, "s1") == cells + 2000
    begin(history, "s2")
    run(history, "s2", 1)
    more = history.find("s2")[0].bytes
    assert used(history, "s1") == cells + 2000 + more
    history.add_forks("s1", [("f", saved("c4", "s3", 500, asked_for=False))], kernel_id="k", runtime="runc")
    assert used(history, "s3") == 500
    history.delete("s1")
    assert used(history, "s2") == more
    history.delete("s2")
    begin(history, "s4")
    assert used(history, "s4") == 0


def test_a_state_is_never_lost_for_a_quota(history: History) -> None:
    """A requested checkpoint is refused. One that lets a session sleep is not: it replaces the one before."""
    begin(history, "s1")
    history.add_checkpoint(saved("c1", "s1", QUOTA - 1, asked_for=True))
    history.check_quota("s1")
    history.add_checkpoint(saved("c2", "s1", 5 * QUOTA, asked_for=False))
    with pytest.raises(QuotaExceededError, match="no checkpoint was made"):
        history.check_quota("s1")
    history.add_checkpoint(saved("c3", "s1", 6 * QUOTA, asked_for=False))
    assert {record.checkpoint_id for record in history.checkpoints_of("s1")} == {"c1", "c3"}
    assert used(history, "s1") == 7 * QUOTA - 1 - 6 * QUOTA + 6 * QUOTA


def test_forks_beyond_a_quota_are_refused_together(history: History) -> None:
    begin(history, "s1")
    forks = [("f1", saved("c1", "s2", 10, asked_for=False)), ("f2", saved("c2", "s3", 2 * QUOTA, asked_for=False))]
    with pytest.raises(QuotaExceededError, match="'f2'"):
        history.add_forks("s1", forks, kernel_id="k", runtime="runc")
    assert [record.session_id for record in history.sessions()] == ["s1"]


def test_code_counts_in_bytes(history: History) -> None:
    begin(history, "s1")
    history.begin_cell("s1", 1, "\U0001f600" * 1000, "k")
    assert history.find("s1")[0].bytes == 4000
    history.end_cell("s1", 1, OK)
    assert history.cells("s1")[0].outcome == "ok"
    assert used(history, "s1") == history.find("s1")[0].bytes > 4000


def test_an_earlier_database_counts_what_it_has(url: str, tmp_path: Path) -> None:
    """The total is made once, from the rows of schema 3."""
    history = History.open(url, tmp_path, agent_quota=QUOTA)
    for session in ("s1", "s2"):
        begin(history, session)
        run(history, session, 1, "x" * 1000)
    history.add_checkpoint(saved("c1", "s1", 7000, asked_for=True))
    before = used(history, "s1")
    history.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE agent_usage"))
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
