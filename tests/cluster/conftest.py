"""One bed of three hosts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.simulatedhosts import SimulatedHosts, simulated_hosts
from tests.conformance.__main__ import environment


@pytest.fixture(scope="package")
def bed() -> Iterator[SimulatedHosts]:
    """A bed whose hosts all run, are thawed and reach each other when a test begins and when it ends."""
    with simulated_hosts(3, python=environment("ray")) as bed:
        yield bed
