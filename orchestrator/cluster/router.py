"""Router: the nodes that one process uses: what it knows of them, and a link to each that it has called."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from orchestrator.cluster.nodeconnections import NodeConnections
from orchestrator.cluster.nodedirectory import NodeDirectory, Ownership
from orchestrator.cluster.nodelink import Facts, NodeLink
from orchestrator.cluster.nodeview import NodeView
from orchestrator.cluster.placement import Need
from orchestrator.cluster.refusals import UNREACHED, all_refused
from orchestrator.errors import CellblockError, ManagerClosedError
from orchestrator.store.noderecord import NodeRecord

_WATCHING = 2.0  # seconds between two looks at the leases of nodes that somebody waits for


class Router:
    """The nodes of a cluster.

    Args:
        policy: of new sessions; "": the token's first.
        chance: which nodes are sampled.
    """

    def __init__(
        self, directory: NodeDirectory, *, token: str | None, verify: str | bool, policy: str, chance: random.Random
    ) -> None:
        self.view = NodeView(directory)
        self._directory = directory
        self._connections = NodeConnections(token, verify)
        self._policy = policy
        self._chance = chance
        self._links: dict[tuple[str, int], NodeLink] = {}
        self._watching: asyncio.Task[None] | None = None
        self._facts: Facts | None = None
        self._closed = False

    def link(self, record: NodeRecord) -> NodeLink:
        """Return the link to a node, made when it is first needed.

        Raises:
            ManagerClosedError: the router is closed.
            See ``NodeConnections.to``.
        """
        if self._closed:
            raise ManagerClosedError()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        key = record.node_id, record.epoch
        if key not in self._links:
            self._links[key] = NodeLink(record, self._connections.to(record.url), self.view.is_over)
        return self._links[key]

    async def candidates(self, policy: str, image: str) -> Iterator[NodeRecord]:
        """Return the nodes for a new kernel, in the order in which to ask them.

        Raises:
            See ``NodeView.read`` and ``_known``.
        """
        need = Need(policy or self._policy or (await self._known()).policies[0], image)
        reading = await self.view.read()
        return reading.placement.order(need, self._chance, age_s=reading.age_s, placed=reading.placed)

    async def session_of(self, name: str) -> Ownership | None:
        """Return who has the session of an agent.

        Args:
            name: as the caller names the agent, within the token's group.

        Raises:
            StoreError: the store cannot be read.
            See ``_known``.
        """
        return await self._directory.owner_of(f"{(await self._known()).group}:{name}")

    async def owner_of(self, name: str) -> NodeRecord | None:
        """Return the node that has the live session of an agent; None if there is none, or its lease is over.

        Raises:
            See ``session_of``.
        """
        found, reading = await asyncio.gather(self.session_of(name), self.view.read())  # a new session needs both too
        if found is None or found.node_id is None or found.state != "live":
            return None
        return reading.find(found.node_id, found.epoch)

    async def close(self) -> None:
        """Close all links."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self.view.close()
        for link in self._links.values():
            await link.close()
        self._links.clear()

    async def _known(self) -> Facts:
        """Return the group and the policies of the token, as the first node says that answers.

        Raises:
            NoNodeError, UntrustedServerError, IncompatibleServerError: there is no node that can be used.
            UnauthorizedError: the token is not accepted.
        """
        if self._facts is None:
            reading = await self.view.read()
            failed: dict[str, CellblockError] = {}
            for record in reading.placement.order(Need(""), self._chance, age_s=reading.age_s):
                try:
                    self._facts = await self.link(record).facts()
                    break
                except UNREACHED as error:
                    failed[record.node_id] = error
            else:
                raise all_refused(failed, reading.nodes)
        return self._facts

    async def _watch(self) -> None:
        """End the waits for nodes whose lease is over, until cancelled."""
        while True:
            await asyncio.sleep(_WATCHING)
            for key, link in list(self._links.items()):
                if link.waited_s > _WATCHING and await self.view.is_over(link.record):
                    link.cut()
                    del self._links[key]
                    await link.close()
