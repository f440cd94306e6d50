"""The host's side of the spreadsheet example, which trusts nothing from a sandbox or a workbook."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook
from rich.console import Console
from spreadsheet import make_workbook, report
from spreadsheet.agents import AGENTS, Outcome, modules, split_cells
from spreadsheet.findings import (
    Findings,
    FormulaFindings,
    PatternFindings,
    PictureFindings,
    UnexpectedFindingsError,
    checked,
)
from spreadsheet.progress import Progress
from spreadsheet.terminal import clean, plain

HOSTILE = "[red]A[/]\x1b[2J\n\u202etxt"
SHOWN = "[red]A[/]·[2J··txt"

FORMULAS: dict[str, Any] = {
    "formulas": 1,
    "sheets": [{"sheet": HOSTILE, "formulas": 1}],
    "functions": [{"function": HOSTILE, "calls": 1}],
    "unreadable": 0,
    "error_count": 1,
    "errors": [{"cell": HOSTILE, "value": HOSTILE, "computed": True}],
    "broken_count": 1,
    "broken": [{"cell": HOSTILE, "formula": HOSTILE}],
    "typed_over_count": 1,
    "typed_over": [{"cell": HOSTILE, "neighbour": HOSTILE, "formula": HOSTILE}],
    "chain_length": 9,
    "chain_start": [HOSTILE],
    "chain_end": [HOSTILE],
    "cycles": [[HOSTILE]],
    "not_followed": 0,
}
COLUMN: dict[str, Any] = {
    "name": HOSTILE,
    "kind": HOSTILE,
    "kinds": {HOSTILE: 1},
    "missing": 1,
    "missing_cells": [HOSTILE],
    "odd": 1,
    "odd_cells": [HOSTILE],
    "outliers": 1,
    "outlier_cells": [HOSTILE],
}
PATTERNS: dict[str, Any] = {
    "outlier_rule": HOSTILE,
    "table_count": 1,
    "tables": [
        {
            "sheet": HOSTILE,
            "area": HOSTILE,
            "rows": 1,
            "columns": [COLUMN],
            "duplicate_row_count": 1,
            "duplicate_rows": [{"row": 2, "first": 1}],
            "key": HOSTILE,
            "duplicate_key_count": 1,
            "duplicate_keys": [{"value": HOSTILE, "rows": [1, 2]}],
        }
    ],
    "sheets_without_table": [HOSTILE],
}
PICTURES: dict[str, Any] = {"pictures": [{"file": "a.png", "title": HOSTILE}]}


@pytest.mark.parametrize(
    ("shape", "displayed"), [(FormulaFindings, FORMULAS), (PatternFindings, PATTERNS), (PictureFindings, PICTURES)]
)
def test_hostile_texts_are_made_harmless(shape: type[Findings], displayed: dict[str, Any]) -> None:
    """Markup, escape codes, line breaks and direction marks reach the terminal as harmless characters."""
    outcome = Outcome(AGENTS[0], checked(shape, displayed), pictures=[Path("a.png")])
    screen = io.StringIO()
    report.show(Console(file=screen, width=300, force_terminal=True, color_system=None), [outcome])
    assert "[red]A[/]·[2J·" in screen.getvalue()
    assert not set(screen.getvalue()) & set("\x1b\r\u202e")


def test_hostile_failure_is_made_harmless() -> None:
    """An error message from a sandbox is cleaned before it is shown."""
    screen = io.StringIO()
    report.show(Console(file=screen, width=300), [Outcome(AGENTS[0], failure=HOSTILE)])
    assert f"failed: {SHOWN}" in screen.getvalue()


def test_clean_shortens_and_replaces() -> None:
    """Cleaned text is one line of printable characters with a maximum length."""
    assert clean(HOSTILE) == SHOWN
    assert clean("x" * 10**6) == "x" * 99 + "…"
    assert plain(HOSTILE).plain == SHOWN


@pytest.mark.parametrize(
    ("shape", "displayed"),
    [
        (FormulaFindings, None),
        (FormulaFindings, "{}"),
        (FormulaFindings, FORMULAS | {"more": 1}),
        (FormulaFindings, FORMULAS | {"formulas": "1"}),
        (FormulaFindings, FORMULAS | {"formulas": -1}),
        (FormulaFindings, FORMULAS | {"formulas": True}),
        (FormulaFindings, FORMULAS | {"formulas": float("nan")}),
        (FormulaFindings, FORMULAS | {"chain_start": ["x" * 121]}),
        (FormulaFindings, FORMULAS | {"errors": FORMULAS["errors"] * 51}),
        (FormulaFindings, FORMULAS | {"cycles": [["x"] * 51]}),
        (PatternFindings, PATTERNS | {"tables": PATTERNS["tables"] * 61}),
        (PictureFindings, {"pictures": [{"file": "../a.png", "title": ""}]}),
        (PictureFindings, {"pictures": [{"file": "a.png\n", "title": ""}]}),
        (PictureFindings, {"pictures": PICTURES["pictures"] * 21}),
    ],
)
def test_invalid_findings_are_refused(shape: type[Findings], displayed: object) -> None:
    """Findings with a wrong type, an unknown field or too much content are refused."""
    with pytest.raises(UnexpectedFindingsError):
        checked(shape, displayed)


def test_scripts_are_split_into_cells() -> None:
    """Each mark starts a cell, and the text before the first mark is ignored."""
    cells = split_cells('"""Doc."""\n\n# %% One\na = 1\n\n# %% Two\n\nb = 2\n')
    assert [tuple(cell) for cell in cells] == [("One", "# One\na = 1\n"), ("Two", "# Two\nb = 2\n")]


def test_every_agent_has_cells_and_modules() -> None:
    """Each cell of the scripts compiles, and each module that they import is sent to the sandbox."""
    places = {place for _, place in modules()}
    for agent in AGENTS:
        for cell in agent.cells():
            compile(cell.code, cell.title, "exec")
            for line in re.findall(r"^from spreadsheet\.inside import (.+)$", cell.code, re.MULTILINE):
                assert {f"spreadsheet/inside/{name}.py" for name in line.split(", ")} <= places


def test_progress_without_a_terminal_prints_steps() -> None:
    """Without a terminal each step is one line, and output of cells is not shown."""
    screen = io.StringIO()
    with Progress(Console(file=screen, width=120), AGENTS) as progress:
        progress.step(AGENTS[0], HOSTILE)
        progress.say(AGENTS[0], "not this\n")
        progress.end(AGENTS[0], failed=True)
    lines = screen.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"formula-agent  1/5  {SHOWN}")
    assert lines[1].endswith(f"failed at: {SHOWN}")


def test_the_workbook_is_the_same_every_time(tmp_path: Path) -> None:
    """Every run writes the same bytes, and the number of formulas on each sheet is as declared."""
    first, second = (make_workbook.write(tmp_path / name) for name in ("a.xlsx", "b.xlsx"))
    assert first.read_bytes() == second.read_bytes()
    book = load_workbook(first)
    cells = [(sheet.title, cell) for sheet in book.worksheets for row in sheet.iter_rows() for cell in row]
    counted = Counter(sheet for sheet, cell in cells if cell.data_type == "f")
    assert {sheet: counted[sheet] for sheet in book.sheetnames} == make_workbook.FORMULAS
