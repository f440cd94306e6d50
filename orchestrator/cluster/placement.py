"""Placement: in which order the nodes of a cluster are asked for a kernel. Pure.

Each caller decides on its own, from a reading of the directory that is some seconds old. So it must not choose the
best node of all: then all callers would, until the next reading. It samples a few, and takes the best of these.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from orchestrator.store.noderecord import NodeRecord

SAMPLED: Final = 3
LEASE_FOR_NEW: Final = 2.0  # seconds of its lease that a node must have left to get something new
_OVERCOMMIT: Final = 4  # kernels of a core, as E2B's placement has it
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Need:
    """The kernel that a session needs.

    Attributes:
        image: "": the policy's.
        memory_mb: MiB that it reserves; where that is not known, the default policy's.
    """

    policy: str
    image: str = ""
    memory_mb: int = 1024


class Placement:
    """The nodes of one reading of the directory."""

    def __init__(self, nodes: Sequence[NodeRecord]) -> None:
        self._up = [node for node in nodes if node.state == "up"]
        self._warm: dict[str, list[NodeRecord]] = {}
        for node in self._up:
            for policy, ready in node.capacity.warm.items():
                if ready > 0:
                    self._warm.setdefault(policy, []).append(node)

    def order(
        self, need: Need, chance: random.Random, *, age_s: float = 0.0, placed: Mapping[str, int] | None = None
    ) -> Iterator[NodeRecord]:
        """Yield each node that takes new sessions once, the one to ask first in front.

        First come nodes with a warm kernel, then those with room, then the full ones, which may put idle sessions to
        sleep. Within each, a few are sampled and sorted by score, then the next few.

        Args:
            age_s: seconds since the reading.
            placed: sessions that this caller has placed since then, by node.
        """
        placed = placed or {}
        given: set[str] = set()
        full: list[NodeRecord] = []

        def drawn(nodes: Sequence[NodeRecord], *, warm: bool) -> Iterator[NodeRecord]:
            for node in _shuffled(nodes, chance):
                ours = placed.get(node.node_id, 0)
                if node.node_id in given or node.lease_left_s - age_s < LEASE_FOR_NEW:
                    continue
                if warm and not _is_warm(node, need, ours):
                    continue
                given.add(node.node_id)
                if _has_room(node, need, ours):
                    yield node
                else:
                    full.append(node)

        ready = self._warm.get(need.policy, ())
        for nodes in (drawn(ready, warm=True), drawn(self._up, warm=False), iter(full)):
            while sample := list(itertools.islice(nodes, SAMPLED)):
                yield from sorted(sample, key=lambda node: score(node, need, placed.get(node.node_id, 0)))


def score(node: NodeRecord, need: Need, placed: int = 0) -> float:
    """Return how much of a node would be in use with one kernel more; the lower, the better.

    E2B's score of the cores, (requested + reserved + 0.5 * usage) / (4 * cores), and the share of the free memory
    that the kernel would take.
    """
    capacity = node.capacity
    reserved = capacity.kernels - capacity.free + placed
    cores = (1 + reserved + 0.5 * capacity.load) / (_OVERCOMMIT * max(capacity.cores, 0.1))
    return cores + need.memory_mb / max(capacity.memory_free_mb - placed * need.memory_mb, 1)


def _has_room(node: NodeRecord, need: Need, placed: int) -> bool:
    capacity = node.capacity
    return capacity.free > placed and capacity.memory_free_mb >= (placed + 1) * need.memory_mb


def _is_warm(node: NodeRecord, need: Need, placed: int) -> bool:
    capacity = node.capacity
    return capacity.warm.get(need.policy, 0) > placed and need.image in ("", capacity.image)


def _shuffled(items: Sequence[T], chance: random.Random) -> Iterator[T]:
    """Yield all items in a random order, at a cost that grows only with those that are taken."""
    moved: dict[int, int] = {}
    for last in range(len(items) - 1, -1, -1):
        index = chance.randrange(last + 1)
        yield items[moved.get(index, index)]
        moved[index] = moved.pop(last, last)
