"""What a node tells the other nodes of a cluster of its groups' kernels, and what it believes of them. Pure.

A node tells it whenever it renews its lease, so the numbers are some seconds old. They count while the node's lease
lasts. They are claims: what is no number of kernels is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from orchestrator.pool.scheduler import Elsewhere
from orchestrator.store.noderecord import NodeRecord

MOST_GROUPS: Final = 32  # that a node tells: those that hold the most
_MOST_KERNELS: Final = 10**6  # of one group on one node; the largest quota of a policy


def held_elsewhere(nodes: Iterable[NodeRecord], node_id: str, policy: str, age_s: float = 0.0) -> Elsewhere:
    """Return what groups hold on the other nodes, of the kernels of a policy.

    Args:
        nodes: all nodes, as the store had them ``age_s`` seconds ago.
        node_id: the node that asks.
    """
    held: dict[str, int] = {}
    number = 0
    for node in nodes:
        if node.node_id != node_id and not node.is_over and node.lease_left_s > age_s:
            believed = list(_believed(node.capacity.held, policy))
            number += bool(believed)
            for group, kernels in believed:
                held[group] = held.get(group, 0) + kernels
    return Elsewhere(held, number)


def told(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Return what a node tells: by policy, how many kernels each group holds, of those groups that hold the most.

    Args:
        parts: what the groups of a policy hold, of each manager of the node.
    """
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        for policy, groups in part.items():
            held[policy].update(groups)
    return {policy: dict(groups.most_common(MOST_GROUPS)) for policy, groups in held.items() if groups}


def _believed(held: Any, policy: str) -> Iterator[tuple[str, int]]:
    groups = held.get(policy) if isinstance(held, Mapping) else None
    for group, kernels in islice(groups.items() if isinstance(groups, Mapping) else (), MOST_GROUPS):
        if type(kernels) is int and 0 < kernels <= _MOST_KERNELS:  # no bool, and no number that a share cannot have
            yield group, kernels
