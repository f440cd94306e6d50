"""Large outputs, each a blob that is named by the hash of its content: the same picture twice is one blob.

What is left of a result without its large texts is small, or a blob too: a row in the database is short.

Each session has blobs of its own, so that deleting a session deletes its outputs at once. Databases of schema 2 and
earlier shared their blobs between sessions: these are read still, and deleted with the last session that has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.store.blobs import BlobStore, BlobWriting

_LARGE = 32 * 1024  # characters; a longer text becomes a blob
_LARGEST = 1 << 30  # bytes; who writes a shared store could else fill this host's memory
_MANY = 2000  # values; a result with more is not searched further
_PIECE = 256 * 1024  # characters that are encoded at once: a second copy of a cell's outputs would need as much memory
_TURN = 64 * 1024  # characters of JSON that are made at once, in less than a millisecond
_PAUSE = 0.0001  # seconds in which other threads run after each turn
_LONGEST_PATH = 500  # characters of a text's path in the result, as in the schema
# Seconds for which an unneeded blob is kept: the row that needs it may be about to be written. The age of a blob is
# measured with the wall clock, which a corrected time zone can move by an hour.
_GRACE = 86_400.0
_WHOLE = "[]"  # the path of the result itself
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A result whose large outputs are blobs.

    Attributes:
        text: the rest, as JSON.
        size: bytes of ``text``.
        places: for each large output its path in the result as JSON, its digest and its size in bytes.
    """

    text: str
    size: int
    places: list[tuple[str, str, int]]


def is_large(result: Any) -> bool:
    """Return whether a result may have outputs that become blobs. Takes less than a millisecond."""
    waiting, characters, seen = [result], 0, 0
    while waiting and characters <= _LARGE and seen <= _MANY:
        value = waiting.pop()
        seen += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            waiting += value.values()
            characters += sum(map(len, value))
        elif isinstance(value, list | tuple):
            waiting += value[:_MANY]
    return characters > _LARGE or seen > _MANY


class Payloads:
    """Takes the large texts out of cells' results, and puts them back.

    A sandbox's output cannot name a blob: a text's place in the result is kept beside the result, not inside it.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def keep(self, result: Any, session_id: str = "") -> KeptResult:
        """Write the large outputs of a result to blobs of the session.

        Raises:
            OSError: a blob cannot be written.
        """
        with self._blobs.writing_together() as writing:
            rest, places = self._take_out(result, session_id, writing)
            text = _as_json(rest)
            if len(text) > _LARGE:
                places.append((_WHOLE, *self._keep(text, session_id, writing)))
                text = "null"
        return KeptResult(text, len(text.encode()), places)

    def restore(self, text: str, places: list[tuple[str, str]], session_id: str = "") -> Any:
        """Return the result that ``keep`` was given. A text says so in place of a blob that is missing or altered.

        Args:
            text: of the ``KeptResult``.
            places: for each large output its path and its digest.

        Raises:
            StoreError: the store does not answer.
        """
        blobs = dict(places)
        whole = blobs.pop(_WHOLE, None)
        try:
            result = json.loads(text if whole is None else self._read(whole, session_id))
        except ValueError:
            return {"status": "error", "outputs": [{"type": "stream", "name": "stdout", "text": _gone(whole)}]}
        for path, digest in blobs.items():
            *parents, last = json.loads(path)
            target = result
            for key in parents:
                target = target[key]
            target[last] = self._read(digest, session_id)
        return result

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

    def delete_some(self, session_id: str, digests: Collection[str]) -> None:
        """Delete blobs of a session. Idempotent.

        Raises:
            OSError: one cannot be deleted.
        """
        for digest in digests:
            self._blobs.delete(_name(digest, session_id))

    def has(self, kept: KeptResult, session_id: str) -> bool:
        """Return whether the blobs of a result are still there, and keep them from the next ``sweep``."""
        return all(self._blobs.renew(_name(digest, session_id)) for _, digest, _ in kept.places)

    def sweep(self, needed: Collection[tuple[str, str]]) -> int:
        """Delete the blobs that are not ``needed``, a day after they were last written. Returns the bytes.

        Args:
            needed: the session's id and the digest of each large output.

        Raises:
            OSError: one cannot be deleted.
        """
        names = {_name(digest, session_id) for session_id, digest in needed}
        return self._blobs.sweep(names | {_name(digest, "") for _, digest in needed}, _GRACE)

    def _take_out(self, result: Any, session_id: str, writing: BlobWriting) -> tuple[Any, list[tuple[str, str, int]]]:
        """Return a copy of a JSON value with null in the places of its large texts, and these places."""
        found: list[tuple[str, str, int]] = []
        kept: dict[str, tuple[str, int]] = {}  # the result of a cell that only prints has its text twice

        def walk(value: Any, path: tuple[str | int, ...]) -> Any:
            if isinstance(value, str) and len(value) > _LARGE:
                where = json.dumps(path)
                if len(where) <= _LONGEST_PATH:
                    if value not in kept:
                        kept[value] = self._keep(value, session_id, writing)
                    found.append((where, *kept[value]))
                    return None
            if isinstance(value, dict):
                return {key: walk(item, (*path, key)) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [walk(item, (*path, number)) for number, item in enumerate(value)]
            return value

        return walk(result, ()), found

    def _keep(self, text: str, session_id: str, writing: BlobWriting) -> tuple[str, int]:
        seal, size = hashlib.sha256(), 0
        for piece in _encoded(text):
            seal.update(piece)
            size += len(piece)
        digest = seal.hexdigest()
        name = _name(digest, session_id)
        if not self._blobs.renew(name):
            with writing(name) as blob:
                for piece in _encoded(text):
                    blob.write(piece)
        return digest, size

    def _read(self, digest: str, session_id: str) -> str:
        for name in (_name(digest, session_id), _name(digest, "")):
            try:
                with self._blobs.reading(name) as blob:
                    content = blob.read(0, min(blob.size, _LARGEST))
            except StoreError:  # a store that is away says nothing about its blobs
                raise
            except OSError:
                continue
            if hashlib.sha256(content).hexdigest() != digest:
                return f"[payload {digest} was altered]"
            return content.decode("utf-8", "surrogatepass")
        return _gone(digest)


def _gone(digest: str | None) -> str:
    return f"[payload {digest} is gone]"


def _name(digest: str, session_id: str) -> str:
    """Return a blob's name; without a session, the name that schema 2 and earlier gave it."""
    return f"{_folder(session_id) if session_id else digest[:2]}/{digest}"


def _folder(session_id: str) -> str:
    return f"sessions/{session_id[:2]}/{session_id}"


def _encoded(text: str) -> Iterator[bytes]:
    """Yield a text in UTF-8, in pieces."""
    return (text[start : start + _PIECE].encode("utf-8", "surrogatepass") for start in range(0, len(text), _PIECE))


def _as_json(value: Any) -> str:
    """Return JSON that any database keeps. Escapes would make a text six times as long: only surrogates have them.

    The encoder in C is faster, but all other threads wait until it is done.
    """
    if not is_large(value):
        return _escaped(json.dumps(value, ensure_ascii=False))
    pieces: list[str] = []
    waiting: list[str] = []
    characters = 0
    for token in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        waiting.append(token)
        characters += len(token)
        if characters > _TURN:
            pieces.append(_escaped("".join(waiting)))
            waiting.clear()
            characters = 0
            time.sleep(_PAUSE)
    return "".join((*pieces, _escaped("".join(waiting))))


def _escaped(text: str) -> str:
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()  # ten times as fast as the search
        return text
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
