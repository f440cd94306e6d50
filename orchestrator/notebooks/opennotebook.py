"""OpenNotebook: one notebook that is open: its living document, and the file that it came from or was saved to."""

from __future__ import annotations

import asyncio

from orchestrator.errors import NotebookConflictError, NotebookCreationError, NotebookError
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.livingdocument import LivingDocument
from orchestrator.notebooks.merging import merge
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.notebooks.notebookfiles import NotebookFiles, digest

_TRIES = 5  # of saving while others write the file


class OpenNotebook:
    """One notebook.

    Attributes:
        living: its cells.
        path: of its file; "" while it has none.
    """

    def __init__(self, document: NotebookDocument, path: str = "", content: bytes | None = None) -> None:
        self.living = LivingDocument(document)
        self.path = path
        self._base = document  # as the file was when it was read or written last
        self._seen = digest(content)
        self._saving = asyncio.Lock()

    @classmethod
    async def read(cls, files: NotebookFiles, path: str, notebook_id: str) -> OpenNotebook:
        """Return the notebook in a file.

        Raises:
            NotebookCreationError: there is no such file, or it is no notebook.
            StoreError, FileTransferError: it cannot be read.
        """
        content = await files.read(path)
        if content is None:
            raise NotebookCreationError(f"there is no file {path!r}.")
        return cls(await asyncio.to_thread(ipynb.parse, content, notebook_id), path, content)

    @property
    def is_saved(self) -> bool:
        """Whether the file has every change that was made here."""
        return bool(self.path) and self.living.document == self._base

    async def save(self, files: NotebookFiles, path: str = "", *, overwrite: bool = False) -> str:
        """Write the notebook to its file, or to another one, which is its file from then on. Return the path.

        What others have changed in the file since it was read or written here is merged, and is then here too.

        Args:
            overwrite: whether to replace a file that is another notebook, or none.

        Raises:
            NotebookConflictError: others changed the same cells, or the path has another file. Nothing was written.
            NotebookError: there is no path.
            StoreError, FileTransferError: the file cannot be read or written. It is unchanged.
        """
        target = path or self.path
        if not target:
            raise NotebookError("the notebook has no file.", remedy="Name a path to save it.")
        async with self._saving:
            return await (self._save(files) if target == self.path else self._save_as(files, target, overwrite))

    async def _save(self, files: NotebookFiles) -> str:
        for _ in range(_TRIES):
            there = await files.read(self.path)
            if there is None:  # it was deleted
                self._seen = ""
            elif digest(there) != self._seen:
                await self._merge(there)
            if await self._written(files, self.path, self._seen):
                return self.path
        raise NotebookConflictError(f"{self.path} is being changed by others all the time.", path=self.path)

    async def _save_as(self, files: NotebookFiles, path: str, overwrite: bool) -> str:
        there = await files.read(path)
        if (there is not None and not overwrite) or not await self._written(files, path, digest(there)):
            raise NotebookConflictError(
                f"{path} is there already, and is not this notebook's file. Nothing was written.",
                path=path,
                remedy="Save under another path, or with overwrite.",
            )
        self.path = path
        return path

    async def _written(self, files: NotebookFiles, path: str, seen: str) -> bool:
        """Write the notebook if the file is as it was seen. Returns whether it was written."""
        snapshot = self.living.document
        content = await asyncio.to_thread(ipynb.dump, snapshot)
        if await files.replace(path, content, seen) is not None:
            return False
        self._base, self._seen = snapshot, digest(content)
        return True

    async def _merge(self, there: bytes) -> None:
        """Take over what others have changed in the file."""
        try:
            theirs = await asyncio.to_thread(ipynb.parse, there, self._base.id, self._base)
        except NotebookCreationError as error:
            raise NotebookConflictError(
                f"{self.path} was changed by others, and is no notebook now. Nothing was written.",
                path=self.path,
                remedy="Save under another path.",
            ) from error
        self.living.adopt(merge(self._base, self.living.document, theirs, self.path))
        self._base, self._seen = theirs, digest(there)
