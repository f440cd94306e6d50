"""ClusterQuotas: which quota of a cluster a session is counted for, and how long a caller waits for a place of it."""

from __future__ import annotations

import asyncio

from orchestrator.limits import Deadline
from orchestrator.policy.policy import Policy
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.store.history import History
from orchestrator.store.places import Place

_LOOK = 0.5  # seconds between two looks for a place
_LONGEST = 400  # characters, as in the schema


class ClusterQuotas:
    """The quotas of the groups of one policy.

    On one host the pool keeps them. Over a cluster the store counts, in the transaction in which a session takes a
    place: the quota is exact, whichever nodes take sessions at once.

    Args:
        name: of the policy.
    """

    def __init__(self, registry: SessionRegistry, policy: Policy, name: str) -> None:
        self._registry = registry
        self._policy = policy
        self._name = name

    def place(self, group: str) -> Place | None:
        """Return the place that a session of a group takes. None without a quota, and on a host of no cluster."""
        own = self._policy.groups.get(group)
        quota = self._policy.scheduling.group_quota if own is None or own.quota is None else own.quota
        if not quota or not self._registry.is_of_cluster:
            return None
        return Place(f"{group}:{self._name}"[:_LONGEST], quota)

    async def wait(self, group: str, deadline: Deadline | None) -> bool:
        """Wait until a place seems to be free. Return False if there is none at the deadline.

        Raises:
            StoreError: the store cannot be read.
        """
        place = self.place(group)
        while place is not None and await self._registry.store.run(History.places_taken, place.charge) >= place.quota:
            if deadline is not None and not deadline.remaining():
                return False
            await asyncio.sleep(_LOOK if deadline is None else min(_LOOK, deadline.remaining()))
        return True
