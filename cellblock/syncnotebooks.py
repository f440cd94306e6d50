"""Notebooks and Dispatcher for programs without an event loop. ``cellblock.sync`` hands them on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellblock.blocking import Blocking, calls, waits
from orchestrator.notebooks.dispatcher import Dispatcher as AsyncDispatcher
from orchestrator.notebooks.notebooks import Notebooks as AsyncNotebooks

if TYPE_CHECKING:
    from orchestrator.notebooks.notebookfiles import NotebookFiles
    from orchestrator.notebooks.notebookmanager import NotebookManager


class Notebooks(Blocking[AsyncNotebooks]):
    """The open notebooks of one session of a synchronous manager: ``cellblock.Notebooks``, whose methods wait.

    Safe to use from several threads. It ends with its manager. Ctrl-C interrupts the cell that the main thread waits
    for. A function ``listen`` is called in the manager's thread: it must not block, and cannot call the manager.

    Args:
        manager: a ``Manager``, or what ``Manager.connect`` returned.
        session, files, environment: see ``cellblock.Notebooks``.

    Raises:
        ManagerClosedError: the manager was shut down.
    """

    def __init__(
        self,
        manager: Blocking[NotebookManager],
        session: Any,
        *,
        files: NotebookFiles | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        thread = manager._thread
        made = thread.call(lambda: AsyncNotebooks(manager._wrapped, session, files=files, environment=environment))
        super().__init__(made, thread)

    create_notebook = waits(AsyncNotebooks.create_notebook)
    open_notebook = waits(AsyncNotebooks.open_notebook)
    open_document = waits(AsyncNotebooks.open_document)
    list_notebooks = calls(AsyncNotebooks.list_notebooks)
    execute_cell = waits(AsyncNotebooks.execute_cell)
    execute_cells = waits(AsyncNotebooks.execute_cells)
    add_cell = waits(AsyncNotebooks.add_cell)
    update_cell = waits(AsyncNotebooks.update_cell)
    delete_cell = waits(AsyncNotebooks.delete_cell)
    move_cell = waits(AsyncNotebooks.move_cell)
    get_cells = waits(AsyncNotebooks.get_cells)
    stale_cells = waits(AsyncNotebooks.stale_cells)
    get_notebook = waits(AsyncNotebooks.get_notebook)
    path_of = calls(AsyncNotebooks.path_of)
    save_notebook = waits(AsyncNotebooks.save_notebook)
    close_notebook = waits(AsyncNotebooks.close_notebook)
    continue_with = calls(AsyncNotebooks.continue_with)


class Dispatcher(Blocking[AsyncDispatcher]):
    """The single entry of the protocol: ``cellblock.Dispatcher``, whose ``dispatch`` waits for the answer.

    Attributes:
        schema: the JSON schema of requests.
    """

    schema = AsyncDispatcher.schema

    def __init__(self, notebooks: Notebooks) -> None:
        super().__init__(AsyncDispatcher(notebooks._wrapped), notebooks._thread)

    dispatch = waits(AsyncDispatcher.dispatch)
