"""SQLAlchemy statements that are compiled once, for the rows that every cell writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Insert, Update
from sqlalchemy.engine import Dialect


class Prepared:
    """A compiled statement, which goes directly to the driver. SQLAlchemy's own execution takes 2-3 times as long.

    Args:
        statement: its parameters are text and numbers, which every driver accepts.
    """

    def __init__(self, statement: Insert | Update, dialect: Dialect) -> None:
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
        given = {**self._constants, **values}
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._sql, [given[name] for name in self._order] if self._order else given)
            return cursor.fetchone() if cursor.description else None
        finally:
            cursor.close()
