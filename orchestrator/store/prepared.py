"""SQLAlchemy statements that are compiled once, when the history opens, for what every lease and every cell runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def on(self, connection: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Execute the statement in the connection's transaction.

        Returns:
            The first row of a statement that returns rows; None otherwise, or if there is no row.

        Raises:
            Exception: the driver's own error.
        """
        with self._executed(connection, values) as cursor:
            return cursor.fetchone() if cursor.description else None

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        """Execute a statement that returns rows. Returns them all; each has the columns in the statement's order.

        Raises:
            Exception: the driver's own error.
        """
        with self._executed(connection, values) as cursor:
            rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def changed(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Execute a statement that changes rows. Returns how many it has changed.

        Raises:
            Exception: the driver's own error.
        """
        with self._executed(connection, values) as cursor:
            return int(cursor.rowcount)

    @contextlib.contextmanager
    def _executed(self, connection: Connection, values: Mapping[str, Any]) -> Iterator[Any]:
        given = {**self._constants, **values}
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._sql, [given[name] for name in self._order] if self._order else given)
            yield cursor
        finally:
            cursor.close()
