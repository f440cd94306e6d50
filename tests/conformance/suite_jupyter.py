"""The suites of Jupyter's projects and AutoGen's executor end as on the stock kernel, but for a written list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.conformance.bindings import RUNTIMES
from tests.conformance.jupytersuites import SUITES, Comparison, Suite, Way, compare, written_differences

RUNS = [
    pytest.param(suite, way, runtime, id=f"{suite.project}-{way}-{runtime}")
    for suite in SUITES
    for way in suite.ways
    for runtime in suite.runtimes
    if runtime in RUNTIMES
]


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Print what is added to it at the end."""
    rows = [f"{'suite':45} {'stock':32} {'in sandboxes':32} {'differ':>6} {'unwritten':>9} {'rerun':>5}"]
    yield rows
    print("\n" + "\n".join(rows), flush=True)


@pytest.mark.parametrize(("suite", "way", "runtime"), RUNS)
def test_a_suite_ends_as_on_the_stock_kernel(suite: Suite, way: Way, runtime: str, table: list[str]) -> None:
    """Each difference is in ``jupyter_differences.toml``, with its reason."""
    found, written = compare(suite, way, runtime), written_differences(suite)
    unwritten = found.unwritten(written)
    table.append(_row(f"{suite.project}, {way}, {runtime}", found, len(unwritten)))
    for test in found.differences:
        print(f"differs: {test}: {written.get(test, found.ours[test].failure if test in found.ours else 'missing')}")
    assert unwritten == []


def _row(name: str, found: Comparison, unwritten: int) -> str:
    stock, ours = (
        ", ".join(
            f"{count} {outcome}" for outcome, count in sorted(Counter(each.outcome for each in ends.values()).items())
        )
        for ends in (found.stock, found.ours)
    )
    return f"{name:45} {stock:32} {ours:32} {len(found.differences):6} {unwritten:9} {len(found.rerun):5}"
