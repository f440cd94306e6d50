"""FakeDirectory: the nodes of a cluster as a test says, and the owners as the store of this host has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from orchestrator.cluster.nodedirectory import Ownership
from orchestrator.container.lease import holder_of
from orchestrator.errors import StoreError
from orchestrator.protocol import PROTOCOL
from orchestrator.sessions.owners import instance_of_owner
from orchestrator.store.history import History
from orchestrator.store.noderecord import Capacity, NodeRecord

ROOMY = Capacity(kernels=10, free=10, memory_free_mb=20_000, cores=2.0, load=0.0)


def record(node_id: str, url: str, capacity: Capacity = ROOMY, *, protocol: int = PROTOCOL) -> NodeRecord:
    """Return a node that is up."""
    return NodeRecord(node_id, 1, url, "up", 10.0, "0.1.0", protocol, capacity)


class FakeDirectory:
    """The nodes are servers of one host, with one data folder and one state folder: so a live one goes on with the
    sessions of a dead one.

    Args:
        folder: has both; None: no node owns a session.

    Attributes:
        records: the nodes, by id.
        processes: the node of a server, by its process id.
        is_away: whether it fails, as a database does that is away.
        readings: how often the nodes were read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.processes: dict[int, str] = {}
        self.is_away = False
        self.readings = 0
        self._folder = folder
        self._history = None if folder is None else History.open(f"sqlite:///{folder}/data/history.db", folder / "data")

    def close(self) -> None:
        """Close the store."""
        if self._history is not None:
            self._history.close()

    def add(self, node: NodeRecord, process_id: int = 0) -> None:
        """Add a node."""
        self.records[node.node_id] = node
        self.processes[process_id] = node.node_id

    def set(self, node_id: str, *, lease_left_s: float = 10.0, state: Literal["up", "draining", "down"] = "up") -> None:
        """Change what the directory says of a node."""
        self.records[node_id] = replace(self.records[node_id], lease_left_s=lease_left_s, state=state)

    async def nodes(self) -> Sequence[NodeRecord]:
        """See ``NodeDirectory``."""
        await asyncio.sleep(0)
        if self.is_away:
            raise StoreError("the store is away.")
        self.readings += 1
        return list(self.records.values())

    async def owner_of(self, agent_id: str) -> Ownership | None:
        """See ``NodeDirectory``."""
        if self.is_away:
            raise StoreError("the store is away.")
        if self._history is None:
            return None
        group, _, name = agent_id.partition(":")
        found = await self._history.run(History.handle_of_agent, group, name)
        if found is None:
            return None
        session = found[1]
        node_id = None if session.owner is None else self._node_of(session.owner)
        return Ownership(session.session_id, "live" if session.state == "live" else "asleep", node_id, 1)

    def _node_of(self, owner: str) -> str | None:
        assert self._folder is not None
        process_id, _ = holder_of(instance_of_owner(owner), (self._folder / "state", self._folder / "data"))
        return None if process_id is None else self.processes.get(process_id)
