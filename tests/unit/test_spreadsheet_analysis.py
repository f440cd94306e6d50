"""The spreadsheet example's analysis code, which runs in the sandboxes, on small generated workbooks."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import pytest
from openpyxl import Workbook
from openpyxl.workbook.defined_name import DefinedName
from openpyxl.worksheet.formula import ArrayFormula, DataTableFormula
from spreadsheet.inside import chains, formulas, parsing, patterns, reading, tables
from spreadsheet.inside.parsing import Area
from spreadsheet.inside.reading import Book, Place

Sheets = Mapping[str, Mapping[str, object]]
MakeBook = Callable[[Sheets], Book]


@pytest.fixture
def make_book(tmp_path: Path) -> MakeBook:
    """Return a function that saves sheets of ``{"A1": value}`` as a workbook and reads it as the agents do."""

    def make(sheets: Sheets) -> Book:
        workbook = Workbook()
        workbook.remove(workbook.worksheets[0])
        for name, cells in sheets.items():
            sheet = workbook.create_sheet(name)
            for place, value in cells.items():
                sheet[place] = value
        workbook.save(tmp_path / "book.xlsx")
        return reading.read_book(str(tmp_path / "book.xlsx"))

    return make


def parsed(book: Book) -> dict[Place, parsing.Formula]:
    return {place: parsing.take_apart(text, place) for place, text in book.formulas().items()}


def chain_of(book: Book) -> list[str]:
    graph, _ = chains.dependency_graph(book, parsed(book))
    chains.take_out_cycles(graph)
    return [str(place) for place in chains.longest_chain(graph)]


def cycles_of(book: Book) -> list[set[str]]:
    graph, _ = chains.dependency_graph(book, parsed(book))
    return [{str(place) for place in cycle} for cycle in chains.take_out_cycles(graph)]


def typed_over(book: Book) -> set[str]:
    return {str(place) for place in formulas.typed_over(parsed(book), book.typed_numbers())}


def column(first: int, values: list[object], letter: str = "A") -> dict[str, object]:
    return {f"{letter}{row}": value for row, value in enumerate(values, start=first)}


@pytest.mark.parametrize(
    ("reference", "area"),
    [
        ("B3", Area("Home", 3, 2, 3, 2)),
        ("$B$3:D4", Area("Home", 3, 2, 4, 4)),
        ("D4:B3", Area("Home", 3, 2, 4, 4)),
        ("'It''s, here'!A1", Area("It's, here", 1, 1, 1, 1)),
        ("Other!A:B", Area("Other", 1, 1, parsing.MAX_ROW, 2)),
        ("$3:4", Area("Home", 3, 1, 4, parsing.MAX_COLUMN)),
        ("Total", None),
        ("B", None),
        ("A1:B", None),
        ("Table1[Price]", None),
        ("[1]Other!A1", None),
        ("First:Last!A1", None),
    ],
)
def test_area_of(reference: str, area: Area | None) -> None:
    """A reference gives the same cells as in a spreadsheet; other text gives None."""
    assert parsing.area_of(reference, "Home") == area


def test_take_apart() -> None:
    """Functions lose their prefixes, texts are not references, and relative references become offsets."""
    formula = parsing.take_apart('=_xlfn.NORM.INV(A1, $B$2) & "SUM(C3) #REF!" & sum(Other!C3:C9)', Place("S", 4, 2))
    assert formula.functions == ("NORM.INV", "SUM")
    assert formula.references == ("A1", "$B$2", "Other!C3:C9")
    assert formula.form.startswith("_xlfn.NORM.INV(C[-1]R[-3],$B$2)&")
    assert not formula.broken


@pytest.mark.parametrize("text", ["=A1+#REF!", "=SUM(Gone!#REF!)", "=#REF!A1*2"])
def test_lost_reference(text: str) -> None:
    """A formula with #REF! outside a text is broken."""
    assert parsing.take_apart(text, Place("S", 1, 1)).broken


def test_unreadable_formula() -> None:
    """A text that cannot be parsed is marked as unreadable."""
    assert not parsing.take_apart('=SUM("', Place("S", 1, 1)).readable


def test_array_formulas_and_data_tables(make_book: MakeBook) -> None:
    """Each counts as one formula, and formulas that read a filled cell depend on it."""
    book = make_book(
        {"S": {"A1": "=1+1", "B1": ArrayFormula("B1:B3", "=A1:A3*2"), "B2": "=", "C1": "=B3", "D1": "=C1"}}
        | {"T": {"A1": DataTableFormula("A1:A9", r1="C2"), "B1": "=A5"}}
    )
    assert {str(place): text for place, text in book.formulas().items() if str(place) in ("S!B1", "S!B2", "T!A1")} == {
        "S!B1": "=A1:A3*2",
        "T!A1": "=TABLE(,C2)",
    }
    assert chain_of(book) == ["S!A1", "S!B1", "S!C1", "S!D1"]
    assert len(book.spills) == 2


def test_computed_error(tmp_path: Path) -> None:
    """An error that was a formula's result is found and distinguished from a typed error."""
    workbook = Workbook()
    sheet = workbook.create_sheet("S", 0)
    sheet["A1"], sheet["A2"] = "=1/0", "#N/A"
    workbook.save(tmp_path / "plain.xlsx")
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as old, zipfile.ZipFile(tmp_path / "book.xlsx", "w") as new:
        for name in old.namelist():
            text = old.read(name).replace(b'<c r="A1"><f>1/0</f><v />', b'<c r="A1" t="e"><f>1/0</f><v>#DIV/0!</v>')
            new.writestr(name, text.replace(b"<f>1/0</f><v/>", b"<f>1/0</f><v>#DIV/0!</v>"))
    book = reading.read_book(str(tmp_path / "book.xlsx"))
    assert formulas.faults(book, parsed(book), {})["errors"] == [
        {"cell": "S!A1", "value": "#DIV/0!", "computed": True},
        {"cell": "S!A2", "value": "#N/A", "computed": False},
    ]


def test_typed_over_down_and_across(make_book: MakeBook) -> None:
    """A typed number between copies of one formula is found in a column and in a row."""
    down = column(1, [1, 2, 3, 4, 5]) | column(1, ["=A1*2", "=A2*2", 7, "=A4*2", "=A5*2"], "B")
    across = {"A1": 1, "A2": "=A1+$F$1", "B2": "=B1+$F$1", "C2": 9, "D2": "=D1+$F$1"}
    assert typed_over(make_book({"Down": down, "Across": across})) == {"Down!B3", "Across!C2"}


@pytest.mark.parametrize(
    "cells",
    [
        ["=A1*2", "=A2*2", 7, "=A4*3", "=A5*3"],
        ["=A1*2", 7, "=A3*2"],
        ["=A1*2", "=A2*2", 1, 2, 3, 4, "=A7*2", "=A8*2"],
        ["=A1*2", "=A2*2", "a word", "=A4*2", "=A5*2"],
        ["=A1*2", "=A2*2", "=A3*2", 7],
    ],
    ids=["another formula", "too short", "too many numbers", "a text", "at the end"],
)
def test_not_typed_over(make_book: MakeBook, cells: list[object]) -> None:
    """Numbers outside a run of formulas, or too many numbers in it, are data."""
    assert typed_over(make_book({"S": column(1, cells, "B")})) == set()


def test_chain_across_sheets_ranges_and_names(make_book: MakeBook) -> None:
    """The longest chain crosses sheets and ranges, and starts at a formula."""
    one = {"A1": 5, "A2": "=A1", "A3": "=Two!B1", "B9": "=Gone!A1+Unknown"}
    two = {"B1": "=SUM(One!A1:A2)", "B2": "=MAX(One!$A:$A)", "B3": "=B2"}
    book = make_book({"One": one, "Two": two})
    assert chain_of(book) == ["One!A2", "Two!B1", "One!A3", "Two!B2", "Two!B3"]
    assert chains.dependency_graph(book, parsed(book))[1] == 2


def test_chain_through_a_defined_name(tmp_path: Path) -> None:
    """A chain follows a defined name to its cells."""
    workbook = Workbook()
    sheet = workbook.create_sheet("S", 0)
    sheet["A1"], sheet["A2"] = "=2*2", "=Rate*2"
    workbook.defined_names["Rate"] = DefinedName("Rate", attr_text="S!$A$1")
    workbook.save(tmp_path / "book.xlsx")
    assert chain_of(reading.read_book(str(tmp_path / "book.xlsx"))) == ["S!A1", "S!A2"]


def test_overlapping_ranges_stay_small(make_book: MakeBook) -> None:
    """If each row sums all rows above it, the chain has all rows, and the graph grows far less than quadratically."""
    rows = 2000
    book = make_book({"S": column(1, [1, *(f"=SUM(A$1:A{row})" for row in range(1, rows))])})
    graph, _ = chains.dependency_graph(book, parsed(book))
    assert len(chains.longest_chain(graph)) == rows - 1
    assert sum(map(len, graph.values())) < 40 * rows


def test_no_formulas(make_book: MakeBook) -> None:
    """A workbook without formulas has an empty chain."""
    assert chain_of(make_book({"S": {"A1": 1}})) == []


def test_cycles(make_book: MakeBook) -> None:
    """Cycles of one cell, of two cells and through a range are found, and the chain avoids them."""
    cells = {"A1": "=A1+1", "B1": "=B2", "B2": "=B1", "C1": "=SUM(C2:C5)", "C4": "=C1", "D1": "=B1", "D2": "=D1"}
    book = make_book({"S": cells})
    assert sorted(map(sorted, cycles_of(book))) == [["S!A1"], ["S!B1", "S!B2"], ["S!C1", "S!C4"]]
    assert chain_of(book)[-2:] == ["S!D1", "S!D2"]


def orders(rows: int = 20) -> dict[str, object]:
    """Return a table at B3 below a title, beside a second table at F3."""
    cells: dict[str, object] = {"B1": "Orders", "B3": "Id", "C3": "Day", "D3": "Price", "F3": "What", "G3": 2023}
    for row in range(4, 4 + rows):
        cells |= {f"B{row}": f"id-{row}", f"C{row}": date(2024, 1, 1), f"D{row}": 10 + row % 7, f"F{row}": "x"}
        cells[f"G{row}"] = row
    return cells


def test_tables_are_found(make_book: MakeBook) -> None:
    """Tables are found below titles, between blank columns and with years as headings; notes are not a table."""
    book = make_book({"S": orders(), "Notes": {"A1": "nothing", "A2": "but", "A3": "notes"}})
    found = tables.find_tables(book)
    assert [(table.sheet, table.area, table.rows) for table in found] == [("S", "B3:D23", 20), ("S", "F3:G23", 20)]
    assert [name.name for name in found[1].columns] == ["What", "2023"]
    assert patterns.outside_tables(book.sheets, found, book.cells) == ["Notes"]


def test_columns_are_described(make_book: MakeBook) -> None:
    """Blanks are missing, kinds other than the column's are odd, and only a far number is an outlier."""
    cells = orders() | {"C7": None, "C8": "  ", "D9": "ten", "D10": 900, "D11": "#N/A", "D12": "=1+1"}
    table = tables.find_tables(make_book({"S": cells}))[0]
    _, day, price = (patterns.describe_column(table, column) for column in table.columns)
    assert (day["kind"], day["missing_cells"]) == ("date", ["S!C7", "S!C8"])
    assert (price["kind"], price["odd_cells"]) == ("number", ["S!D9", "S!D11"])
    assert price["outlier_cells"] == ["S!D10"]
    assert price["kinds"] == {"number": 17, "text": 1, "error": 1, "uncalculated": 1}


def test_equal_numbers_have_no_outliers(make_book: MakeBook) -> None:
    """A column in which half of the numbers are equal has no outliers."""
    cells = orders() | {f"D{row}": 10 for row in range(4, 24)} | {"D9": 11}
    table = tables.find_tables(make_book({"S": cells}))[0]
    assert patterns.outlying(table.columns[2]) == []


def test_repeated_rows_and_keys(make_book: MakeBook) -> None:
    """A repeated row is found with its original, and a repeated key with its rows."""
    cells = orders(40) | {"B9": "id-5", "B12": "id-4", "D12": 14}  # row 4 has 10 + 4 % 7
    described = patterns.describe(tables.find_tables(make_book({"S": cells}))[0])
    assert described["duplicate_rows"] == [{"row": 12, "first": 4}]
    assert described["key"] == "Id"
    assert described["duplicate_keys"] == [{"value": "id-4", "rows": [4, 12]}, {"value": "id-5", "rows": [5, 9]}]
