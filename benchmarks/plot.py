"""Draws ratios to a baseline as bars on a logarithmic axis, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

from benchmarks.figures import Figure, Report

_WIDTH, _LABELS, _RIGHT = (
    960,
    430,
    70,
)  # pixels: the picture, the labels, and the figures right of the bars
_ROW, _TOP = 24, 46
_GROUPS = (("lower", False), ("higher", True))  # the word, and the figures' more_is_better
_STYLE = """text { font: 13px sans-serif; fill: #24292f } .title { font-weight: bold } .axis { fill: #6e7781 }
line { stroke: #d0d7de } .base { stroke: #24292f; stroke-width: 2 } .met { fill: #2da44e } .missed { fill: #cf222e }
.bound { stroke: #9a6700; stroke-width: 2; stroke-dasharray: 3 2 } .spread { stroke: #24292f; stroke-width: 1.5 }
svg { background: #ffffff }"""


def draw(report: Report, path: Path, baseline: str) -> None:
    """Draw a bar with spread and bound for every figure that has a ratio to ``baseline``.

    Figures of which lower values are better come first, under a heading of their own.
    """
    beside = {figure.measure for figure in report.figures if figure.subject == baseline}
    figures = [figure for figure in report.figures if figure.ratio is not None and figure.measure in beside]
    values = [value for figure in figures for value in (figure.ratio, figure.bound, *(figure.spread or ())) if value]
    low, high = min(0.5, *values), max(2.0, *values)

    def x(ratio: float) -> float:
        share = (math.log(max(ratio, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return _LABELS + share * (_WIDTH - _LABELS - _RIGHT)

    groups = [(f"{word} is better", [one for one in figures if one.more_is_better == more]) for word, more in _GROUPS]
    rows: list[str | Figure] = []
    for heading, members in groups:
        rows += [heading, *members] if members else []
    height = _TOP + _ROW * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}">',
        f"<style>{_STYLE}</style><text class='title' x='8' y='18'>ratio of medians to {escape(baseline)}</text>",
    ]
    for tick in _ticks(low, high):
        kind = " class='base'" if tick == 1 else ""
        parts.append(f"<line x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{_TOP - 8}' y2='{height - 8}'{kind}/>")
        parts.append(f"<text class='axis' x='{x(tick):.1f}' y='{_TOP - 12}' text-anchor='middle'>{tick:g}</text>")
    for number, row in enumerate(rows):
        y = _TOP + number * _ROW
        if isinstance(row, Figure):
            parts += _bar(row, y, x)
        else:
            parts.append(f"<text class='title' x='8' y='{y + _ROW / 2 + 4}'>{row}</text>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _bar(figure: Figure, y: int, x: Callable[[float], float]) -> list[str]:
    assert figure.ratio is not None
    start, end = sorted((x(1.0), x(figure.ratio)))
    middle = y + _ROW / 2
    label = escape(f"{figure.measure}: {figure.subject}")
    kind = "met" if figure.is_met else "missed"
    parts = [
        f"<text x='{_LABELS - 8}' y='{middle + 4}' text-anchor='end'>{label}</text>",
        f"<rect class='{kind}' x='{start:.1f}' y='{y + 5}' width='{max(1.0, end - start):.1f}' height='{_ROW - 10}'/>",
        f"<text x='{_WIDTH - _RIGHT + 12}' y='{middle + 4}'>{figure.ratio:.2f}</text>",
    ]
    if figure.spread is not None:
        low, high = map(x, figure.spread)
        parts.append(f"<line class='spread' x1='{low:.1f}' x2='{high:.1f}' y1='{middle}' y2='{middle}'/>")
    if figure.bound is not None:
        at = x(figure.bound)
        parts.append(f"<line class='bound' x1='{at:.1f}' x2='{at:.1f}' y1='{y + 2}' y2='{y + _ROW - 2}'/>")
    return parts


def _ticks(low: float, high: float) -> list[float]:
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
    return [tick for tick in ticks if low <= tick <= high]
