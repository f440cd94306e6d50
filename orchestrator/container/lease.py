"""Leases on names of this host: instances and user ids.

A lease is a bound abstract unix socket. The kernel lets one process bind a name, and frees it the moment that
process ends, however it ends: nothing to clean up, no stale file, no pid that another process may have taken over.
It is a datagram socket, since whether such a name is bound can be asked without binding it.
Abstract names belong to a network namespace, hence ``host_identity``. A sandbox has a namespace of its own.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Self

from orchestrator.errors import KernelStartError


class Lease:
    """A name that this process holds until ``release``, or its own end."""

    def __init__(self, name: str, holder: socket.socket) -> None:
        self.name = name
        self._holder = holder

    @classmethod
    def take(cls, name: str) -> Self | None:
        """Take ``name``; None when somebody holds it."""
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            holder.bind(_address(name))
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        return cls(name, holder)

    @staticmethod
    def is_held(name: str) -> bool:
        """Whether any process holds ``name``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            return probe.connect_ex(_address(name)) != errno.ECONNREFUSED

    def release(self) -> None:
        self._holder.close()


def _address(name: str) -> str:
    return f"\0cellblock.{name}"


class UserId:
    """A user id that no other live container of this host has."""

    def __init__(self, uid: int, lease: Lease) -> None:
        self.uid = uid
        self._lease = lease

    @classmethod
    def take(cls, base: int, count: int, avoid: Collection[int] = ()) -> UserId:
        """Take a free id of ``base … base + count - 1``, by chance, so that a just freed one is not the next.

        Args:
            avoid: ids that are not to be taken.

        Raises:
            KernelStartError: every id is taken.
        """
        start = secrets.randbelow(count)
        for step in range(count):
            uid = base + (start + step) % count
            if uid not in avoid and (taken := cls.take_over(uid)) is not None:
                return taken
        raise KernelStartError(
            f"all {count} user ids from {base} are taken.",
            cause="host",
            remedy="Widen the range with CELLBLOCK_UID_COUNT.",
        )

    @classmethod
    def take_over(cls, uid: int) -> UserId | None:
        """Take the id of a container that outlived its process; None when a process holds it."""
        lease = Lease.take(f"uid.{uid}")
        return None if lease is None else cls(uid, lease)

    def release(self) -> None:
        self._lease.release()


def instance_lease(instance: str) -> Lease | None:
    """Take the lease of an instance: its owner does at birth; for anybody else success means that the owner is dead."""
    return Lease.take(_of_instance(instance))


def is_dead(instance: str) -> bool:
    """Whether the process of an instance has ended."""
    return not Lease.is_held(_of_instance(instance))


def _of_instance(instance: str) -> str:
    return f"instance.{instance}"


def host_identity() -> tuple[str, str]:
    """Return (this boot, this network namespace): leases are comparable where both are equal."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, str(os.stat("/proc/self/ns/net").st_ino)
