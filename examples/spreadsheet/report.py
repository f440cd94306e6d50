"""Prints the report. Every text in it came from a sandbox and is shown as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from spreadsheet.agents import Outcome
from spreadsheet.findings import (
    ColumnFindings,
    FormulaFindings,
    PatternFindings,
    PictureFindings,
    TableFindings,
)
from spreadsheet.terminal import clean, plain

SHOWN = 8  # lines of each kind; the JSON has more


def show(console: Console, outcomes: Iterable[Outcome]) -> None:
    """Print what each agent found, or why it failed."""
    for outcome in outcomes:
        console.print()
        console.rule(Text(f"{outcome.agent.name}: {outcome.agent.task.lower()}", style="bold"), align="left")
        if outcome.failure:
            console.print(plain(f"failed: {outcome.failure}", style="red", longest=600))
        for part in parts(outcome):
            console.print(part)


def parts(outcome: Outcome) -> list[RenderableType]:
    match outcome.findings:
        case FormulaFindings() as findings:
            return [formula_counts(findings), chain(findings), formula_faults(findings)]
        case PatternFindings() as findings:
            return [tables(findings), column_faults(findings), Text(f"Outlier: {clean(findings.outlier_rule)}.", "dim")]
        case PictureFindings() as findings:
            return [pictures(findings, outcome)]
    return []


def grid(*headings: str, title: str = "") -> Table:
    """Return an empty table. A heading that begins with > is right-aligned."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left")
    return table


def formula_counts(findings: FormulaFindings) -> RenderableType:
    sheets = grid("sheet", ">formulas", title=f"{findings.formulas:,} formulas")
    for sheet in [sheet for sheet in findings.sheets if sheet.formulas][: 2 * SHOWN]:
        sheets.add_row(plain(sheet.sheet, longest=40), f"{sheet.formulas:,}")
    functions = grid("function", ">calls", title=f"{len(findings.functions):,} functions")
    for function in findings.functions[:SHOWN]:
        functions.add_row(plain(function.function, longest=40), f"{function.calls:,}")
    return Columns([sheets, functions], padding=(1, 6))


def chain(findings: FormulaFindings) -> Text:
    cells = [clean(cell, 40) for cell in findings.chain_start]
    if findings.chain_length > len(findings.chain_start) + len(findings.chain_end):
        cells.append("…")
    cells += [clean(cell, 40) for cell in findings.chain_end]
    heading = f"Longest chain: {findings.chain_length:,} formulas"
    return Text("\n" + heading, "bold").append(f"\n{' → '.join(cells)}\n", "not bold")


def formula_faults(findings: FormulaFindings) -> RenderableType:
    table = grid("fault", "cell", "content")
    for error in findings.errors[:SHOWN]:
        origin = "computed" if error.computed else "typed in"
        table.add_row("error value", plain(error.cell), plain(f"{error.value} ({origin})"))
    add_rest(table, findings.error_count)
    for broken in findings.broken[:SHOWN]:
        table.add_row("lost reference", plain(broken.cell), plain(broken.formula, longest=70))
    add_rest(table, findings.broken_count)
    for typed in findings.typed_over[:SHOWN]:
        beside = f"a number, but {typed.neighbour} has {typed.formula}"
        table.add_row("typed over a formula", plain(typed.cell), plain(beside, longest=70))
    add_rest(table, findings.typed_over_count)
    for cycle in findings.cycles[:SHOWN]:
        table.add_row("cycle", plain(cycle[0] if cycle else ""), plain(" → ".join(cycle), longest=70))
    add_rest(table, len(findings.cycles))
    return table if table.row_count else Text("No errors, lost references, typed-over formulas or cycles.", "green")


def add_rest(table: Table, count: int) -> None:
    if count > SHOWN:
        table.add_row(Text(f"… and {count - SHOWN:,} more", "dim"))


def tables(findings: PatternFindings) -> RenderableType:
    headings = (
        ">rows",
        ">columns",
        ">missing",
        ">odd\ntypes",
        ">outliers",
        ">repeated\nrows",
        ">repeated\nkeys",
        "key",
    )
    table = grid("table", *headings)
    for found in findings.tables[: 3 * SHOWN]:
        table.add_row(
            plain(f"{found.sheet} {found.area}", longest=44),
            f"{found.rows:,}",
            f"{len(found.columns):,}",
            number(sum(column.missing for column in found.columns)),
            number(sum(column.odd for column in found.columns)),
            number(sum(column.outliers for column in found.columns)),
            number(found.duplicate_row_count),
            number(found.duplicate_key_count),
            plain(found.key or "", longest=20),
        )
    if findings.table_count > len(findings.tables):
        table.caption = f"{findings.table_count:,} tables; the first {len(findings.tables)} were described"
    return table if findings.tables else Text("No sheet has a table (headings with three or more rows below).")


def number(count: int) -> Text:
    return Text(f"{count:,}", "yellow" if count else "dim")


def column_faults(findings: PatternFindings) -> RenderableType:
    table = grid("what", "where", "cells", title="\nPossible faults")
    for found in findings.tables:
        for column in found.columns:
            add_column_faults(table, found, column)
        for what, rows in duplicates(found):
            table.add_row(what, plain(f"{found.sheet} {found.area}", longest=36), plain(rows, longest=60))
        if table.row_count > 5 * SHOWN:
            table.caption = "and more: see --json"
            break
    return table if table.row_count else Text("\nNo missing values, odd types, outliers or repeated rows.", "green")


def add_column_faults(table: Table, found: TableFindings, column: ColumnFindings) -> None:
    where = plain(f"{found.sheet}: {column.name}", longest=36)
    for what, count, cells in (
        ("missing", column.missing, column.missing_cells),
        (f"not {clean(column.kind, 20)}", column.odd, column.odd_cells),
        ("outlier", column.outliers, column.outlier_cells),
    ):
        if count:
            table.add_row(f"{count:,} {what}", where, plain(listed(cells, count), longest=60))


def listed(cells: Sequence[str], count: int) -> str:
    addresses = [cell.rpartition("!")[2] for cell in cells[:5]]
    return ", ".join(addresses) + (f" and {count - len(addresses):,} more" if count > len(addresses) else "")


def duplicates(found: TableFindings) -> list[tuple[str, str]]:
    lines = []
    if found.duplicate_rows:
        rows = ", ".join(f"{twin.row} = {twin.first}" for twin in found.duplicate_rows[:SHOWN])
        lines.append((f"{found.duplicate_row_count:,} repeated row", f"rows {rows}"))
    if found.duplicate_keys:
        keys = ", ".join(f"{key.value} in rows {key.rows}" for key in found.duplicate_keys[:3])
        lines.append((f"{found.duplicate_key_count:,} repeated key", keys))
    return lines


def pictures(findings: PictureFindings, outcome: Outcome) -> RenderableType:
    table = grid("picture", "file")
    for picture, path in zip(findings.pictures, outcome.pictures, strict=False):
        table.add_row(plain(picture.title), plain(path.name))
    return table
