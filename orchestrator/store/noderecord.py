"""NodeRecord: one node of a cluster, as the store has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

OUTAGE: Final = 5.0
"""Leases that a node without one keeps its kernels: the database may be away for all nodes."""

_PAST: Final = 86400.0  # seconds
NodeState = Literal["up", "draining", "down"]


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
        waiting: callers that wait for one.
        held: by policy, how many each group has: those groups that have the most.
    """

    kernels: int
    free: int
    memory_free_mb: int
    cores: float
    load: float
    warm: Mapping[str, int] = field(default_factory=dict)
    image: str = ""
    waiting: int = 0
    held: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the capacity of ``as_dict``. What a newer node says beyond it is left out."""
        known = {field.name for field in dataclass_fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in known})

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "warm": dict(self.warm)}


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
    state: NodeState
    lease_left_s: float
    version: str
    protocol: int
    capacity: Capacity

    @property
    def is_over(self) -> bool:
        """Whether the node acknowledges nothing any longer."""
        return self.state == "down" or self.lease_left_s <= 0

    @property
    def condition(self) -> Literal["up", "draining", "lost", "down"]:
        """The state; "lost" for a node that has not left, and whose lease is over."""
        return "lost" if self.is_over and self.state != "down" else self.state

    @property
    def is_past(self) -> bool:
        """Whether the node left, or was lost, a day ago: operators are not told of it any longer."""
        return self.is_over and self.lease_left_s < -_PAST

    @property
    def address(self) -> str:
        """The host and port of its server: how operators name a node; the whole of what is no address."""
        try:
            return urlsplit(self.url).netloc.rpartition("@")[2] or self.url
        except ValueError:
            return self.url

    def is_named(self, name: str) -> bool:
        """Return whether an operator's word means this node: its address, the address's host, or its id's beginning."""
        host = urlsplit(f"//{self.address}").hostname if self.address != self.url else None
        return bool(name) and (name in (self.address, host) or self.node_id.startswith(name))
