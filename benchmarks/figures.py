"""Figures of a benchmark: quantiles, and ratios to a baseline of the same run, as tables and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.isolation.measure import quantile

console = Console()


@dataclass
class Figure:
    """The result of one measure for one subject.

    Attributes:
        measure, subject, unit: what was measured, for which subject, and the unit.
        p10, p50, p90, p99: quantiles of the samples.
        ratio: the median divided by the baseline's median of the same run; None for the baseline itself.
        spread: the 10th and 90th percentile of the ratio in each round; None if rounds are not paired.
        bound: the promised maximum of the ratio, or its minimum if ``more_is_better``; None if nothing is promised.
        more_is_better: whether a higher value is better, as for a throughput.
    """

    measure: str
    subject: str
    unit: str
    p10: float
    p50: float
    p90: float
    p99: float
    samples: int
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    bound: float | None = None
    more_is_better: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio keeps its bound."""
        if self.bound is None or self.ratio is None:
            return True
        return self.ratio >= self.bound if self.more_is_better else self.ratio <= self.bound


@dataclass
class Report:
    """Collects all figures of one run."""

    figures: list[Figure] = field(default_factory=list)

    def add(
        self,
        measure: str,
        samples: Mapping[str, list[float]],
        *,
        baseline: str,
        unit: str = "ms",
        bounds: Mapping[str, float] | None = None,
        more_is_better: bool = False,
    ) -> None:
        """Add the figures of one measure and print them as a table.

        Args:
            samples: the samples of each subject, one per round.
            bounds: the promised bound of the ratio, for some subjects.
        """
        base = samples[baseline]
        for subject, values in samples.items():
            p10, p50, p90, p99 = (quantile(values, share) for share in (0.1, 0.5, 0.9, 0.99))
            figure = Figure(measure, subject, unit, p10, p50, p90, p99, len(values), more_is_better=more_is_better)
            figure.bound = (bounds or {}).get(subject)
            if subject != baseline:
                figure.ratio = statistics.median(values) / statistics.median(base)
                if len(values) == len(base):
                    ratios = [value / beside for value, beside in zip(values, base, strict=True)]
                    figure.spread = quantile(ratios, 0.1), quantile(ratios, 0.9)
            self.figures.append(figure)
        self._show(measure)

    def save(self, path: Path) -> None:
        """Write all figures as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(figure) for figure in self.figures], indent=2) + "\n")

    @property
    def missed(self) -> list[Figure]:
        """The figures that miss their bound."""
        return [figure for figure in self.figures if not figure.is_met]

    def _show(self, measure: str) -> None:
        shown = [figure for figure in self.figures if figure.measure == measure]
        better = "higher" if shown[0].more_is_better else "lower"
        table = Table(title=f"{measure}, in {shown[0].unit} ({better} is better)", title_justify="left")
        for column in ("subject", "p50", "p10-p90", "p99", "ratio", "p10-p90 of ratio", "bound"):
            table.add_column(column, justify="left" if column == "subject" else "right", no_wrap=True)
        for figure in shown:
            table.add_row(*_row(figure))
        console.print(table)


def show_ranges(reports: Sequence[Report]) -> None:
    """Print the lowest and the highest ratio that each figure had in several runs."""
    table = Table(title=f"Ratios of {len(reports)} runs", title_justify="left")
    table.add_column("measure")
    table.add_column("subject", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    for figures in zip(*(report.figures for report in reports), strict=True):
        ratios = [figure.ratio for figure in figures if figure.ratio is not None]
        if ratios:
            table.add_row(figures[0].measure, figures[0].subject, f"{min(ratios):.2f}-{max(ratios):.2f}")
    console.print(table)


def _row(figure: Figure) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    spread = "" if figure.spread is None else f"{figure.spread[0]:.2f}-{figure.spread[1]:.2f}"
    sign, colour = "≥" if figure.more_is_better else "≤", "green" if figure.is_met else "red"
    bound = "" if figure.bound is None else f"[{colour}]{sign} {figure.bound:g}[/]"
    middle = f"{_short(figure.p10)}-{_short(figure.p90)}"
    return [figure.subject, _short(figure.p50), middle, _short(figure.p99), ratio, spread, bound]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
