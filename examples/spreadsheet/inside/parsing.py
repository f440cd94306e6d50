"""Parses formulas: the functions that they call, the cells that they read, and which are copies of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from openpyxl.formula.tokenizer import Token, Tokenizer, TokenizerError
from openpyxl.utils import column_index_from_string

from spreadsheet.inside.reading import Place

MAX_ROW, MAX_COLUMN = 1_048_576, 16_384


class Area(NamedTuple):
    """A rectangle of cells, both ends included."""

    sheet: str
    top: int
    left: int
    bottom: int
    right: int

    def meets(self, other: Area) -> bool:
        return (
            self.sheet == other.sheet
            and self.top <= other.bottom
            and other.top <= self.bottom
            and self.left <= other.right
            and other.left <= self.right
        )


_CORNER = r"(\$?[A-Z]{1,3})?(\$?[0-9]{1,7})?"
_REFERENCE = re.compile(rf"(?:('(?:[^']|'')+'|[^'!:\[\]]+)!)?{_CORNER}(?:(:){_CORNER})?", re.IGNORECASE)


def area_of(reference: str, home: str) -> Area | None:
    """Return the cells of a reference in sheet ``home``; None for a name, a table's column or another workbook."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    sheet, left, top, colon, right, bottom = match.groups()
    is_cell, is_range = bool(left and top), (bool(left), bool(top)) == (bool(right), bool(bottom))
    if not (is_range if colon else is_cell):
        return None
    columns = sorted(column_index_from_string(part.lstrip("$").upper()) for part in (left, right) if part)
    rows = sorted(int(part.lstrip("$")) for part in (top, bottom) if part)
    columns, rows = columns or [1, MAX_COLUMN], rows or [1, MAX_ROW]
    name = home if sheet is None else sheet.strip("'").replace("''", "'")
    return Area(name, rows[0], columns[0], rows[-1], columns[-1])


@dataclass(frozen=True, slots=True)
class Formula:
    """One parsed formula.

    Attributes:
        form: the formula with relative references; equal for two cells if one is a copy of the other.
        broken: whether it reads a deleted cell (#REF!).
        readable: False if the tokenizer cannot parse the text; the other fields are then empty.
    """

    functions: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    form: str = ""
    broken: bool = False
    readable: bool = True


def take_apart(text: str, place: Place) -> Formula:
    """Parse the formula ``text`` of the cell at ``place``."""
    try:
        tokens = [token for token in Tokenizer(text).items if token.type != Token.WSPACE]
    except (TokenizerError, IndexError):
        return Formula(readable=False, broken="#REF!" in text)
    return Formula(
        functions=tuple(function_name(token.value) for token in tokens if is_call(token)),
        references=tuple(token.value for token in tokens if is_reference(token)),
        form="".join(relative(token.value, place) if is_reference(token) else token.value for token in tokens),
        broken=any("#REF!" in token.value for token in tokens if token.subtype != Token.TEXT),
    )


def is_reference(token: Token) -> bool:
    return bool(token.type == Token.OPERAND and token.subtype == Token.RANGE)


def is_call(token: Token) -> bool:
    return bool(token.type == Token.FUNC and token.subtype == Token.OPEN)


def function_name(opening: str) -> str:
    """Return the function's name without prefix: ``_xlfn.NORM.INV(`` gives NORM.INV, ``A1:INDEX(`` gives INDEX."""
    return re.sub(r"^(_XL[A-Z]+\.)+", "", opening.rstrip("(").rpartition(":")[2].upper())


def relative(reference: str, place: Place) -> str:
    """Return a reference relative to ``place``, in R1C1 style."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or area_of(reference, place.sheet) is None:
        return reference
    sheet, *parts = match.groups()
    return (f"{sheet}!" if sheet else "") + "".join(relative_part(part, place) for part in parts if part)


def relative_part(part: str, place: Place) -> str:
    if part == ":" or part.startswith("$"):
        return part.upper()
    return f"R[{int(part) - place.row}]" if part.isdigit() else f"C[{column_index_from_string(part) - place.column}]"
