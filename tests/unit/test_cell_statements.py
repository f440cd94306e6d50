"""What a cell writes is the same in SQLite's statements and in PostgreSQL's single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import QuotaExceededError, StoreError
from orchestrator.store.history import Claim, History

OK: dict[str, Any] = {"status": "ok", "outcome": "ok", "outputs": []}
PICTURE = {**OK, "outputs": [{"text": "p" * 50_000}, {"text": "q" * 40_000}, {"text": "p" * 50_000}]}


def test_sizes_count_equal_outputs_once(url: str, tmp_path: Path) -> None:
    """The session's, the agent's and the folder's sizes grow by code, result and new outputs alone."""
    history = History.open(url, tmp_path)
    mine = history.add_session("s1", "agent", owner="me", kernel_id="k1", runtime="runc")
    assert mine is not None
    sizes = []
    for number, result in enumerate((OK, PICTURE, PICTURE, {**OK, "outputs": [{"text": "q" * 40_000}]}), start=1):
        history.begin_cell(mine, number, "code", "k1")
        history.end_cell(mine, number, result)
        (session,) = history.sessions()
        assert history.total_bytes() == session.bytes
        sizes.append(session.bytes)
    grown = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
    assert grown[1] > 90_000
    assert [more < 500 for more in (grown[0], *grown[2:])] == [True] * 3
    assert [cell.result for cell in history.cells("s1")][1:3] == [PICTURE, PICTURE]
    history.close()


def test_a_cell_that_was_recorded_and_never_begun_is_replaced(url: str, tmp_path: Path) -> None:
    """The answer of the database was lost: the next cell has the same number. One that has ended is never replaced."""
    history = History.open(url, tmp_path)
    mine = history.add_session("s1", "agent", owner="me", kernel_id="k1", runtime="runc")
    assert mine is not None
    history.begin_cell(mine, 1, "lost", "k1")
    history.begin_cell(mine, 1, "run", "k2")
    history.end_cell(mine, 1, OK)
    with pytest.raises(StoreError, match="has a cell 1"):
        history.begin_cell(mine, 1, "again", "k2")
    assert [(cell.code, cell.kernel_id, cell.outcome) for cell in history.cells("s1")] == [("run", "k2", "ok")]
    history.close()


def test_a_quota_refuses_the_cell_that_would_exceed_it(url: str, tmp_path: Path) -> None:
    history = History.open(url, tmp_path, agent_quota=1000)
    mine = history.add_session("s1", "agent", owner="me", kernel_id="k1", runtime="runc")
    assert mine is not None
    history.begin_cell(mine, 1, "#" * 900, "k1")
    history.end_cell(mine, 1, OK)
    with pytest.raises(QuotaExceededError) as caught:
        history.begin_cell(mine, 2, "#" * 100, "k1")
    assert (caught.value.agent_id, caught.value.quota_bytes) == ("agent", 1000)
    history.begin_cell(mine, 2, "#", "k1")
    assert [cell.number for cell in history.cells("s1")] == [1, 2]
    history.close()


def test_a_deleted_session_takes_no_result(url: str, tmp_path: Path) -> None:
    history = History.open(url, tmp_path)
    mine = history.add_session("s1", "agent", owner="me", kernel_id="k1", runtime="runc")
    assert mine is not None
    history.begin_cell(mine, 1, "1", "k1")
    history.delete("s1", "me")
    history.end_cell(mine, 1, OK)
    assert history.cells("s1") == []
    assert history.take_ownership("s1", None, "me") is None
    assert Claim("s1", 1) == mine
    history.close()
