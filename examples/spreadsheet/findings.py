"""The models of the agents' findings, which validate everything that comes out of a sandbox.

A sandbox may send anything: each text, list and number has a limit, and unknown fields are refused.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, le=10**9)]
Name = Annotated[str, Field(max_length=120)]
Words = Annotated[str, Field(max_length=400)]


class Findings(BaseModel):
    """The base of all findings: types are not converted, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SheetFormulas(Findings):
    sheet: Name
    formulas: Count


class FunctionCalls(Findings):
    function: Name
    calls: Count


class ErrorValue(Findings):
    """A cell with an error value.

    Attributes:
        computed: whether it is the result of a formula, instead of a typed value.
    """

    cell: Name
    value: Name
    computed: bool


class BrokenFormula(Findings):
    cell: Name
    formula: Words


class TypedOver(Findings):
    """A typed number in a run of formulas that are copies of each other.

    Attributes:
        neighbour: a cell of the run.
        formula: the neighbour's formula.
    """

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
    """The findings about one column.

    Attributes:
        odd: the number of cells of another kind than most of the column.
    """

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
    """One picture.

    Attributes:
        file: its file name, also used on the host, so that its pattern is strict.
    """

    file: str = Field(pattern=r"^[a-z]{1,30}\.png$")
    title: Name


class PictureFindings(Findings):
    pictures: list[Picture] = Field(max_length=20)


class UnexpectedFindingsError(ValueError):
    """An agent's findings are invalid. None of them are used."""


Shape = TypeVar("Shape", bound=Findings)


def checked(shape: type[Shape], displayed: object) -> Shape:
    """Return the findings that a sandbox displayed, validated by the model ``shape``.

    Raises:
        UnexpectedFindingsError: the findings are invalid. The message quotes the sandbox: escape it before showing it.
    """
    try:
        return shape.model_validate(displayed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UnexpectedFindingsError(f"the findings are invalid: {where}: {first['msg']}") from None
