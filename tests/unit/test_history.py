"""The history: the same tests on a real SQLite and a real PostgreSQL database."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from orchestrator.errors import StoreError
from orchestrator.store.history import CellRecord, CheckpointRecord, Claim, History

OK = {"status": "ok", "outcome": "ok", "outputs": []}


@pytest.fixture
def history(url: str, tmp_path: Path) -> Iterator[History]:
    history = History.open(url, tmp_path)
    yield history
    history.close()


def begin(history: History, session: str = "s1", agent: str = "agent", **kwargs: Any) -> str:
    history.add_session(session, agent, owner="me", kernel_id="k1", runtime="runc", **kwargs)
    return session


def test_cell_is_there_before_it_runs_and_closed_after(history: History) -> None:
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "x = 'é\U0001f600'", "k1")
    (running,) = history.cells("s1")
    assert (running.outcome, running.code, running.ended_at) == ("running", "x = 'é\U0001f600'", None)
    history.end_cell(Claim("s1", 1), 1, OK)
    (closed,) = history.cells("s1")
    assert (closed.outcome, closed.result) == ("ok", OK)
    assert closed.ended_at is not None
    assert closed.ended_at >= closed.started_at


def test_the_first_result_of_a_cell_stays(history: History) -> None:
    """A second one would not fit the large outputs of the first."""
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    first = {**OK, "outputs": [{"text": "A" * 100_000}]}
    history.end_cell(Claim("s1", 1), 1, first)
    history.end_cell(Claim("s1", 1), 1, {**OK, "outputs": []})
    assert history.cells("s1")[0].result == first


def test_hostile_text_comes_back_as_it_was(history: History) -> None:
    begin(history)
    nasty = "\x00 \ud800 \U0010ffff '; DROP TABLE cells; --"
    result = {**OK, "outputs": [{"type": "stream", "text": nasty}, {"data": {"application/json": {"a\x00": [1e308]}}}]}
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.end_cell(Claim("s1", 1), 1, result)
    assert history.cells("s1")[0].result == result


def test_large_outputs_are_files_named_by_their_content(history: History, tmp_path: Path) -> None:
    begin(history)
    picture, log = "A" * 100_000, "\ud800\x00" * 40_000
    result = {**OK, "outputs": [{"data": {"image/png": picture}}, {"text": log}, {"data": {"image/png": picture}}]}
    for number in (1, 2):
        history.begin_cell(Claim("s1", 1), number, "show()", "k1")
        history.end_cell(Claim("s1", 1), number, result)
    assert [cell.result for cell in history.cells("s1")] == [result, result]
    assert len([file for file in (tmp_path / "payloads").rglob("*") if file.is_file()]) == 2
    assert 200_000 < history.sessions()[0].bytes < 2 * 200_000, "what is stored once counts once"
    assert "result" not in history.cells("s1", outputs=False)[0].result


def test_output_cannot_pose_as_a_payload_of_another(history: History) -> None:
    begin(history)
    secret = "S" * 100_000
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.end_cell(Claim("s1", 1), 1, {**OK, "outputs": [{"text": secret}]})
    digest = hashlib.sha256(secret.encode()).hexdigest()
    forged = {**OK, "outputs": [{"data": {"application/json": {"digest": digest, "path": ["outputs"]}, "x": None}}]}
    begin(history, "s2", "attacker")
    history.begin_cell(Claim("s2", 1), 1, "1", "k2")
    history.end_cell(Claim("s2", 1), 1, forged)
    assert history.cells("s2")[0].result == forged


def test_a_missing_payload_is_reported(history: History, tmp_path: Path) -> None:
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.end_cell(Claim("s1", 1), 1, {**OK, "outputs": [{"text": "A" * 100_000}]})
    next(file for file in (tmp_path / "payloads").rglob("*") if file.is_file()).unlink()
    assert "is gone" in history.cells("s1")[0].result["outputs"][0]["text"]


def test_sweep_removes_what_no_cell_needs_and_is_old(history: History, tmp_path: Path) -> None:
    for session in ("s1", "s2"):
        begin(history, session)
        history.begin_cell(Claim(session, 1), 1, "1", "k1")
        history.end_cell(
            Claim(session, 1), 1, {**OK, "outputs": [{"text": "shared" * 20_000}, {"text": session * 50_000}]}
        )
    orphan = tmp_path / "payloads" / "sessions" / "s3" / "s3" / ("0" * 64)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"A" * 500)
    assert history.delete("s1", "me") == []
    assert {file.parent.name for file in (tmp_path / "payloads").rglob("*") if file.is_file()} == {"s2", "s3"}
    assert history.sweep_payloads() == 0, "a day has not passed"
    for file in (tmp_path / "payloads").rglob("*"):
        os.utime(file, (0, 0))
    assert history.sweep_payloads() == 500
    assert history.cells("s2")[0].result["outputs"][0]["text"] == "shared" * 20_000
    assert history.cells("s1") == []


def test_running_cells_of_a_dead_process_become_interrupted(history: History) -> None:
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.end_cell(Claim("s1", 1), 1, OK)
    history.begin_cell(Claim("s1", 1), 2, "while True: pass", "k1")
    assert history.has_running_cells("s1")
    history.end_running_cells(Claim("s1", 1), {"status": "error", "outcome": "interrupted"})
    assert [cell.outcome for cell in history.cells("s1")] == ["ok", "interrupted"]
    assert not history.has_running_cells("s1")


def test_only_one_process_takes_a_session_over(history: History, url: str, tmp_path: Path) -> None:
    begin(history)
    other = History.open(url, tmp_path)
    try:
        taken = []
        threads = [
            threading.Thread(target=lambda h=h, n=n: taken.append(h.take_ownership("s1", "me", n)))
            for h, n in ((history, "a"), (other, "b"), (history, "c"), (other, "d"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(taken, key=str) == [Claim("s1", 2), None, None, None]
        assert not history.take_ownership("s1", None, "e")
    finally:
        other.close()


def test_sessions_of_an_agent_are_its_own_and_of_this_host(history: History, url: str, tmp_path: Path) -> None:
    begin(history, "s1", "a")
    begin(history, "s2", "a", parent_id="s1")
    begin(history, "s3", "b")
    history.session_sleeps(Claim("s1", 1))
    history.session_ends(Claim("s2", 1), "end_session")
    assert [(found.session_id, found.state, found.owner) for found in history.sessions_of("a")] == [
        ("s1", "asleep", None)
    ]
    assert [found.session_id for found in history.sessions("a")] == ["s2", "s1"]
    assert [found.agent_id for found in history.find("s3")] == ["b"]
    assert {found.session_id for found in history.unended()} == {"s1", "s3"}
    assert history.find("%") == []
    elsewhere = History.open(url, tmp_path / "other")
    try:
        assert elsewhere.sessions_of("a") == []
    finally:
        elsewhere.close()


def test_checkpoint_replaces_those_that_nobody_asked_for(history: History) -> None:
    begin(history)

    def add(name: str, asked_for: bool) -> list[str]:
        lost = [{"name": "g", "kind": "generator", "reason": "cannot pickle"}]
        return history.add_checkpoint(Claim("s1", 1), CheckpointRecord(name, "s1", time.time(), 3, asked_for, 10, lost))

    assert add("c1", True) == []
    assert add("c2", False) == []
    assert add("c3", False) == ["c2"]
    assert add("c4", True) == ["c3"]
    assert [found.checkpoint_id for found in history.checkpoints_of("s1")] == ["c4", "c1"]
    assert history.checkpoints_of("s1")[0].lost[0]["name"] == "g"
    assert history.delete("s1") is None, "it is somebody's"
    assert set(history.delete("s1", "me") or ()) == {"c4", "c1"}
    assert history.known_checkpoints() == set()


def test_retention_names_the_old_then_the_oldest_and_never_one_in_use(history: History) -> None:
    for name in ("old", "ended", "asleep", "live"):
        begin(history, name, agent=name)
        history.begin_cell(Claim(name, 1), 1, "x" * 1000, "k1")
        history.end_cell(Claim(name, 1), 1, OK)
        if name != "live":
            if name == "asleep":
                history.session_sleeps(Claim(name, 1))
            else:
                history.session_ends(Claim(name, 1), "idle")
        time.sleep(0.002)  # the clock of some hosts has steps of a millisecond
    used = {record.session_id: record.last_used_at for record in history.sessions()}
    size = history.sessions()[0].bytes
    assert history.excess(older_than=used["ended"], most_bytes=10**9) == ["old"]
    assert history.excess(older_than=0, most_bytes=3 * size) == ["old"]
    assert history.excess(older_than=0, most_bytes=0) == ["old", "ended"], "size costs nobody its state"
    assert history.excess(older_than=used["live"] + 1, most_bytes=10**9) == ["old", "ended", "asleep"]


def test_retention_weighs_and_deletes_what_is_this_hosts_alone(history: History, url: str, tmp_path: Path) -> None:
    """Two hosts share one database; two data folders stand for them."""
    other = History.open(url, tmp_path / "other")
    begin(other, "theirs")
    other.begin_cell(Claim("theirs", 1), 1, "x" * 100_000, "k1")
    other.end_cell(Claim("theirs", 1), 1, OK)
    other.session_ends(Claim("theirs", 1), "idle")
    begin(history, "mine")
    history.begin_cell(Claim("mine", 1), 1, "x", "k1")
    history.session_ends(Claim("mine", 1), "idle")
    assert history.excess(older_than=0, most_bytes=1000) == []
    assert history.delete("theirs") is None
    assert other.excess(older_than=0, most_bytes=1000) == ["theirs"]
    assert other.delete("theirs") == []
    other.close()


def test_a_folders_files_belong_to_one_database(history: History, tmp_path: Path) -> None:
    """Another database does not know the files: its retention would delete every checkpoint."""
    with pytest.raises(StoreError, match="belong to another database"):
        History.open(f"sqlite:///{tmp_path}/another.db", tmp_path)
    History.open(f"sqlite:///{tmp_path}/another.db", tmp_path / "another").close()


def test_a_number_that_never_ran_does_not_stop_the_next(history: History) -> None:
    """A caller that is cancelled on a full disk leaves a gap in the numbers."""
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.begin_cell(Claim("s1", 1), 3, "3", "k1")
    assert history.sessions_of("agent")[0].cells == 3


def test_an_end_is_for_good(history: History) -> None:
    begin(history)
    history.session_ends(Claim("s1", 1), "idle")
    history.session_lives(Claim("s1", 1), owner="me", kernel_id="k2", runtime="runc")
    history.session_sleeps(Claim("s1", 1))
    (found,) = history.sessions("agent")
    assert (found.state, found.owner, found.end_reason) == ("ended", None, "idle")


def test_newer_schema_is_refused_and_untouched(history: History, url: str, tmp_path: Path) -> None:
    begin(history)
    newer = create_engine(url)
    with newer.begin() as connection:
        connection.execute(text("INSERT INTO schema_version (version) VALUES (999)"))
    newer.dispose()
    with pytest.raises(StoreError, match="newer Cellblock"):
        History.open(url, tmp_path)
    assert len(history.sessions()) == 1


def test_two_processes_open_an_empty_database_at_once(url: str, tmp_path: Path) -> None:
    opened: list[History] = []
    threads = [threading.Thread(target=lambda: opened.append(History.open(url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({history.home for history in opened}) == 1
    assert len(opened) == 4
    for history in opened:
        history.close()


def test_result_that_could_not_be_kept_is_kept_with_the_next(history: History, tmp_path: Path) -> None:
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    folder = tmp_path / "payloads"
    folder.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be read or written"):
        history.end_cell(Claim("s1", 1), 1, {**OK, "outputs": [{"text": "A" * 100_000}]})
    assert history.cells("s1")[0].outcome == "running"
    folder.unlink()
    history.begin_cell(Claim("s1", 1), 2, "2", "k1")
    assert [cell.outcome for cell in history.cells("s1")] == ["ok", "running"]


async def test_call_that_was_begun_is_finished_though_its_caller_is_cancelled(history: History) -> None:
    begin(history)
    task = asyncio.ensure_future(history.run(History.begin_cell, Claim("s1", 1), 1, "1", "k1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await history.run(History.cells, "s1")) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "cannot be used"),
        ("mysql://u@h/d", "SQLite or PostgreSQL"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/none", "refused"),
        ("sqlite:////proc/nothing/history.db", "unable to open"),
    ],
)
def test_history_that_cannot_be_opened_says_why_and_keeps_the_password(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        History.open(url, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_every_finished_cell_survives_sigkill(url: str, tmp_path: Path) -> None:
    """A writer is killed ten times while it works: every cell that it reported is there, and none is partial."""
    script = (
        "import sys; from pathlib import Path; from orchestrator.store.history import Claim, History\n"
        "history = History.open(sys.argv[1], Path(sys.argv[2])); session = sys.argv[3]\n"
        "history.add_session(session, 'agent', owner='me', kernel_id='k', runtime='runc')\n"
        "mine = Claim(session, 1)\n"
        "for number in range(1, 10**6):\n"
        "    history.begin_cell(mine, number, 'code', 'k')\n"
        "    history.end_cell(mine, number, {'outcome': 'ok', 'n': number, 'text': str(number) * 20_000})\n"
        "    print(number, flush=True)\n"
    )
    for attempt in range(10):
        session = f"s{attempt}"
        writer = subprocess.Popen(
            [sys.executable, "-c", script, url, tmp_path, session], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(0.006 * attempt)
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait(10)
        writer.stdout.close()
        history = History.open(url, tmp_path)
        cells = history.cells(session)
        history.close()
        finished = max(int(line) for line in said if line.endswith("\n"))
        assert [cell.number for cell in cells] == list(range(1, len(cells) + 1))
        for cell in cells[:finished]:
            assert (cell.outcome, cell.result["text"]) == ("ok", text_of(cell))
        for cell in cells[finished:]:  # the writer may have committed more than it could print
            assert cell.result in ({"status": "running"}, {"outcome": "ok", "n": cell.number, "text": text_of(cell)})


def text_of(cell: CellRecord) -> str:
    return str(cell.number) * 20_000


def test_sweep_removes_what_a_killed_writer_left(history: History, tmp_path: Path) -> None:
    """A large output that is half written has another name than any whole one; a day later it goes."""
    begin(history)
    history.begin_cell(Claim("s1", 1), 1, "1", "k1")
    history.end_cell(Claim("s1", 1), 1, {**OK, "outputs": [{"text": "A" * 100_000}]})
    (whole,) = (file for file in (tmp_path / "payloads").rglob("*") if file.is_file())
    half = whole.with_name(f".{whole.name}.0a1b2c3d.part")
    half.write_bytes(b"A" * 500)
    assert history.sweep_payloads() == 0
    for file in (half, whole):
        os.utime(file, (0, 0))
    assert history.sweep_payloads() == 500
    assert history.cells("s1")[0].result["outputs"] == [{"text": "A" * 100_000}]


def test_a_second_history_in_a_process_releases_no_lock_of_the_first(tmp_path: Path) -> None:
    """A server has one history for each policy. Another process, such as `cellblock token`, comes and goes."""
    url = f"sqlite:///{tmp_path}/history.db"
    code = (
        "import sys; from pathlib import Path; from orchestrator.store.history import Claim, History\n"
        "history = History.open(sys.argv[1], Path(sys.argv[2])); print(len(history.cells('s1'))); history.close()"
    )

    def seen_elsewhere() -> int:
        command = [sys.executable, "-c", code, url, str(tmp_path)]
        return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)

    first = History.open(url, tmp_path)
    second = History.open(url, tmp_path)
    try:
        begin(first)
        assert seen_elsewhere() == 0
        first.begin_cell(Claim("s1", 1), 1, "1", "k1")
        assert seen_elsewhere() == 1
    finally:
        second.close()
        first.close()
    assert seen_elsewhere() == 1


def test_some_cells_of_a_session_are_read(history: History) -> None:
    begin(history)
    for number in range(1, 6):
        history.begin_cell(Claim("s1", 1), number, str(number), "k1")
        history.end_cell(Claim("s1", 1), number, {**OK, "outputs": [{"text": f"{number}" * 100_000}]})
    found = history.cells("s1", first=2, last=3)
    assert [(cell.number, cell.result["outputs"][0]["text"][0]) for cell in found] == [(2, "2"), (3, "3")]
    assert [cell.number for cell in history.cells("s1", first=5)] == [5]
