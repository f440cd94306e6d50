"""Reads a workbook: every cell with its formula and its value. All three agents start with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple

from openpyxl import load_workbook
from openpyxl.utils import get_column_letter

BOOK = "book.xlsx"
LISTED = 50  # maximum number of listed findings of one kind; all are counted

Value = str | int | float | bool | date | datetime | time | timedelta


class Place(NamedTuple):
    """The position of a cell."""

    sheet: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.sheet}!{get_column_letter(self.column)}{self.row}"


class Cell(NamedTuple):
    """The content of a cell.

    Attributes:
        kind: "number", "text", "date", "boolean" or "error"; "uncalculated" for a formula that was saved without
            its result, as programs other than a spreadsheet do.
        value: the typed value or the formula's result; None if uncalculated.
        formula: the formula's text; "=" in the other cells that an array formula fills; otherwise empty.
    """

    kind: str
    value: Value | None
    formula: str = ""

    @property
    def has_formula(self) -> bool:
        return len(self.formula) > 1


@dataclass
class Book:
    """A workbook.

    Attributes:
        sheets: the names of the sheets, in order.
        cells: all cells that are not empty, row by row.
        spills: the range that an array formula or a data table fills, if it is more than one cell.
        names: the value of each defined name, by the name in lower case.
    """

    sheets: list[str]
    cells: dict[Place, Cell] = field(default_factory=dict)
    spills: dict[Place, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def formulas(self) -> dict[Place, str]:
        return {place: cell.formula for place, cell in self.cells.items() if cell.has_formula}

    def typed_numbers(self) -> set[Place]:
        return {place for place, cell in self.cells.items() if cell.kind == "number" and not cell.formula}


def read_book(path: str) -> Book:
    """Return the workbook with formulas and their saved results, read in streaming mode."""
    typed, computed = load_workbook(path, read_only=True), load_workbook(path, read_only=True, data_only=True)
    book = Book([sheet.title for sheet in typed.worksheets])
    book.names = {name.casefold(): item.attr_text or "" for name, item in typed.defined_names.items()}
    for sheet, results in zip(typed.worksheets, computed.worksheets, strict=True):
        # The dimensions that a sheet declares may be wrong, too small or huge.
        sheet.reset_dimensions()
        results.reset_dimensions()
        for row, result_row in zip(sheet.iter_rows(), results.iter_rows(), strict=True):
            for cell, result in zip(row, result_row, strict=True):
                if cell.value is not None:
                    add_cell(book, Place(sheet.title, cell.row, cell.column), cell, result)
        print(f"{len(book.cells):,} cells, up to sheet {sheet.title!r}")
    return book


KINDS = {"n": "number", "s": "text", "str": "text", "inlineStr": "text", "d": "date", "b": "boolean", "e": "error"}


def add_cell(book: Book, place: Place, cell: Any, result: Any) -> None:
    """Add a cell that is not empty. ``result`` is the same cell with the result in place of the formula."""
    formula = formula_text(cell.value) if cell.data_type == "f" else ""
    spill = getattr(cell.value, "ref", "")
    if ":" in spill:
        book.spills[place] = spill
    if result.value is not None:
        book.cells[place] = Cell(KINDS.get(result.data_type, "text"), result.value, formula)
    elif formula:
        book.cells[place] = Cell("uncalculated", None, formula)


def formula_text(value: Any) -> str:
    """Return the text of a formula, an array formula or a data table, the last as Excel shows it."""
    if isinstance(value, str):
        return value
    if hasattr(value, "text"):
        return str(value.text or "=")
    first, second = value.r1 or "", value.r2 or ""
    if value.dt2D in (True, "1"):
        return f"=TABLE({first},{second})"
    return f"=TABLE({first},)" if value.dtr in (True, "1") else f"=TABLE(,{first})"
