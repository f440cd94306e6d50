"""A node that stops at each step of a cell and of a checkpoint. Two of them are in ``test_cluster_faults.py``."""

from __future__ import annotations

import pytest

from tests.cluster.faultycluster import FaultyCluster
from tests.cluster.pauses import OF_CELLS, OF_CHECKPOINTS, stop_in_a_cell, stop_in_a_checkpoint


@pytest.mark.parametrize("step", OF_CELLS)
async def test_a_node_that_stops_in_a_cell_acknowledges_nothing_afterwards(faulty: FaultyCluster, step: str) -> None:
    """Another node has its session meanwhile."""
    await stop_in_a_cell(faulty, step)


@pytest.mark.parametrize("step", OF_CHECKPOINTS)
async def test_a_node_that_stops_in_a_checkpoint_acknowledges_nothing_afterwards(
    faulty: FaultyCluster, step: str
) -> None:
    """Another node has its session meanwhile."""
    await stop_in_a_checkpoint(faulty, step)
