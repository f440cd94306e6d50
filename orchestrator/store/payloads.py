"""Large outputs, each a blob that is named by the hash of its content: the same picture twice is one blob.

Each session has blobs of its own, so that deleting a session deletes its outputs at once. Databases of schema 2 and
earlier shared their blobs between sessions: these are read still, and deleted with the last session that has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from orchestrator.store.blobs import BlobStore

_LARGE = 32 * 1024  # characters; a longer text becomes a blob
_PIECE = 256 * 1024  # characters that are encoded at once: a second copy of a cell's outputs would need as much memory
_LONGEST_PATH = 500  # characters of a text's path in the result, as in the schema
# Seconds for which an unneeded blob is kept: the row that needs it may be about to be written. The age of a blob is
# measured with the wall clock, which a corrected time zone can move by an hour.
_GRACE = 86_400.0


class Payloads:
    """Takes the large texts out of cells' results, and puts them back.

    A sandbox's output cannot name a blob: a text's place in the result is kept beside the result, not inside it.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def take_out(self, result: Any, session_id: str = "") -> tuple[Any, list[tuple[str, str, int]]]:
        """Write every large text of a JSON value to a blob of the session.

        Returns:
            A copy of the value with null in the places of these texts; and for each text its path in the value as
            JSON, its digest and its size in bytes.

        Raises:
            OSError: a blob cannot be written.
        """
        found: list[tuple[str, str, int]] = []
        kept: dict[str, tuple[str, int]] = {}  # the result of a cell that only prints has its text twice

        def walk(value: Any, path: tuple[str | int, ...]) -> Any:
            if isinstance(value, str) and len(value) > _LARGE:
                where = json.dumps(path)
                if len(where) <= _LONGEST_PATH:
                    if value not in kept:
                        kept[value] = self._keep(value, session_id)
                    found.append((where, *kept[value]))
                    return None
            if isinstance(value, dict):
                return {key: walk(item, (*path, key)) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [walk(item, (*path, number)) for number, item in enumerate(value)]
            return value

        return walk(result, ()), found

    def put_back(self, result: Any, places: list[tuple[str, str]], session_id: str = "") -> None:
        """Put the texts of ``take_out`` back into ``result``. A missing blob is replaced by a text that says so.

        Args:
            places: for each text its path and its digest.
        """
        for path, digest in places:
            *parents, last = json.loads(path)
            target = result
            for key in parents:
                target = target[key]
            target[last] = self._read(digest, session_id)

    def delete(self, session_id: str, shared: Collection[str] = ()) -> None:
        """Delete a session's blobs at once. Idempotent.

        Args:
            shared: digests that no other session has; their blobs from schema 2 and earlier are deleted too.

        Raises:
            OSError: one cannot be deleted.
        """
        self._blobs.delete_under(_folder(session_id))
        for digest in shared:
            self._blobs.delete(_name(digest, ""))

    def sweep(self, needed: Collection[tuple[str, str]]) -> int:
        """Delete the blobs that are not ``needed``, a day after they were last written. Returns the bytes.

        Args:
            needed: the session's id and the digest of each large output.

        Raises:
            OSError: one cannot be deleted.
        """
        names = {_name(digest, session_id) for session_id, digest in needed}
        return self._blobs.sweep(names | {_name(digest, "") for _, digest in needed}, _GRACE)

    def _keep(self, text: str, session_id: str) -> tuple[str, int]:
        seal, size = hashlib.sha256(), 0
        for piece in _encoded(text):
            seal.update(piece)
            size += len(piece)
        digest = seal.hexdigest()
        name = _name(digest, session_id)
        if not self._blobs.renew(name):
            with self._blobs.writing(name) as blob:
                for piece in _encoded(text):
                    blob.write(piece)
        return digest, size

    def _read(self, digest: str, session_id: str) -> str:
        for name in (_name(digest, session_id), _name(digest, "")):
            with contextlib.suppress(OSError, UnicodeDecodeError), self._blobs.reading(name) as blob:
                return blob.read(0, blob.size).decode("utf-8", "surrogatepass")
        return f"[payload {digest} is gone]"


def _name(digest: str, session_id: str) -> str:
    """Return a blob's name; without a session, the name that schema 2 and earlier gave it."""
    return f"{_folder(session_id) if session_id else digest[:2]}/{digest}"


def _folder(session_id: str) -> str:
    return f"sessions/{session_id[:2]}/{session_id}"


def _encoded(text: str) -> Iterator[bytes]:
    """Yield a text in UTF-8, in pieces."""
    return (text[start : start + _PIECE].encode("utf-8", "surrogatepass") for start in range(0, len(text), _PIECE))
