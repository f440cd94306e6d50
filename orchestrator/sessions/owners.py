"""Owners: which processes own sessions, and which of them are dead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from orchestrator.container.lease import holder_of, host_identity, is_dead
from orchestrator.store.history import SessionRecord


class Owners(Protocol):
    """The processes that own sessions in one store."""

    @property
    def name(self) -> str:
        """This process's name in the store."""
        ...

    @property
    def may_leave_kernels(self) -> bool:
        """Whether a dead owner's kernels may run on where this process cannot end them. Its sessions go on without."""
        ...

    def is_dead(self, name: str) -> bool:
        """Return whether the process of that name has ended. False where that cannot be known."""
        ...

    def holder(self, name: str) -> tuple[int | None, str | None]:
        """Return the process id and the host name of the process of that name; None for what is unknown."""
        ...


class HostOwners:
    """The processes of this host: an owner is an instance, and holds a lease while it lives.

    Args:
        instance: this process's instance; "" for one that owns nothing, such as a command.
        folders: the state folder and the data folder, which have the owners' lock files. Without them a process in
            another network namespace counts as alive.
    """

    def __init__(self, instance: str = "", folders: Iterable[Path] = ()) -> None:
        self._host = host_identity()
        self._instance = instance
        self._folders = tuple(folders)

    @property
    def may_leave_kernels(self) -> bool:
        return False

    @property
    def name(self) -> str:
        """This process's name in the store: boot, network namespace and instance."""
        return "/".join((*self._host, self._instance))

    def is_dead(self, name: str) -> bool:
        """Return whether a process has ended: nobody holds its lease, or it was of an earlier boot."""
        if is_node(name):  # of a cluster: only the database knows
            return False
        boot, namespace, instance = name.split("/")
        if not is_dead(instance, self._folders):
            return False
        return boot != self._host[0] or namespace == self._host[1] or bool(self._folders)

    def holder(self, name: str) -> tuple[int | None, str | None]:
        return holder_of(instance_of_owner(name), self._folders)


def is_node(name: str) -> bool:
    """Return whether a process's name in the store is that of a node of a cluster."""
    return name.startswith("node:")


def instance_of_owner(name: str) -> str:
    """Return the instance of a process, from its name in the store."""
    return name.rpartition("/")[2]


def lost_sessions(records: Iterable[SessionRecord], owners: Owners) -> list[SessionRecord]:
    """Return the sessions that have not ended and whose owner is dead."""
    return [
        record
        for record in records
        if record.state != "ended" and record.owner is not None and owners.is_dead(record.owner)
    ]
