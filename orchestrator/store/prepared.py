"""SQLAlchemy statements that are compiled once, when the history opens, for what every lease and every cell runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Connection, Delete, Insert, Select, Table, Update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect


class Prepared:
    """A compiled statement, which goes directly to the driver. SQLAlchemy's own execution takes 2-3 times as long.

    Args:
        statement: its parameters are text and numbers, which every driver accepts.
    """

    def __init__(self, statement: Insert | Update | Delete | Select[Any], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._order: list[str] | None = getattr(compiled, "positiontup", None)  # None: the driver takes names
        self._constants: dict[str, Any] = {name: value for name, value in compiled.params.items() if value is not None}

    @classmethod
    def of_text(cls, sql: str) -> Self:
        """Return a statement in the driver's own words, for a driver that takes parameters by name."""
        statement = cls.__new__(cls)
        statement._sql, statement._order, statement._constants = sql, None, {}
        return statement

    def on(self, connection: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Execute the statement in the connection's transaction.

        Returns:
            The first row of a statement that returns rows; None otherwise, or if there is no row.

        Raises:
            Exception: the driver's own error.
        """
        cursor = self._executed(connection, values)
        if not cursor.description:
            return None
        rows = cursor.fetchall()  # all: an unfinished statement would keep its lock
        return rows[0] if rows else None

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        """Execute a statement that returns rows. Returns them all; each has the columns in the statement's order.

        Raises:
            Exception: the driver's own error.
        """
        rows: Sequence[tuple[Any, ...]] = self._executed(connection, values).fetchall()
        return rows

    def changed(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Execute a statement that changes rows. Returns how many it has changed.

        Raises:
            Exception: the driver's own error.
        """
        return int(self._executed(connection, values).rowcount)

    def _executed(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Execute the statement. Returns the connection's cursor, which its statements share: a new one takes 6 us."""
        cursor = connection.info.get("cursor")
        if cursor is None:
            cursor = connection.info["cursor"] = connection.connection.cursor()
        self.send(cursor, values)
        return cursor

    def send(self, cursor: Any, values: Mapping[str, Any]) -> None:
        """Execute the statement with a cursor of the driver's, which has the answer.

        Raises:
            Exception: the driver's own error.
        """
        given = {**self._constants, **values}
        cursor.execute(self._sql, [given[name] for name in self._order] if self._order else given)


def inserting(dialect: Dialect, table: Table) -> Any:
    """Return an insert of a dialect that knows ``ON CONFLICT``."""
    return postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)


def on_together(connection: Connection, *steps: tuple[Prepared, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Send statements to PostgreSQL together: one round trip, and one transaction on a connection that commits each.

    Returns:
        The first row of the last one, which must return one.

    Raises:
        Exception: the driver's own error; none of them has an effect.
    """
    with connection.connection.driver_connection.pipeline():  # type: ignore[union-attr]
        for statement, values in steps:
            cursor = connection.connection.cursor()
            statement.send(cursor, values)
    row: tuple[Any, ...] = cursor.fetchall()[0]
    return row
