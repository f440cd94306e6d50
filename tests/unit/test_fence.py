"""The fence: what a process writes of a session counts only while no other process has taken the session over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import NotOwnerError, StoreError
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.result import Evidence
from orchestrator.store.history import CheckpointRecord, Claim, History

OK: dict[str, Any] = {"status": "ok", "outcome": "ok", "outputs": []}
LARGE = {**OK, "outputs": [{"text": "x" * 100_000}]}
INTERRUPTED = {"status": "error", "outcome": "interrupted", "outputs": []}
DONE = CommandResult(
    1, ("true",), False, Outcome.OK, 0, b"", b"", 0.1, None, kernel_state="idle", runtime="runc", evidence=Evidence()
)


def saved(name: str, session: str = "s1") -> CheckpointRecord:
    return CheckpointRecord(name, session, time.time(), 1, True, 10, [])


@pytest.fixture
def zombie(url: str, tmp_path: Path) -> Iterator[History]:
    """Return the history of a process whose session another one has taken over, with a cell and a command that run."""
    history = History.open(url, tmp_path)
    mine = history.add_session("s1", "agent", owner="zombie", kernel_id="k1", runtime="runc")
    assert mine == Claim("s1", 1)
    history.begin_cell(mine, 1, "1", "k1")
    history.begin_command(mine, "k1", ["true"], shell=False)
    history.add_checkpoint(mine, saved("c1"))
    heir = History.open(url, tmp_path)
    theirs = heir.take_ownership("s1", "zombie", "heir")
    assert theirs == Claim("s1", 2)
    heir.end_running_cells(theirs, INTERRUPTED)
    heir.session_lives(theirs, owner="heir", kernel_id="k2", runtime="runc")
    heir.close()
    yield history
    history.close()


STALE: dict[str, Callable[[History, Claim], object]] = {
    "begin_cell": lambda history, mine: history.begin_cell(mine, 2, "2", "k1"),
    "end_cell": lambda history, mine: history.end_cell(mine, 1, OK),
    "end_cell, large": lambda history, mine: history.end_cell(mine, 1, LARGE),
    "end_running_cells": lambda history, mine: history.end_running_cells(mine, OK),
    "begin_command": lambda history, mine: history.begin_command(mine, "k1", ["false"], shell=False),
    "end_command": lambda history, mine: history.end_command(mine, 1, DONE),
    "end_running_commands": lambda history, mine: history.end_running_commands(mine, "interrupted"),
    "add_checkpoint": lambda history, mine: history.add_checkpoint(mine, saved("c2")),
    "drop_checkpoints": lambda history, mine: history.drop_checkpoints(mine),
    "session_lives": lambda history, mine: history.session_lives(mine, owner="zombie", kernel_id="k1", runtime="runc"),
    "session_sleeps": lambda history, mine: history.session_sleeps(mine),
    "session_ends": lambda history, mine: history.session_ends(mine, "end_session"),
    "add_forks": lambda history, mine: history.add_forks(
        mine, [("fork", saved("c3", "s2"))], kernel_id="k1", runtime="runc"
    ),
}


def everything(history: History) -> list[object]:
    """Return all that the history has of the session."""
    records = history.sessions()
    return [records, history.cells("s1"), history.commands("s1"), history.checkpoints_of("s1"), history.total_bytes()]


@pytest.mark.parametrize("write", STALE)
def test_what_a_former_owner_writes_is_refused_and_changes_nothing(write: str, zombie: History) -> None:
    before, refused = everything(zombie), list[NotOwnerError]()
    zombie.on_refused(refused.append)
    with pytest.raises(NotOwnerError, match="taken over by another process") as caught:
        STALE[write](zombie, Claim("s1", 1))
    assert (caught.value.session_id, caught.value.owner, refused) == ("s1", "heir", [caught.value])
    assert everything(zombie) == before


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_former_owner_stays_refused_when_the_new_one_lets_go(sleeps: bool, zombie: History) -> None:
    """That nobody owns the session is no leave for one who owned it before."""
    heirs = Claim("s1", 2)
    if sleeps:
        zombie.session_sleeps(heirs)
    else:
        zombie.session_ends(heirs, "end_session")
    with pytest.raises(NotOwnerError):
        zombie.end_cell(Claim("s1", 1), 1, OK)
    with pytest.raises(NotOwnerError):
        zombie.session_lives(Claim("s1", 1), owner="zombie", kernel_id="k1", runtime="runc")


def test_the_last_owner_may_still_write_what_was_under_way(url: str, tmp_path: Path) -> None:
    """A command that ends while its session is put to sleep, or ended, is recorded."""
    history = History.open(url, tmp_path)
    for session, end in (("s1", history.session_sleeps), ("s2", lambda mine: history.session_ends(mine, "idle"))):
        mine = history.add_session(session, session, owner="me", kernel_id="k1", runtime="runc")
        assert mine is not None
        history.begin_command(mine, "k1", ["true"], shell=False)
        end(mine)
        history.end_command(mine, 1, DONE)
        assert [command.outcome for command in history.commands(session)] == ["ok"]
    history.close()


def test_a_write_that_is_owed_is_dropped_when_it_has_become_stale(url: str, tmp_path: Path) -> None:
    """An outage, a takeover meanwhile, the end of the outage: the late result is reported, and others are written."""
    history = History.open(url, tmp_path)
    refused: list[NotOwnerError] = []
    history.on_refused(refused.append)
    claims = [history.add_session(f"s{n}", f"a{n}", owner="me", kernel_id="k1", runtime="runc") for n in (1, 2)]
    first, second = (claim for claim in claims if claim is not None)
    for claim in (first, second):
        history.begin_cell(claim, 1, "1", "k1")
    outage = Outage(history)
    for claim in (first, second):
        with pytest.raises(StoreError):
            history.end_cell(claim, 1, OK)
    outage.end()
    heir = History.open(url, tmp_path)
    theirs = heir.take_ownership("s1", "me", "heir")
    assert theirs is not None
    heir.end_running_cells(theirs, INTERRUPTED)
    heir.close()
    history.begin_cell(second, 2, "2", "k1")
    assert [error.session_id for error in refused] == ["s1"]
    assert [cell.outcome for cell in history.cells("s1")] == ["interrupted"]
    assert [cell.outcome for cell in history.cells("s2")] == ["ok", "running"]
    history.close()


class Outage:
    """The database fails every write until ``end``: its connector is taken away."""

    def __init__(self, history: History) -> None:
        self._database: Any = history._database
        self._whole = self._database._connector
        self._database._connector = self

    def end(self) -> None:
        self._database._connector = self._whole

    def __getattr__(self, name: str) -> Any:
        if name == "writing":
            raise OSError("the disk is away")
        return getattr(self._whole, name)
