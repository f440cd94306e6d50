"""The connection to the history's database: SQLite or PostgreSQL, transactions, and writes that are made up for later.

All methods block, and every thread may call them. The writes of several threads take turns: SQLite alone would let
them poll for the database, up to 0.1 s apart.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from orchestrator.errors import CellblockError, NotOwnerError, StoreError
from orchestrator.store.connector import Connector
from orchestrator.store.migrations import migrate
from orchestrator.store.postgresconnector import PostgresConnector
from orchestrator.store.schema import identity
from orchestrator.store.shrinking import make_shrinkable, shrink
from orchestrator.store.sqliteconnector import SqliteConnector
from orchestrator.store.storeurl import mask, parse

T = TypeVar("T")


class Database:
    """One database. Every table's class shares it.
    Args:
        url: SQLAlchemy's form: "sqlite:///…" or "postgresql+psycopg://…".

    Raises:
        StoreError: the URL is invalid, names another kind of database, or needs a driver that is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connector = _connector(url)
        self._turn = threading.RLock()
        self._deferred: list[Callable[[], object]] = []  # writes that failed, in order

    @property
    def dialect(self) -> Dialect:
        return self._connector.engine.dialect

    def migrate(self) -> str:
        """Bring the database to the newest schema. Returns the database's id.

        Raises:
            StoreError: the database cannot be reached, read or written, or a newer Cellblock has written it.
        """
        with self.writing(long=True) as connection:
            migrate(connection)
            database_id: str = connection.execute(select(identity.c.database_id)).scalar_one()
        if self.dialect.name == "sqlite":
            with self._driver() as connection:
                make_shrinkable(connection)
        return database_id

    def shrink(self) -> int:
        """Give the space of deleted rows back to the disk, in short transactions, for at most 30 s.

        Returns:
            How many bytes of a SQLite file are given back. PostgreSQL's autovacuum does this by itself.

        Raises:
            StoreError: the database cannot be read or written.
        """
        if self.dialect.name != "sqlite":
            return 0
        with self._driver() as connection:
            return shrink(connection)

    @contextlib.contextmanager
    def _driver(self) -> Iterator[Any]:
        """Yield a connection of the driver's own, outside any transaction."""
        with self._explained(), contextlib.closing(self._connector.engine.raw_connection()) as connection:
            yield connection.driver_connection

    def close(self) -> None:
        """Close all connections."""
        with self._turn:
            self._connector.close()

    def write(self, work: Callable[[Connection], T], *, single: bool = False) -> T:
        """Do ``work`` in a transaction, after the deferred writes, each of which is a transaction of its own.

        Args:
            single: see ``writing``. If the connection breaks in the midst, ``work`` is done once more.

        Raises:
            NotOwnerError: ``work`` raised it; nothing is written.
            StoreError: the transaction failed; nothing of it is written, and the deferred writes stay deferred.
        """
        with self._turn:
            self.write_deferred()
            return self._write(work, single=single)

    def write_eventually(self, work: Callable[[Connection], object], *, single: bool = False) -> None:
        """Do ``work`` now; if it fails, do it before the next write that succeeds. Stale work is dropped.

        Raises:
            NotOwnerError: ``work`` raised it; it is not done, now or later.
            StoreError: the transaction failed; ``work`` is deferred.
        """
        with self._turn:
            try:
                self.write(work, single=single)
            except StoreError:
                self._deferred.append(partial(self._write, work, single=single))
                raise

    def write_deferred(self) -> None:
        """Do the deferred writes, if there are any. One that is stale is dropped.

        Raises:
            StoreError: one failed; it and those after it stay deferred.
        """
        with self._turn:
            while self._deferred:
                with contextlib.suppress(NotOwnerError):
                    self._deferred[0]()
                del self._deferred[0]

    def _write(self, work: Callable[[Connection], T], *, single: bool) -> T:
        try:
            with self.writing(single=single) as connection:
                return work(connection)
        except StoreError:
            if not (single and self._connector.may_repeat()):
                raise
        with self.writing(single=single) as connection:
            return work(connection)

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False, single: bool = False, long: bool = False) -> Iterator[Connection]:
        """Write in one transaction, without the deferred writes.

        Args:
            durable: whether the transaction, and all before it, must survive a power failure. A transaction that is
                not durable survives the end of the process.
            single: whether a failure may be followed by a repetition, and every statement is whole by itself, so that
                PostgreSQL commits each as it comes: one round trip, not three.
            long: whether PostgreSQL may take two minutes in place of 10 s. All other writes wait meanwhile.

        Raises:
            StoreError: the database cannot be reached or written; nothing of the transaction is written.
        """
        with (
            self._turn,
            self._explained(),
            self._connector.writing(durable=durable, single=single, long=long) as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def reading(self, *, single: bool = False, long: bool = False) -> Iterator[Connection]:
        """Read in one transaction.

        Args:
            single: whether one statement is all, so that PostgreSQL needs no transaction: one round trip, not three.
            long: whether PostgreSQL may take two minutes in place of 30 s.

        Raises:
            StoreError: the database cannot be reached or read.
        """
        with self._explained(), self._connector.reading(single=single, long=long) as connection:
            yield connection

    @contextlib.contextmanager
    def beside(self, what: str) -> Iterator[Any]:
        """Yield a cursor of psycopg for statements that are transactions of their own. Only for PostgreSQL.

        They are answered within 30 s, or fail.

        Args:
            what: the subject of an error's message.

        Raises:
            StoreError: the database cannot be reached, read or written.
        """
        assert isinstance(self._connector, PostgresConnector)
        with explained(what, self.dialect.loaded_dbapi.Error, self._url), self._connector.beside() as cursor:
            yield cursor

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained("the history", self._connector.engine.dialect.loaded_dbapi.Error, self._url)


@contextlib.contextmanager
def explained(what: str, driver: type[Exception] = SQLAlchemyError, url: str = "") -> Iterator[None]:
    """Raise a StoreError in place of an error of the database or of the disk.

    Args:
        what: the subject of the message.
        driver: the driver's own class of errors.
        url: the database's URL, whose secrets the message must not contain.
    """
    try:
        yield
    except CellblockError:
        raise
    except (SQLAlchemyError, OSError, driver) as error:
        text = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
        said = mask(text, url).strip().splitlines()
        raise StoreError(
            f"{what} cannot be read or written: {said[0] if said else type(error).__name__}.",
            remedy="Check that CELLBLOCK_DATA_DIR is writable and has room, and that the database in "
            "CELLBLOCK_STORE_URL answers.",
        ) from (error if str(error) == mask(str(error), url) else None)


def _connector(url: str) -> Connector:
    try:
        parsed = parse(url)
        if parsed.get_backend_name() == "sqlite":
            return SqliteConnector(parsed)
        if parsed.get_backend_name() == "postgresql":
            return PostgresConnector(parsed)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(
            f"CELLBLOCK_STORE_URL cannot be used: {mask(str(error), url)}.",
            remedy="Write sqlite:////path/history.db, or postgresql+psycopg://user@host/name and install "
            "cellblock[postgres].",
        ) from None
    raise StoreError(
        f"CELLBLOCK_STORE_URL names {parsed.get_backend_name()!r}; the history is kept in SQLite or PostgreSQL."
    )
