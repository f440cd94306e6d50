"""SQLAlchemy statements that are compiled once, when the history opens, for what every lease and every cell runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Connection, Delete, Insert, Select, Update
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
        given = {**self._constants, **values}
        cursor = connection.info.get("cursor")
        if cursor is None:
            cursor = connection.info["cursor"] = connection.connection.cursor()
        cursor.execute(self._sql, [given[name] for name in self._order] if self._order else given)
        return cursor
