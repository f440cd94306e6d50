"""The Notebook Agent Protocol on real kernels: its operations and behaviours, as a contract."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import pytest_asyncio

from benchmarks import longnotebook
from orchestrator import (
    AgentKernelManager,
    CellNotFoundError,
    CellSelector,
    CellType,
    Dispatcher,
    InvalidCodeError,
    InvalidInputError,
    InvalidPositionError,
    KernelNotFoundError,
    KernelSession,
    NotebookCreationError,
    NotebookDocument,
    NotebookError,
    NotebookNotFoundError,
    Notebooks,
    StreamOutput,
)
from orchestrator.notebooks.sandboxfiles import SandboxFiles
from orchestrator.output.tokencount import tokens
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISPLAYS = """
from IPython.display import display, clear_output, update_display
handle = display("first", display_id="shared")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager() -> AsyncIterator[AgentKernelManager]:
    async with make_manager("runc", max_kernels=2) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield session


@pytest.fixture
def notebooks(manager: AgentKernelManager, session: KernelSession) -> Notebooks:
    return Notebooks(manager, session)


async def shown(notebooks: Notebooks, name: str) -> list[Any]:
    """Return the texts of all outputs, by cell."""
    return [
        [output.get("text") or output.get("evalue") or output["data"]["text/plain"] for output in cell.outputs]
        for cell in await notebooks.get_cells(name)
    ]


async def test_every_operation_of_the_protocol(notebooks: Notebooks, tmp_path: Path) -> None:
    """Create, execute, add, update, get, delete, save, close: names, arguments and results."""
    name = await notebooks.create_notebook("python3", {"purpose": "contract"})
    done = await notebooks.execute_cell(name, "x = 40\nprint('out')\nx + 2", "code", True)
    assert (done.success, done.error, [output["output_type"] for output in done.outputs]) == (
        True,
        None,
        ["stream", "execute_result"],
    )
    assert done.execution_count is not None
    assert done.execution_time_ms > 0
    failed = await notebooks.execute_cell(name, "1 / 0")
    assert (failed.success, failed.error and failed.error.ename) == (False, "ZeroDivisionError")
    title = await notebooks.add_cell(name, "# Title", CellType.MARKDOWN, 0, {"tags": ["head"]})
    assert [cell.id for cell in await notebooks.get_cells(name, CellSelector(tag_filter=["head"]))] == [title.id]
    assert len(await notebooks.get_cells(name, CellSelector(index_range=(0, 1)))) == 2
    await notebooks.update_cell(name, done.cell_id, "x = 1", False)
    assert (await notebooks.get_cells(name))[1].outputs == done.outputs
    await notebooks.update_cell(name, done.cell_id, "x = 2", True)
    assert (await notebooks.get_cells(name))[1].outputs == ()
    await notebooks.delete_cell(name, failed.cell_id)
    document = await notebooks.get_notebook(name)
    assert isinstance(document, NotebookDocument)
    assert [cell.source for cell in document.cells] == ["# Title", "x = 2"]
    assert (document.id, document.kernel_spec["name"], document.language_info["name"]) == (name, "python3", "python")
    assert document.metadata["purpose"] == "contract"
    path = tmp_path / "contract.ipynb"
    assert await notebooks.save_notebook(name, str(path)) == str(path)
    nbformat.validate(nbformat.read(path, as_version=4))
    await notebooks.update_cell(name, done.cell_id, "x = 3")
    await notebooks.close_notebook(name, True)
    assert nbformat.read(path, as_version=4).cells[1].source == "x = 3"
    assert notebooks.list_notebooks() == []


async def test_a_cell_that_is_not_stored_runs_and_is_in_the_sessions_history(
    notebooks: Notebooks, session: KernelSession
) -> None:
    """One record: whatever runs is a cell of the session."""
    name = await notebooks.create_notebook()
    aside = await notebooks.execute_cell(name, "kept = 5; kept", store_history=False)
    assert (aside.cell_id, aside.outputs[0]["data"]["text/plain"]) == ("", "5")
    assert await notebooks.get_cells(name) == []
    assert (await notebooks.execute_cell(name, "kept")).outputs[0]["data"] == {"text/plain": "5"}
    assert [entry["code"] for entry in await session.history()][-2:] == ["kept = 5; kept", "kept"]
    markdown = await notebooks.execute_cell(name, "# no code", "markdown")
    assert (markdown.success, markdown.outputs, markdown.execution_count) == (True, (), None)


async def test_errors_are_typed_and_nothing_is_half_done(notebooks: Notebooks, tmp_path: Path) -> None:
    with pytest.raises(KernelNotFoundError):
        await notebooks.create_notebook("julia")
    with pytest.raises(NotebookCreationError):
        await notebooks.create_notebook(metadata={"bad": {1, 2}})
    with pytest.raises(NotebookCreationError):
        await notebooks.open_notebook(str(tmp_path / "none.ipynb"))
    with pytest.raises(KernelNotFoundError):
        await notebooks.open_document(
            {"cells": [], "metadata": {"language_info": {"name": "R"}}, "nbformat": 4, "nbformat_minor": 5}
        )
    name = await notebooks.create_notebook()
    for call in (notebooks.get_cells, notebooks.get_notebook, notebooks.close_notebook):
        with pytest.raises(NotebookNotFoundError):
            await call("nb-none")
    with pytest.raises(InvalidPositionError):
        await notebooks.add_cell(name, "x", position=1)
    with pytest.raises(CellNotFoundError):
        await notebooks.update_cell(name, "none", "x")
    with pytest.raises(InvalidInputError):
        await notebooks.add_cell(name, "x", metadata={"tags": "no list"})
    with pytest.raises(InvalidCodeError):
        await notebooks.execute_cell(name, "  ")
    with pytest.raises(NotebookError, match="no file"):
        await notebooks.close_notebook(name)
    assert await notebooks.get_cells(name) == []
    assert notebooks.list_notebooks() == [name]
    for _ in range(15):
        await notebooks.create_notebook()
    with pytest.raises(NotebookCreationError):
        await notebooks.create_notebook()


async def test_outputs_are_those_of_jupyter(notebooks: Notebooks) -> None:
    """Cleared output, carriage returns, and displays that later cells update, in nbformat's exact form."""
    name = await notebooks.create_notebook()
    for source in (
        DISPLAYS,
        "for i in range(3):\n    clear_output(wait=True)\n    print('step', i)",
        "import sys\nfor i in range(3):\n    sys.stdout.write(f'\\r{i} of 2')\nprint(); print('err', file=sys.stderr)",
        "update_display('second', display_id='shared')",
    ):
        assert (await notebooks.execute_cell(name, source)).success
    assert await shown(notebooks, name) == [["'second'"], ["step 2\n"], ["2 of 2\n", "err\n"], []]
    await notebooks.execute_cell(name, "handle.display('third')")
    assert (await shown(notebooks, name))[0] == (await shown(notebooks, name))[4] == ["'third'"]
    document = (await notebooks.get_notebook(name)).as_dict()
    nbformat.validate(nbformat.from_dict(document))
    assert set(document["cells"][0]["outputs"][0]) == {"output_type", "data", "metadata"}
    times = document["cells"][1]["metadata"]["execution"]
    assert list(times) == ["iopub.execute_input", "iopub.status.busy", "iopub.status.idle", "shell.execute_reply"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time) for time in times.values())
    assert times["iopub.status.busy"] < times["iopub.status.idle"]


async def test_stale_cells_are_run_in_their_order(notebooks: Notebooks) -> None:
    """After an edit: it and the code below it; a failure leaves the rest stale."""
    name = await notebooks.create_notebook()
    ids = [(await notebooks.execute_cell(name, source)).cell_id for source in ("a = 1", "b = a + 1", "c = b + 1", "c")]
    assert await notebooks.stale_cells(name) == []
    await notebooks.update_cell(name, ids[1], "b = a + 10")
    assert await notebooks.stale_cells(name) == ids[1:]
    done = await notebooks.execute_cells(name, stale=True)
    assert [each.cell_id for each in done] == ids[1:]
    assert done[-1].outputs[0]["data"]["text/plain"] == "12"
    assert await notebooks.stale_cells(name) == []
    await notebooks.update_cell(name, ids[2], "raise SystemError('stop')")
    done = await notebooks.execute_cells(name)
    assert [each.success for each in done] == [True, True, False]
    assert await notebooks.stale_cells(name) == [ids[3]]
    done = await notebooks.execute_cells(name, CellSelector(index_range=(1, 3)), stop_on_error=False)
    assert [each.success for each in done] == [True, False, True]


async def test_a_timeout_and_a_death_are_results_and_lost_variables_make_code_stale(notebooks: Notebooks) -> None:
    """The kernel's end stands in its cell, and the next cell has a fresh kernel."""
    name = await notebooks.create_notebook()
    first = await notebooks.execute_cell(name, "a = 1")
    slow = await notebooks.execute_cell(name, "print('begun')\nimport time; time.sleep(60)", timeout=1)
    assert slow.result is not None
    assert (slow.success, slow.result.outcome, slow.outputs[0]["text"]) == (False, "timeout", "begun\n")
    assert await notebooks.stale_cells(name) == []
    dead = await notebooks.execute_cell(name, "import os; os._exit(3)")
    assert dead.result is not None
    assert (dead.success, dead.result.outcome, dead.outputs[-1]["output_type"]) == (False, "kernel_died", "error")
    assert await notebooks.stale_cells(name) == [first.cell_id, slow.cell_id, dead.cell_id]


async def test_notebooks_go_on_with_the_agents_next_session(manager: AgentKernelManager) -> None:
    """After the kernel's death, a restart, and a sleep: only what is lost is stale."""
    async with manager.acquire_kernel("other", timeout=60) as (_kernel, session):
        notebooks = Notebooks(manager, session)
        name = await notebooks.create_notebook()
        cell = await notebooks.execute_cell(name, "kept = 1")
        await manager.checkpoint(session)
        late = await notebooks.execute_cell(name, "late = 2")
    await manager.hibernate("other")
    again = await notebooks.execute_cell(name, "kept + late")
    assert again.outputs[0]["data"]["text/plain"] == "3"
    assert await notebooks.stale_cells(name) == []
    async with manager.acquire_kernel("other", timeout=60) as (_kernel, session):
        await manager.restart_kernel(session)
        assert await notebooks.stale_cells(name) == [cell.cell_id, late.cell_id, again.cell_id]
        assert [done.success for done in await notebooks.execute_cells(name, stale=True)] == [True] * 3
    await manager.end_session("other")
    async with manager.acquire_kernel("other", timeout=60) as (_kernel, session):
        notebooks.continue_with(session)
        assert len(await notebooks.stale_cells(name)) == 3
        assert all(done.success for done in await notebooks.execute_cells(name))
        assert await notebooks.stale_cells(name) == []
    await manager.end_session("other")


async def test_a_run_that_is_cancelled_leaves_its_cell_stale_and_the_kernel_free(notebooks: Notebooks) -> None:
    """Edits go on while a cell runs, and its events are heard as they come."""
    name = await notebooks.create_notebook()
    begun = asyncio.Event()
    heard: list[Any] = []

    def listen(event: Any) -> None:
        heard.append(event)
        begun.set()

    work = notebooks.execute_cell(name, "print('on', flush=True)\nwhile True: pass", listen=listen)
    running = asyncio.create_task(work)
    await asyncio.wait_for(begun.wait(), 30)
    assert heard == [StreamOutput("stdout", "on\n")]
    title = await notebooks.add_cell(name, "# while it runs", "markdown", 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    cells = await notebooks.get_cells(name)
    assert cells[0].id == title.id
    assert await notebooks.stale_cells(name) == [cells[1].id]
    assert (await notebooks.execute_cell(name, "'free'")).success


async def test_files_of_the_sandbox_in_place_of_the_hosts(manager: AgentKernelManager, session: KernelSession) -> None:
    """A cell that writes the notebook's file is merged like a person; no path leads out of the sandbox."""
    notebooks = Notebooks(manager, session, files=SandboxFiles(manager, session))
    name = await notebooks.create_notebook()
    await notebooks.execute_cell(name, "a = 1")
    await notebooks.save_notebook(name, "sub/inside.ipynb")
    edit = "import json; n = json.load(open('sub/inside.ipynb')); n['cells'][0]['source'] = 'a = 2'\n"
    await manager.execute(session, edit + "json.dump(n, open('sub/inside.ipynb', 'w'))")
    await notebooks.add_cell(name, "b = 1")
    await notebooks.save_notebook(name)
    assert [cell.source for cell in await notebooks.get_cells(name)] == ["a = 2", "b = 1"]
    written = json.loads(await manager.read_file(session, "sub/inside.ipynb"))
    assert len(written["cells"]) == 2
    with pytest.raises(NotebookCreationError, match="no file"):
        await notebooks.open_notebook(str(Path(__file__)))


async def test_the_dispatcher_is_the_single_entry(notebooks: Notebooks, tmp_path: Path) -> None:
    """Its answers have the shapes of the protocol, and each has an estimate of its tokens that is about right."""
    dispatch = Dispatcher(notebooks).dispatch
    answers = [
        first := await dispatch({"op": "add_cell", "source": "x = 1\nx"}),
        await dispatch({"op": "add_cell", "source": "# Head", "type": "markdown", "position": 0}),
        quiet := await dispatch({"op": "add_cell", "source": "x + 1", "execute": False}),
        read := await dispatch({"op": "get_cells", "start": 1, "end": 2}),
        edited := await dispatch({"op": "edit_cell", "index": 1, "source": "x = 5"}),
        ran := await dispatch({"op": "execute_cells", "stale": True}),
        one := await dispatch({"op": "execute_cell", "cell_id": quiet["cell_id"]}),
        failed := await dispatch({"op": "execute_cell", "source": "1/0"}),
        looked := await dispatch({"op": "get_notebook"}),
        await dispatch({"op": "move_cell", "index": 0, "position": 3}),
        await dispatch({"op": "delete_cell", "index": 2}),
        whole := await dispatch({"op": "get_output", "index": 0}),
        listed := await dispatch({"op": "list_notebooks"}),
        saved := await dispatch({"op": "save_notebook", "path": str(tmp_path / "d.ipynb")}),
        await dispatch({"op": "close_notebook"}),
        opened := await dispatch({"op": "open_notebook", "path": str(tmp_path / "d.ipynb")}),
        await dispatch({"op": "open_notebook", "document": json.loads((tmp_path / "d.ipynb").read_text())}),
        await dispatch({"op": "create_notebook"}),
    ]
    for answer in answers:
        without = {key: value for key, value in answer.items() if key != "token_estimate"}
        assert answer["token_estimate"] == tokens(json.dumps(without, ensure_ascii=False))
        assert answer["status"] == ("error" if answer is failed else "ok")
    assert first.keys() == {"status", "outputs", "cell_id", "token_estimate"}
    assert first["outputs"] == [{"type": "execute_result", "text": "1"}]
    assert read.keys() == {"status", "cells", "total", "token_estimate"}
    assert [(cell["index"], cell["type"], cell["source"]) for cell in read["cells"]] == [
        (1, "code", "x = 1\nx"),
        (2, "code", "x + 1"),
    ]
    assert edited["stale"] == 1
    assert (ran["ran"], ran["cells"][0]["outputs"]) == (1, [{"type": "execute_result", "text": "6"}])
    assert one["outputs"] == [{"type": "execute_result", "text": "6"}]
    assert failed["outputs"][0]["text"].endswith("ZeroDivisionError: division by zero")
    lines = [line.replace(f" {line.split()[1].rstrip(':')}", "") for line in looked["cells"]]
    assert lines == ["0 markdown: # Head", "1: x = 5", "2: x + 1", "3 failed: 1/0"]
    assert whole["text"] == "x = 5"
    assert len(listed["notebooks"]) == 1
    assert (saved["total"], opened["total"]) == (3, 3)


async def test_output_that_is_nested_deeply_is_cut_such_that_the_notebook_can_be_opened(
    notebooks: Notebooks, tmp_path: Path
) -> None:
    """A cell may display what no reader of notebooks can read: the kernel's channel has bounded it."""
    name = await notebooks.create_notebook()
    code = "deep = 1\nfor _ in range({}): deep = [deep]\n"
    code += "display({{'application/json': deep, 'text/plain': 'kept'}}, raw=True)"
    for depth in (50, 150, 400, 900):
        await notebooks.execute_cell(name, code.format(depth))
    await notebooks.save_notebook(name, str(tmp_path / "deep.ipynb"))
    assert len(await notebooks.get_cells(await notebooks.open_notebook(str(tmp_path / "deep.ipynb")))) == 4
    assert (await shown(notebooks, name))[1] == ["kept"]


async def test_a_picture_is_named_and_fetched(notebooks: Notebooks) -> None:
    dispatch = Dispatcher(notebooks).dispatch
    code = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
    drawn = await dispatch({"op": "add_cell", "source": code})
    assert drawn["token_estimate"] < 120
    picture = drawn["outputs"][0]
    assert picture["data"] == ["image/png"]
    fetched = await dispatch({"op": "get_output", "cell_id": drawn["cell_id"], "output": picture["output"]})
    assert (fetched["mime"], fetched["base64"][:8]) == ("image/png", "iVBORw0K")


async def test_a_request_that_fails_changes_nothing(notebooks: Notebooks) -> None:
    dispatch = Dispatcher(notebooks).dispatch
    with pytest.raises(NotebookNotFoundError):
        await dispatch({"op": "get_cells"})
    await dispatch({"op": "add_cell", "source": "1"})
    for request, kind in (
        ({"op": "add_cell", "source": "2", "position": 9}, InvalidPositionError),
        ({"op": "edit_cell", "cell_id": "none", "source": "2"}, CellNotFoundError),
        ({"op": "edit_cell", "index": 7, "source": "2"}, InvalidPositionError),
        ({"op": "edit_cell", "source": "2"}, InvalidInputError),
        ({"op": "execute_cell"}, InvalidInputError),
        ({"op": "get_cells", "start": 3}, InvalidPositionError),
        ({"op": "get_cells", "notebook_id": "nb-x"}, NotebookNotFoundError),
        ({"op": "open_notebook"}, InvalidInputError),
    ):
        with pytest.raises(kind):
            await dispatch(request)
    assert (await dispatch({"op": "get_cells"}))["total"] == 1


async def test_an_agent_works_on_a_notebook_of_200_cells_within_its_budget_of_tokens(
    notebooks: Notebooks, tmp_path: Path
) -> None:
    """It reads, runs, mends three faults, changes a parameter, runs what is stale, and reads the result."""
    path = tmp_path / "long.ipynb"
    path.write_text(json.dumps(longnotebook.notebook()))
    work, result = await longnotebook.work_on(Dispatcher(notebooks).dispatch, str(path))
    assert result == str(longnotebook.expected())
    assert work.tokens <= longnotebook.BUDGET
    assert work.runs > longnotebook.CELLS
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    assert len(saved.cells) == longnotebook.CELLS + 1


async def test_a_flood_of_output_is_answered_within_the_budget(notebooks: Notebooks) -> None:
    """What the notebook keeps is what the cell's limit kept."""
    dispatch = Dispatcher(notebooks).dispatch
    answer = await dispatch({"op": "add_cell", "source": "for i in range(100_000): print('line', i)", "budget": 600})
    assert answer["token_estimate"] <= 600
    assert "line 0\n" in answer["outputs"][0]["text"]
    assert answer["outputs"][-1]["text"].endswith("line 99999")
