"""PostgreSQL behind a network: round trips, lost answers, a server that is restarted, stopped or cut off."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from orchestrator.errors import KernelPoolExhaustedError, StoreError
from orchestrator.store import postgresconnector
from orchestrator.store.history import CheckpointRecord, Claim, HandleRecord, History
from orchestrator.store.places import Place
from tests.postgresproxy import PostgresProxy
from tests.unit.test_node_leases import join

OK: dict[str, Any] = {"status": "ok", "outcome": "ok", "outputs": []}
LARGE = {**OK, "outputs": [{"text": "p" * 50_000}]}


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[PostgresProxy]:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    proxy = PostgresProxy(postgres_url)
    yield proxy
    proxy.close()


@pytest.fixture
def history(proxy: PostgresProxy, tmp_path: Path) -> Iterator[History]:
    history = History.open(proxy.url, tmp_path, agent_quota=10**9)
    yield history
    proxy.thaw()
    history.close()


@pytest.fixture
def mine(history: History) -> Claim:
    claim = history.add_session("s1", "agent", owner="me", kernel_id="k1", runtime="runc")
    assert claim is not None
    return claim


def begun(history: History, agent: str, place: Place) -> Claim | None:
    """Begin a session as the node does that ``join`` has made."""
    return history.add_session(agent, agent, owner="node:n1/1/i", kernel_id="k1", runtime="runc", place=place)


def handle(agent: str) -> HandleRecord:
    return HandleRecord(agent, "local", agent, "default", "", "", {"A": "1"}, {}, None, "end")


def outcomes(history: History) -> list[str]:
    return [cell.outcome for cell in history.cells("s1")]


@pytest.mark.parametrize("result", [OK, LARGE])
def test_a_cell_costs_two_round_trips(
    result: dict[str, Any], history: History, mine: Claim, proxy: PostgresProxy
) -> None:
    """With a quota, the fence, all totals, and large outputs; the first cell prepares."""
    taken = []
    for number in range(1, 12):
        before = proxy.round_trips
        history.begin_cell(mine, number, "1", "k1")
        history.end_cell(mine, number, result)
        taken.append(proxy.round_trips - before)
    assert taken[1:] == [2] * 10


def test_a_change_of_state_costs_one_round_trip(history: History, mine: Claim, proxy: PostgresProxy) -> None:
    """Once a statement is prepared."""
    history.begin_cell(mine, 1, "1", "k1")
    taken = []
    for _ in range(2):
        before = proxy.round_trips
        history.session_sleeps(mine)
        again = history.take_ownership("s1", None, "me")
        assert again is not None
        mine = again
        history.session_lives(mine, owner="me", kernel_id="k2", runtime="runc")
        taken.append(proxy.round_trips - before)
    assert taken[1] == 3


def test_each_reading_of_a_lease_costs_one_round_trip(history: History, mine: Claim, proxy: PostgresProxy) -> None:
    """Of whose session it is, how the last one ended, and whether tokens are needed; the first round connects."""
    taken = []
    for _ in range(2):
        before = proxy.round_trips
        assert history.handle_of_agent("local", "agent") is None
        assert [record.session_id for record in history.sessions_of("agent")] == [mine.session_id]
        assert history.last_end("agent") is None
        assert not history.has_tokens()
        taken.append(proxy.round_trips - before)
    assert taken[1] == 4


def test_a_lease_on_a_node_and_its_first_cell_cost_seven_round_trips(history: History, proxy: PostgresProxy) -> None:
    """Within a quota of the cluster and of the agent: three that read, the session's row, its handle, and the cell."""
    join(history)
    history.write_as("n1", 1)
    taken = []
    for agent in ("first", "second", "third"):  # the first round connects and prepares
        before = proxy.round_trips
        assert history.handle_of_agent("local", agent) is None
        assert history.sessions_of(agent) == []
        assert history.last_end(agent) is None
        mine = begun(history, agent, Place("local:default", 10))
        assert mine is not None
        history.add_handle(handle(agent))
        history.begin_cell(mine, 1, "1", "k1")
        history.end_cell(mine, 1, OK)
        taken.append(proxy.round_trips - before)
    assert taken[1:] == [7, 7]


def test_a_refused_lease_costs_one_round_trip(history: History, proxy: PostgresProxy) -> None:
    """Its connection stays: a client that waits for a place asks again and again."""
    join(history)
    history.write_as("n1", 1)
    place = Place("local:default", 1)
    assert begun(history, "first", place) is not None
    before = proxy.round_trips
    for _ in range(3):
        with pytest.raises(KernelPoolExhaustedError):
            begun(history, "second", place)
    assert proxy.round_trips - before == 3
    assert [record.agent_id for record in history.unended()] == ["first"]


def test_a_session_whose_row_got_no_answer_is_added_once(history: History, proxy: PostgresProxy) -> None:
    """Whether the row and the handle were written or not, the second try leaves one of each, and its owner a place."""
    join(history)
    history.write_as("n1", 1)
    place = Place("local:default", 1)
    assert begun(history, "first", place) is not None
    history.session_ends(Claim("first", 1), "end_session")
    proxy.lose_next = True
    assert begun(history, "second", place) == Claim("second", 1)
    proxy.lose_next = True
    history.add_handle(handle("second"))
    assert [record.agent_id for record in history.unended()] == ["second"]
    assert history.places_taken(place.charge) == 1
    assert history.handle_of_agent("local", "second") is not None


def test_a_lost_answer_is_asked_for_again(history: History, mine: Claim, proxy: PostgresProxy) -> None:
    """The statement was done, or not: either way the second try leaves one row, one result and one owner."""
    for number in (1, 2):
        proxy.lose_next = True
        history.begin_cell(mine, number, "1", "k1")
        proxy.lose_next = True
        history.end_cell(mine, number, OK)
    assert outcomes(history) == ["ok", "ok"]
    size = history.total_bytes()
    proxy.lose_next = True
    history.session_sleeps(mine)
    proxy.lose_next = True
    assert history.take_ownership("s1", None, "heir") == Claim("s1", 2)
    (record,) = history.sessions()
    assert (record.owner, record.bytes) == ("heir", size)


def test_a_server_that_was_restarted_costs_no_write(history: History, mine: Claim, proxy: PostgresProxy) -> None:
    history.begin_cell(mine, 1, "1", "k1")
    proxy.cut()
    time.sleep(0.1)
    history.end_cell(mine, 1, OK)
    proxy.cut()
    time.sleep(0.1)
    assert outcomes(history) == ["ok"]


def test_a_server_that_stands_still_is_given_up(
    history: History, mine: Claim, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write fails after its deadline, the calls behind it at once, and what is owed is written when it is back."""
    history.begin_cell(mine, 1, "1", "k1")
    monkeypatch.setattr(postgresconnector, "_WRITE", 1.5)
    proxy.freeze()
    began = time.monotonic()
    with pytest.raises(StoreError):
        history.end_cell(mine, 1, OK)
    first = time.monotonic() - began
    with pytest.raises(StoreError, match="a moment ago"):
        history.begin_cell(mine, 2, "2", "k1")
    assert 1 < first < 30
    proxy.thaw()
    time.sleep(2.5)
    monkeypatch.undo()
    history.begin_cell(mine, 2, "2", "k1")
    assert outcomes(history) == ["ok", "running"]


def test_a_new_session_waits_no_longer_than_any_write(
    history: History, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statements are given up together, and none of them has an effect."""
    join(history)
    place = Place("local:default", 2)
    assert begun(history, "first", place) is not None
    monkeypatch.setattr(postgresconnector, "_WRITE", 1.5)
    proxy.freeze()
    began = time.monotonic()
    with pytest.raises(StoreError):
        begun(history, "second", place)
    assert time.monotonic() - began < 30
    proxy.cut()
    proxy.thaw()
    time.sleep(2.5)
    monkeypatch.undo()
    assert [record.agent_id for record in history.unended()] == ["first"]
    assert begun(history, "third", place) is not None


def test_a_checkpoints_row_waits_no_longer_than_any_write(
    history: History, mine: Claim, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of several statements is given up after the deadline of writes, and the write behind it at once."""
    monkeypatch.setattr(postgresconnector, "_WRITE", 1.5)
    record = CheckpointRecord("c1", "s1", 1.0, 0, True, 10, [])
    proxy.freeze()
    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        row = threads.submit(history.add_checkpoint, mine, record)
        time.sleep(0.3)
        behind = threads.submit(history.begin_cell, mine, 1, "1", "k1")
        with pytest.raises(StoreError):
            row.result(60)
        with pytest.raises(StoreError, match="a moment ago"):
            behind.result(60)
    assert time.monotonic() - began < 30
    proxy.thaw()
    time.sleep(2.5)
    monkeypatch.undo()
    assert history.add_checkpoint(mine, record) == []
    assert len(history.checkpoints_of("s1")) == 1


@pytest.mark.parametrize("answers", range(2, 6))
def test_a_process_that_is_cut_off_in_the_midst_of_a_write_does_not_keep_its_session(
    history: History,
    mine: Claim,
    proxy: PostgresProxy,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: int,
) -> None:
    """The server ends the transaction, and its locks with it: it cannot see that the process has given up."""
    monkeypatch.setattr(postgresconnector, "_WRITE", 1.5)
    record = CheckpointRecord("c1", "s1", 1.0, 0, True, 10, [])
    proxy.freeze_after = answers
    with ThreadPoolExecutor(1) as threads:
        row = threads.submit(history.add_checkpoint, mine, record)
        with pytest.raises(StoreError):
            row.result(60)
    assert proxy.is_frozen
    monkeypatch.undo()
    with contextlib.closing(History.open(postgres_url, tmp_path)) as other:
        assert other.take_ownership("s1", "me", "other") == Claim("s1", 2)
