"""Finds the tables of a sheet: blocks without an empty row or column that start with a row of headings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from openpyxl.utils import get_column_letter

from spreadsheet.inside.reading import Book, Cell, Place

FEWEST_ROWS = 3
FEWEST_COLUMNS = 2
HEADINGS_WITHIN = 8  # first rows of a block; titles and notes may come before the headings


@dataclass(frozen=True)
class Column:
    """One column of a table, from the row below the headings to the last row of the table.

    Attributes:
        cells: one for each row; None if it is empty.
    """

    name: str
    number: int
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class Table:
    """A row of headings and the rows below it."""

    sheet: str
    heading_row: int
    columns: Sequence[Column]

    @property
    def first_row(self) -> int:
        return self.heading_row + 1

    @property
    def rows(self) -> int:
        return len(self.columns[0].cells)

    @property
    def area(self) -> str:
        first, last = get_column_letter(self.columns[0].number), get_column_letter(self.columns[-1].number)
        return f"{first}{self.heading_row}:{last}{self.heading_row + self.rows}"

    def place(self, column: Column, index: int) -> Place:
        return Place(self.sheet, self.first_row + index, column.number)


def find_tables(book: Book) -> list[Table]:
    """Return all tables of the workbook, sheet by sheet, from top to bottom and from left to right."""
    by_sheet: dict[str, list[Place]] = defaultdict(list)
    for place, cell in book.cells.items():
        if not is_blank(cell):
            by_sheet[place.sheet].append(place)
    found: list[Table] = []
    for places in by_sheet.values():
        in_sheet = [table for block in blocks(places) if (table := as_table(book, block))]
        found += sorted(in_sheet, key=lambda table: (table.heading_row, table.columns[0].number))
    return found


def is_blank(cell: Cell) -> bool:
    return isinstance(cell.value, str) and not cell.value.strip()


def blocks(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Split the places at empty rows and columns, and yield the pieces that have none."""
    waiting = [places]
    while waiting:
        block = waiting.pop()
        pieces = cut(block, lambda place: place.row)
        if len(pieces) == 1:
            pieces = cut(block, lambda place: place.column)
        if len(pieces) == 1:
            yield block
        else:
            waiting += pieces


def cut(block: Sequence[Place], position: Callable[[Place], int]) -> list[Sequence[Place]]:
    """Return the block split at each position without a cell."""
    starts: dict[int, int] = {}
    start = previous = -1
    for here in sorted({position(place) for place in block}):
        start = start if here == previous + 1 else here
        starts[here] = start
        previous = here
    pieces: dict[int, list[Place]] = defaultdict(list)
    for place in block:
        pieces[starts[position(place)]].append(place)
    return list(pieces.values())


def as_table(book: Book, block: Sequence[Place]) -> Table | None:
    """Return the table in a block, or None if there are no headings or too few rows below them."""
    rows, numbers = [place.row for place in block], [place.column for place in block]
    sheet, top, bottom = block[0].sheet, min(rows), max(rows)
    columns = range(min(numbers), max(numbers) + 1)
    if len(columns) < FEWEST_COLUMNS:
        return None
    for row in range(top, min(top + HEADINGS_WITHIN, bottom - FEWEST_ROWS + 1)):
        if are_headings([book.cells.get(Place(sheet, row, column)) for column in columns]):
            return Table(sheet, row, [read_column(book, Place(sheet, row, column), bottom) for column in columns])
    return None


def are_headings(row: Iterable[Cell | None]) -> bool:
    """Return whether most cells of the row are filled, all with text or years."""
    cells = list(row)
    filled = [cell for cell in cells if cell is not None and not is_blank(cell)]
    return len(filled) >= max(FEWEST_COLUMNS, 0.6 * len(cells)) and all(
        cell.kind == "text" or is_year(cell) for cell in filled
    )


def is_year(cell: Cell) -> bool:
    return isinstance(cell.value, int) and 1900 <= cell.value <= 2100


def read_column(book: Book, heading: Place, bottom: int) -> Column:
    cell = book.cells.get(heading)
    name = " ".join(str(cell.value).split()) if cell is not None else ""
    cells = [book.cells.get(heading._replace(row=row)) for row in range(heading.row + 1, bottom + 1)]
    shown = [None if cell is None or is_blank(cell) else cell for cell in cells]
    return Column(name[:80] or get_column_letter(heading.column), heading.column, shown)
