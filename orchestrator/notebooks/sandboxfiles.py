"""SandboxFiles: notebooks in files of a sandbox, for callers who must not reach the host's files."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import FileTransferError
from orchestrator.notebooks.ipynb import LARGEST_FILE
from orchestrator.notebooks.notebookfiles import digest
from orchestrator.notebooks.notebookmanager import NotebookManager


class SandboxFiles:
    """See ``NotebookFiles``. Paths are relative to ``/work``.

    Code of the sandbox that writes the file in the milliseconds between the comparison and the writing is not noticed.
    """

    def __init__(self, manager: NotebookManager, session: Any) -> None:
        self._manager = manager
        self._session = session

    async def read(self, path: str) -> bytes | None:
        """See ``NotebookFiles``."""
        try:
            return await self._manager.read_file(self._session, path, length=LARGEST_FILE + 1)
        except FileTransferError as error:
            if error.fault == "missing":
                return None
            raise

    async def replace(self, path: str, content: bytes, seen: str) -> bytes | None:
        """See ``NotebookFiles``."""
        there = await self.read(path)
        if digest(there) != seen:
            return there
        await self._manager.write_file(self._session, path, content)
        return None
