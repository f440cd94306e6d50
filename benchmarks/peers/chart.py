"""Draws the figures of each measure as bars on a logarithmic scale, with p10 and p90."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from benchmarks.peers.report import BASELINE, MEASURES, Figures

WIDTH, LEFT, RIGHT = 860, 250, 170  # pixels: the picture, the names left of the bars, the figures right of them
ROW, BAR, TOP = 26, 14, 56
DECADES = (1, 10_000)  # ms
OURS, BASE, PEER = "#2f6f4f", "#8a8f98", "#c0622d"


def draw(figures: Figures) -> str:
    """Return the figures as an SVG."""
    panels, height = [], 0
    for measure, title in MEASURES.items():
        rows = [subject for subject in figures["subjects"] if subject[measure]]
        panels.append(f'<g transform="translate(0 {height})">{"".join(_panel(measure, title, rows))}</g>')
        height += TOP + ROW * len(rows) + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#24292f">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(measure: str, title: str, rows: list[Figures]) -> Iterator[str]:
    yield _text(
        12, 22, f"{title.capitalize()} (ms, lower is better; line: p10 to p90)", 'font-weight="600" font-size="14"'
    )
    bottom = TOP + ROW * len(rows)
    for power in range(int(math.log10(DECADES[1])) + 1):
        x = _x(10**power)
        yield f'<path d="M{x:.1f} {TOP - 8}V{bottom}" stroke="#d8dee4"/>'
        yield _text(x, TOP - 12, f"{10**power:,}", 'text-anchor="middle" fill="#6e7781" font-size="11"')
    for number, subject in enumerate(rows):
        yield from _bar(subject, subject[measure], TOP + ROW * number)


def _bar(subject: Figures, summary: dict[str, float], y: int) -> Iterator[str]:
    middle, end = y + ROW / 2, _x(summary["p50_ms"])
    yield _text(LEFT - 10, middle + 4, subject["name"], 'text-anchor="end"')
    yield f'<rect x="{LEFT}" y="{middle - BAR / 2}" width="{end - LEFT:.1f}" height="{BAR}" fill="{_colour(subject)}"/>'
    spread = f"M{_x(summary['p10_ms']):.1f} {middle}H{_x(summary['p90_ms']):.1f}"
    yield f'<path d="{spread}" stroke="#24292f" stroke-width="2"/>'
    figure = f"{summary['p50_ms']:.1f} ms" if summary["p50_ms"] < 100 else f"{summary['p50_ms']:,.0f} ms"
    ratio = "" if subject["name"] == BASELINE else f" · {summary['ratio']:.1f}x"
    yield _text(WIDTH - RIGHT + 14, middle + 4, figure + ratio, "")


def _x(milliseconds: float) -> float:
    low, high = (math.log10(decade) for decade in DECADES)
    share = (math.log10(milliseconds) - low) / (high - low)
    return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0), 1)


def _colour(subject: Figures) -> str:
    if subject["version"]:
        return PEER
    return OURS if subject["name"].startswith("Cellblock") else BASE


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
