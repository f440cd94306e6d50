"""`cellblock sessions`, run as a process on a prepared database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from orchestrator.container.lease import host_identity, instance_lease
from orchestrator.sessions.retention import without_outputs
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import CheckpointRecord, Claim, History

COMMAND = str(Path(sys.executable).with_name("cellblock"))
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = "\x1b[2J[red]fake prompt$ \x07"


def sessions(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CELLBLOCK_DATA_DIR": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [COMMAND, "sessions", *arguments],
        env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Store two sessions: one of a dead process, and an ended one with hostile text."""
    history = History.open(f"sqlite:///{tmp_path}/history.db", tmp_path)
    owner = "/".join((*host_identity(), "nobody"))
    history.add_session("a" * 32, "ann", owner=owner, kernel_id="k1", runtime="runc")
    result = {
        "status": "ok",
        "outcome": "ok",
        "execution_count": 1,
        "stdout": "hi\n",
        "result": None,
        "outputs": [
            {"type": "stream", "output_type": "stream", "name": "stdout", "text": "hi\n"},
            {
                "type": "display_data",
                "output_type": "display_data",
                "data": {"image/png": PICTURE, "text/html": "<b>" + "x" * 100_000},
                "metadata": {},
            },
        ],
    }
    history.begin_cell(Claim("a" * 32, 1), 1, "print('hi')\nshow()", "k1")
    history.end_cell(Claim("a" * 32, 1), 1, result)
    history.begin_cell(Claim("a" * 32, 1), 2, "while True: pass", "k1")
    history.add_session("ab" + "b" * 30, HOSTILE[3:8] + "bob", owner=None, kernel_id="k2", runtime="runc")
    bobs = Claim("ab" + "b" * 30, 0)
    history.begin_cell(bobs, 1, HOSTILE, "k2")
    error = {"ename": HOSTILE, "evalue": HOSTILE, "traceback": [], "traceback_text": ""}
    history.end_cell(
        Claim("ab" + "b" * 30, 0), 1, {"status": "error", "outcome": "error", "outputs": [], "error": error}
    )
    history.session_ends(bobs, "end_session")
    yield history
    history.close()


@pytest.mark.usefixtures("history")
def test_list_shows_every_session_and_its_state(tmp_path: Path) -> None:
    """`list` shows each session's state and size, without control characters, and filters by agent."""
    done = sessions(tmp_path, "list")
    assert done.returncode == 0, done.stderr
    assert "lost its process" in done.stdout
    assert "ended (end_session)" in done.stdout
    assert "\x1b[2J" not in done.stdout
    assert "0.1 MB" in done.stdout
    listed = json.loads(sessions(tmp_path, "list", "--agent", "ann", "--json").stdout)
    assert [(one["session_id"], one["cells"]) for one in listed] == [("a" * 32, 2)]
    assert "no sessions" in sessions(tmp_path, "list", "--agent", "nobody").stdout


@pytest.mark.usefixtures("history")
def test_show_prints_each_cell_without_control_characters(tmp_path: Path) -> None:
    """`show` prints code and outcome of each cell, and removes control characters from hostile text."""
    done = sessions(tmp_path, "show", "aaa")
    assert done.returncode == 0, done.stderr
    assert "print('hi') show()" in done.stdout
    assert "running" in done.stdout
    hostile = sessions(tmp_path, "show", "ab")
    assert "[red]fake prompt" in hostile.stdout
    assert "\x1b" not in hostile.stdout
    assert "\x07" not in hostile.stdout
    assert json.loads(sessions(tmp_path, "show", "aaa", "--json").stdout)["cells"][0]["result"]["stdout"] == "hi\n"


@pytest.mark.usefixtures("history")
def test_exported_notebook_is_valid_and_has_its_outputs(tmp_path: Path) -> None:
    """`export` writes the same valid notebook to a file and to standard output."""
    target = tmp_path / "out.ipynb"
    done = sessions(tmp_path, "export", "aaa", "--format", "ipynb", "--out", str(target))
    assert (done.returncode, "2 cells" in done.stdout) == (0, True), done.stderr
    book = nbformat.read(target, as_version=4)
    nbformat.validate(book)
    assert book.cells[1].outputs[1].data["image/png"] == PICTURE
    assert len(book.cells[1].outputs[1].data["text/html"]) == 100_003
    assert sessions(tmp_path, "export", "aaa").stdout == target.read_text()


@pytest.mark.usefixtures("history")
def test_export_as_script_and_json(tmp_path: Path) -> None:
    """`export` writes a script that compiles, and JSON with every cell; wrong options are refused."""
    script = sessions(tmp_path, "export", "aaa", "--format", "py").stdout
    compile(script, "exported", "exec")
    assert "print('hi')\nshow()\n" in script
    exported = json.loads(sessions(tmp_path, "export", "aaa", "--format", "json").stdout)
    assert [cell["outcome"] for cell in exported["cells"]] == ["ok", "running"]
    assert sessions(tmp_path, "export", "aaa", "--format", "doc").returncode == 2
    refused = sessions(tmp_path, "export", "aaa", "--out", str(tmp_path))
    assert (refused.returncode, "cannot be written" in refused.stderr) == (1, True)


def test_delete_asks_and_removes_everything(history: History, tmp_path: Path) -> None:
    """`delete` asks for confirmation, then removes the session and its checkpoint file."""
    files = CheckpointFiles(tmp_path)
    with files.writing("c1", {}, 10) as writer:
        writer.finish({})
    history.add_checkpoint(Claim("a" * 32, 1), CheckpointRecord("c1", "a" * 32, time.time(), 1, True, 10, []))
    assert sessions(tmp_path, "delete", "aaa", stdin="n\n").returncode == 1
    assert len(history.sessions()) == 2
    done = sessions(tmp_path, "delete", "aaa", stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert [one.session_id for one in history.sessions()] == ["ab" + "b" * 30]
    assert files.ids() == set()


def test_delete_refuses_a_session_of_a_live_process(history: History, tmp_path: Path) -> None:
    """`delete` refuses a session while its process runs, and deletes it afterwards."""
    lease = instance_lease("testlive")
    assert lease is not None
    try:
        assert history.take_ownership(
            "a" * 32, "/".join((*host_identity(), "nobody")), "/".join((*host_identity(), "testlive"))
        )
        done = sessions(tmp_path, "delete", "aaa", "--yes")
        assert (done.returncode, "belongs to a running process" in done.stderr) == (1, True)
    finally:
        lease.release()
    assert sessions(tmp_path, "delete", "aaa", "--yes").returncode == 0


@pytest.mark.usefixtures("history")
def test_wrong_ids_are_explained(tmp_path: Path) -> None:
    """An unknown, ambiguous or empty id gives exit status 1 and a message that says which."""
    for arguments, said in (
        (("show", "zzz"), "no session"),
        (("show", "a"), "begin with"),
        (("delete", ""), "no session"),
    ):
        done = sessions(tmp_path, *arguments)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr


def test_damaged_database_is_reported(tmp_path: Path) -> None:
    """A file that is not a database gives exit status 1 and a message, without a traceback."""
    (tmp_path / "history.db").write_bytes(b"not a database" * 1000)
    done = sessions(tmp_path, "list")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "not a database" in done.stderr


def test_show_takes_an_agent_and_delete_refuses_one_with_several_sessions(history: History, tmp_path: Path) -> None:
    """`show AGENT` shows the session that the agent used last; `delete AGENT` refuses several."""
    assert "print('hi') show()" in sessions(tmp_path, "show", "ann").stdout
    history.session_ends(Claim("a" * 32, 1), "idle")
    history.add_session("c" * 32, "ann", owner=None, kernel_id="k3", runtime="runc")
    assert json.loads(sessions(tmp_path, "show", "ann", "--json").stdout)["session_id"] == "c" * 32
    refused = sessions(tmp_path, "delete", "ann", "--yes")
    assert (refused.returncode, "has several sessions" in refused.stderr) == (1, True), refused.stderr
    assert sessions(tmp_path, "delete", "ccc", "--yes").returncode == 0
    assert json.loads(sessions(tmp_path, "delete", "ann", "--yes", "--json").stdout)["deleted"] == "a" * 32


def test_show_and_export_say_that_outputs_were_deleted(history: History, tmp_path: Path) -> None:
    error = {"ename": "ValueError", "evalue": "no", "traceback": ["t" * 5000], "traceback_text": ""}
    history.add_session("c" * 32, "cat", owner=None, kernel_id="k3", runtime="runc")
    for number in (1, 2):
        history.begin_cell(Claim("c" * 32, 0), number, "raise ValueError('no')", "k3")
        history.end_cell(
            Claim("c" * 32, 0), number, {"status": "error", "outcome": "error", "outputs": [], "error": error}
        )
    assert history.sweep_outputs(1, without_outputs) > 100_000
    assert "[0.1 MB of outputs deleted" in sessions(tmp_path, "show", "aa").stdout
    shown = sessions(tmp_path, "show", "cat").stdout
    assert "MB of outputs deleted" in shown
    assert "ValueError: no" in shown
    assert "[0.1 MB of outputs deleted" in sessions(tmp_path, "export", "aa").stdout
    exported = json.loads(sessions(tmp_path, "export", "aa", "--format", "json").stdout)
    assert exported["cells"][0]["result"]["outputs_deleted"] > 100_000
