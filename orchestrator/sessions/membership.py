"""Membership: this process as a node of a cluster. Its lease, its epoch, and which other nodes are over.

A node renews its lease in the database, by the database's clock. While it cannot, the store acknowledges nothing of
it: a cell that ends is owed. If it can renew before another node has fenced it, it goes on. If not, its epoch is over:
it ends its kernels, whose sessions other nodes may have by now, and joins again. After an outage of the database, each
node has the time of one lease to renew before another one may fence it.

A node that stays cut off from the database cannot learn that it was fenced. Once its lease has been over for five times
its length, by the process's own clock, the node ends its kernels all the same, and joins again as a new epoch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from orchestrator.errors import StoreError
from orchestrator.pool.scheduler import Scheduler
from orchestrator.pool.shares import held_elsewhere, told
from orchestrator.protocol import PROTOCOL
from orchestrator.sessions.owners import Owners
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.store.history import History
from orchestrator.store.noderecord import OUTAGE, Capacity, NodeRecord, NodeState

_log = logging.getLogger(__name__)
_PREFIX = "node:"
_RENEWALS = 3  # in the time of one lease
_NO_EPOCH = 0  # before the first: the store refuses what is written as it


class Member(Protocol):
    """What a manager does when its node joins."""

    def join(self, epoch: int) -> None:
        """Let go of all sessions of the epoch before, and write as this one from now on."""

    def lapse(self) -> None:
        """Let go of all sessions, and write nothing until ``join``: the lease has been over for long."""

    def see(self, nodes: Collection[NodeRecord], age_s: float) -> None:
        """Take into account what all nodes told, as the store had it ``age_s`` seconds ago."""


class Membership:
    """One node. Made by the process that serves for it, and shared by its managers.

    Args:
        history: of the cluster's database.
        node_id: a name that no other node has: the id of its data folder.
        url: where other hosts reach its server.
        version: of Cellblock.
        lease_s: seconds that a lease lasts.
        capacity: tells what the node has to give.

    Attributes:
        epoch: counts the node's starts; 0 before it joins.
        state: "draining" while it takes no new sessions.
        nodes: all nodes, as they were at the last renewal.
    """

    def __init__(
        self,
        history: History,
        node_id: str,
        *,
        url: str,
        version: str,
        lease_s: float,
        capacity: Callable[[], Capacity],
    ) -> None:
        self.node_id = node_id
        self.epoch = 0
        self.state: NodeState = "up"
        self.nodes: dict[str, NodeRecord] = {}
        self._history = history
        self._url = url
        self._version = version
        self._lease_s = lease_s
        self._capacity = capacity
        self._members: list[Member] = []
        self._until = 0.0  # of this process's clock: before this the lease cannot have ended
        self._read_at = 0.0  # when the store had ``nodes``, by this process's clock
        self._shown_at = 0.0  # when the members saw them
        self._lapsed = False  # its sessions are given up: it has to join again

    @property
    def has_lease(self) -> bool:
        """Whether the lease lasts, by this process's clock, which began before the database's."""
        return time.monotonic() < self._until

    async def join(self) -> None:
        """Become a node, or the next epoch of the node of this name.

        Raises:
            StoreError: the database cannot be reached or written.
        """
        began = time.monotonic()
        self.epoch = await self._history.run(
            History.join_cluster,
            self.node_id,
            url=self._url,
            version=self._version,
            protocol=PROTOCOL,
            lease_s=self._lease_s,
            capacity=self._capacity(),
        )
        self._until, self._lapsed = began + self._lease_s, False
        for member in self._members:
            member.join(self.epoch)
        await self._renew()

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._watch())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS)
            try:
                if self._lapsed or not await self._renew():
                    _log.warning("node %s was fenced: its kernels end, and it joins again", self.node_id)
                    await self.join()
            except StoreError as error:
                left = max(0.0, self._until - time.monotonic())
                _log.warning("node %s did not renew its lease (%.1f s are left): %s", self.node_id, left, error)

    async def _watch(self) -> None:
        """End the kernels once the lease has been over for long. A renewal may wait for the database meanwhile."""
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS)
            if self._lease_has_ended():
                self._show_nodes()
            over_s = time.monotonic() - self._until
            if over_s > OUTAGE * self._lease_s and not self._lapsed:
                self._lapsed = True
                _log.warning("node %s has had no lease for %.0f s: its kernels end", self.node_id, over_s)
                for member in self._members:
                    member.lapse()

    async def leave(self) -> None:
        """End the epoch.

        Raises:
            StoreError: the database cannot be written; the lease ends by itself.
        """
        self._until = 0.0
        await self._history.run(History.leave_cluster, self.node_id, self.epoch)

    async def renew(self) -> None:
        """Renew the lease now, for instance to tell that the node drains.

        Raises:
            StoreError: the database cannot be reached or written.
        """
        await self._renew()

    def attach(self, member: Member) -> None:
        """Tell a manager of each epoch from now on, and of the current one at once."""
        self._members.append(member)
        member.join(self.epoch)
        self._show_nodes()

    async def _renew(self) -> bool:
        """Renew the lease. Return False if another node has fenced this one, or its sessions are given up."""
        began = time.monotonic()
        found = await self._history.run(
            History.renew_lease,
            self.node_id,
            self.epoch,
            lease_s=self._lease_s,
            state=self.state,
            capacity=self._capacity(),
        )
        if found is None:
            self._until = 0.0
            return False
        self._until = began + self._lease_s
        self.nodes = {record.node_id: record for record in found}
        self._read_at = began
        self._show_nodes()
        return not self._lapsed

    def _show_nodes(self) -> None:
        self._shown_at = time.monotonic()
        for member in self._members:
            member.see(self.nodes.values(), self._shown_at - self._read_at)

    def _lease_has_ended(self) -> bool:
        """Return whether the lease of a node has ended since the members saw the nodes."""
        ends = (self._read_at + node.lease_left_s for node in self.nodes.values())
        return any(self._shown_at < end <= time.monotonic() for end in ends)


class NodesSessions:
    """The sessions of one manager of a node.

    Args:
        scheduler: of the manager's policy, whose name is ``policy``.
    """

    def __init__(
        self, node_id: str, store: History, registry: SessionRegistry, owners: Owners, scheduler: Scheduler, policy: str
    ) -> None:
        self._node_id = node_id
        self._scheduler = scheduler
        self._policy = policy
        self._store = store
        self._registry = registry
        self._owners = owners

    def join(self, epoch: int) -> None:
        """See ``Member.join``."""
        if self._registry.owner != self._owners.name:
            self._registry.disown_all()
            self._registry.owner = self._owners.name
        self._store.write_as(self._node_id, epoch)

    def lapse(self) -> None:
        """See ``Member.lapse``."""
        self._registry.disown_all()
        self._store.write_as(self._node_id, _NO_EPOCH)

    def see(self, nodes: Collection[NodeRecord], age_s: float) -> None:
        """See ``Member.see``."""
        self._scheduler.count_elsewhere(held_elsewhere(nodes, self._node_id, self._policy, age_s))


class ClusterOwners:
    """The processes of a cluster: an owner is an instance of an epoch of a node."""

    def __init__(self, membership: Membership, instance: str) -> None:
        self._membership = membership
        self._instance = instance

    @property
    def name(self) -> str:
        """This process's name in the store: node, epoch and instance."""
        return f"{_PREFIX}{self._membership.node_id}/{self._membership.epoch}/{self._instance}"

    @property
    def may_leave_kernels(self) -> bool:
        return True  # the fence refuses what they do

    def is_dead(self, name: str) -> bool:
        """Return whether an owner's epoch is over, and its node does not go on with its sessions itself."""
        owner = owner_node(name)
        if owner is None:
            return False
        node_id, epoch = owner
        if node_id == self._membership.node_id:
            return epoch < self._membership.epoch
        node = self._membership.nodes.get(node_id)
        return node is None or (node.state == "down" and epoch < node.epoch)

    def holder(self, name: str) -> tuple[int | None, str | None]:
        owner = owner_node(name)
        node = None if owner is None else self._membership.nodes.get(owner[0])
        return None, None if node is None else node.url


def owner_node(name: str | None) -> tuple[str, int] | None:
    """Return the node and the epoch of an owner's name; None for an owner that is of no cluster."""
    if name is None or not name.startswith(_PREFIX):
        return None
    node_id, epoch, _ = name.removeprefix(_PREFIX).split("/")
    return node_id, int(epoch)


def capacity_of(parts: Iterable[Capacity]) -> Capacity:
    """Return what several managers of one host have together."""
    known = list(parts)
    warm: dict[str, int] = {}
    for part in known:
        for policy, number in part.warm.items():
            warm[policy] = warm.get(policy, 0) + number
    return Capacity(
        kernels=sum(part.kernels for part in known),
        free=sum(part.free for part in known),
        memory_free_mb=min((part.memory_free_mb for part in known), default=0),
        cores=float(os.cpu_count() or 1),
        load=os.getloadavg()[0],
        warm=warm,
        image=next((part.image for part in known if part.image), ""),
        waiting=sum(part.waiting for part in known),
        held=told(part.held for part in known),
    )
