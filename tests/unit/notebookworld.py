"""What tests of notebooks need without a kernel: results, documents, and files in memory."""

from __future__ import annotations

from typing import Any

from orchestrator.notebooks import ipynb
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.notebooks.notebookfiles import digest
from orchestrator.outcome import Outcome
from orchestrator.output.events import DisplayData, ErrorOutput, ExecutionResult, Output, StreamOutput
from orchestrator.output.outputs import UpdateDisplayData


def result(
    *outputs: Output, count: int | None = 1, error: ErrorOutput | None = None, updates: dict[str, str] | None = None
) -> ExecutionResult:
    """Return the result of a cell that put out ``outputs``, and gave displays of these ids new text."""
    return ExecutionResult(
        status="ok" if error is None else "error",
        outcome=Outcome.OK if error is None else Outcome.ERROR,
        outputs=outputs,
        error=error,
        msg_id="m",
        execution_count=count,
        duration_s=0.25,
        truncated=None,
        kernel_state="idle",
        runtime="runc",
        updates=tuple(UpdateDisplayData(name, {"text/plain": text}) for name, text in (updates or {}).items()),
    )


def text(content: str) -> StreamOutput:
    return StreamOutput("stdout", content)


def display(content: str, display_id: str | None = None) -> DisplayData:
    return DisplayData({"text/plain": content}, {}, display_id)


def form(*sources: str, ids: bool = True, **metadata: Any) -> dict[str, Any]:
    """Return a notebook in nbformat's form: code cells of these sources, with the ids "c0", "c1", …"""
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        | ({"id": f"c{number}"} if ids else {})
        for number, source in enumerate(sources)
    ]
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5 if ids else 4}


def document(*sources: str) -> NotebookDocument:
    return ipynb.from_form(form(*sources), "nb-1")


class MemoryFiles:
    """Files in memory; ``between`` is written by another program while one is being replaced."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.between: list[bytes] = []

    async def read(self, path: str) -> bytes | None:
        return self.contents.get(path)

    async def replace(self, path: str, content: bytes, seen: str) -> bytes | None:
        if self.between:
            self.contents[path] = self.between.pop(0)
        there = self.contents.get(path)
        if digest(there) != seen:
            return there
        self.contents[path] = content
        return None
