"""Dispatcher: the single entry of the protocol: one operation as a JSON object in, one JSON object out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from orchestrator.errors import InvalidInputError, InvalidPositionError, NotebookNotFoundError
from orchestrator.notebooks import cellview
from orchestrator.notebooks.cell import Cell
from orchestrator.notebooks.cellexecutionresult import CellExecutionResult
from orchestrator.notebooks.cellselector import CellSelector
from orchestrator.notebooks.notebooks import Listener, Notebooks
from orchestrator.notebooks.operation import DEFAULT_BUDGET, SCHEMA, checked
from orchestrator.output.printable import printable

_ENVELOPE = 80  # tokens of an answer beside its outputs
_PER_CELL = 30  # tokens of an entry of a cell that ran, beside its outputs

Fields = dict[str, Any]
Answer = dict[str, Any]


class Dispatcher:
    """Carries out operations on the notebooks of one session.

    Every answer has ``status`` ("ok", or "error" if the code of a cell failed) and ``token_estimate``. Its text is
    within the request's ``budget`` of tokens. Pictures are named: ``get_output`` returns one.

    Attributes:
        schema: the JSON schema of requests.
    """

    schema = SCHEMA

    def __init__(self, notebooks: Notebooks) -> None:
        self._notebooks = notebooks
        self._work: Mapping[str, Callable[[Fields, Listener | None], Awaitable[Answer]]] = {
            "create_notebook": self._create,
            "open_notebook": self._open,
            "list_notebooks": self._list,
            "get_notebook": self._look,
            "get_cells": self._get_cells,
            "get_output": self._get_output,
            "add_cell": self._add,
            "edit_cell": self._edit,
            "move_cell": self._move,
            "delete_cell": self._delete,
            "execute_cell": self._execute,
            "execute_cells": self._execute_many,
            "save_notebook": self._save,
            "close_notebook": self._close,
        }

    async def dispatch(self, request: Mapping[str, Any], *, listen: Listener | None = None) -> Answer:
        """Carry out one operation, such as ``{"op": "add_cell", "source": "1 + 1"}``, and return its answer.

        Without ``notebook_id`` it is the notebook that was used last. If none is open, adding a cell makes one.

        Args:
            listen: called with each event of the cells that run.

        Raises:
            InvalidInputError: the request cannot be used. Nothing was done.
            NotebookNotFoundError, CellNotFoundError, InvalidPositionError, NotebookConflictError: nothing changed.
            See ``Notebooks``.
        """
        op, fields = checked(request)
        fields.setdefault("budget", DEFAULT_BUDGET)
        if op not in ("create_notebook", "open_notebook", "list_notebooks"):
            fields["notebook_id"] = await self._notebook(op, fields)
        answer = {"status": "ok", **await self._work[op](fields, listen)}
        answer["token_estimate"] = await asyncio.to_thread(cellview.cost, answer)
        return answer

    async def _notebook(self, op: str, fields: Fields) -> str:
        if "notebook_id" in fields:
            return str(fields["notebook_id"])
        known = self._notebooks.list_notebooks()
        if known:
            return known[-1]
        if op in ("add_cell", "execute_cell"):
            return await self._notebooks.create_notebook()
        raise NotebookNotFoundError("no notebook is open.", notebook_id="", remedy="Create or open one.")

    async def _create(self, fields: Fields, _listen: Listener | None) -> Answer:
        kernel = fields.get("kernel_name", "python3")
        return {"notebook_id": await self._notebooks.create_notebook(kernel, fields.get("metadata"))}

    async def _open(self, fields: Fields, _listen: Listener | None) -> Answer:
        if ("path" in fields) == ("document" in fields):
            raise InvalidInputError("open_notebook takes a path or a document.")
        if "path" in fields:
            notebook_id = await self._notebooks.open_notebook(fields["path"])
        else:
            notebook_id = await self._notebooks.open_document(fields["document"])
        return {"notebook_id": notebook_id, "total": len(await self._notebooks.get_cells(notebook_id))}

    async def _list(self, _fields: Fields, _listen: Listener | None) -> Answer:
        known = self._notebooks.list_notebooks()
        return {"notebooks": [{"notebook_id": name, "path": self._notebooks.path_of(name)} for name in known]}

    async def _look(self, fields: Fields, _listen: Listener | None) -> Answer:
        name = fields["notebook_id"]
        document, stale = await self._notebooks.get_notebook(name), await self._notebooks.stale_cells(name)
        about = {
            "notebook_id": name,
            "path": self._notebooks.path_of(name),
            "kernel_spec": {"name": printable(str(document.kernel_spec.get("name", "")), 100)},
            "language_info": {"name": document.language_info.get("name", "")},
            "stale": len(stale),
        }
        budget = fields["budget"] - cellview.cost(about)
        page = await asyncio.to_thread(cellview.outline, list(enumerate(document.cells)), frozenset(stale), budget)
        return {**about, **_paged(page, len(document.cells))}

    async def _get_cells(self, fields: Fields, _listen: Listener | None) -> Answer:
        document = await self._notebooks.get_notebook(fields["notebook_id"])
        stale = frozenset(await self._notebooks.stale_cells(fields["notebook_id"]))
        selected = _selector(fields, len(document.cells)).select(document.cells)
        if fields.get("stale"):
            selected = [(index, cell) for index, cell in selected if cell.id in stale]
        view = cellview.outline if fields.get("outline") else cellview.page
        page = await asyncio.to_thread(view, selected, stale, fields["budget"])
        return _paged(page, len(document.cells))

    async def _get_output(self, fields: Fields, _listen: Listener | None) -> Answer:
        cell, offset = await self._cell(fields), fields.get("offset", 0)
        if "output" not in fields:
            return {"cell_id": cell.id, **cellview.piece(cell.source, offset, fields["budget"])}
        mime, content = await asyncio.to_thread(cellview.content, cell, fields["output"], fields.get("mime", ""))
        if isinstance(content, bytes):
            return {"cell_id": cell.id, "mime": mime, "base64": base64.b64encode(content).decode()}
        part = await asyncio.to_thread(cellview.piece, content, offset, fields["budget"])
        return {"cell_id": cell.id, "mime": mime, **part}

    async def _add(self, fields: Fields, listen: Listener | None) -> Answer:
        name, kind = fields["notebook_id"], fields.get("type", "code")
        added = await self._notebooks.add_cell(
            name, fields["source"], kind, fields.get("position"), fields.get("metadata")
        )
        return await self._ran_if_wanted(fields, added, listen)

    async def _edit(self, fields: Fields, listen: Listener | None) -> Answer:
        cell = await self._cell(fields)
        clear = fields.get("clear_outputs", True)
        edited = await self._notebooks.update_cell(
            fields["notebook_id"], cell.id, fields["source"], clear, cell_type=fields.get("type")
        )
        return await self._ran_if_wanted(fields, edited, listen)

    async def _move(self, fields: Fields, _listen: Listener | None) -> Answer:
        cell = await self._cell(fields)
        await self._notebooks.move_cell(fields["notebook_id"], cell.id, fields["position"])
        return {"cell_id": cell.id, **await self._stale(fields)}

    async def _delete(self, fields: Fields, _listen: Listener | None) -> Answer:
        cell = await self._cell(fields)
        await self._notebooks.delete_cell(fields["notebook_id"], cell.id)
        return {"cell_id": cell.id, **await self._stale(fields)}

    async def _execute(self, fields: Fields, listen: Listener | None) -> Answer:
        named = "cell_id" in fields or "index" in fields
        if named == ("source" in fields):
            raise InvalidInputError("execute_cell takes a cell that is there, or the source of a new one.")
        if named:
            return await self._run(fields, await self._cell(fields), listen)
        done = await self._notebooks.execute_cell(
            fields["notebook_id"],
            fields["source"],
            fields.get("type", "code"),
            fields.get("store_history", True),
            position=fields.get("position"),
            timeout=fields.get("timeout"),
            listen=listen,
        )
        return await self._one(fields, done)

    async def _execute_many(self, fields: Fields, listen: Listener | None) -> Answer:
        cells = await self._notebooks.get_cells(fields["notebook_id"])
        results = await self._notebooks.execute_cells(
            fields["notebook_id"],
            _selector(fields, len(cells)),
            stale=fields.get("stale", False),
            stop_on_error=fields.get("stop_on_error", True),
            timeout=fields.get("timeout"),
            listen=listen,
        )
        indexes = {cell.id: index for index, cell in enumerate(await self._notebooks.get_cells(fields["notebook_id"]))}
        shown = await asyncio.to_thread(_results, results, indexes, fields["budget"])
        failed = any(not result.success for result in results)
        return {"status": "error" if failed else "ok", "ran": len(results), **shown, **await self._stale(fields)}

    async def _save(self, fields: Fields, _listen: Listener | None) -> Answer:
        overwrite = fields.get("overwrite", False)
        path = await self._notebooks.save_notebook(fields["notebook_id"], fields.get("path"), overwrite=overwrite)
        return {"path": path, "total": len(await self._notebooks.get_cells(fields["notebook_id"]))}

    async def _close(self, fields: Fields, _listen: Listener | None) -> Answer:
        await self._notebooks.close_notebook(fields["notebook_id"], fields.get("save", True))
        return {"notebook_id": fields["notebook_id"]}

    async def _cell(self, fields: Fields) -> Cell:
        """Return the cell that a request names by its id or its index."""
        if ("cell_id" in fields) == ("index" in fields):
            raise InvalidInputError("name the cell by cell_id or by index.")
        if "cell_id" in fields:
            return (await self._notebooks.get_cells(fields["notebook_id"], CellSelector([fields["cell_id"]])))[0]
        cells, index = await self._notebooks.get_cells(fields["notebook_id"]), fields["index"]
        if index >= len(cells):
            raise InvalidPositionError(
                f"there is no cell {index}: the notebook has {len(cells)}.", position=index, total=len(cells)
            )
        return cells[index]

    async def _ran_if_wanted(self, fields: Fields, cell: Cell, listen: Listener | None) -> Answer:
        if fields.get("execute", True) and cell.is_runnable:
            return await self._run(fields, cell, listen)
        return {"outputs": [], "cell_id": cell.id, **await self._stale(fields)}

    async def _run(self, fields: Fields, cell: Cell, listen: Listener | None) -> Answer:
        done = await self._notebooks.execute_cells(
            fields["notebook_id"], CellSelector([cell.id]), timeout=fields.get("timeout"), listen=listen
        )
        return await self._one(fields, done[0] if done else CellExecutionResult(cell.id, success=True))

    async def _one(self, fields: Fields, done: CellExecutionResult) -> Answer:
        outputs = await asyncio.to_thread(cellview.outputs_view, done.outputs, fields["budget"] - _ENVELOPE)
        status = "ok" if done.success else "error"
        outcome = {} if done.success or done.result is None else {"outcome": done.result.outcome.value}
        return {"status": status, **outcome, "outputs": outputs, "cell_id": done.cell_id, **await self._stale(fields)}

    async def _stale(self, fields: Fields) -> Answer:
        stale = len(await self._notebooks.stale_cells(fields["notebook_id"]))
        return {"stale": stale} if stale else {}


def _selector(fields: Fields, total: int) -> CellSelector:
    start, end = fields.get("start", 0), fields.get("end", max(total - 1, 0))
    return CellSelector(
        cell_ids=fields.get("cell_ids"),
        cell_types=fields.get("types"),
        tag_filter=fields.get("tags"),
        metadata_filter=fields.get("metadata"),
        index_range=(start, end) if "start" in fields or "end" in fields else None,
    )


def _paged(page: cellview.Page, total: int) -> Answer:
    more = {} if page.following is None else {"next_start": page.following}
    return {"cells": page.cells, "total": total, **more}


def _results(results: Sequence[CellExecutionResult], indexes: Mapping[str, int], budget: int) -> Answer:
    """Return the cells that ran and have something to say, within a budget; those that failed come first to it."""
    left = budget - _ENVELOPE
    entries: dict[str, Answer] = {}
    unseen = 0
    for result in sorted(results, key=lambda each: each.success):
        if not result.outputs:
            continue
        if left < 2 * _PER_CELL:
            unseen += 1
            continue
        outputs = cellview.outputs_view(result.outputs, max(_PER_CELL, min(left // 2, budget // 4) - _PER_CELL))
        entry: Answer = {"index": indexes.get(result.cell_id), "cell_id": result.cell_id, "outputs": outputs}
        if not result.success and result.result is not None:
            entry["outcome"] = result.result.outcome.value
        left -= cellview.cost(entry)
        entries[result.cell_id] = entry
    cells = [entries[result.cell_id] for result in results if result.cell_id in entries]
    return {"cells": cells, **({"cells_not_shown": unseen} if unseen else {})}
