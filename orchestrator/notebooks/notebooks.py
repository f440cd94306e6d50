"""Notebooks: the open notebooks of one session. Their cells run as cells of that session."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import (
    KernelDiedError,
    KernelTimeoutError,
    NotebookCreationError,
    NotebookError,
    NotebookNotFoundError,
    StoreError,
)
from orchestrator.inputs import check_code
from orchestrator.notebooks import newnotebook
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.notebooks.cellexecutionresult import CellExecutionResult
from orchestrator.notebooks.cellselector import CellSelector
from orchestrator.notebooks.hostfiles import HostFiles
from orchestrator.notebooks.livingdocument import LivingDocument
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.notebooks.notebookfiles import NotebookFiles
from orchestrator.notebooks.notebookmanager import NotebookManager
from orchestrator.notebooks.opennotebook import OpenNotebook
from orchestrator.output.events import CellFinished, Event, ExecutionResult

MOST_NOTEBOOKS = 16  # open at once

Listener = Callable[[Event], None]


class Notebooks:
    """The open notebooks of one session.

    They live in this object until they are closed, also while the session sleeps. Use it from the event loop of the
    manager. Each call is one step: calls that overlap do not disturb each other.

    Args:
        manager: an ``AgentKernelManager``, or what ``AgentKernelManager.connect`` returned.
        session: of that manager.
        files: where paths lead; None: to files of this host.
        environment: variables of every cell.
    """

    def __init__(
        self,
        manager: NotebookManager,
        session: Any,
        *,
        files: NotebookFiles | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._manager = manager
        self._session = session
        self._files = files or HostFiles()
        self._environment = environment
        self._open: dict[str, OpenNotebook] = {}
        self._kernel_id = _kernel_id(session)

    async def create_notebook(self, kernel_name: str = "python3", metadata: Mapping[str, Any] | None = None) -> str:
        """Make an empty notebook, and return its id.

        Args:
            metadata: of the notebook, beside ``kernelspec`` and ``language_info``.

        Raises:
            KernelNotFoundError: sandboxes have no such kernel.
            NotebookCreationError: the metadata cannot be used, or as many notebooks are open as may be.
        """
        return self._opened(OpenNotebook(newnotebook.empty(self._new_id(), kernel_name, metadata)))

    async def open_notebook(self, path: str) -> str:
        """Open a .ipynb file, and return the notebook's id. No cell runs.

        Raises:
            NotebookCreationError: there is no such file, it is no notebook, or as many are open as may be.
            KernelNotFoundError: it is for another language than Python.
            StoreError, FileTransferError: the file cannot be read.
        """
        self._check_room()
        return self._opened(await OpenNotebook.read(self._files, path, self._new_id()))

    async def open_document(self, document: Mapping[str, Any]) -> str:
        """Open a notebook in nbformat's form, and return its id. It has no file.

        Raises:
            NotebookCreationError, KernelNotFoundError: see ``open_notebook``.
        """
        self._check_room()
        return self._opened(OpenNotebook(await asyncio.to_thread(newnotebook.of_form, document, self._new_id())))

    def list_notebooks(self) -> list[str]:
        """Return the ids of the open notebooks, the last used last."""
        return list(self._open)

    async def execute_cell(
        self,
        notebook_id: str,
        cell_content: str,
        cell_type: CellType | str = CellType.CODE,
        store_history: bool = True,
        *,
        position: int | None = None,
        timeout: float | None = None,
        listen: Listener | None = None,
    ) -> CellExecutionResult:
        """Add a cell and run it. An error of its code is a result.

        Args:
            store_history: whether the cell stays in the notebook. The session's history has it in either case.
            position: the cell's index; None: the end.
            timeout: seconds that it may take; at most the manager's limit, and if None.
            listen: called with each event of the cell as it comes.

        Raises:
            NotebookNotFoundError, InvalidPositionError, InvalidInputError: nothing ran.
            KernelDiedError, SessionEndedError, StoreError, QuotaExceededError: see ``AgentKernelManager.execute``. The
                cell stays, and is stale.
        """
        living = self._find(notebook_id).living
        kind = CellType.of(cell_type)
        if kind is CellType.CODE:
            check_code(cell_content)
        if not store_history:
            return await self._run_unkept(cell_content, kind, timeout, listen)
        cell = living.add(cell_content, kind, position)
        return await self._run(living, cell, timeout, listen)

    async def execute_cells(
        self,
        notebook_id: str,
        selector: CellSelector | None = None,
        *,
        stale: bool = False,
        stop_on_error: bool = True,
        timeout: float | None = None,
        listen: Listener | None = None,
    ) -> list[CellExecutionResult]:
        """Run cells of the notebook in their order: the code that is selected; None: all of it.

        Args:
            stale: run only those of them that are stale.
            stop_on_error: whether to stop after the first one that fails. One that was interrupted, or whose kernel
                ended, always is the last.
            timeout, listen: see ``execute_cell``; the timeout is of each cell.

        Raises:
            CellNotFoundError, InvalidPositionError: see ``CellSelector``. Nothing ran.
            See ``execute_cell``.
        """
        living = self._find(notebook_id).living
        self._notice_kernel()
        wanted = [cell for _, cell in (selector or CellSelector()).select(living.cells) if cell.is_runnable]
        if stale:
            outdated = set(living.stale())
            wanted = [cell for cell in wanted if cell.id in outdated]
        results = []
        for cell in wanted:
            if not any(known.id == cell.id for known in living.cells):  # deleted meanwhile
                continue
            results.append(done := await self._run(living, living.cell(cell.id), timeout, listen))
            if not done.success and (stop_on_error or done.ends_all):
                break
        return results

    async def add_cell(
        self,
        notebook_id: str,
        cell_content: str,
        cell_type: CellType | str = CellType.CODE,
        position: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Cell:
        """Add a cell before the one at ``position``, or at the end. It does not run.

        Raises:
            NotebookNotFoundError, InvalidPositionError, InvalidInputError, NotebookError: nothing changed.
        """
        living = self._find(notebook_id).living
        kind = CellType.of(cell_type)
        return living.add(cell_content, kind, position, newnotebook.cell_metadata(kind, metadata))

    async def update_cell(
        self,
        notebook_id: str,
        cell_id: str,
        new_content: str,
        clear_outputs: bool = True,
        *,
        cell_type: CellType | str | None = None,
    ) -> Cell:
        """Replace a cell's source, and its type if one is given. It does not run. The same source changes nothing.

        Raises:
            CellNotFoundError, NotebookNotFoundError, InvalidInputError, NotebookError: nothing changed.
        """
        kind = None if cell_type is None else CellType.of(cell_type)
        living = self._find(notebook_id).living
        return living.edit(cell_id, new_content, cell_type=kind, clear_outputs=clear_outputs)

    async def delete_cell(self, notebook_id: str, cell_id: str) -> Cell:
        """Remove a cell, and return it. The variables that it made stay.

        Raises:
            CellNotFoundError, NotebookNotFoundError: nothing changed.
        """
        return self._find(notebook_id).living.delete(cell_id)

    async def move_cell(self, notebook_id: str, cell_id: str, position: int) -> None:
        """Move a cell, such that ``position`` is its index then.

        Raises:
            CellNotFoundError, InvalidPositionError, NotebookNotFoundError: nothing changed.
        """
        self._find(notebook_id).living.move(cell_id, position)

    async def get_cells(self, notebook_id: str, selector: CellSelector | None = None) -> list[Cell]:
        """Return the selected cells; None: all.

        Raises:
            NotebookNotFoundError: there is no such notebook.
            See ``CellSelector``.
        """
        return [cell for _, cell in (selector or CellSelector()).select(self._find(notebook_id).living.cells)]

    async def stale_cells(self, notebook_id: str) -> list[str]:
        """Return the ids of the code cells that do not show what they would if the notebook ran from top to bottom.

        That is: those that did not run in this session since they or a code cell above them changed, or since a cell
        above them ran; and those whose variables were lost with a kernel.

        Raises:
            NotebookNotFoundError: there is no such notebook.
        """
        self._notice_kernel()
        return self._find(notebook_id).living.stale()

    async def get_notebook(self, notebook_id: str) -> NotebookDocument:
        """Return the whole notebook as it is now.

        Raises:
            NotebookNotFoundError: there is no such notebook.
        """
        return self._find(notebook_id).living.document

    def path_of(self, notebook_id: str) -> str:
        """Return the path of the notebook's file; "" if it has none.

        Raises:
            NotebookNotFoundError: there is no such notebook.
        """
        return self._find(notebook_id).path

    async def save_notebook(self, notebook_id: str, path: str | None = None, *, overwrite: bool = False) -> str:
        """Write the notebook to its file, or to another one, which is its file from then on. Return the path.

        What others have changed in its file meanwhile, such as a person in JupyterLab, is merged cell by cell.

        Args:
            overwrite: whether to replace another file that is there.

        Raises:
            NotebookConflictError: others changed the same cells, or the path has another file. Nothing was written.
            NotebookError: there is no path.
            StoreError, FileTransferError: the file cannot be read or written. It is unchanged.
            NotebookNotFoundError: there is no such notebook.
        """
        return await self._find(notebook_id).save(self._files, path or "", overwrite=overwrite)

    async def close_notebook(self, notebook_id: str, save: bool = True) -> None:
        """Close a notebook; save it first, unless ``save`` is false. What it made in the session stays.

        Raises:
            NotebookError: it has no file. It stays open.
            NotebookNotFoundError: there is no such notebook.
            See ``save_notebook``. It stays open.
        """
        found = self._find(notebook_id)
        if save and not found.path:
            raise NotebookError(
                "the notebook has no file. It stays open.", remedy="Save it under a path, or close it without saving."
            )
        if save:
            await found.save(self._files)
        self._open.pop(notebook_id, None)

    def continue_with(self, session: Any, files: NotebookFiles | None = None) -> None:
        """Go on with another session of the same agent, after the one before has ended: all code is stale.

        Args:
            files: where paths lead from now on; None: as before.
        """
        if session.session_id != self._session.session_id:
            self._kernel_id = _kernel_id(session)
            self._forget_runs()
        self._session, self._files = session, files or self._files

    async def _run(
        self, living: LivingDocument, cell: Cell, timeout: float | None, listen: Listener | None
    ) -> CellExecutionResult:
        if not cell.is_runnable:
            return CellExecutionResult(cell.id, success=True)
        source = living.begin(cell.id)
        try:
            result = await self._result(source, timeout, listen)
        except StoreError as error:
            if error.result is not None:
                self._finish(living, cell.id, error.result)
            raise
        except KernelDiedError:
            self._forget_runs()
            raise
        return self._finish(living, cell.id, result)

    def _finish(self, living: LivingDocument, cell_id: str, result: ExecutionResult) -> CellExecutionResult:
        self._notice_kernel()  # the session may have woken for this cell
        made = living.finish(cell_id, result, datetime.now(UTC), int(getattr(self._session, "cell_count", 0)))
        if result.kernel_state == "dead":
            self._forget_runs()
        return CellExecutionResult.of(cell_id, result, made.outputs)

    async def _run_unkept(
        self, source: str, kind: CellType, timeout: float | None, listen: Listener | None
    ) -> CellExecutionResult:
        if kind is not CellType.CODE:
            return CellExecutionResult("", success=True)
        aside = LivingDocument(NotebookDocument("", ()))
        cell = aside.add(source)
        done = await self._run(aside, cell, timeout, listen)
        return replace(done, cell_id="")

    async def _result(self, source: str, timeout: float | None, listen: Listener | None) -> ExecutionResult:
        options: dict[str, Any] = {"environment": self._environment} if self._environment else {}
        events = self._manager.stream_code(self._session, source, timeout=timeout, **options)
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, CellFinished):
                        return event.result
                    if listen is not None:
                        listen(event)
        except KernelTimeoutError as error:
            return error.result
        raise AssertionError("unreachable: a stream ends with CellFinished or an error")

    def _notice_kernel(self) -> None:
        """Note what was lost if the session has another kernel than before: all, or what no checkpoint has kept."""
        if getattr(self._session, "asleep", False) or (kernel_id := _kernel_id(self._session)) == self._kernel_id:
            return
        restored = getattr(self._session, "restored", None)
        self._kernel_id = kernel_id
        self._forget_runs(-1 if restored is None else restored.cell)

    def _forget_runs(self, after: int = -1) -> None:
        for notebook in self._open.values():
            notebook.living.forget_runs(after)

    def _find(self, notebook_id: str) -> OpenNotebook:
        found = self._open.pop(notebook_id, None)
        if found is None:
            named = ", ".join(self._open) or "none"
            raise NotebookNotFoundError(
                f"there is no open notebook {str(notebook_id)[:40]!r}.",
                notebook_id=str(notebook_id)[:40],
                remedy=f"Open are: {named}.",
            )
        self._open[notebook_id] = found  # the last used is the last
        return found

    def _check_room(self) -> None:
        if len(self._open) >= MOST_NOTEBOOKS:
            raise NotebookCreationError(f"{MOST_NOTEBOOKS} notebooks are open.", remedy="Close one first.")

    def _opened(self, notebook: OpenNotebook) -> str:
        self._check_room()
        document = notebook.living.document
        newnotebook.check_language(document)
        self._open[document.id] = notebook
        return document.id

    def _new_id(self) -> str:
        return f"nb-{secrets.token_hex(4)}"


def _kernel_id(session: Any) -> str:
    return str(getattr(session, "kernel_id", ""))
