"""Runs inside the kernel of a sandbox, never on the host: tables and charts in the form of E2B's results.

A cell runs the source of this module in a module of its own, as that of ``insidecontexts``. It may run again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode

_MOST_VALUES = 100_000  # of a table
_MOST_POINTS = 20_000  # of a chart


def install(shell: Any) -> None:
    """Have tables and figures shown as one more mime type each."""
    tables = (("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame"))
    add_formatter(shell, "application/vnd.cellblock.e2b-data+json", tables, table)
    # matplotlib removes its class Figure from all formatters when it is first used, but not the class above it.
    figures = (("matplotlib.figure", "FigureBase"),)
    add_formatter(shell, "application/vnd.cellblock.e2b-chart+json", figures, chart)


def add_formatter(
    shell: Any, mime: str, types_of: tuple[tuple[str, str], ...], form: Callable[[Any], dict[str, Any] | None]
) -> None:
    """Have the values of some types shown as one more mime type. The types are not imported."""

    class Formatter(BaseFormatter):
        format_type = Unicode(mime)
        print_method = ObjectName("_repr_cellblock_e2b_")
        _return_type = dict

    formatter: Any = Formatter(parent=shell.display_formatter)
    for module, name in types_of:
        formatter.for_type_by_name(module, name, form)
    shell.display_formatter.formatters[mime] = formatter


def table(frame: Any) -> dict[str, Any] | None:
    """Return the columns of a DataFrame, by name; None for one that is empty or large."""
    if not 0 < frame.size <= _MOST_VALUES:
        return None
    with contextlib.suppress(Exception):
        split = json.loads(frame.to_json(orient="split", date_format="iso", default_handler=str))
        return dict(zip(map(str, split["columns"]), map(list, zip(*split["data"], strict=True)), strict=True))
    return None


def chart(figure: Any) -> dict[str, Any] | None:
    """Return what a figure of matplotlib shows; None for nothing, or for what E2B has no form for."""
    with contextlib.suppress(Exception):
        charts = [form for axes in figure.axes if (form := axes_chart(axes)) is not None]
        if len(charts) > 1:
            title = figure._suptitle.get_text() if figure._suptitle else None
            return {"type": "superchart", "title": title, "elements": charts}
        return charts[0] if charts else None
    return None


def axes_chart(axes: Any) -> dict[str, Any] | None:
    """Return what one pair of axes shows."""
    from matplotlib.container import BarContainer
    from matplotlib.patches import PathPatch, Wedge

    title = axes.get_title() or None
    if wedges := [patch for patch in axes.patches if isinstance(patch, Wedge)]:
        slices = [
            {"label": wedge.get_label(), "angle": round(wedge.theta2 - wedge.theta1, 4), "radius": wedge.r}
            for wedge in wedges
        ]
        return {"type": "pie", "title": title, "elements": slices}
    form = {"title": title, **labels(axes)}
    if bars := [container for container in axes.containers if isinstance(container, BarContainer)]:
        return {**form, "type": "bar", "elements": [element for one in bars for element in bar_elements(axes, one)]}
    lines = [line for line in axes.get_lines() if len(line.get_xdata())]
    dots = [one for one in axes.collections if hasattr(one, "get_offsets") and len(one.get_offsets())]
    is_box_plot = any(isinstance(patch, PathPatch) for patch in axes.patches) or any(map(is_closed, lines))
    count = sum(len(line.get_xdata()) for line in lines) + sum(len(one.get_offsets()) for one in dots)
    if is_box_plot or not 0 < count <= _MOST_POINTS:
        return None
    kind = "line" if lines else "scatter"
    return {**form, **ticks(axes), "type": kind, "elements": [*map(line_element, lines), *map(dots_element, dots)]}


def labels(axes: Any) -> dict[str, Any]:
    """Return the labels of both axes, and their units: what is in parentheses at the end."""
    form = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        label = axis.get_label().get_text() or None
        form[f"{name}_label"] = label
        form[f"{name}_unit"] = label[label.rindex("(") + 1 : -1] if label and label.endswith(")") else None
    return form


def ticks(axes: Any) -> dict[str, Any]:
    """Return the ticks and the scales of both axes."""
    form: dict[str, Any] = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        form[f"{name}_ticks"] = plain(axis.get_ticklocs())
        form[f"{name}_tick_labels"] = [text.get_text() for text in axis.get_ticklabels()]
        form[f"{name}_scale"] = scale(axis)
    return form


def scale(axis: Any) -> str:
    """Return the scale of an axis; "datetime" and "categorical" are E2B's names for what is plotted on a linear one."""
    converter = type(axis.get_converter() if hasattr(axis, "get_converter") else axis.converter).__name__
    kinds = {"Date": "datetime", "Category": "categorical"}
    return next((kind for part, kind in kinds.items() if part in converter), str(axis.get_scale()))


def bar_elements(axes: Any, bars: Any) -> list[dict[str, Any]]:
    """Return the bars of one group."""
    names = dict(zip(plain(axes.get_xticks()), [text.get_text() for text in axes.get_xticklabels()], strict=False))
    group = "" if str(bars.get_label()).startswith("_") else str(bars.get_label())
    middles = [patch.get_x() + patch.get_width() / 2 for patch in bars.patches]
    return [
        {"label": names.get(round(middle, 9)) or str(middle), "group": group, "value": plain([patch.get_height()])[0]}
        for patch, middle in zip(bars.patches, plain(middles), strict=True)
    ]


def line_element(line: Any) -> dict[str, Any]:
    """Return a line with its points."""
    points = zip(plain(line.get_xdata()), plain(line.get_ydata()), strict=False)
    return {"label": str(line.get_label()), "points": [list(point) for point in points]}


def dots_element(dots: Any) -> dict[str, Any]:
    """Return the points of a scatter plot."""
    return {"label": str(dots.get_label()), "points": [plain(point) for point in dots.get_offsets()]}


def is_closed(line: Any) -> bool:
    """Return whether a line is a box, as in a box plot."""
    x, y = line.get_xdata(), line.get_ydata()
    return len(x) == 5 and x[0] == x[4] and y[0] == y[4]


def plain(values: Any) -> list[Any]:
    """Return numbers that JSON has, and texts of all else."""
    found = [value.item() if hasattr(value, "item") else value for value in values]
    return [
        value
        if isinstance(value, int | float | str) and value == value and value not in (math.inf, -math.inf)
        else str(value)
        for value in found
    ]


if (_shell := get_ipython()) is not None:
    install(_shell)
