"""NodeDirectory: which nodes a cluster has, and which of them owns an agent's session. The store decides both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node had to give when it renewed its lease. It is no promise: the node admits or refuses.

    Attributes:
        kernels: how many it may have at once.
        free: how many of them nobody has.
        memory_free_mb: MiB that no kernel has reserved.
        cores: of the host.
        load: cores in use.
        warm: kernels that are ready, by policy.
        image: the sandbox image of the warm ones.
    """

    kernels: int
    free: int
    memory_free_mb: int
    cores: float
    load: float
    warm: Mapping[str, int] = field(default_factory=dict)
    image: str = ""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node, as the store has it.

    Attributes:
        node_id: a name that no other node has.
        epoch: counts the node's starts. A node of an earlier epoch owns nothing any longer.
        url: of its server.
        state: "draining": it takes no new session.
        lease_left_s: seconds until its lease ends, by the database's clock, when the record was read.
        version: of Cellblock.
        protocol: that its server speaks.
    """

    node_id: str
    epoch: int
    url: str
    state: Literal["up", "draining", "down"]
    lease_left_s: float
    version: str
    protocol: int
    capacity: Capacity

    @property
    def is_over(self) -> bool:
        """Whether the node acknowledges nothing any longer."""
        return self.state == "down" or self.lease_left_s <= 0


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who has an agent's session.

    Attributes:
        node_id, epoch: the node that owns it, or owned it last; None: none ever did.
    """

    session_id: str
    state: Literal["live", "asleep"]
    node_id: str | None
    epoch: int


class NodeDirectory(Protocol):
    """The nodes and the owners, in the store of a cluster.

    Each call raises StoreError if the store cannot be read.
    """

    async def nodes(self) -> Sequence[NodeRecord]:
        """Return the nodes, also those that are gone."""

    async def owner_of(self, agent_id: str) -> Ownership | None:
        """Return who has the session of an agent; None for an agent without one.

        Args:
            agent_id: as the store has it: the group, a colon and the agent's name.
        """
