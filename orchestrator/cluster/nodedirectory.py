"""NodeDirectory: which nodes a cluster has, and which of them owns an agent's session. The store decides both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.store.noderecord import NodeRecord


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
