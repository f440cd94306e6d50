"""A living document against a model, by random sequences of operations; each notebook is valid after each step.

`make notebooks` runs 10,000 sequences.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator import CellNotFoundError, InvalidInputError, InvalidPositionError, NotebookError
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.cell import CellType
from orchestrator.notebooks.livingdocument import LivingDocument
from orchestrator.notebooks.notebookbounds import NotebookBounds
from orchestrator.output.events import ErrorOutput, Output
from tests.unit.notebookworld import display, document, result, text

_FEW = 100
SEQUENCES = int(os.environ.get("CELLBLOCK_NOTEBOOK_SEQUENCES", _FEW))
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
SOURCES = st.sampled_from(["a = 1", "b = 2", "c = 3", "d = 4", "", "  \n"])
TYPES = st.sampled_from(list(CellType))
NAMES = st.sampled_from(["one", "two"])


@dataclass(eq=False)
class Model:
    """What a cell is, as a list of plain values: no code of the document is used for it.

    Attributes:
        above: the ids and sources of the code from the top to the cell, when it ran last.
        shown: the texts of its outputs with the ids of their displays.
    """

    id: str
    kind: str
    source: str
    ran: int | None = None
    above: tuple[tuple[str, str], ...] = ()
    shown: tuple[tuple[str, str | None], ...] = ()
    lost: bool = False

    @property
    def runs(self) -> bool:
        return self.kind == "code" and self.source.strip() != ""


class Sequences(RuleBasedStateMachine):
    """Random operations on a document, and on its model."""

    def __init__(self) -> None:
        super().__init__()
        self.living = LivingDocument(document("x = 1", "y = 2", "z = 3"))
        self.model = [Model(cell.id, "code", cell.source) for cell in self.living.cells]
        self.clock = 0

    def one(self, number: int, *, runs: bool = False) -> Model | None:
        """Return one of the cells, or of those that can run; None if there is none."""
        cells = [cell for cell in self.model if cell.runs or not runs]
        return cells[number % len(cells)] if cells else None

    def above(self, index: int) -> tuple[tuple[str, str], ...]:
        return tuple((cell.id, cell.source) for cell in self.model[: index + 1] if cell.runs)

    @rule(source=SOURCES, kind=TYPES, place=st.none() | st.integers(-1, 12))
    def add(self, source: str, kind: CellType, place: int | None) -> None:
        if place is not None and not 0 <= place <= len(self.model):
            with pytest.raises(InvalidPositionError):
                self.living.add(source, kind, place)
            return
        cell = self.living.add(source, kind, place)
        self.model.insert(len(self.model) if place is None else place, Model(cell.id, kind.value, source))

    @rule(number=st.integers(0, 50), source=SOURCES, kind=st.none() | TYPES, clear=st.booleans())
    def edit(self, number: int, source: str, kind: CellType | None, clear: bool) -> None:
        if (cell := self.one(number)) is None:
            return
        self.living.edit(cell.id, source, cell_type=kind, clear_outputs=clear)
        wanted = cell.kind if kind is None else kind.value
        if (wanted, source) == (cell.kind, cell.source):
            return
        cell.kind, cell.source = wanted, source
        if clear or wanted != "code":
            cell.shown = ()

    @rule(number=st.integers(0, 50))
    def delete(self, number: int) -> None:
        if (cell := self.one(number)) is not None:
            self.living.delete(cell.id)
            self.model.remove(cell)

    @rule(number=st.integers(0, 50), place=st.integers(-1, 12))
    def move(self, number: int, place: int) -> None:
        if (cell := self.one(number)) is None:
            return
        if not 0 <= place < len(self.model):
            with pytest.raises(InvalidPositionError):
                self.living.move(cell.id, place)
            return
        self.living.move(cell.id, place)
        self.model.remove(cell)
        self.model.insert(place, cell)

    @rule(number=st.integers(0, 50), name=st.none() | NAMES, update=st.none() | NAMES, fails=st.booleans())
    def run(self, number: int, name: str | None, update: str | None, fails: bool) -> None:
        """A cell prints, displays under an id, updates another display, or fails."""
        if (cell := self.one(number, runs=True)) is None:
            return
        self.clock += 1
        says = f"run {self.clock}"
        error = ErrorOutput("ValueError", says) if fails else None
        shown: list[Output] = [text(f"{says}\n"), display(says, name), *([error] if error is not None else [])]
        updates = {} if update is None or update == name else {update: says}
        assert self.living.begin(cell.id) == cell.source
        self.living.finish(cell.id, result(*shown, count=self.clock, error=error, updates=updates), WHEN, self.clock)
        cell.ran, cell.above, cell.lost = self.clock, self.above(self.model.index(cell)), False
        new = {known: says for known in (name, update) if known is not None}
        for other in self.model:
            other.shown = tuple((new.get(key or "", said), key) for said, key in other.shown)
        cell.shown = ((f"{says}\n", None), (says, name), *([(says, None)] if fails else []))

    @rule(number=st.integers(0, 50))
    def stop(self, number: int) -> None:
        """A cell begins, and has no result."""
        if (cell := self.one(number, runs=True)) is None:
            return
        self.clock += 1
        self.living.begin(cell.id)
        cell.ran, cell.above, cell.lost = self.clock, self.above(self.model.index(cell)), True

    @rule(back=st.integers(0, 5))
    def lose(self, back: int) -> None:
        """The session goes back to a checkpoint."""
        self.living.forget_runs(self.clock - back)
        for cell in self.model:
            cell.lost = cell.lost or (cell.ran is not None and cell.ran > self.clock - back)

    @rule()
    def save_and_read(self) -> None:
        """A file has all of it, and reading it again changes nothing."""
        read = ipynb.parse(ipynb.dump(self.living.document), "nb-1")
        assert read == self.living.document
        self.living.adopt(read)

    @invariant()
    def it_is_valid(self) -> None:
        form = json.loads(ipynb.dump(self.living.document))
        nbformat.validate(form)
        assert len({cell["id"] for cell in form["cells"]}) == len(form["cells"])

    @invariant()
    def it_is_the_model(self) -> None:
        cells = self.living.cells
        assert [(cell.id, cell.cell_type.value, cell.source) for cell in cells] == [
            (cell.id, cell.kind, cell.source) for cell in self.model
        ]
        assert [[said(output) for output in cell.outputs] for cell in cells] == [
            [what for what, _ in cell.shown] for cell in self.model
        ]

    @invariant()
    def the_stale_are_those_of_the_model(self) -> None:
        stale: list[str] = []
        for index, cell in enumerate(self.model):
            if not cell.runs:
                continue
            earlier = [other.ran or 0 for other in self.model[:index] if other.runs]
            late = cell.ran is None or any(ran > cell.ran for ran in earlier)
            if stale or late or cell.lost or cell.above != self.above(index):
                stale.append(cell.id)
        assert self.living.stale() == stale


def said(output: Any) -> str:
    if output["output_type"] == "error":
        return str(output["evalue"])
    return str(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


Sequences.TestCase.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=25,
    derandomize=SEQUENCES == _FEW,  # the short form is the same every time
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestSequences = Sequences.TestCase


def test_a_run_leaves_outputs_count_and_times() -> None:
    """The times are the host's: the end, and the beginning by the result's duration."""
    living = LivingDocument(document("1 + 1"))
    living.begin("c0")
    living.finish("c0", result(text("a"), count=7), WHEN, 1)
    cell = living.cells[0]
    assert (cell.execution_count, cell.outputs) == (7, ({"output_type": "stream", "name": "stdout", "text": "a"},))
    assert cell.metadata["execution"] == {
        "iopub.execute_input": "2025-12-31T23:59:59.750000Z",
        "iopub.status.busy": "2025-12-31T23:59:59.750000Z",
        "iopub.status.idle": "2026-01-01T00:00:00.000000Z",
        "shell.execute_reply": "2026-01-01T00:00:00.000000Z",
    }


def test_a_cell_that_changes_while_it_runs_is_stale_and_one_that_is_deleted_stays_deleted() -> None:
    living = LivingDocument(document("a", "b"))
    living.begin("c0")
    living.edit("c0", "A")
    living.finish("c0", result(text("of a")), WHEN, 1)
    assert living.stale() == ["c0", "c1"]
    living.begin("c1")
    living.delete("c1")
    living.finish("c1", result(text("of b")), WHEN, 2)
    assert [cell.id for cell in living.cells] == ["c0"]


def test_an_edit_that_is_taken_back_leaves_nothing_stale() -> None:
    living = LivingDocument(document("a", "b"))
    for name in ("c0", "c1"):
        living.begin(name)
        living.finish(name, result(), WHEN, 1)
    living.edit("c0", "A")
    assert living.stale() == ["c0", "c1"]
    living.edit("c0", "a")
    assert living.stale() == []


def test_output_beyond_the_room_of_a_notebook_is_left_out() -> None:
    """The cell says so; the room is that of all cells together."""
    living = LivingDocument(document("a", "b"), NotebookBounds(output_bytes=20_000))
    for name in ("c0", "c1"):
        living.begin(name)
        living.finish(name, result(text("x" * 12_000)), WHEN, 1)
    kept, left_out = (cell.outputs[0]["text"] for cell in living.cells)
    assert (len(kept), "left out" in left_out) == (12_000, True)


def test_updates_cannot_make_a_notebook_larger_than_its_room() -> None:
    """A display of one id in many cells keeps its old content when the new one does not fit."""
    living = LivingDocument(document(*"abcde"), NotebookBounds(output_bytes=20_000))
    for name in ("c0", "c1", "c2", "c3"):
        living.begin(name)
        living.finish(name, result(display("small", "one")), WHEN, 1)
    living.begin("c4")
    living.finish("c4", result(updates={"one": "y" * 6_000}), WHEN, 2)
    sizes = [len(cell.outputs[0]["data"]["text/plain"]) for cell in living.cells[:4]]
    assert 0 < sizes.count(6_000) < 4
    assert sizes.count(5) == 4 - sizes.count(6_000)


def test_what_a_notebook_cannot_hold_is_refused() -> None:
    living = LivingDocument(document("12345"), NotebookBounds(cells=2, source=10, cell_source=8))
    for source, kind in (("\ud800", InvalidInputError), ("123456789", InvalidInputError), ("123456", NotebookError)):
        with pytest.raises(kind):
            living.add(source)
    living.add("1")
    with pytest.raises(NotebookError):
        living.add("1")
    for call in (lambda: living.edit("none", ""), lambda: living.delete("none"), lambda: living.begin("none")):
        with pytest.raises(CellNotFoundError) as caught:
            call()
        assert caught.value.cell_id == "none"
