"""FakeDirectory: the nodes of a cluster in this process, in place of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import httpx

from orchestrator.cluster.nodedirectory import Capacity, NodeRecord, Ownership
from orchestrator.errors import StoreError
from orchestrator.protocol import PROTOCOL

ROOMY = Capacity(kernels=10, free=10, memory_free_mb=20_000, cores=2.0, load=0.0)


def record(node_id: str, url: str, capacity: Capacity = ROOMY, *, protocol: int = PROTOCOL) -> NodeRecord:
    """Return a node that is up."""
    return NodeRecord(node_id, 1, url, "up", 10.0, "0.1.0", protocol, capacity)


class FakeDirectory:
    """Nodes with stores of their own: the owner of a session is the node that lists it.

    Attributes:
        records: the nodes, by id.
        owners: owners by agent, where a test says who they are.
        is_away: whether it fails, as a database does that is away.
        readings: how often the nodes were read.
    """

    def __init__(self, *records: NodeRecord, token: str = "") -> None:
        self.records = {each.node_id: each for each in records}
        self.owners: dict[str, Ownership] = {}
        self.is_away = False
        self.readings = 0
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def end_lease(self, node_id: str) -> None:
        """Let a node's lease be over."""
        self.records[node_id] = replace(self.records[node_id], lease_left_s=-1.0)

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
        _group, _, name = agent_id.partition(":")
        if name in self.owners:
            return self.owners[name]
        for node in self.records.values():
            if not node.is_over:
                async with httpx.AsyncClient(base_url=node.url, headers=self._headers) as http:
                    for row in (await http.get("/v1/sessions")).json()["sessions"]:
                        if row["agent_id"] == name:
                            return Ownership(row["session_id"], row["state"], node.node_id, node.epoch)
        return None
