"""A session as a Jupyter notebook."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode, ValidationError, v4

from orchestrator.output.lastdisplays import with_last_displays
from orchestrator.output.mimebundle import is_valid
from orchestrator.output.printable import printable
from orchestrator.sessions.session import KernelSession
from orchestrator.store.wholefile import save_whole

_METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
    "language_info": {"name": "python", "mimetype": "text/x-python", "file_extension": ".py"},
}


def notebook_outputs(result: dict[str, Any]) -> list[NotebookNode]:
    """Return the outputs of a result in nbformat's exact form."""
    return [_output(output) for output in result.get("outputs", [])]


def session_notebook(history: list[dict[str, Any]], title: str) -> NotebookNode:
    """Build a valid notebook: the title, then every cell of an execution history with its outputs.

    A display that a later cell updates, or displays again under the same id, has its last content, as in Jupyter.
    """
    cells = [v4.new_markdown_cell(f"# {title}")] if title else []
    results = with_last_displays([entry["result"] for entry in history])
    cells += [_cell(number, entry["code"], results[number - 1]) for number, entry in enumerate(history, start=1)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # nbformat draws ids by chance: two saves of one session would differ
    notebook = v4.new_notebook(cells=cells, metadata=_METADATA)
    nbformat.validate(notebook)
    return NotebookNode(notebook)


async def export_notebook(session: KernelSession, path: Path, title: str) -> None:
    """Write the session as a notebook to ``path``.

    Raises:
        StoreError: the file cannot be written, or the history cannot be read. An existing file is unchanged.
    """
    history = list(await session.history())
    await asyncio.to_thread(_write_notebook, history, path, title)


def save_notebook(session: KernelSession, path: Path, title: str) -> None:
    """Do what ``export_notebook`` does. Blocks while it reads the history and writes the file.

    Raises:
        StoreError: see ``export_notebook``.
    """
    _write_notebook(session.execution_history, path, title)


def _write_notebook(history: list[dict[str, Any]], path: Path, title: str) -> None:
    save_whole(path, nbformat.writes(session_notebook(history, title)) + "\n")


def _cell(number: int, code: str, result: dict[str, Any]) -> NotebookNode:
    outputs = notebook_outputs(result)
    if not outputs and result.get("error"):  # the kernel's end is no output of the kernel, but belongs in the record
        error = result["error"]
        outputs = [v4.new_output("error", ename=error["ename"], evalue=error["evalue"], traceback=[])]
    count = result.get("execution_count")
    try:
        cell = v4.new_code_cell(code, outputs=outputs, execution_count=number if count is None else count)
    except ValidationError:  # earlier versions kept what no reader takes
        outputs = [_repaired(output) for output in outputs]
        cell = v4.new_code_cell(code, outputs=outputs, execution_count=number if count is None else count)
    return NotebookNode(cell)


def _output(output: dict[str, Any]) -> NotebookNode:
    fields = {key: value for key, value in output.items() if key not in ("type", "output_type", "display_id")}
    return NotebookNode(nbformat.from_dict(fields | {"output_type": output["output_type"]}))


def _repaired(output: NotebookNode) -> NotebookNode:
    """Return an output that an earlier version kept as a valid one, with a note in place of what no reader takes."""
    data = output.get("data")
    if isinstance(data, dict):
        kept = {mime: item for mime, item in data.items() if is_valid(mime, item)}
        if len(kept) < len(data):
            kept.setdefault("text/plain", "[content of an invalid mime type left out]")
        output["data"] = kept
    try:
        nbformat.validate(output, ref="output", version=v4.nbformat, version_minor=v4.nbformat_minor)
    except ValidationError:
        kind = printable(str(output.get("output_type")), 40)
        return NotebookNode(v4.new_output("stream", name="stderr", text=f"[an invalid output left out: {kind}]\n"))
    return output
