"""What the agents hand out, and the check that every word of it passes before the host uses it.

It comes from a sandbox, so it may be anything: each text, list and number has a bound, and nothing else gets through.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, le=10**9)]
Name = Annotated[str, Field(max_length=120)]
Words = Annotated[str, Field(max_length=400)]


class Findings(BaseModel):
    """Base of all of them: no conversion of types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SheetFormulas(Findings):
    sheet: Name
    formulas: Count


class FunctionCalls(Findings):
    function: Name
    calls: Count


class ErrorValue(Findings):
    """``computed``: a formula's result; else somebody typed it."""

    cell: Name
    value: Name
    computed: bool


class BrokenFormula(Findings):
    cell: Name
    formula: Words


class TypedOver(Findings):
    """A number between formulas that are copies of each other; ``neighbour`` is one of these."""

    cell: Name
    neighbour: Name
    formula: Words


class FormulaFindings(Findings):
    formulas: Count
    sheets: list[SheetFormulas] = Field(max_length=200)
    functions: list[FunctionCalls] = Field(max_length=200)
    unreadable: Count
    error_count: Count
    errors: list[ErrorValue] = Field(max_length=50)
    broken_count: Count
    broken: list[BrokenFormula] = Field(max_length=50)
    typed_over_count: Count
    typed_over: list[TypedOver] = Field(max_length=50)
    chain_length: Count
    chain_start: list[Name] = Field(max_length=5)
    chain_end: list[Name] = Field(max_length=5)
    cycles: list[Annotated[list[Name], Field(max_length=50)]] = Field(max_length=20)
    not_followed: Count


class ColumnFindings(Findings):
    """``odd``: cells of another kind than most of their column."""

    name: Name
    kind: Name
    kinds: dict[Name, Count] = Field(max_length=10)
    missing: Count
    missing_cells: list[Name] = Field(max_length=50)
    odd: Count
    odd_cells: list[Name] = Field(max_length=50)
    outliers: Count
    outlier_cells: list[Name] = Field(max_length=50)


class DuplicateRow(Findings):
    row: Count
    first: Count


class DuplicateKey(Findings):
    value: Name
    rows: list[Count] = Field(max_length=50)


class TableFindings(Findings):
    sheet: Name
    area: Name
    rows: Count
    columns: list[ColumnFindings] = Field(max_length=200)
    duplicate_row_count: Count
    duplicate_rows: list[DuplicateRow] = Field(max_length=50)
    key: Name | None
    duplicate_key_count: Count
    duplicate_keys: list[DuplicateKey] = Field(max_length=50)


class PatternFindings(Findings):
    outlier_rule: Words
    table_count: Count
    tables: list[TableFindings] = Field(max_length=60)
    sheets_without_table: list[Name] = Field(max_length=200)


class Picture(Findings):
    """``file`` also names the copy on the host, hence so plain."""

    file: str = Field(pattern=r"^[a-z]{1,30}\.png$")
    title: Name


class PictureFindings(Findings):
    pictures: list[Picture] = Field(max_length=20)


class UnexpectedFindingsError(ValueError):
    """What an agent handed out is not what it should be; nothing of it is used."""


Shape = TypeVar("Shape", bound=Findings)


def checked(shape: type[Shape], handed_out: object) -> Shape:
    """Check what came out of a sandbox.

    Raises:
        UnexpectedFindingsError: it has not the shape; the message quotes the sandbox, so escape it before showing it.
    """
    try:
        return shape.model_validate(handed_out)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise UnexpectedFindingsError(f"the findings are not as agreed: {where}: {first['msg']}") from None
