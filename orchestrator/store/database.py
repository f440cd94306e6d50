"""The connection to the history's database: SQLite or PostgreSQL, transactions, and writes that are made up for later.

All methods block, and every thread may call them. The writes of several threads take turns: SQLite alone would let
them poll for the database, up to 0.1 s apart.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from orchestrator.errors import StoreError
from orchestrator.store.migrations import migrate
from orchestrator.store.schema import identity
from orchestrator.store.shrinking import make_shrinkable, shrink, use_incremental_vacuum
from orchestrator.store.storeurl import mask, parse

T = TypeVar("T")

_BUSY = 10_000  # milliseconds that SQLite waits for another process's transaction
_LARGEST_LOG = 4 * 1024 * 1024  # bytes that the write-ahead log keeps on the disk once it is written back
_CONNECT = 10  # seconds to reach PostgreSQL


class Database:
    """One database. Every table's class shares it.

    Args:
        url: SQLAlchemy's form: "sqlite:///…" or "postgresql+psycopg://…".

    Raises:
        StoreError: the URL is invalid, names another kind of database, or needs a driver that is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = _make_engine(url)
        self._beside: Engine | None = None  # for ``beside``, made when it is first needed
        self._turn = threading.RLock()
        self._deferred: list[Callable[[Connection], object]] = []  # writes that failed, in order
        self._writer: Connection | None = None  # of SQLite: opening one takes as long as the writes of a cell

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    def migrate(self) -> str:
        """Bring the database to the newest schema. Returns the database's id.

        Raises:
            StoreError: the database cannot be reached, read or written, or a newer Cellblock has written it.
        """
        with self.writing() as connection:
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
        with self._explained(), contextlib.closing(self._engine.raw_connection()) as connection:
            yield connection.driver_connection

    def close(self) -> None:
        """Close all connections."""
        with self._turn:
            self._drop_writer()
            if self._beside is not None:
                self._beside.dispose()
        self._engine.dispose()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in one transaction, after the deferred writes.

        Raises:
            StoreError: the transaction failed; nothing of it is written, and the deferred writes stay deferred.
        """
        with self._turn:
            deferred = list(self._deferred)
            with self.writing() as connection:
                for earlier in deferred:
                    earlier(connection)
                done = work(connection)
            del self._deferred[: len(deferred)]
            return done

    def write_eventually(self, work: Callable[[Connection], object]) -> None:
        """Do ``work`` now; if it fails, do it before the next write that succeeds.

        Raises:
            StoreError: the transaction failed; ``work`` is deferred.
        """
        with self._turn:
            self._deferred.append(work)
            self.write_deferred()

    def write_deferred(self) -> None:
        """Do the deferred writes, if there are any.

        Raises:
            StoreError: the transaction failed; the writes stay deferred.
        """
        if self._deferred:
            self.write(lambda _connection: None)

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[Connection]:
        """Write in one transaction, without the deferred writes.

        Args:
            durable: whether the transaction, and all before it, must survive a power failure. A transaction that is
                not durable survives the end of the process.

        Raises:
            StoreError: the database cannot be reached or written; nothing of the transaction is written.
        """
        with self._turn, self._explained(), self._connected() as connection:
            connection.info["durable"] = durable
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield a connection for one transaction that writes."""
        if self.dialect.name != "sqlite":  # a server may have ended a connection since its last use: the pool checks
            with self._engine.connect() as connection:
                yield connection
            return
        if self._writer is None:
            self._writer = self._engine.connect()
        try:
            yield self._writer
        except BaseException:
            self._drop_writer()
            raise

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read in one transaction.

        Raises:
            StoreError: the database cannot be reached or read.
        """
        with self._explained(), self._engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextlib.contextmanager
    def beside(self, what: str) -> Iterator[Any]:
        """Yield a cursor of psycopg, outside any transaction and apart from the history's connections.

        Each statement must be answered within 30 s. Only for PostgreSQL.

        Args:
            what: the subject of an error's message.

        Raises:
            StoreError: the database cannot be reached, read or written, or does not answer in time.
        """
        driver = self._engine.dialect.loaded_dbapi.Error
        with explained(what, driver, self._url), self._bounded().connect() as connection:
            psycopg: Any = connection.connection.driver_connection
            try:
                with psycopg.cursor(binary=True) as cursor:  # as text, bytes are twice as long
                    yield cursor
            except driver:
                connection.invalidate()
                raise

    def _bounded(self) -> Engine:
        """Return the engine for ``beside``: its many and large statements keep no connection from the history."""
        from orchestrator.store.boundedconnection import bounded_engine

        with self._turn:
            if self._beside is None:
                self._beside = bounded_engine(parse(self._url))
            return self._beside

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained("the history", self._engine.dialect.loaded_dbapi.Error, self._url)


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
    except StoreError:
        raise
    except (SQLAlchemyError, OSError, driver) as error:
        text = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
        said = mask(text, url).strip().splitlines()
        raise StoreError(
            f"{what} cannot be read or written: {said[0] if said else type(error).__name__}.",
            remedy="Check that CELLBLOCK_DATA_DIR is writable and has room, and that the database in "
            "CELLBLOCK_STORE_URL answers.",
        ) from (error if str(error) == mask(str(error), url) else None)


def _make_engine(url: str) -> Engine:
    try:
        parsed = parse(url)
        if parsed.get_backend_name() == "sqlite":
            _protect(parsed.database)
            engine = create_engine(
                parsed,
                connect_args={"timeout": _BUSY / 1000, "check_same_thread": False},
                pool_use_lifo=True,  # the connection that has its statements and pages already
            )
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, connect_args={"connect_timeout": _CONNECT}, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(
            f"CELLBLOCK_STORE_URL cannot be used: {mask(str(error), url)}.",
            remedy="Write sqlite:////path/history.db, or postgresql+psycopg://user@host/name and install "
            "cellblock[postgres].",
        ) from None
    raise StoreError(
        f"CELLBLOCK_STORE_URL names {parsed.get_backend_name()!r}; the history is kept in SQLite or PostgreSQL."
    )


def _protect(path: str | None) -> None:
    """Make a SQLite file private. SQLite gives the files that it makes beside it the same mode.

    A file that exists is not opened: its closing would drop all locks that this process has on it, as POSIX wants it.
    Another process that closes the database would then believe that it is the last one, and delete the write-ahead log
    that this process still reads and writes.
    """
    if not path or path == ":memory:" or path.startswith("file:"):
        return
    with contextlib.suppress(OSError):  # it exists, or opening the database reports what is wrong
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for file in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(OSError):
            os.chmod(file, 0o600)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite begins transactions, not the driver
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA foreign_keys=ON")


# SQLite waits for every lock except this one, which a new database needs once. Seen when four processes opened one.
@retry(
    retry=retry_if_exception_type(sqlite3.OperationalError),
    stop=stop_after_delay(_BUSY / 1000),
    wait=wait_random(0.005, 0.05),
    reraise=True,
)
def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    use_incremental_vacuum(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA journal_size_limit={_LARGEST_LOG}")


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction. A writer takes the lock at once: after a read it would fail if another process had written.

    SQLAlchemy calls it at the beginning of each transaction.
    """
    info = connection.info
    wanted = "FULL" if info.get("durable") else "NORMAL"
    driver: Any = connection.connection.driver_connection
    if info.get("synchronous") != wanted:
        driver.execute(f"PRAGMA synchronous={wanted}")
        info["synchronous"] = wanted
    driver.execute("BEGIN" if connection.get_execution_options().get("reading", False) else "BEGIN IMMEDIATE")
