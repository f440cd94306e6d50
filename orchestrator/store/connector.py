"""Connector: how one kind of database is reached. ``Database`` uses one; each kind has a module."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection, Engine


class Connector(Protocol):
    """The connections to one database. Only one thread at a time writes."""

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine."""
        ...

    def writing(self, *, durable: bool, single: bool, long: bool) -> AbstractContextManager[Connection]:
        """Write in one transaction. See ``Database.writing``."""

    def reading(self, *, single: bool, long: bool) -> AbstractContextManager[Connection]:
        """Read in one transaction. See ``Database.reading``."""

    def may_repeat(self) -> bool:
        """Return whether the last write failed only because its connection had ended, so that a new one may do."""

    def close(self) -> None:
        """Close all connections."""
