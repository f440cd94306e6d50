"""``/v1/sessions/{session_id}/notebooks``: living notebooks on a session, by the Notebook Agent Protocol."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from starlette.responses import Response

from orchestrator.notebooks import ipynb
from orchestrator.notebooks.dispatcher import Dispatcher
from orchestrator.server.answers import Json, dumps
from orchestrator.server.directory import Served
from orchestrator.server.native.access import Caller, TheService, TheSession
from orchestrator.server.native.cellroutes import asked
from orchestrator.server.native.described import NOTEBOOK, NOTEBOOK_ANSWER, NotebookText, answers
from orchestrator.server.native.once import Key
from orchestrator.server.sessionnotebooks import notebooks_of
from orchestrator.server.waiting import unless_gone

router = APIRouter(prefix="/v1/sessions/{session_id}/notebooks", tags=["notebooks"])

Operation = Annotated[
    dict[str, Any],
    Body(examples=[{"op": "add_cell", "source": "x = 6 * 7\nx"}], json_schema_extra=dict(Dispatcher.schema)),
]
NotebookId = Annotated[str, Path(max_length=64, description="The notebook, as `create_notebook` returned it.")]


@router.post("", summary="Carry out one operation on a notebook", responses=answers(NOTEBOOK_ANSWER))
async def dispatch(
    served: TheSession, body: Operation, request: Request, caller: Caller, service: TheService, key: Key = None
) -> Response:
    """Carry out an operation such as `{"op": "add_cell", "source": "1 + 1"}`; `status` is "error" if the code failed.

    Paths are those of the sandbox. When the client disconnects, a cell that runs is interrupted, unless the client sent
    an idempotency key.
    """
    if key is None:
        return Json(await unless_gone(request, _dispatched(served, body)))
    return Json(await service.idempotency.once(caller, key, await asked(request), lambda: _dispatched(served, body)))


@router.get("", summary="List the open notebooks", responses=answers(NOTEBOOK_ANSWER))
async def list_notebooks(served: TheSession) -> Response:
    """Return the notebooks that are open, the last used last."""
    return Json(await Dispatcher(notebooks_of(served)).dispatch({"op": "list_notebooks"}))


@router.get("/{notebook_id}", summary="Get a notebook as a file", response_class=NotebookText, responses=NOTEBOOK)
async def download(served: TheSession, notebook_id: NotebookId) -> Response:
    """Return the notebook as it is now, as a .ipynb file."""
    document = await notebooks_of(served).get_notebook(notebook_id)
    content = await asyncio.to_thread(ipynb.dump, document)
    return NotebookText(content, headers={"X-Content-Type-Options": "nosniff"})


async def _dispatched(served: Served, operation: dict[str, Any]) -> bytes:
    answer = await Dispatcher(notebooks_of(served)).dispatch(operation)
    return await asyncio.to_thread(dumps, answer)
