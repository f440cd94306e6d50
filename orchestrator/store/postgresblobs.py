"""Blobs in PostgreSQL: each a row of ``blobs``, and rows of ``blob_pieces`` with 1 MiB each.

The pieces are written in transactions of their own, so that no long transaction holds back the server's vacuum. A blob
has no size until its last transaction, and without one only ``sweep`` and ``delete_under`` see it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobReader, BlobWriter, BlobWriting, checked_name
from orchestrator.store.database import Database

_PIECE = MIB  # bytes; all pieces of a blob but the last have this size
_BEGIN = "INSERT INTO blobs (blob_id, name, kept_at) VALUES (%s, %s, clock_timestamp())"
# The end of the blob is synchronous, and the server's log is in order: the pieces are on the disk before it is.
_ADD_PIECE = """
    WITH fast AS (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO blob_pieces (blob_id, number, content) SELECT %s, %s, %s FROM fast
"""
_LOCK_NAME = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 727272))"
_REPLACE = "DELETE FROM blobs WHERE name = %s AND bytes IS NOT NULL"
_FINISH = "UPDATE blobs SET bytes = %s, kept_at = clock_timestamp() WHERE blob_id = %s"
_DISCARD = "DELETE FROM blobs WHERE blob_id = %s"
_FIND = "SELECT blob_id, bytes FROM blobs WHERE name = %s AND bytes IS NOT NULL"
_READ = "SELECT content FROM blob_pieces WHERE blob_id = %s AND number = %s"
_RENEW = "UPDATE blobs SET kept_at = clock_timestamp() WHERE name = %s AND bytes IS NOT NULL"
_UNDER = "name > %s AND name < %s"
_OLD = f"""
    SELECT blob_id, name, bytes FROM blobs WHERE {_UNDER} AND kept_at < clock_timestamp() - %s * interval '1 second'
"""  # noqa: S608
# The age is looked at again: another host may have renewed the blob meanwhile.
_SWEEP = """
    WITH pieces AS (SELECT coalesce(sum(length(content)), 0) AS bytes FROM blob_pieces WHERE blob_id = %(blob)s),
    swept AS (
        DELETE FROM blobs WHERE blob_id = %(blob)s AND kept_at < clock_timestamp() - %(age)s * interval '1 second'
        RETURNING blob_id
    )
    SELECT bytes FROM pieces, swept
"""


class PostgresBlobs:
    """A ``BlobStore`` in the history's database.

    Args:
        database: PostgreSQL, at the newest schema.
        folder: the part of the store that has these blobs.
    """

    def __init__(self, database: Database, folder: str) -> None:
        self._database = database
        self._folder = checked_name(folder)

    @contextmanager
    def writing(self, name: str) -> Iterator[BlobWriter]:
        with self.writing_together() as writing, writing(name) as blob:
            yield blob

    @contextmanager
    def writing_together(self) -> Iterator[BlobWriting]:
        blobs: list[_Writer] = []

        @contextmanager
        def writing(name: str) -> Iterator[BlobWriter]:
            blob = _Writer(self._database, self._key(name))
            blobs.append(blob)
            yield blob
            blob.flush()

        try:
            yield writing
            self._finish(blobs)
        except BaseException:
            self._discard(blobs)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[BlobReader]:
        yield _Reader(self._database, *self._found(name))

    def size(self, name: str) -> int:
        return self._found(name)[1]

    def renew(self, name: str) -> bool:
        with self._cursor() as cursor:
            cursor.execute(_RENEW, [self._key(name)])
            return bool(cursor.rowcount)

    def delete(self, name: str) -> None:
        with self._cursor() as cursor:
            cursor.execute(_REPLACE, [self._key(name)])

    def delete_under(self, folder: str) -> None:
        with self._cursor() as cursor:
            cursor.execute(f"SELECT blob_id FROM blobs WHERE {_UNDER}", _range(self._key(folder)))  # noqa: S608
            found = cursor.fetchall()
        for (blob_id,) in found:
            with self._cursor() as cursor:
                cursor.execute(_DISCARD, [blob_id])

    def names(self) -> set[str]:
        with self._cursor() as cursor:
            cursor.execute(f"SELECT name FROM blobs WHERE bytes IS NOT NULL AND {_UNDER}", _range(self._folder))  # noqa: S608
            return {self._name(key) for (key,) in cursor.fetchall()}

    def sweep(self, needed: Collection[str], older_than: float) -> int:
        with self._cursor() as cursor:
            cursor.execute(_OLD, [*_range(self._folder), older_than])
            old = [blob_id for blob_id, key, size in cursor.fetchall() if size is None or self._name(key) not in needed]
        freed = 0
        for blob_id in old:
            with self._cursor() as cursor:
                cursor.execute(_SWEEP, {"blob": blob_id, "age": older_than})
                freed += sum(int(size) for (size,) in cursor.fetchall())
        return freed

    def _finish(self, blobs: list[_Writer]) -> None:
        """Let all blobs appear in one transaction. Writers of an equal name wait for each other."""
        if not blobs:
            return
        with self._cursor() as cursor, cursor.connection.transaction():
            for blob in sorted(blobs, key=lambda blob: blob.key):
                cursor.execute(_LOCK_NAME, [blob.key])
                cursor.execute(_REPLACE, [blob.key])
                cursor.execute(_FINISH, [blob.size, blob.blob_id])
                if not cursor.rowcount:
                    raise StoreError("a blob was deleted while it was written; nothing of it is left.")

    def _discard(self, blobs: list[_Writer]) -> None:
        """Delete what was written. If the database does not answer, ``sweep`` does it later."""
        try:
            with self._cursor() as cursor:
                for blob in blobs:
                    cursor.execute(_DISCARD, [blob.blob_id])
        except StoreError:
            return

    def _found(self, name: str) -> tuple[str, int]:
        with self._cursor() as cursor:
            cursor.execute(_FIND, [self._key(name)])
            found: tuple[str, int] | None = cursor.fetchone()
        if found is None:
            raise FileNotFoundError(2, "the database has no blob of this name", name)
        return found

    def _cursor(self) -> AbstractContextManager[Any]:
        return _cursor(self._database)

    def _key(self, name: str) -> str:
        return f"{self._folder}/{checked_name(name)}"

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self._folder}/")


class _Writer:
    """Writes one blob, which has no size until ``PostgresBlobs`` finishes it."""

    def __init__(self, database: Database, key: str) -> None:
        self.key = key
        self._database = database
        self._begin()

    def write(self, piece: bytes) -> None:
        self._rest += piece
        while len(self._rest) >= _PIECE:
            self._add(self._rest[:_PIECE])
            del self._rest[:_PIECE]

    def restart(self) -> None:
        with _cursor(self._database) as cursor:
            cursor.execute(_DISCARD, [self.blob_id])
        self._begin()

    def flush(self) -> None:
        """Write the last piece."""
        if self._rest:
            self._add(self._rest)
            self._rest.clear()

    def _begin(self) -> None:
        self.blob_id = uuid.uuid4().hex
        self.size = 0
        self._pieces = 0
        self._rest = bytearray()
        with _cursor(self._database) as cursor:
            cursor.execute(_BEGIN, [self.blob_id, self.key])

    def _add(self, content: bytearray) -> None:
        with _cursor(self._database) as cursor:
            cursor.execute(_ADD_PIECE, [self.blob_id, self._pieces, content])
        self._pieces += 1
        self.size += len(content)


class _Reader:
    def __init__(self, database: Database, blob_id: str, size: int) -> None:
        self.size = size
        self._database = database
        self._blob_id = blob_id
        self._number, self._content = -1, b""  # the piece that was read last: the next read may begin in it

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts: list[bytes] = []
        while offset < end:
            number, start = divmod(offset, _PIECE)
            parts.append(self._piece(number)[start : start + end - offset])
            offset += len(parts[-1])
        return b"".join(parts)

    def _piece(self, number: int) -> bytes:
        if number != self._number:
            with _cursor(self._database) as cursor:
                cursor.execute(_READ, [self._blob_id, number])
                found = cursor.fetchone()
            if not found or len(found[0]) != min(_PIECE, self.size - number * _PIECE):
                raise StoreError("a blob in the database was deleted while it was read, or is damaged.")
            self._number, self._content = number, found[0]
        return self._content


def _cursor(database: Database) -> AbstractContextManager[Any]:
    return database.beside("the blobs in the database")


def _range(folder: str) -> list[str]:
    """Return what the names in a folder are between: "/" is followed by "0"."""
    return [f"{folder}/", f"{folder}0"]
