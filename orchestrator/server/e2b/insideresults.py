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
_PLAIN_BOX, _NOTCHED_BOX = (5, 6), (11, 12)  # corners, and one more in a closed path


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
    shapes = [patch.get_path().vertices for patch in axes.patches if isinstance(patch, PathPatch)]
    if shapes := shapes + [line.get_xydata() for line in lines if is_closed(line)]:
        boxes = box_elements(axes, shapes, lines)
        return {**form, "type": "box_and_whisker", "elements": boxes} if boxes else None
    count = sum(len(line.get_xdata()) for line in lines) + sum(len(one.get_offsets()) for one in dots)
    if not 0 < count <= _MOST_POINTS:
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
    names = tick_names(axes.xaxis)
    group = "" if str(bars.get_label()).startswith("_") else str(bars.get_label())
    middles = [patch.get_x() + patch.get_width() / 2 for patch in bars.patches]
    return [
        {"label": names.get(round(middle, 9)) or str(middle), "group": group, "value": plain([patch.get_height()])[0]}
        for patch, middle in zip(bars.patches, plain(middles), strict=True)
    ]


def tick_names(axis: Any) -> dict[Any, str]:
    """Return the labels of an axis by their places."""
    return dict(zip(plain(axis.get_ticklocs()), [text.get_text() for text in axis.get_ticklabels()], strict=False))


def box_elements(axes: Any, shapes: list[Any], lines: list[Any]) -> list[dict[str, Any]]:
    """Return the boxes of a box plot, or none where a shape is not one. A box that was drawn twice is one."""
    elements: dict[str, dict[str, Any]] = {}
    for shape in shapes:
        upright, lying = box_element(axes.xaxis, shape, lines, 1), box_element(axes.yaxis, shape, lines, 0)
        if (element := upright or lying) is None:
            return []
        elements.setdefault(repr(element), element)
    return list(elements.values())


def box_element(axis: Any, shape: Any, lines: list[Any], along: int) -> dict[str, Any] | None:
    """Return a box with its whiskers; None if it has none.

    Args:
        axis: has the names of the boxes.
        shape: the corners of the box.
        lines: all of the plot: whiskers, caps, medians and outliers.
        along: the coordinate in which the box has its values: 1 if it stands, 0 if it lies.
    """
    if len(shape) not in _PLAIN_BOX + _NOTCHED_BOX:
        return None
    is_notched = len(shape) in _NOTCHED_BOX
    across, low, high = 1 - along, shape[0][along], shape[5 if is_notched else 2][along]
    left, right = shape[:, across].min(), shape[:, across].max()
    middle = (left + right) / 2
    pairs = [line.get_xydata() for line in lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"]
    whiskers = [pair[:, along] for pair in pairs if is_near(pair[:, across], middle)]
    minimum = [min(ends) for ends in whiskers if max(ends) == low]
    maximum = [max(ends) for ends in whiskers if min(ends) == high]
    within = [
        (pair[:, across].max() - pair[:, across].min(), pair[0][along])
        for pair in pairs
        if pair[0][along] == pair[1][along] and left <= pair[:, across].min() and pair[:, across].max() <= right
    ]
    if not (minimum and maximum and within):
        return None
    ends = min(minimum), max(maximum)
    # The median is the widest line, and comes before one for the mean. A notch, which makes it narrow, points at it.
    median = shape[3][along] if is_notched else max(within, key=lambda each: each[0])[1]
    dots = [line.get_xydata() for line in lines if line.get_linestyle() == "None" and len(line.get_xdata())]
    outside = [point[along] for each in dots if is_near(each[:, across], middle) for point in each]
    values = [ends[0], low, median, high, ends[1]]
    form = dict(zip(("min", "first_quartile", "median", "third_quartile", "max"), map(float, values), strict=True))
    label = tick_names(axis).get(round(plain([middle])[0], 9)) or str(plain([middle])[0])
    outliers = [float(value) for value in outside if not ends[0] <= value <= ends[1]]
    return {"label": label, **form, "outliers": outliers}


def is_near(values: Any, middle: float) -> bool:
    """Return whether all values are one, but for rounding."""
    return all(math.isclose(value, middle, rel_tol=1e-9, abs_tol=1e-9) for value in values)


def line_element(line: Any) -> dict[str, Any]:
    """Return a line with its points."""
    points = zip(plain(line.get_xdata()), plain(line.get_ydata()), strict=False)
    return {"label": str(line.get_label()), "points": [list(point) for point in points]}


def dots_element(dots: Any) -> dict[str, Any]:
    """Return the points of a scatter plot."""
    return {"label": str(dots.get_label()), "points": [plain(point) for point in dots.get_offsets()]}


def is_closed(line: Any) -> bool:
    """Return whether a line is a box, as in a box plot: 11 points with a notch."""
    points = line.get_xydata()
    return len(points) in (5, 11) and (points[0] == points[-1]).all()


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
