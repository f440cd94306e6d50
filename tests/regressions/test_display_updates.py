"""A display shows its last content in the notebook, whichever cell updated it, and at bounded cost."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import nbformat

from orchestrator.limits import MIB, OutputLimits
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    ClearOutput,
    DisplayData,
    ExecuteResult,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)
from orchestrator.output.lastdisplays import with_last_displays
from tests.conftest import make_manager

FIRST = "handle = display('first', display_id='mine')\ndisplay('other')"
LATER = "from IPython.display import update_display\nupdate_display('second', display_id='mine')"
BETWEEN = (
    "import threading, time\nfrom IPython.display import update_display\ndef late():\n"
    "    time.sleep(0.3)\n    for n in range(100): update_display(f'late {n}', display_id='mine')\n"
    "threading.Thread(target=late).start()"
)


def shown_in(path: Path) -> list[list[str]]:
    """Return the plain text of each cell's displays in a notebook."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[output.data["text/plain"] for output in cell.outputs if "data" in output] for cell in cells]


async def test_a_display_of_an_earlier_cell_shows_its_last_content(runtime: str, tmp_path: Path) -> None:
    """Updates by a later cell, between cells and after a wake are in the exported notebook, and in the events."""
    path = tmp_path / "session.ipynb"
    shown = []
    async with make_manager(runtime) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.execute_code(session, FIRST)
            events = [event async for event in manager.stream_code(session, LATER)]
            assert [event.data["text/plain"] for event in events if isinstance(event, UpdateDisplayData)] == [
                "'second'"
            ]
            await manager.export_notebook(session, path)
            shown.append(shown_in(path)[0])
            await manager.execute_code(session, BETWEEN)
            await asyncio.sleep(0.8)
            await manager.execute_code(session, "pass")
            await manager.export_notebook(session, path)
            shown.append(shown_in(path)[0])
        assert await manager.hibernate("agent")
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await manager.export_notebook(session, path)
            shown.append(shown_in(path)[0])
            result = await manager.execute_code(session, "handle.update('woken')")
            assert result["outputs"] == []
            await manager.export_notebook(session, path)
            shown.append(shown_in(path)[0])
    texts = ["'second'", "'late 99'", "'late 99'", "'woken'"]
    assert shown == [[text, "'other'"] for text in texts]


async def test_displays_left_out_between_cells_are_reported(runtime: str) -> None:
    """Between two cells 32 displays wait for the next result, whose warnings say how many more there were."""
    code = (
        "import threading, time\ndef late():\n    time.sleep(0.3)\n    for n in range(40): display(n)\n"
        "threading.Thread(target=late).start()"
    )
    async with make_manager(runtime) as manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        await manager.execute_code(session, code)
        await asyncio.sleep(0.8)
        result = await manager.execute_code(session, "pass")
    assert len(result["outputs"]) == 32
    assert "kernel: 8 displays between two cells were left out" in result["warnings"]


def display(text: str, name: str | None = "d") -> DisplayData:
    return DisplayData({"text/plain": text}, {}, name)


def update(text: str, name: str = "d") -> UpdateDisplayData:
    return UpdateDisplayData(name, {"text/plain": text})


def result_of(*events: OutputEvent, limits: OutputLimits | None = None) -> dict[str, Any]:
    """Return the outputs and updates of a cell that puts out ``events``, in their dict forms."""
    collector = OutputCollector(limits or OutputLimits(MIB))
    for event in events:
        collector.add(event)
    list(collector.finish())
    return {
        "outputs": [output.as_dict() for output in collector.outputs()],
        "updates": [one.as_dict() for one in collector.updates],
    }


def texts(*results: dict[str, Any]) -> list[list[str]]:
    """Return the plain text of each cell's displays, as a notebook shows them."""
    return [[output["data"]["text/plain"] for output in one["outputs"]] for one in with_last_displays(list(results))]


def test_each_display_has_the_last_content_of_its_id() -> None:
    """Updates count in their order, before and after another display of their id, and past a clear_output."""
    first = result_of(display("a"), display("a", "e"), display("a", None))
    assert texts(first, result_of(update("b")), result_of(update("c"))) == [["c", "a", "a"], [], []]
    assert texts(first, result_of(update("b"), display("c"))) == [["c", "a", "a"], ["c"]]
    assert texts(first, result_of(display("b"), update("c"))) == [["c", "a", "a"], ["c"]]
    assert texts(first, result_of(display("b"), update("c"), display("d"))) == [["d", "a", "a"], ["c", "d"]]
    assert texts(first, result_of(update("b"), ClearOutput(False))) == [["b", "a", "a"], []]
    assert texts(result_of(update("b")), first) == [[], ["a", "a", "a"]]
    assert result_of(display("a"), update("b"))["updates"] == []
    assert result_of(update("a"), display("b"))["updates"] == []


def test_a_result_may_have_an_id_too() -> None:
    """An update by its own cell or by a later one changes its content alone; it stays an execute_result."""
    value = ExecuteResult({"text/plain": "a"}, {}, 3, "d")
    own = result_of(value, update("b"))
    assert own == {"outputs": [value.as_dict() | {"data": {"text/plain": "b"}}], "updates": []}
    assert texts(result_of(value), result_of(update("c"))) == [["c"], []]
    small = OutputLimits(MIB, displays=2)
    assert result_of(*(value for _ in range(9)), update("b"), limits=small)["updates"] == []


def test_results_of_earlier_versions_have_no_updates() -> None:
    """A stored result without ``updates``, or without outputs, is shown as it is."""
    old = {"outputs": [display("a").as_dict()]}
    assert texts(old, result_of(update("b"))) == [["b"], []]
    assert with_last_displays([{"status": "running"}]) == [{"status": "running"}]


def test_updates_of_unknown_ids_are_bounded() -> None:
    """20,000 updates of unique ids hold less than 2 MB, and the result says that some were left out."""
    collector = OutputCollector(OutputLimits(MIB))
    tracemalloc.start()
    for number in range(20_000):
        collector.add(update("x" * 100, f"{number:0255d}"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * MIB
    assert len(collector.updates) == 200
    assert collector.truncation is not None
    assert collector.truncation.reason == "output.displays"


def test_a_large_update_of_many_displays_is_no_flood() -> None:
    """One update of 300 KB for 200 displays is left out under 1 MB: the result's JSON would repeat it."""
    one = UpdateDisplayData("d", {"text/plain": "x", "application/json": [str(n) for n in range(5000)]})
    form = result_of(*(display("a") for _ in range(200)), one)
    assert len(json.dumps(form)) < 2 * MIB


def test_a_notebook_grows_by_a_bounded_size() -> None:
    """An update of 4 MB for 10,000 displays of earlier cells adds 64 MiB at most; the newest displays have it."""
    many = [result_of(*(display("a") for _ in range(200))) for _ in range(50)]
    large = {"outputs": [], "updates": [update("x" * 4 * MIB).as_dict()]}
    shown = [text for one in texts(*many, large) for text in one]
    assert sum(map(len, shown)) < 65 * MIB
    assert (len(shown[-1]), shown[0]) == (4 * MIB, "a")


def test_updates_past_the_limit_are_streamed_at_the_end() -> None:
    """A consumer gets the last update of each display, also where the output exceeded its limit."""
    collector = OutputCollector(OutputLimits(100 * 1024))
    streamed = [collector.add(event) for event in (display("a"), StreamOutput("stdout", "x" * 200_000))]
    for number in range(10):
        streamed += [collector.add(update(f"own {number}")), collector.add(update(f"other {number}", "e"))]
    late = [event for event in collector.finish() if isinstance(event, UpdateDisplayData)]
    assert [event for event in streamed if isinstance(event, UpdateDisplayData)] == []
    assert late == [update("own 9"), update("other 9", "e")]
