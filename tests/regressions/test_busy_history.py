"""What one agent writes to the history, and how long the history is, cost other agents nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from orchestrator.sessions.sessionrow import SessionRow
from orchestrator.store.blobs import BlobWriting
from orchestrator.store.database import Database
from orchestrator.store.history import Claim, History
from orchestrator.store.payloads import Payloads, is_large
from tests.memoryblobs import MemoryBlobs

OK: dict[str, Any] = {"status": "ok", "outcome": "ok", "outputs": []}
MANY = 3000  # sessions


def shown(*texts: str) -> dict[str, Any]:
    """Return the result of a cell that displays texts."""
    return {**OK, "outputs": [{"type": "display", "data": {"text/plain": each}} for each in texts]}


def opened(folder: Path) -> History:
    return History.open(f"sqlite:///{folder}/history.db", folder)


def begin(history: History, *sessions: str) -> None:
    for session in sessions:
        history.add_session(session, f"agent of {session}", owner="me", kernel_id="k", runtime="runc")
        history.begin_cell(Claim(session, 1), 1, "1", "k")


class SlowBlobs(MemoryBlobs):
    """A store whose disk stands still for one session until ``go`` is set."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self.go = threading.Event()
        self.waits = threading.Event()
        self._slow = slow

    @contextmanager
    def writing_together(self) -> Iterator[BlobWriting]:
        with super().writing_together() as writing:

            @contextmanager
            def slowly(name: str) -> Iterator[Any]:
                if self._slow in name:
                    self.waits.set()
                    assert self.go.wait(60)
                with writing(name) as blob:
                    yield blob

            yield slowly


@pytest.mark.parametrize("output", [[], ["y" * 40_000], ["\u00e9" * 30_000] * 5])
async def test_nobody_waits_for_another_agents_outputs(output: list[str], tmp_path: Path) -> None:
    """While the disk takes no output of one agent, a neighbour's cells begin and end, with small and large outputs."""
    database = Database(f"sqlite:///{tmp_path}/history.db")
    database.migrate()
    blobs = SlowBlobs("flood")
    history = History(database, "home", Payloads(blobs))
    begin(history, "flood", "next")
    flood, neighbour = SessionRow(history, "flood", "me"), SessionRow(history, "next", "me")
    assert await flood.take_over("me")
    assert await neighbour.take_over("me")
    flooding = asyncio.create_task(flood.end_cell(1, shown(*["x" * 40_000] * 190)))
    try:
        await asyncio.to_thread(blobs.waits.wait, 60)
        async with asyncio.timeout(30):
            await neighbour.end_cell(1, shown(*output))
            await history.run(History.begin_cell, Claim("next", 2), 2, "2", "k")
        assert not flooding.done()
        assert [cell.outcome for cell in history.cells("next")] == ["ok", "running"]
        assert history.cells("flood")[0].outcome == "running"
    finally:
        blobs.go.set()
    await flooding
    assert history.cells("flood")[0].result == shown(*["x" * 40_000] * 190)
    await asyncio.to_thread(history.close)


async def test_a_large_result_is_written_although_its_caller_is_cancelled(tmp_path: Path) -> None:
    """Its row does not say "running" for ever."""
    history = opened(tmp_path)
    begin(history, "s1")
    row = SessionRow(history, "s1", "me")
    assert await row.take_over("me")
    task = asyncio.create_task(row.end_cell(1, shown("x" * 40_000)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(history.close)
    history = opened(tmp_path)
    assert history.cells("s1")[0].result == shown("x" * 40_000)
    history.close()


def test_a_row_is_short_whatever_a_cell_shows(tmp_path: Path) -> None:
    """Many texts that are not large alone are one file together, which is as large as they are in UTF-8."""
    history = opened(tmp_path)
    begin(history, "s1", "s2")
    result = shown(*[f"{number}" + "\u00e9\ud800" * 15_000 for number in range(100)])
    history.end_cell(Claim("s1", 1), 1, result)
    assert history.cells("s1")[0].result == result
    engine = create_engine(f"sqlite:///{tmp_path}/history.db")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT max(length(result)) FROM cells")).scalar_one() < 40_000
    engine.dispose()
    (file,) = (file for file in (tmp_path / "payloads").rglob("*") if file.is_file())
    assert os.path.getsize(file) < 100 * 15_000 * (2 + 6) + 20_000
    assert history.find("s1")[0].bytes - os.path.getsize(file) < 100
    file.unlink()
    assert "is gone" in history.cells("s1")[0].result["outputs"][0]["text"]
    assert history.delete("s1", "me") == []
    history.close()


def test_what_is_large_is_known_without_reading_it_all() -> None:
    """A result is large by its texts, its keys, or the number of its values."""
    assert not is_large(OK)
    assert not is_large(shown("x" * 30_000))
    assert is_large(shown("x" * 33_000))
    assert is_large(shown(*["x" * 10_000] * 4))
    assert is_large({"outputs": [{"x" * 40_000: None}]})
    assert is_large([[]] * 3_000)
    assert is_large([[[]] * 1_500] * 2)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Return the statements that SQLAlchemy executes, rather than a prepared one."""
    seen: list[str] = []

    def note(_connection: Any, statement: Any, *_: Any) -> None:
        seen.append(str(statement))

    event.listen(Engine, "before_execute", note)
    yield seen
    event.remove(Engine, "before_execute", note)


def test_what_a_lease_and_its_cell_run_is_prepared(compiled: list[str], tmp_path: Path) -> None:
    """SQLAlchemy takes up to 50 ms for a statement that it has not seen, and the first user would wait for it."""
    history = opened(tmp_path)
    compiled.clear()
    assert history.sessions_of("a") == []
    assert history.last_end("a") is None
    assert history.add_session("s1", "a", owner="me", kernel_id="k", runtime="runc")
    history.begin_cell(Claim("s1", 1), 1, "1", "k")
    history.end_cell(Claim("s1", 1), 1, OK)
    history.session_lives(Claim("s1", 1), owner="me", kernel_id="k2", runtime="runc")
    history.session_sleeps(Claim("s1", 1))
    assert history.take_ownership("s1", None, "me") == Claim("s1", 2)
    history.session_ends(Claim("s1", 2), "idle")
    assert history.last_end("a") == "idle"
    assert compiled == []
    history.close()


class Steps:
    """Counts the steps of SQLite's machine: a measure of work that no load on the host changes."""

    def __init__(self) -> None:
        self.count = 0
        event.listen(Engine, "connect", self._connected)

    def close(self) -> None:
        event.remove(Engine, "connect", self._connected)

    def of(self, work: Callable[[], object]) -> int:
        before = self.count
        work()
        return self.count - before

    def _connected(self, connection: Any, _record: Any) -> None:
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.count += 1
        return 0


@pytest.fixture
def steps() -> Iterator[Steps]:
    counter = Steps()
    yield counter
    counter.close()


FILL = """
INSERT INTO sessions (session_id, agent_id, home, state, end_reason, created_at, last_used_at, kernel_id, runtime,
    cells, bytes) VALUES (:session, :agent, :home, :state, 'idle', :number, :number, 'k', 'runc', 1, 100);
INSERT INTO cells (session_id, number, kernel_id, code, started_at, outcome, result, bytes)
    VALUES (:session, 1, 'k', '1', :number, 'ok', '{}', 100)
"""
SUM_UP = """
INSERT INTO agent_usage SELECT home, agent_id, sum(bytes) FROM sessions GROUP BY home, agent_id;
INSERT INTO home_usage SELECT home, 0, sum(bytes) FROM sessions GROUP BY home
"""


def fill(url: str, home: str, sessions: int, state: str = "ended") -> None:
    """Add sessions: half of them one agent's, which have ended, the others of one agent each; and a cell in each."""
    rows = [
        {
            "session": f"old-{number:08d}",
            "agent": "a" if number % 2 else f"b{number}",
            "home": home,
            "state": "ended" if number % 2 else state,
            "number": number,
        }
        for number in range(sessions)
    ]
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in FILL.split(";"):
            connection.execute(text(statement), rows)
        for statement in SUM_UP.split(";"):
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("state", ["ended", "asleep"])
def test_no_call_does_more_work_beside_a_long_history(state: str, steps: Steps, tmp_path: Path) -> None:
    """A lease, a cell, a list, retention and a deletion take the same steps beside few and many other sessions."""
    few, many = (work_beside(steps, tmp_path / str(number), number, state) for number in (100, MANY))
    assert {name: (few[name], count) for name, count in many.items() if count > 1.2 * few[name] + 20} == {}


def work_beside(steps: Steps, folder: Path, sessions: int, state: str) -> dict[str, int]:
    history = opened(folder)
    fill(f"sqlite:///{folder}/history.db", history.home, sessions, state)
    keep = (sessions - 1) * 100
    taken = {
        "sessions_of": steps.of(lambda: history.sessions_of("a")),
        "last_end": steps.of(lambda: history.last_end("a")),
        "add_session": steps.of(lambda: begin(history, "new")),
        "end_cell": steps.of(lambda: history.end_cell(Claim("new", 1), 1, OK)),
        "sessions": steps.of(lambda: history.sessions(limit=5)),
        "sessions of an agent": steps.of(lambda: history.sessions("a", limit=5)),
        "find": steps.of(lambda: history.find("old-00000007")),
        "unended": steps.of(history.unended) if state == "ended" else 0,  # else it returns many
        "nothing in excess": steps.of(lambda: history.excess(0.0, 10**12)),
        "one is too old": steps.of(lambda: history.excess(0.5, 10**12)),
        "one is too much": steps.of(lambda: history.excess(0.0, keep)),
        "delete": steps.of(lambda: history.delete("old-00000007")),
        "end": steps.of(lambda: history.session_ends(Claim("new", 1), "idle")),
    }
    assert history.excess(0.5, 10**12) == ["old-00000000"]
    history.close()
    return taken


@pytest.mark.parametrize("size", [0, 250])
def test_retention_deletes_the_old_and_then_the_oldest_that_ended(size: int, tmp_path: Path) -> None:
    """In the order of their last use, and no more than needed; a live or sleeping one only when it is too old."""
    history = opened(tmp_path)
    fill(f"sqlite:///{tmp_path}/history.db", history.home, 6)
    history.add_session("asleep", "z", owner=None, kernel_id="k", runtime="runc", state="asleep")
    wanted = 6 if size == 0 else 4
    assert history.excess(2.5, size) == [f"old-{number:08d}" for number in range(wanted)]
    assert history.excess(0.0, 600) == []
    history.close()
