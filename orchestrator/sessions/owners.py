"""Owners: which processes own sessions, and which of them are dead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from orchestrator.container.lease import host_identity, is_dead
from orchestrator.store.history import SessionRecord


class Owners(Protocol):
    """The processes that own sessions in one store."""

    @property
    def name(self) -> str:
        """This process's name in the store."""
        ...

    def is_dead(self, name: str) -> bool:
        """Return whether the process of that name has ended. False where that cannot be known."""
        ...


class HostOwners:
    """The processes of this host: an owner is an instance, and holds a lease while it lives.

    Args:
        instance: this process's instance; "" for one that owns nothing, such as a command.
    """

    def __init__(self, instance: str = "") -> None:
        self._host = host_identity()
        self._instance = instance

    @property
    def name(self) -> str:
        """This process's name in the store: boot, network namespace and instance."""
        return "/".join((*self._host, self._instance))

    def is_dead(self, name: str) -> bool:
        """Return whether a process has ended: it was of an earlier boot, or nobody holds its lease.

        A process in another network namespace counts as alive: its lease cannot be seen from here.
        """
        boot, namespace, instance = name.split("/")
        if boot != self._host[0]:
            return True
        return namespace == self._host[1] and is_dead(instance)


def lost_sessions(records: Iterable[SessionRecord], owners: Owners) -> list[SessionRecord]:
    """Return the sessions that have not ended and whose owner is dead."""
    return [
        record
        for record in records
        if record.state != "ended" and record.owner is not None and owners.is_dead(record.owner)
    ]
