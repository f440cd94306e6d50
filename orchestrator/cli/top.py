"""`cellblock top`: shows kernels live, with keys to interrupt a cell, to hibernate a session and to kill a kernel."""

from __future__ import annotations

from functools import partial

from orchestrator.cli.clusterview import Cluster, cluster_settings, look_at_nodes
from orchestrator.cli.kernelrows import look
from orchestrator.settings import Settings


def top(cluster: Cluster = False) -> None:
    """Watch every kernel of this host: agent, state, CPU and memory with their limits, and the running cell.

    Keys: up and down select a kernel, i interrupts its cell, h hibernates its session, k kills it, s changes the order,
    q quits. With --cluster: the kernels of all nodes.

    Example: cellblock top
    """
    from orchestrator.cli.topview import Top  # importing textual takes 0.3 s, which other commands avoid

    Top(partial(look_at_nodes, cluster_settings()) if cluster else partial(look, Settings.load())).run()
