"""Two versions over one database: what an older one may write, and which step waits for older nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, text

from orchestrator.errors import StoreError
from orchestrator.protocol import have_one_in_common
from orchestrator.store import migrations
from orchestrator.store.history import History
from tests.unit.test_node_leases import end_lease, join

NEXT = len(migrations.STEPS) + 1


def _next_step(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE nodes ADD COLUMN zone VARCHAR(10)"))


@pytest.fixture
def older(url: str, tmp_path: Path) -> Iterator[History]:
    """Return the history of node n1, of this version."""
    history = History.open(url, tmp_path, of_cluster=True)
    join(history)
    yield history
    history.close()


def make_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what opens a history from now on be of the next version, which has one step more."""
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, _next_step))


def begun(history: History, agent: str) -> bool:
    return history.add_session(agent, agent, owner="node:n1/1/i", kernel_id="k", runtime="runc") is not None


def test_an_older_node_goes_on_beside_a_step_that_only_adds(
    older: History, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes, and one of its version may be started anew."""
    make_newer(monkeypatch)
    History.open(url, tmp_path, of_cluster=True).close()
    assert begun(older, "a1")
    monkeypatch.undo()
    again = History.open(url, tmp_path, of_cluster=True)
    assert join(again) == 2
    again.close()


def test_a_breaking_step_waits_for_older_nodes(
    older: History, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused by name, and changes nothing. When they are gone, none of them comes back."""
    make_newer(monkeypatch)
    monkeypatch.setattr(migrations, "BREAKING", migrations.BREAKING | {NEXT})
    with pytest.raises(StoreError, match=r"some hold a lease: n1 \(http://h, Cellblock 1\).*cluster drain") as refused:
        History.open(url, tmp_path, of_cluster=True)
    assert "Nothing is changed" in str(refused.value)
    assert begun(older, "a1")
    end_lease(older, "n1")
    History.open(url, tmp_path, of_cluster=True).close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer Cellblock"):
        join(older)
    with pytest.raises(StoreError, match=f"oldest that may still write is {NEXT}"):
        History.open(url, tmp_path, of_cluster=True)


def test_a_database_of_the_last_version_is_brought_up(older: History, url: str, tmp_path: Path) -> None:
    """Its table of schemas and its nodes get the columns that they lacked."""
    with older._database.writing() as connection:
        connection.execute(text("DROP INDEX sessions_charged"))
        for column in (
            "schema_version.oldest_writer",
            "sessions.charged",
            "nodes.schema_known",
            "nodes.answering_since",
        ):
            table, name = column.split(".")
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 12"))
    History.open(url, tmp_path, of_cluster=True).close()
    with older._database.reading() as connection:
        columns = {column["name"] for column in inspect(connection).get_columns("nodes")}
        assert {"schema_known", "answering_since"} <= columns
        assert connection.scalar(text("SELECT oldest_writer FROM schema_version WHERE version = 13")) == 11
    assert join(older) == 2


def test_what_a_newer_node_tells_beside_is_left_out(older: History) -> None:
    with older._database.writing() as connection:
        more = "UPDATE nodes SET capacity = replace(capacity, :first, :more) WHERE capacity NOT LIKE '%zone%'"
        connection.execute(text(more), {"first": '{"kernels"', "more": '{"zone": "a", "kernels"'})
    assert [record.node_id for record in older.nodes()] == ["n1"]


@pytest.mark.parametrize(
    ("spoken", "served", "together"),
    [((1, 1), (1, 1), True), ((1, 1), (1, 3), True), ((1, 3), (2, 2), True), ((1, 1), (2, 3), False)],
)
def test_two_versions_need_a_protocol_in_common(
    spoken: tuple[int, int], served: tuple[int, int], together: bool
) -> None:
    assert have_one_in_common(spoken, served) is together
