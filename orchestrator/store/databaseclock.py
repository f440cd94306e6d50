"""The database's clock: the one clock that all hosts of a cluster share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, literal_column
from sqlalchemy.engine import Dialect


def now_of(dialect: Dialect) -> Any:
    """Return the SQL expression for the database's clock, in seconds since the epoch."""
    if dialect.name == "postgresql":
        return func.extract("epoch", func.clock_timestamp())
    return literal_column("((julianday('now') - 2440587.5) * 86400.0)")
