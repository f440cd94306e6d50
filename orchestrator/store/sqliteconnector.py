"""SQLite: one file, in write-ahead logging."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from orchestrator.store.shrinking import use_incremental_vacuum

_BUSY = 10_000  # milliseconds that SQLite waits for another process's transaction
_LARGEST_LOG = 4 * 1024 * 1024  # bytes that the write-ahead log keeps on the disk once it is written back


class SqliteConnector:
    """The connections to a file. The one that writes is kept: opening one takes as long as the writes of a cell."""

    def __init__(self, url: URL) -> None:
        _protect(url.database)
        self.engine = create_engine(
            url,
            connect_args={"timeout": _BUSY / 1000, "check_same_thread": False},
            pool_use_lifo=True,  # the connection that has its statements and pages already
        )
        event.listen(self.engine, "connect", _prepare)
        event.listen(self.engine, "begin", _begin)
        self._writer: Connection | None = None

    @contextlib.contextmanager
    def writing(self, *, durable: bool, single: bool, long: bool) -> Iterator[Connection]:
        if self._writer is None:
            self._writer = self.engine.connect()
        try:
            self._writer.info["durable"] = durable
            with self._writer.begin():
                yield self._writer
        except BaseException:
            self._drop_writer()
            raise

    @contextlib.contextmanager
    def reading(self, *, single: bool, long: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection.execution_options(reading=True)

    def may_repeat(self) -> bool:
        return False

    def close(self) -> None:
        self._drop_writer()
        self.engine.dispose()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


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


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin begins transactions, not the driver
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


def _begin(connection: Connection) -> None:
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
