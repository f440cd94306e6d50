"""Reading a workbook: every cell with its formula and its value. All three agents begin with this."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple

from openpyxl import load_workbook
from openpyxl.utils import get_column_letter

BOOK = "book.xlsx"
LISTED = 50  # findings of one kind that are listed; the rest is counted

Value = str | int | float | bool | date | datetime | time | timedelta


class Place(NamedTuple):
    """Where a cell is."""

    sheet: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.sheet}!{get_column_letter(self.column)}{self.row}"


class Cell(NamedTuple):
    """What a cell holds.

    Attributes:
        kind: "number", "text", "date", "boolean" or "error"; "uncalculated" for a formula that was saved without
            its result, as programs other than a spreadsheet do.
        value: the formula's result where there is a formula; None when uncalculated.
        formula: its text; "=" alone in the cells that an array formula fills beside its own; else "".
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
        sheets: their names, in order.
        cells: all that are not empty, row by row.
        spills: the range that an array formula or a data table fills, where that is more than its own cell.
        names: what each defined name stands for; names in lower case.
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
    """Read formulas and their saved results side by side, in streaming mode."""
    typed, computed = load_workbook(path, read_only=True), load_workbook(path, read_only=True, data_only=True)
    book = Book([sheet.title for sheet in typed.worksheets])
    book.names = {name.casefold(): item.attr_text or "" for name, item in typed.defined_names.items()}
    for sheet, results in zip(typed.worksheets, computed.worksheets, strict=True):
        # A sheet's own word on its size may be wrong, and then cuts it or makes it endless.
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
    """File one cell that is not empty; ``result`` is the same cell with a formula's result in the formula's stead."""
    formula = formula_text(cell.value) if cell.data_type == "f" else ""
    spill = getattr(cell.value, "ref", "")
    if ":" in spill:
        book.spills[place] = spill
    if result.value is not None:
        book.cells[place] = Cell(KINDS.get(result.data_type, "text"), result.value, formula)
    elif formula:
        book.cells[place] = Cell("uncalculated", None, formula)


def formula_text(value: Any) -> str:
    """The text of a plain formula, an array formula or a data table, the last as Excel shows it."""
    if isinstance(value, str):
        return value
    if hasattr(value, "text"):
        return str(value.text or "=")
    first, second = value.r1 or "", value.r2 or ""
    if value.dt2D in (True, "1"):
        return f"=TABLE({first},{second})"
    return f"=TABLE({first},)" if value.dtr in (True, "1") else f"=TABLE(,{first})"
