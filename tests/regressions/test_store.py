"""The store: what is deleted is gone, and what is secret stays secret."""

from __future__ import annotations

import gc
import hashlib
import itertools
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text

from orchestrator.errors import StoreError
from orchestrator.kernel.fakecell import FakeCell, printed
from orchestrator.settings import Settings
from orchestrator.store.history import Claim, History
from orchestrator.store.storeurl import mask
from tests.unit.sessionworld import World

OK = {"status": "ok", "outcome": "ok", "outputs": []}


def opened(folder: Path) -> History:
    return History.open(f"sqlite:///{folder}/history.db", folder)


def files(folder: Path) -> list[Path]:
    return [file for file in (folder / "payloads").rglob("*") if file.is_file()]


def cell(history: History, session: str, output: str, number: int = 1) -> None:
    history.begin_cell(Claim(session, 0), number, "1", "k")
    history.end_cell(Claim(session, 0), number, {**OK, "outputs": [{"text": output}], "stdout": output})


def begin(history: History, session: str, agent: str = "a") -> None:
    history.add_session(session, agent, owner=None, kernel_id="k", runtime="runc")


def test_a_deleted_session_leaves_no_output(tmp_path: Path) -> None:
    """Its blobs are gone with it, and another session that printed the same keeps its own."""
    history = opened(tmp_path)
    for session in ("s1", "s2"):
        begin(history, session)
        cell(history, session, "same" * 20_000)
    assert history.delete("s1") == []
    assert len(files(tmp_path)) == 1
    assert history.cells("s2")[0].result["stdout"] == "same" * 20_000
    assert history.delete("s2") == []
    assert files(tmp_path) == []
    history.close()


def test_outputs_of_an_earlier_version_are_read_and_deleted(tmp_path: Path) -> None:
    """Sessions shared them: the last one that has an output takes it along."""
    history = opened(tmp_path)
    output = "shared" * 20_000
    digest = hashlib.sha256(output.encode()).hexdigest()
    for session in ("s1", "s2"):
        begin(history, session)
        cell(history, session, output)
    for file in files(tmp_path):
        file.unlink()
    old = tmp_path / "payloads" / digest[:2] / digest
    old.parent.mkdir()
    old.write_text(output)
    assert history.cells("s1")[0].result["stdout"] == output
    history.delete("s1")
    assert history.cells("s2")[0].result["stdout"] == output
    history.delete("s2")
    assert not old.exists()
    history.close()


def test_the_history_is_its_owners_alone(tmp_path: Path) -> None:
    """Also one that an earlier version left readable for everybody."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    (folder / "history.db").touch(mode=0o644)
    history = opened(folder)
    begin(history, "s1")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("history.db*")} == {0o600}
    history.close()


async def test_a_live_session_keeps_no_outputs_in_memory(tmp_path: Path) -> None:
    """Its history is read when it is used, and forgotten with the next cell."""
    world = World(tmp_path)
    session = await world.acquire("a")
    cells = world.kernel_of(session).cells
    gc.collect()
    tracemalloc.start()
    for number in range(20):
        cells["print"] = FakeCell([printed(str(number % 10) * 1_000_000)])
        await world.run(session, "print")
        assert len(session.execution_history) == session.cell_count
    del cells["print"]
    await world.run(session, "1")
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 3_000_000
    assert [len(entry["result"]["stdout"]) for entry in session.execution_history] == [1_000_000] * 20 + [0]
    await world.close()


def test_deleting_is_done_in_batches_and_lets_others_write(tmp_path: Path) -> None:
    """While a session with many cells is deleted, a neighbour's cell waits for one batch at most."""
    history = opened(tmp_path)
    begin(history, "big")
    begin(history, "s2")
    for number in range(1, 3001):
        history.begin_cell(Claim("big", 0), number, "x" * 100, "k")
    commits: list[object] = []
    event.listen(history._database._connector.engine, "commit", commits.append)
    deleting = threading.Thread(target=history.delete, args=("big",))
    deleting.start()
    numbers = itertools.count(1)
    while deleting.is_alive():
        history.begin_cell(Claim("s2", 0), next(numbers), "1", "k")
    deleting.join()
    neighbours = next(numbers)
    assert neighbours > 5
    assert len(commits) - neighbours > 30  # each of at most 100 cells
    assert [record.session_id for record in history.sessions()] == ["s2"]
    assert history.cells("big") == []
    history.close()


def test_text_that_is_not_ascii_takes_its_own_size(tmp_path: Path) -> None:
    """Escaped, it would take three to six times as much."""
    history = opened(tmp_path)
    begin(history, "s1")
    cell(history, "s1", "\u00e9\x00\ud800" * 5_000)
    assert history.cells("s1")[0].result["stdout"] == "\u00e9\x00\ud800" * 5_000
    begin(history, "s2")
    cell(history, "s2", "\u00e9" * 10_000)
    assert history.find("s2")[0].bytes < 41_000
    history.close()


SECRET_URLS = [
    "postgresql+psycopg://me:hunter2@127.0.0.1:1/none",
    "postgresql+psycopg://me:hunt%40hunter2@127.0.0.1:1/none",
    "postgresql+psycopg://me:x@hunter2@127.0.0.1:1/none",
    "postgresql+psycopg://me:x@hunter2:hunter2@127.0.0.1:1/none",
    "postgresql+psycopg://me:x/hunter2@127.0.0.1:1/none",
    "postgresql+psycopg://127.0.0.1:1/none?user=me&password=hunter2",
    "postgresql+psycopg:///none?host=127.0.0.1&port=1&password=x%40hunter2",
    "postgresql+psycopg:///none?host=127.0.0.1&port=1&sslpassword=hunter2",
    "postgresql+psycopg://127.0.0.1:1/none&password=hunter2",
    "postgresql+psycopg://127.0.0.1:hunter2/none",
    "postgresql://me:hunter2",
    "mysql://me:hunter2@host/none",
    "hunter2",
]


@pytest.mark.parametrize(
    ("url", "password"),
    [
        (SECRET_URLS[0], "hunter2"),
        (SECRET_URLS[1], "hunt@hunter2"),
        (SECRET_URLS[2], "x@hunter2"),
        (SECRET_URLS[5], "hunter2"),
        (SECRET_URLS[6], "x@hunter2"),
        (SECRET_URLS[7], "hunter2"),
    ],
)
def test_what_a_driver_says_shows_no_password(url: str, password: str) -> None:
    """A driver repeats parts of the URL in its own words."""
    assert "hunter2" not in mask(f"no such role: {password}", url)


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_form_of_a_url_shows_its_password(url: str, tmp_path: Path) -> None:
    """Not in an error, its causes, a message or the settings."""
    with pytest.raises(StoreError) as caught:
        History.open(url, tmp_path)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__
    assert "hunter2" not in mask(url, url)
    assert "hunter2" not in repr(Settings(store_url=url))


def test_a_database_of_an_earlier_version_opens(tmp_path: Path) -> None:
    """Its tables are as they were made then."""
    engine = create_engine(f"sqlite:///{tmp_path}/history.db")
    with engine.begin() as connection:
        for statement in SCHEMA_2.split(";"):
            connection.execute(text(statement))
    engine.dispose()
    (tmp_path / "id").write_text("HOME")
    history = opened(tmp_path)
    (session,) = history.sessions()
    assert (session.cells, session.bytes) == (2, 7)
    cell(history, "old", "x", 3)
    assert history.sessions()[0].cells == 3
    assert history.delete("old") == []
    assert history.sessions() == []
    history.close()


def test_two_histories_of_one_process_lose_nothing_to_another_process(tmp_path: Path) -> None:
    """A process that closed a descriptor of the file had no locks left: another one then deleted the log in use."""
    first, second = opened(tmp_path), opened(tmp_path)
    count = (
        "import sys; from pathlib import Path; from orchestrator.store.history import History\n"
        "history = History.open(f'sqlite:///{sys.argv[1]}/history.db', Path(sys.argv[1]))\n"
        "print(len(history.sessions())); history.close()"
    )
    for number, history in enumerate((first, second, first, second), start=1):
        history.add_session(f"s{number}", f"a{number}", owner="o", kernel_id="k", runtime="runc")
        done = subprocess.run([sys.executable, "-c", count, str(tmp_path)], capture_output=True, text=True, check=True)
        assert int(done.stdout) == number
        assert len(first.sessions()) == len(second.sessions()) == number
    first.close()
    second.close()


SCHEMA_2 = """
CREATE TABLE sessions (session_id VARCHAR(32) NOT NULL PRIMARY KEY, agent_id VARCHAR(200) NOT NULL,
    parent_id VARCHAR(32), home VARCHAR(32) NOT NULL, owner VARCHAR(200), state VARCHAR(16) NOT NULL,
    end_reason VARCHAR(32), created_at FLOAT NOT NULL, last_used_at FLOAT NOT NULL, kernel_id VARCHAR(32) NOT NULL,
    runtime VARCHAR(64) NOT NULL);
CREATE INDEX sessions_by_agent ON sessions (agent_id, state);
CREATE TABLE cells (cell_id INTEGER NOT NULL PRIMARY KEY, session_id VARCHAR(32) NOT NULL REFERENCES sessions
    (session_id) ON DELETE CASCADE, number INTEGER NOT NULL, kernel_id VARCHAR(32) NOT NULL, code TEXT NOT NULL,
    started_at FLOAT NOT NULL, ended_at FLOAT, outcome VARCHAR(16) NOT NULL, result TEXT NOT NULL,
    bytes BIGINT NOT NULL, UNIQUE (session_id, number));
CREATE TABLE payloads (cell_id INTEGER NOT NULL REFERENCES cells (cell_id) ON DELETE CASCADE,
    path VARCHAR(500) NOT NULL, digest VARCHAR(64) NOT NULL, bytes BIGINT NOT NULL, PRIMARY KEY (cell_id, path));
CREATE INDEX ix_payloads_digest ON payloads (digest);
CREATE TABLE checkpoints (checkpoint_id VARCHAR(32) NOT NULL PRIMARY KEY, session_id VARCHAR(32) NOT NULL REFERENCES
    sessions (session_id) ON DELETE CASCADE, created_at FLOAT NOT NULL, cell INTEGER NOT NULL,
    asked_for BOOLEAN NOT NULL, bytes BIGINT NOT NULL, lost TEXT NOT NULL);
CREATE INDEX ix_checkpoints_session_id ON checkpoints (session_id);
CREATE TABLE identity (database_id VARCHAR(32) NOT NULL PRIMARY KEY);
CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY);
INSERT INTO identity VALUES ('0123');
INSERT INTO schema_version VALUES (1), (2);
INSERT INTO sessions VALUES ('old', 'a', NULL, 'HOME', NULL, 'ended', 'idle', 1.0, 2.0, 'k', 'runc');
INSERT INTO cells VALUES (1, 'old', 1, 'k', '1', 1.0, 2.0, 'ok', '{}', 3),
    (2, 'old', 2, 'k', '2', 1.0, 2.0, 'ok', '{}', 4)
"""
