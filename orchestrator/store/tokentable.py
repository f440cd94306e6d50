"""The tokens of a server. Only ``History`` uses this class."""

from __future__ import annotations

import json
import time
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from orchestrator.store.database import Database
from orchestrator.store.records import TokenRecord
from orchestrator.store.schema import tokens


class TokenTable:
    """The tokens of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_token(self, record: TokenRecord) -> None:
        """Add a token, and survive a power failure."""
        row = {
            "token_id": record.token_id,
            "name": record.name,
            "group_name": record.group,
            "policies": json.dumps(record.policies),
            "rights": json.dumps(sorted(record.rights)),
            "digest": record.digest,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
            "revoked_at": record.revoked_at,
        }
        with self._database.writing(durable=True) as connection:
            connection.execute(insert(tokens).values(row))

    def token(self, token_id: str) -> TokenRecord | None:
        """Return a token, valid or not; None if there is none of this id."""
        with self._database.reading(single=True) as connection:
            row = connection.execute(select(tokens).where(tokens.c.token_id == token_id)).first()
        return None if row is None else _record(row)

    def tokens(self) -> list[TokenRecord]:
        """Return all tokens, the newest first. Revoked ones are among them."""
        query = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.token_id)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def has_tokens(self) -> bool:
        """Return whether there ever was a token: then nobody comes in without one."""
        with self._database.reading(single=True) as connection:
            return bool(connection.scalar(select(func.count()).select_from(tokens)))

    def revoke_token(self, token_id: str) -> bool:
        """Revoke a token. Returns whether it was valid until now."""
        now = time.time()
        unrevoked = (tokens.c.token_id == token_id) & tokens.c.revoked_at.is_(None)
        with self._database.writing(durable=True) as connection:
            return connection.execute(update(tokens).where(unrevoked).values(revoked_at=now)).rowcount == 1


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        row.token_id,
        row.name,
        row.group_name,
        tuple(json.loads(row.policies)),
        frozenset(json.loads(row.rights)),
        row.digest,
        row.created_at,
        row.expires_at,
        row.revoked_at,
    )
