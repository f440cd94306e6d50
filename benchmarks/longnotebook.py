"""Measures what a model pays for working on a notebook of 200 cells through the notebook protocol.

Run it with ``make notebook-tokens``. A script in place of an agent reads the notebook, runs it, mends its three faults,
changes a parameter, runs what is stale, reads the results and saves. Counted are the tokens of requests and answers, as
``orchestrator.output.tokencount`` estimates them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.subjects import engine_runtimes, manager_on
from orchestrator import Dispatcher, Notebooks
from orchestrator.output.tokencount import tokens

CELLS = 200
BUDGET = 10_000  # tokens of all requests and answers
_STEPS = (CELLS - 5) // 3  # a heading, a calculation and its printed table each
_FAULTS = {11: "row_11", 30: "row_30", 52: "row_52"}  # the steps whose calculation is wrong, and what it names

Dispatch = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


@dataclass
class Work:
    """What the script did.

    Attributes:
        steps: each operation with the tokens of its request and its answer.
        runs: how many cells ran.
    """

    steps: list[tuple[str, int]] = field(default_factory=list)
    runs: int = 0

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.steps)


def notebook() -> dict[str, Any]:
    """Return the notebook: 200 cells, of which three fail, as nbformat's form."""
    cells = [_cell("markdown", "# A long analysis"), _cell("code", "factor = 2\nrows = [1] * 40")]
    for step in range(_STEPS):
        wrong = f" + {_FAULTS[step]}" if step in _FAULTS else ""
        cells.append(_cell("markdown", f"## Step {step}\n\nScale the rows, and look at each of them."))
        cells.append(_cell("code", f"step_{step} = [row * factor + {step}{wrong} for row in rows]"))
        shown = f"for number, row in enumerate(step_{step}):\n    print(f'{{number:>4}}  {{row:>10}}')"
        cells.append(_cell("code", shown))
    sums = "\n".join(f"total += sum(step_{step})" for step in range(_STEPS))
    cells += [_cell("markdown", "## Result"), _cell("code", f"total = 0\n{sums}"), _cell("code", "total")]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    assert len(cells) == CELLS
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, source: str) -> dict[str, Any]:
    more: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "source": source, "metadata": {}, **more}


async def work_on(dispatch: Dispatch, path: str) -> tuple[Work, str]:
    """Do the work on the notebook in a file. Return what it took, and the result that the last cell shows."""
    work = Work()

    async def do(op: str, **fields: Any) -> dict[str, Any]:
        request = {"op": op, **fields}
        answer = await dispatch(request)
        work.steps.append((op, tokens(json.dumps(request)) + answer["token_estimate"]))
        work.runs += int(answer.get("ran", "outputs" in answer))
        return answer

    await do("open_notebook", path=path)
    seen = await do("get_notebook")
    while "next_start" in seen:
        seen = await do("get_cells", outline=True, start=seen["next_start"])
    ran = await do("execute_cells", budget=600)
    while ran["status"] == "error":
        failed = ran["cells"][-1]["index"]
        read = await do("get_cells", start=failed - 1, end=failed, budget=600)
        source = read["cells"][-1]["source"]
        await do("edit_cell", index=failed, source=source.partition(" + row_")[0] + " for row in rows]")
        ran = await do("execute_cells", stale=True, budget=600)
    await do("edit_cell", cell_id="c1", source="factor = 3\nrows = [1] * 40")
    await do("execute_cells", stale=True, budget=600)
    result = await do("get_cells", start=CELLS - 1, budget=600)
    await do("add_cell", type="markdown", source="The total is above.", position=CELLS)
    await do("save_notebook")
    return work, str(result["cells"][0]["outputs"][0]["text"])


def expected() -> int:
    """Return the result that the mended notebook shows for the new parameter."""
    return sum(40 * (3 + step) for step in range(_STEPS))


async def measure(runtime: str, console: Console) -> bool:
    """Do the work on a real kernel and print what it took. Returns whether it was within the budget."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.ipynb"
        path.write_text(json.dumps(notebook()))
        async with manager_on(runtime) as manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            work, result = await work_on(Dispatcher(Notebooks(manager, session)).dispatch, str(path))
        whole = tokens(path.read_text())
    assert result == str(expected()), result
    table = Table("operation", "calls", "tokens", title=f"A notebook of {CELLS} cells, {work.runs} runs of cells")
    for op in dict.fromkeys(op for op, _ in work.steps):
        counts = [count for name, count in work.steps if name == op]
        table.add_row(op, str(len(counts)), f"{sum(counts):,}")
    table.add_row("all", str(len(work.steps)), f"{work.tokens:,}")
    console.print(table)
    console.print(f"Budget: {BUDGET:,} tokens. The saved notebook itself: {whole:,} tokens.")
    return work.tokens <= BUDGET


def main() -> int:
    """Run the measurement. Exit status 1: it took more than the budget."""
    return int(not asyncio.run(measure(engine_runtimes()[-1], Console())))


if __name__ == "__main__":
    run_main(main)
