"""The suites of Jupyter's projects end in a sandbox as they do on the stock kernel, but for a written list."""

from __future__ import annotations

import pytest

from tests.conformance.bindings import RUNTIMES
from tests.conformance.jupytersuites import SUITES, Suite, Way, differences, written_differences

RUNS = [
    pytest.param(suite, way, runtime, id=f"{suite.project}-{way}-{runtime}")
    for suite in SUITES
    for way in suite.ways
    for runtime in suite.runtimes
    if runtime in RUNTIMES
]


@pytest.mark.parametrize(("suite", "way", "runtime"), RUNS)
def test_a_suite_ends_as_on_the_stock_kernel(suite: Suite, way: Way, runtime: str) -> None:
    """Each difference is in ``jupyter_differences.toml``, with its reason."""
    found, written = differences(suite, way, runtime), written_differences(suite)
    assert set(found) <= set(written), {test: outcome for test, outcome in found.items() if test not in written}
