"""Runs inside the kernel of a sandbox, never on the host: separate namespaces for E2B's contexts, and its results.

A cell runs the source of this module in a module of its own: the session's variables have none of it, so no checkpoint
has. It may run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from IPython import get_ipython

_OWN = ("In", "Out", "_ih", "_oh", "_dh", "get_ipython", "exit", "quit", "open")  # IPython's own names


def install(shell: Any) -> None:
    """Give the shell the magic ``%%e2b_context``, and formatters for tables and figures."""
    contexts: dict[str, types.ModuleType] = getattr(shell, "e2b_contexts", None) or {}
    folders: dict[str, str] = getattr(shell, "e2b_folders", None) or {}
    shell.e2b_contexts, shell.e2b_folders = contexts, folders

    def run(line: str, code: str) -> None:
        """Run code in the namespace and the folder of a context: ``ID`` or ``ID FOLDER``."""
        name, _, folder = line.strip().partition(" ")
        if name not in contexts:
            contexts[name] = types.ModuleType("__main__")
            contexts[name].__dict__.update({own: shell.user_ns[own] for own in _OWN if own in shell.user_ns})
            folders[name] = json.loads(folder) if folder else os.getcwd()
            os.makedirs(folders[name], exist_ok=True)
        ours = shell.user_module, shell.user_ns, os.getcwd(), sys.modules.get("__main__")
        shell.user_module, shell.user_ns = contexts[name], contexts[name].__dict__
        sys.modules["__main__"] = contexts[name]
        try:
            with contextlib.suppress(OSError):
                os.chdir(folders[name])
            # Without history the inner cell leaves the outer one's number alone.
            shell.run_cell(code, store_history=False)
        finally:
            with contextlib.suppress(OSError):
                folders[name] = os.getcwd()
                os.chdir(ours[2])
            shell.user_module, shell.user_ns = ours[0], ours[1]
            sys.modules["__main__"] = ours[3]

    def forget(line: str) -> None:
        """Remove the namespace of a context."""
        contexts.pop(line.strip(), None)
        folders.pop(line.strip(), None)

    shell.register_magic_function(run, "cell", "e2b_context")
    shell.register_magic_function(forget, "line", "e2b_forget")
    add_formatter(shell, "application/vnd.cellblock.e2b-data+json", (("pandas", "DataFrame"),
                  ("pandas.core.frame", "DataFrame")), table)  # fmt: skip
    add_formatter(shell, "application/vnd.cellblock.e2b-chart+json", (("matplotlib.figure", "FigureBase"),), chart)
    # Its subclass Figure is removed from all formatters when matplotlib is first used.


def add_formatter(
    shell: Any, mime: str, types_of: tuple[tuple[str, str], ...], form: Callable[[Any], dict[str, Any] | None]
) -> None:
    """Have the values of some types shown as one more mime type."""
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    class Formatter(BaseFormatter):  # type: ignore[misc]
        format_type = Unicode(mime)
        print_method = ObjectName("_repr_cellblock_e2b_")
        _return_type = dict

    formatter: Any = Formatter(parent=shell.display_formatter)
    for module, name in types_of:
        formatter.for_type_by_name(module, name, form)
    shell.display_formatter.formatters[mime] = formatter


def table(frame: Any) -> dict[str, Any] | None:
    """Return the columns of a DataFrame, by name; None for one of more than 100,000 values."""
    if frame.size > 100_000:
        return None
    with contextlib.suppress(Exception):
        split = json.loads(frame.to_json(orient="split", date_format="iso", default_handler=str))
        names = [name if isinstance(name, str) else str(name) for name in split["columns"]]
        return dict(zip(names, map(list, zip(*split["data"], strict=True)), strict=True)) or None
    return None


def chart(figure: Any) -> dict[str, Any] | None:
    """Return what a figure of matplotlib shows, in the form of E2B's charts; None for one that is too large."""
    with contextlib.suppress(Exception):
        charts = [form for axes in figure.axes if (form := axes_chart(axes)) is not None]
        if len(charts) > 1:
            title = figure._suptitle.get_text() if figure._suptitle else ""
            return {"type": "superchart", "title": title, "elements": charts}
        return charts[0] if charts else None
    return None


def axes_chart(axes: Any) -> dict[str, Any] | None:
    """Return what one pair of axes shows; None for nothing, or for more than 20,000 points."""
    from matplotlib.patches import Rectangle, Wedge

    def plain(values: Any) -> list[Any]:
        return [value.item() if hasattr(value, "item") else value for value in values]

    lines = [line for line in axes.get_lines() if len(line.get_xdata())]
    dots = [one for one in axes.collections if hasattr(one, "get_offsets") and len(one.get_offsets())]
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    bars = [one for one in axes.containers if getattr(one, "patches", None) and isinstance(one.patches[0], Rectangle)]
    if sum(len(line.get_xdata()) for line in lines) + sum(len(one.get_offsets()) for one in dots) > 20_000:
        return None
    title = axes.get_title()
    if wedges:
        slices = [
            {"label": wedge.get_label(), "angle": wedge.theta2 - wedge.theta1, "radius": wedge.r} for wedge in wedges
        ]
        return {"type": "pie", "title": title, "elements": slices}
    form: dict[str, Any] = {"title": title}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        label = axis.get_label().get_text() or None
        form[f"{name}_label"] = label
        unit = label[label.rindex("(") + 1 : -1] if label and label.endswith(")") and "(" in label else None
        form[f"{name}_unit"] = unit
    if bars:
        group = [(one, one.get_label()) for one in bars]
        ticks = dict(zip(plain(axes.get_xticks()), [text.get_text() for text in axes.get_xticklabels()], strict=False))
        elements = [
            {
                "label": ticks.get(patch.get_x() + patch.get_width() / 2) or str(patch.get_x() + patch.get_width() / 2),
                "value": str(plain([patch.get_height()])[0]),
                "group": "" if str(label).startswith("_") else str(label),
            }
            for one, label in group
            for patch in one.patches
        ]
        return {**form, "type": "bar", "elements": elements}
    if not lines and not dots:
        return None
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        form[f"{name}_ticks"] = plain(axis.get_ticklocs())
        form[f"{name}_tick_labels"] = [text.get_text() for text in axis.get_ticklabels()]
        form[f"{name}_scale"] = axis.get_scale()
    points = [
        {
            "label": str(line.get_label()),
            "points": list(zip(plain(line.get_xdata()), plain(line.get_ydata()), strict=False)),
        }
        for line in lines
    ] + [{"label": str(one.get_label()), "points": [plain(pair) for pair in one.get_offsets()]} for one in dots]
    return {**form, "type": "line" if lines else "scatter", "elements": points}


install(get_ipython())
