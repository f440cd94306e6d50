"""Demand: how many nodes a cluster asks Ray's autoscaler for. Pure.

A caller that waits for a kernel is the sign. A wait of a moment is none: an idle session may be put to sleep for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from orchestrator.store.noderecord import NodeRecord

PATIENCE: Final = 6.0
IDLE: Final = 120.0


class Demand:
    """What one process has seen of the cluster's queue.

    Args:
        most: nodes that are asked for at most.
        patience: seconds that callers must have waited.
        idle: seconds without a wait after which the request is withdrawn.
    """

    def __init__(self, most: int, *, patience: float = PATIENCE, idle: float = IDLE) -> None:
        self._most, self._patience, self._idle = most, patience, idle
        self._waiting_since: float | None = None
        self._quiet_since: float | None = None
        self._asked = 0

    def wanted(self, nodes: Sequence[NodeRecord], now: float) -> int:
        """Return how many nodes the cluster is to have at least; 0: it asks for none.

        Called with each new reading of the directory. The number only grows until the queue has been empty for
        ``idle`` seconds: a node that was asked for takes minutes to come.

        Args:
            now: on a monotonic clock.
        """
        up = [node.capacity for node in nodes if node.condition == "up"]
        waiting = sum(capacity.waiting for capacity in up)
        if not waiting:
            self._waiting_since = None
            self._quiet_since = now if self._quiet_since is None else self._quiet_since
            if now - self._quiet_since >= self._idle:
                self._asked = 0
            return self._asked
        self._quiet_since = None
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        if now - self._waiting_since >= self._patience:
            kernels = max(1, sum(capacity.kernels for capacity in up) // len(up))
            self._asked = max(self._asked, min(self._most, len(up) + math.ceil(waiting / kernels)))
        return self._asked


def leader(nodes: Sequence[NodeRecord]) -> NodeRecord | None:
    """Return the node whose supervisor asks: each request to Ray replaces the one before, so one node asks for all."""
    return min((node for node in nodes if not node.is_over), key=lambda node: node.node_id, default=None)


def is_busy(node: NodeRecord) -> bool:
    """Return whether a node has a session, or callers that wait for one."""
    return node.capacity.free < node.capacity.kernels or node.capacity.waiting > 0
