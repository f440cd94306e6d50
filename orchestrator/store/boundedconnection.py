"""Connections to PostgreSQL on which no statement waits forever, even if the server is stopped or its host is lost.

Imports psycopg, which is an extra. ``Database`` imports this module once it has connected to PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from psycopg import Connection, OperationalError
from sqlalchemy import URL, Engine, create_engine, event

_CONNECT = 10  # seconds to reach the server
_ANSWER = 30.0  # seconds for one statement
_AT_ONCE = 16  # connections of one process; a thread waits up to 30 s for one
_NOTHING = 0  # what psycopg sends to its generator, ten times a second, while the server does not answer


class BoundedConnection(Connection[Any]):
    """A connection that is closed once a statement is not answered within 30 s."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Wait for the server. psycopg calls it for every statement."""
        try:
            return super().wait(_bounded(gen), *args, **kwargs)
        except TimeoutError:
            self.pgconn.finish()
            raise OperationalError(f"the database has not answered within {_ANSWER:g} s") from None


def bounded_engine(url: URL) -> Engine:
    """Return an engine of such connections. Each statement is a transaction of its own."""
    engine = create_engine(
        url,
        connect_args={"connect_timeout": _CONNECT},
        isolation_level="AUTOCOMMIT",
        pool_size=2,
        max_overflow=_AT_ONCE - 2,
        pool_pre_ping=True,
    )

    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> BoundedConnection:
        return BoundedConnection.connect(*arguments, **options)

    event.listen(engine, "do_connect", connect)
    return engine


def _bounded(waiting: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Do what a generator of psycopg does, and raise TimeoutError when it has waited too long."""
    end = time.monotonic() + _ANSWER
    ready = None
    while True:
        try:
            wanted = next(waiting) if ready is None else waiting.send(ready)
        except StopIteration as done:
            return done.value
        ready = yield wanted
        if ready == _NOTHING and time.monotonic() > end:
            raise TimeoutError
