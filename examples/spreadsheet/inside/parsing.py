"""Taking formulas apart: which functions they call, which cells they read, and which are copies of one another."""

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
    """The cells that a reference in sheet ``home`` means, or None: a name, a table's column, another workbook."""
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
    """One formula, taken apart.

    Attributes:
        form: the formula with relative references; the same for two cells when one is a copy of the other.
        broken: whether it reads a cell that was deleted (#REF!).
        readable: False where the tokenizer does not know the text as a formula; then the rest is empty.
    """

    functions: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    form: str = ""
    broken: bool = False
    readable: bool = True


def take_apart(text: str, place: Place) -> Formula:
    """Read the formula ``text`` that stands at ``place``."""
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
    """``_xlfn.NORM.INV(`` is NORM.INV; a range operator may stand before the name, as in ``A1:INDEX(``."""
    return re.sub(r"^(_XL[A-Z]+\.)+", "", opening.rstrip("(").rpartition(":")[2].upper())


def relative(reference: str, place: Place) -> str:
    """Rewrite ``A$7`` as seen from ``place``, in the manner of R1C1."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or area_of(reference, place.sheet) is None:
        return reference
    sheet, *parts = match.groups()
    return (f"{sheet}!" if sheet else "") + "".join(relative_part(part, place) for part in parts if part)


def relative_part(part: str, place: Place) -> str:
    if part == ":" or part.startswith("$"):
        return part.upper()
    return f"R[{int(part) - place.row}]" if part.isdigit() else f"C[{column_index_from_string(part) - place.column}]"
