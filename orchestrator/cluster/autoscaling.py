"""Autoscaling: one supervisor asks Ray's autoscaler for nodes, and each keeps its own node while it is busy.

Ray knows nothing of sessions: to its autoscaler, a node on which it runs nothing is idle, and may be ended. So a node
with sessions reserves the one ``cellblock_node`` that its Ray node has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from orchestrator.cluster.demand import Demand, is_busy, leader
from orchestrator.cluster.nodedirectory import NodeDirectory
from orchestrator.store.noderecord import NodeRecord

_log = logging.getLogger(__name__)
_LOOK: Final = 2.0  # seconds between two looks
_READING: Final = 5.0  # seconds in which the store must answer
KEPT: Final = 60.0  # seconds that a node is kept after its last session


class Autoscaler(Protocol):
    """What is asked of Ray. Each call blocks, and raises what Ray raises."""

    def request(self, nodes: int) -> None:
        """Have at least so many nodes; 0: as many as are busy. It replaces the request before."""

    def hold(self) -> None:
        """Keep this node. Idempotent."""

    def release(self) -> None:
        """Let this node be ended while nothing of Ray runs on it. Idempotent."""


class RayAutoscaler:
    """The autoscaler of the Ray that this process is connected to. An ``Autoscaler``.

    Args:
        place: the id of this host's Ray node.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._held: Any = None

    def request(self, nodes: int) -> None:
        """See ``Autoscaler``."""
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[{"cellblock_node": 1}] * nodes)

    def hold(self) -> None:
        """See ``Autoscaler``. The reservation ends with this process."""
        from ray.util import placement_group

        if self._held is None:
            self._held = placement_group(
                [{"cellblock_node": 1}], bundle_label_selector=[{"ray.io/node-id": self._place}]
            )

    def release(self) -> None:
        """See ``Autoscaler``."""
        from ray.util import remove_placement_group

        if self._held is not None:
            remove_placement_group(self._held)
            self._held = None


class Autoscaling:
    """What one node's supervisor does about the size of the cluster.

    Args:
        url: of this node's server, as the directory has it.
        kept: seconds that the node is kept after its last session.
    """

    def __init__(
        self, directory: NodeDirectory, url: str, demand: Demand, autoscaler: Autoscaler, *, kept: float = KEPT
    ) -> None:
        self._directory = directory
        self._url = url
        self._demand = demand
        self._autoscaler = autoscaler
        self._kept = kept
        self._busy_at = time.monotonic()  # a node that has just come is not idle yet
        self._asked: int | None = None

    async def run(self) -> None:
        """Look, and ask, until cancelled. A store or a Ray that fails is tried again."""
        while True:
            try:
                async with asyncio.timeout(_READING):
                    nodes = await self._directory.nodes()
                await asyncio.to_thread(self.look, nodes, time.monotonic())
            except Exception as error:  # noqa: BLE001 - whatever Ray or the store raises, the supervisor goes on
                _log.warning("the autoscaler was not asked: %s", error)
                self._asked = None
            await asyncio.sleep(_LOOK)

    def look(self, nodes: Sequence[NodeRecord], now: float) -> None:
        """Ask for what a reading of the directory calls for."""
        mine = next((node for node in nodes if node.url == self._url and not node.is_over), None)
        wanted, asks = self._demand.wanted(nodes, now), leader(nodes)
        if mine is None or asks is None or asks.node_id != mine.node_id:
            self._asked = None
        elif wanted != self._asked:
            self._autoscaler.request(wanted)
            self._asked = wanted
        if mine is not None and is_busy(mine):
            self._busy_at = now
        if now - self._busy_at <= self._kept:
            self._autoscaler.hold()
        else:
            self._autoscaler.release()
