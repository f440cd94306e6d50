"""Large pieces of output, each in a file that is named by what it holds: the same picture twice is one file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.store.wholefile import whole_file

_LARGE = 32 * 1024  # characters of a text that gets a file of its own
_PIECE = 256 * 1024  # characters that are encoded at once: a second copy of a cell's outputs would count as much
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A file may be there before the row that needs it, or be found by one that is about to be written. A file's age is of
# the wall clock: longer than the hour by which that is set at once where a time zone is mistaken.
_GRACE = 86_400.0  # seconds

Path_ = tuple[str | int, ...]


class Payloads:
    """The files, in ``folder``; shared by processes.

    What a sandbox sent is never trusted to name one: where a payload belongs is kept beside the result, not inside.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take_out(self, result: Any) -> tuple[Any, list[tuple[str, str, int]]]:
        """Keep every large text of a JSON value in a file.

        Returns:
            The value with null in their places, and for each its path in the value as JSON, digest and bytes.

        Raises:
            OSError: one cannot be written.
        """
        found: list[tuple[str, str, int]] = []
        kept: dict[str, tuple[str, int]] = {}  # a cell that only prints has its text twice

        def walk(value: Any, path: Path_) -> Any:
            if isinstance(value, str) and len(value) > _LARGE:
                where = json.dumps(path)
                if len(where) <= 500:
                    if value not in kept:
                        kept[value] = self._keep(value)
                    found.append((where, *kept[value]))
                    return None
            if isinstance(value, dict):
                return {key: walk(item, (*path, key)) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [walk(item, (*path, number)) for number, item in enumerate(value)]
            return value

        return walk(result, ()), found

    def put_back(self, result: Any, places: list[tuple[str, str]]) -> None:
        """Fill in what ``take_out`` took. A file that is gone leaves a text that says so."""
        for path, digest in places:
            *parents, last = json.loads(path)
            target = result
            for key in parents:
                target = target[key]
            target[last] = self._read(digest)

    def sweep(self, is_needed: Any) -> int:
        """Remove the files that no row needs, a day after they were last written. Returns the bytes.

        Args:
            is_needed: tells for a digest.
        """
        freed = 0
        for file in self._files():
            try:
                info = file.stat()
                if time.time() - info.st_mtime > _GRACE and not is_needed(file.name):
                    file.unlink()
                    freed += info.st_size
            except FileNotFoundError:  # another process was quicker
                continue
        return freed

    def _files(self) -> Iterator[Path]:
        return (file for file in self._folder.glob("??/*") if _DIGEST.fullmatch(file.name))

    def _keep(self, text: str) -> tuple[str, int]:
        seal, size = hashlib.sha256(), 0
        for piece in _encoded(text):
            seal.update(piece)
            size += len(piece)
        digest = seal.hexdigest()
        file = self._path(digest)
        try:
            os.utime(file)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with whole_file(file, mode=0o600) as handle:
                handle.writelines(_encoded(text))
        return digest, size

    def _read(self, digest: str) -> str:
        try:
            return self._path(digest).read_bytes().decode("utf-8", "surrogatepass")
        except (OSError, UnicodeDecodeError):
            return f"[payload {digest} is gone]"

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest


def _encoded(text: str) -> Iterator[bytes]:
    """Yield a text in UTF-8, in pieces."""
    return (text[start : start + _PIECE].encode("utf-8", "surrogatepass") for start in range(0, len(text), _PIECE))
