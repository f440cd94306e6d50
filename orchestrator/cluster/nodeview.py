"""NodeView: the nodes of a cluster, as one process has read them last."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.cluster.nodedirectory import NodeDirectory
from orchestrator.cluster.placement import Placement
from orchestrator.errors import StoreError
from orchestrator.store.noderecord import NodeRecord

FRESH = 1.0  # seconds for which a reading is used: each process asks the store at most once in this time
_READING = 5.0  # seconds


@dataclass
class Reading:
    """What the directory said, and when.

    Attributes:
        at: on the monotonic clock, before the store was asked.
        placed: sessions that this process has placed since then, by node.
    """

    nodes: Sequence[NodeRecord]
    at: float
    placement: Placement = field(init=False)
    placed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.placement = Placement(self.nodes)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.at

    def find(self, node_id: str, epoch: int) -> NodeRecord | None:
        """Return a node of this epoch, unless it is over."""
        found = (node for node in self.nodes if (node.node_id, node.epoch) == (node_id, epoch) and not node.is_over)
        return next(found, None)


class NodeView:
    """Reads the directory when its last reading is old, once for all who ask meanwhile."""

    def __init__(self, directory: NodeDirectory) -> None:
        self._directory = directory
        self._last: Reading | None = None
        self._reading: asyncio.Task[Reading] | None = None

    async def read(self) -> Reading:
        """Return a reading that is at most a second old.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._last is not None and self._last.age_s < FRESH:
            return self._last
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._read_once)
        return await asyncio.shield(self._reading)

    async def is_over(self, record: NodeRecord) -> bool:
        """Return whether the store says that a node of this epoch acknowledges nothing any longer.

        A store that cannot be read says nothing.
        """
        try:
            return (await self.read()).find(record.node_id, record.epoch) is None
        except StoreError:
            return False

    def note_placed(self, node_id: str) -> None:
        """Count a session that a node has got since the last reading."""
        if self._last is not None:
            self._last.placed[node_id] += 1

    async def close(self) -> None:
        """Stop reading."""
        if (reading := self._reading) is not None:
            reading.cancel()
            await asyncio.wait({reading})

    async def _read(self) -> Reading:
        at = time.monotonic()
        try:
            async with asyncio.timeout(_READING):
                self._last = Reading(await self._directory.nodes(), at)
        except TimeoutError:
            raise StoreError(
                f"the cluster's store has not answered for {_READING:g} s.", remedy="Look whether PostgreSQL runs."
            ) from None
        return self._last

    def _read_once(self, task: asyncio.Task[Reading]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # a caller that waits gets it
