"""NotebookFiles: where notebooks are read and saved. The host's files have one form, those of a sandbox another."""

from __future__ import annotations

import hashlib
from typing import Protocol


class NotebookFiles(Protocol):
    """Files by their paths."""

    async def read(self, path: str) -> bytes | None:
        """Return a file's content; None if there is no file.

        Raises:
            StoreError, FileTransferError: it cannot be read.
        """

    async def replace(self, path: str, content: bytes, seen: str) -> bytes | None:
        """Write a file, whole or not at all, if its content is what the caller has seen.

        Args:
            seen: the digest of that content.

        Returns:
            None if it was written; else what is there instead.

        Raises:
            StoreError, FileTransferError: it cannot be written. An earlier file is unchanged.
        """


def digest(content: bytes | None) -> str:
    """Return what tells a content from another one; "" for no file."""
    return "" if content is None else hashlib.sha256(content).hexdigest()
