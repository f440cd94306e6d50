"""The pattern agent's findings about each table: types, missing values, outliers, duplicate rows and keys."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import quantiles
from typing import Any

from spreadsheet.inside.reading import LISTED, Cell, Place, Value
from spreadsheet.inside.tables import Column, Table

FENCE = 3.0
OUTLIER_RULE = f"more than {FENCE:g} interquartile ranges below the first or above the third quartile"
FEWEST_NUMBERS = 12  # with fewer, quartiles mean little
UNKNOWN = "uncalculated"  # the kind of a formula whose result was not saved
KEY_SHARE = 0.95  # the share of distinct values that a key must have


def describe(table: Table) -> dict[str, Any]:
    """Return the findings about one table for JSON. Long lists are truncated; counts give their lengths."""
    key = key_column(table)
    repeats = repeated_keys(table, key) if key else {}
    twins = duplicate_rows(table)
    return {
        "sheet": table.sheet,
        "area": table.area,
        "rows": table.rows,
        "columns": [describe_column(table, column) for column in table.columns[:200]],
        "duplicate_row_count": len(twins),
        "duplicate_rows": [{"row": row, "first": first} for row, first in list(twins.items())[:LISTED]],
        "key": key.name if key else None,
        "duplicate_key_count": len(repeats),
        "duplicate_keys": [
            {"value": str(value)[:80], "rows": rows[:LISTED]} for value, rows in list(repeats.items())[:LISTED]
        ],
    }


def describe_column(table: Table, column: Column) -> dict[str, Any]:
    kinds = Counter(cell.kind for cell in column.cells if cell is not None)
    known = Counter({kind: number for kind, number in kinds.items() if kind != UNKNOWN})
    usual = next((kind for kind, _ in known.most_common(1)), UNKNOWN if kinds else "empty")
    missing = [index for index, cell in enumerate(column.cells) if cell is None]
    odd = [index for index, cell in enumerate(column.cells) if cell is not None and cell.kind not in (usual, UNKNOWN)]
    outliers = outlying(column)
    return {
        "name": column.name,
        "kind": usual,
        "kinds": dict(kinds),
        "missing": len(missing),
        "missing_cells": cells(table, column, missing),
        "odd": len(odd),
        "odd_cells": cells(table, column, odd),
        "outliers": len(outliers),
        "outlier_cells": cells(table, column, outliers),
    }


def cells(table: Table, column: Column, indexes: Iterable[int]) -> list[str]:
    return [str(table.place(column, index)) for index in list(indexes)[:LISTED]]


def outlying(column: Column) -> list[int]:
    """Return the rows whose number lies outside Tukey's outer fences."""
    numbers = {index: number for index, cell in enumerate(column.cells) if (number := number_in(cell)) is not None}
    if len(numbers) < FEWEST_NUMBERS:
        return []
    first, _, third = quantiles(numbers.values(), n=4, method="inclusive")
    reach = FENCE * (third - first)
    if reach == 0:  # if half of the numbers are equal, all others would be outliers
        return []
    return [index for index, number in numbers.items() if not first - reach <= number <= third + reach]


def number_in(cell: Cell | None) -> float | None:
    if cell is None or cell.kind != "number" or not isinstance(cell.value, int | float):
        return None
    return float(cell.value)


def duplicate_rows(table: Table) -> dict[int, int]:
    """Return the rows that equal an earlier row in every column, with that row. Rows with one cell are ignored.

    Formulas are equal if their results are equal, or if neither was calculated.
    """
    seen: dict[tuple[tuple[str, Value | None] | None, ...], int] = {}
    found: dict[int, int] = {}
    for index, row in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        content = tuple(None if cell is None else (cell.kind, cell.value) for cell in row)
        if len(content) - content.count(None) < 2:
            continue
        first = seen.setdefault(content, index)
        if first != index:
            found[table.first_row + index] = table.first_row + first
    return found


def key_column(table: Table) -> Column | None:
    """Return the leftmost complete column of nearly distinct texts or whole numbers, or None."""
    for column in table.columns:
        values = [cell.value for cell in column.cells if cell is not None and is_key_value(cell)]
        if len(values) == table.rows and len(set(values)) >= KEY_SHARE * table.rows:
            return column
    return None


def is_key_value(cell: Cell) -> bool:
    return cell.kind == "text" or (cell.kind == "number" and isinstance(cell.value, int))


def repeated_keys(table: Table, key: Column) -> dict[Value | None, list[int]]:
    """Return the values that occur more than once in the key column, with their rows."""
    rows: dict[Value | None, list[int]] = defaultdict(list)
    for index, cell in enumerate(key.cells):
        if cell is not None:
            rows[cell.value].append(table.first_row + index)
    return {value: where for value, where in rows.items() if len(where) > 1}


def outside_tables(sheets: Iterable[str], tables: Iterable[Table], places: Iterable[Place]) -> list[str]:
    """Return the sheets that are not empty but have no table."""
    with_tables = {table.sheet for table in tables}
    filled = {place.sheet for place in places}
    return [sheet for sheet in sheets if sheet in filled - with_tables]
