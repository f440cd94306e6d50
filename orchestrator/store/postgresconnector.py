"""PostgreSQL: a server that may be restarted, stopped, or cut off, and is never waited for without a bound."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DisconnectionError, OperationalError

from orchestrator.errors import StoreError
from orchestrator.store.answerdeadline import AnswerDeadline

_CONNECT = 5  # seconds to reach the server
_WRITE = 10.0  # seconds for a write, which takes milliseconds; other writes wait behind it
_READ = 30.0  # seconds for a list
_LARGE = 30.0  # seconds for statements with a piece of a blob
_LONG = 120.0  # seconds for a migration, and for a list of all that retention may delete
_SLOW = 1.0  # seconds of waiting after which a failure means that the server is away
_AWAY = 2.0  # seconds for which a server that is away is not asked again: the calls that wait fail with the first one


class PostgresConnector:
    """The connections to a server. Single statements have a connection of their own, which commits each by itself."""

    def __init__(self, url: URL) -> None:
        self.engine = create_engine(url, connect_args={"connect_timeout": _CONNECT})
        event.listen(self.engine, "checkout", _refuse_ended)
        self._deadline = AnswerDeadline()
        self._writer: Connection | None = None
        self._had_ended = False  # the last write's connection, which was quick to say so
        self._away_until = 0.0

    @contextlib.contextmanager
    def writing(self, *, durable: bool, single: bool, long: bool) -> Iterator[Connection]:
        if not single:
            seconds = _LONG if long else _WRITE
            with self._connected(seconds) as connection, connection.begin():
                # A server does not see that a host was cut off or frozen: it would keep the locks for as long.
                connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {seconds * 1000:.0f}")
                yield connection
            return
        self._had_ended = False
        with self._asked():
            writer = self._single_writer()
            driver, in_time = _driver(writer), True
            try:
                with self._deadline.of(writer, _WRITE) as is_in_time:
                    try:
                        yield writer
                    finally:
                        in_time = is_in_time()
            except BaseException:
                self._had_ended = in_time and driver.closed
                self._drop_writer()
                raise

    @contextlib.contextmanager
    def reading(self, *, single: bool, long: bool) -> Iterator[Connection]:
        with self._connected(_LONG if long else _READ) as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT") if single else connection

    @contextlib.contextmanager
    def _connected(self, seconds: float) -> Iterator[Connection]:
        """Yield a connection of the pool, and end it if the block takes longer than ``seconds``."""
        with self._asked(), self.engine.connect() as connection, self._deadline.of(connection, seconds):
            yield connection

    @contextlib.contextmanager
    def beside(self) -> Iterator[Any]:
        """Yield a cursor of the driver, whose statements are transactions of their own. Any number of threads may."""
        with self._asked(), self.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            with self._deadline.of(connection, _LARGE):
                try:
                    with _driver(connection).cursor(binary=True) as cursor:  # as text, bytes are twice as long
                        yield cursor
                except self.engine.dialect.loaded_dbapi.Error:
                    connection.invalidate()
                    raise

    def may_repeat(self) -> bool:
        return self._had_ended

    def close(self) -> None:
        self._drop_writer()
        self.engine.dispose()
        self._deadline.close()

    def _single_writer(self) -> Connection:
        """Return the connection for single statements. One that has ended is replaced."""
        if self._writer is not None and _has_ended(_driver(self._writer)):
            self._drop_writer()
        if self._writer is None:
            self._writer = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            _driver(self._writer).prepare_threshold = 0  # at the first use: later ones are one round trip each
        return self._writer

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):  # the server may have ended it
                writer.invalidate()
                writer.close()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Refuse at once while the server is away, and note when it is."""
        if time.monotonic() < self._away_until:
            raise StoreError(
                "the history cannot be read or written: its database did not answer a moment ago.",
                remedy="Check that the database in CELLBLOCK_STORE_URL answers.",
            )
        began = time.monotonic()
        try:
            yield
        except (OperationalError, self.engine.dialect.loaded_dbapi.OperationalError):
            if time.monotonic() - began > _SLOW:
                self._away_until = time.monotonic() + _AWAY
            raise


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _refuse_ended(driver: Any, _record: object, _proxy: object) -> None:
    """Make the pool replace a connection that has ended. To ask the server would cost a round trip, without a bound."""
    if _has_ended(driver):
        raise DisconnectionError


def _has_ended(driver: Any) -> bool:
    """Return whether the server has closed an idle connection: it has sent something, which nobody asked for."""
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))
