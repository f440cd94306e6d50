"""Draws the pictures: the composition and maps of the sheets, functions, histograms and missing values.

It uses ``Figure`` objects only: pyplot keeps every figure alive and chooses its own backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from spreadsheet.inside.patterns import number_in
from spreadsheet.inside.reading import Book, Cell
from spreadsheet.inside.tables import Column, Table

COLOURS = {
    "formula": "#2a6f97",
    "number": "#e9c46a",
    "text": "#b7b7a4",
    "date": "#8ab17d",
    "boolean": "#9c89b8",
    "error": "#d62828",
}
MOST_ROWS = 160  # rows of a map; a taller sheet or table is summarised in this many stripes
MOST_COLUMNS = 60
MOST_SHEETS = 12
MAP = {"aspect": "auto", "interpolation": "nearest"}


def label(text: str, longest: int = 28) -> str:
    """Return text for matplotlib: printable, shortened, and with dollar signs escaped."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return (plain if len(plain) <= longest else plain[: longest - 1] + "…").replace("$", r"\$")


def kind_of(cell: Cell) -> str:
    """Return the kind that a picture shows for a cell. An error value counts before a formula."""
    if cell.kind == "error":
        return "error"
    return "formula" if cell.has_formula else cell.kind


def composition(book: Book) -> Figure:
    """Draw the number of formulas and the shares of the kinds of cells, for each sheet."""
    counts: dict[str, Counter[str]] = {sheet: Counter() for sheet in book.sheets}
    for place, cell in book.cells.items():
        counts[place.sheet][kind_of(cell)] += 1
    shown = sorted(book.sheets, key=lambda sheet: counts[sheet].total())[-MOST_SHEETS:]
    names = [f"{label(sheet)}\n{counts[sheet].total():,} cells" for sheet in shown]
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    formulas = [counts[sheet]["formula"] for sheet in shown]
    bars = left.barh(names, formulas, color=COLOURS["formula"])
    left.bar_label(bars, [f"{number:,}" for number in formulas], padding=3)
    left.set_xscale("symlog")
    left.set_xticks([])
    left.margins(x=0.15)
    left.set_title("Formulas per sheet (logarithmic)")
    start = np.zeros(len(shown))
    for kind, colour in COLOURS.items():
        share = np.array([100 * counts[sheet][kind] / max(1, counts[sheet].total()) for sheet in shown])
        if share.any():
            right.barh(names, share, left=start, color=colour, label=kind)
            start += share
    right.set_title("Kinds of cells, in %")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(COLOURS), frameon=False)
    return figure


def sheet_maps(book: Book) -> Figure:
    """Draw a map of every sheet: one dot per cell, or per stripe of rows, in the colour of its kind."""
    filled = Counter(place.sheet for place in book.cells)
    shown = [sheet for sheet in book.sheets if filled[sheet]][:MOST_SHEETS]
    across = min(4, max(1, len(shown)))
    down = -(-max(1, len(shown)) // across)
    figure = Figure(figsize=(3.4 * across, 3.2 * down + 0.6), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, sheet in zip(panels, shown, strict=False):
        draw_map(axes, book, sheet)
    handles = [Patch(color=colour, label=kind) for kind, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle("The sheets from above")
    return figure


def draw_map(axes: Axes, book: Book, sheet: str) -> None:
    cells = {place: cell for place, cell in book.cells.items() if place.sheet == sheet}
    rows, columns = max(place.row for place in cells), max(place.column for place in cells)
    stripe = -(-rows // MOST_ROWS)
    grid = np.zeros((-(-rows // stripe), min(columns, MOST_COLUMNS)))
    order = list(COLOURS)
    for place, cell in cells.items():
        if place.column <= MOST_COLUMNS:
            at = (place.row - 1) // stripe, place.column - 1
            grid[at] = max(grid[at], 1 + order.index(kind_of(cell)))  # errors are last, so they are never hidden
    axes.set_axis_on()
    axes.imshow(grid, cmap=ListedColormap(["white", *COLOURS.values()]), vmin=0, vmax=len(order), **MAP)
    axes.set_title(label(sheet), fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([0, len(grid) - 1], ["1", f"{rows:,}"])


def functions(calls: Sequence[tuple[str, int]]) -> Figure:
    """Draw the most called functions."""
    shown = calls[:15][::-1]
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([label(name) for name, _ in shown], [number for _, number in shown], color=COLOURS["formula"])
    axes.bar_label(bars, padding=3)
    axes.margins(x=0.1)
    axes.set_title("Functions in formulas" if shown else "No formula calls a function")
    return figure


def histograms(tables: Sequence[Table]) -> Figure:
    """Draw histograms of the columns with the most numbers."""
    candidates = [(numbers(column), table, column) for table in tables for column in table.columns]
    varied = [candidate for candidate in candidates if len(set(candidate[0])) > 5]
    shown = sorted(varied, key=lambda candidate: -len(candidate[0]))[:9]
    down = max(1, -(-len(shown) // 3))
    figure = Figure(figsize=(12, 2.9 * down + 0.5), layout="constrained")
    panels = list(figure.subplots(down, 3, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (values, table, column) in zip(panels, shown, strict=False):
        axes.set_axis_on()
        axes.hist(values, bins=min(50, max(10, int(len(values) ** 0.5))), color=COLOURS["formula"])
        if len(values) >= 100:  # so that a single outlier is visible
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(bottom=0.5)
        median = float(np.median(values))
        axes.axvline(median, color=COLOURS["error"], linewidth=1.5, label=f"median {short(median)}")
        axes.legend(fontsize=8, framealpha=0.9)
        axes.set_title(f"{label(column.name)}\n{label(table.sheet)}, {len(values):,} numbers", fontsize=9)
    figure.suptitle("Distribution of numbers (logarithmic from 100 numbers on)" if shown else "No column of numbers")
    return figure


def short(number: float) -> str:
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e9 else f"{number:.3g}"


def numbers(column: Column) -> list[float]:
    return [number for cell in column.cells if (number := number_in(cell)) is not None]


def missing_values(tables: Sequence[Table]) -> Figure:
    """Draw the missing values of the four largest tables, with a count for each column."""
    shown = sorted(tables, key=lambda table: -table.rows * len(table.columns))[:4]
    figure = Figure(figsize=(12, 4.2 * max(1, -(-len(shown) // 2))), layout="constrained")
    panels = list(figure.subplots(max(1, -(-len(shown) // 2)), 2, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, table in zip(panels, shown, strict=False):
        draw_gaps(axes, table)
    figure.suptitle("Missing values (red)" if shown else "No tables")
    return figure


def draw_gaps(axes: Axes, table: Table) -> None:
    columns = table.columns[:MOST_COLUMNS]
    gaps = np.array([[cell is None for cell in column.cells] for column in columns]).T
    stripes = [part.max(axis=0) for part in np.array_split(gaps, min(MOST_ROWS, len(gaps)))]
    axes.set_axis_on()
    axes.imshow(stripes, cmap=ListedColormap(["#edf2f4", COLOURS["error"]]), vmin=0, vmax=1, **MAP)
    names = [f"{label(column.name, 18)} ({gaps[:, index].sum():,})" for index, column in enumerate(columns)]
    axes.set_xticks(range(len(columns)), names, rotation=60, ha="right", fontsize=7)
    last = len(stripes) - 1
    axes.set_yticks([0, last], [f"row {table.first_row:,}", f"row {table.heading_row + table.rows:,}"], fontsize=8)
    axes.set_title(f"{label(table.sheet)} {table.area}: {gaps.sum():,} missing", fontsize=10)
