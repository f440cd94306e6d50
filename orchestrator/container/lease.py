"""Leases of instances and of user ids: what one process holds while it lives.

The leases are lock files in folders that only this user can write, so no other user can hold one. A user id has a lock
file in the state folder. An instance has one in its state folder and one in its data folder.

An instance also holds a ``Lease``, an abstract Unix socket that is bound to its name. It says that the owner of a
container lives to a process that sees none of its lock files. Linux lets only one process bind a name, and frees the
name when that process ends, however it ends. The socket is a datagram socket because one can find out whether its name
is bound without binding it. Abstract names belong to a network namespace, hence ``host_identity``. Every local user can
bind such a name, so it counts only where no lock file is seen.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import ClassVar, Self

from orchestrator.container.folders import instance_folder, lock_file, user_lock_file
from orchestrator.container.lockfile import LockFile
from orchestrator.container.namespaces import bound_on_host
from orchestrator.errors import KernelStartError


class Lease:
    """A name that this process holds until ``release`` or until it ends."""

    def __init__(self, name: str, holder: socket.socket) -> None:
        self.name = name
        self._holder = holder

    @classmethod
    def take(cls, name: str) -> Self | None:
        """Return the lease on ``name``, or None if a process holds it."""
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
        """Return whether a process holds ``name``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            return probe.connect_ex(_address(name)) != errno.ECONNREFUSED

    @staticmethod
    def held_on_host(names: Collection[str]) -> frozenset[str] | None:
        """Return which names processes of this host hold, in any network namespace; None if this one cannot know."""
        found = bound_on_host({_address(name)[1:] for name in names})
        return None if found is None else frozenset(name for name in names if _address(name)[1:] in found)

    def release(self) -> None:
        self._holder.close()


def _address(name: str) -> str:
    return f"\0cellblock.{name}"


class UserId:
    """A user id that no other live container with the same state folder has.

    ``Container.start`` refuses an id that a container with another state folder has.
    """

    _held: ClassVar[set[UserId]] = set()  # of this process

    def __init__(self, uid: int, file: LockFile) -> None:
        self.uid = uid
        self._file = file
        self._held.add(self)

    @classmethod
    def take(cls, folder: Path, base: int, count: int, avoid: Collection[int] = ()) -> UserId:
        """Take a free id of ``base … base + count - 1``, chosen at random so that a freed id is not reused at once.

        Args:
            folder: the state folder, which gets the lock file.
            avoid: ids to leave out.

        Raises:
            KernelStartError: every id is taken.
            OSError: the lock file cannot be created or locked.
        """
        start = secrets.randbelow(count)
        for step in range(count):
            uid = base + (start + step) % count
            if uid not in avoid and (taken := cls.take_over(folder, uid)) is not None:
                return taken
        raise KernelStartError(
            f"no kernel was started: all {count} user ids from {base} on are in use.",
            cause="host",
            remedy="Widen the range with CELLBLOCK_UID_COUNT.",
        )

    @classmethod
    def take_over(cls, folder: Path, uid: int) -> UserId | None:
        """Take over the id of a container that outlived its owner. Return None if a process holds the id.

        Raises:
            OSError: the lock file cannot be created or locked.
        """
        file = LockFile.take(user_lock_file(folder, uid))
        return None if file is None else cls(uid, file)

    def release(self) -> None:
        self._file.release()
        self._held.discard(self)

    @classmethod
    def release_all(cls) -> None:
        """Release all ids of this process, at the interpreter's end: a second Ctrl-C leaves some."""
        while cls._held:
            cls._held.pop().release()


class InstanceLease:
    """The lease of an instance: its lock files, and its name on this host."""

    def __init__(self, lease: Lease | None, files: Collection[LockFile]) -> None:
        self._lease = lease
        self._files = tuple(files)

    @classmethod
    def take(cls, instance: str, folders: Iterable[Path]) -> Self | None:
        """Take the lease. Return None if a process holds it.

        Raises:
            OSError: a lock file cannot be created or locked.
        """
        folders = list(dict.fromkeys(each.resolve() for each in folders))
        known = any(lock_file(folder, instance).exists() for folder in folders)
        if (lease := Lease.take(instance_name(instance))) is None and not known:
            return None
        files: list[LockFile] = []
        try:
            for folder in folders:
                file = LockFile.take(lock_file(folder, instance), f"{os.getpid()} {socket.gethostname()}\n")
                if file is None:
                    break
                files.append(file)
            else:
                return cls(lease, files)
        except BaseException:
            cls(lease, files).release()
            raise
        cls(lease, files).release()
        return None

    def release(self) -> None:
        for file in self._files:
            file.release()
        if self._lease is not None:
            self._lease.release()


def instance_lease(instance: str, folders: Iterable[Path] = ()) -> InstanceLease | None:
    """Take the lease of an instance. Its owner does so at start; for others, success means that the owner is dead.

    Args:
        folders: the state folder and the data folder that get its lock files.
    """
    return InstanceLease.take(instance, folders)


def is_dead(instance: str, folders: Iterable[Path] = ()) -> bool:
    """Return whether no process of this network namespace, or with one of these folders, owns an instance."""
    folders = list(folders)
    locks = [lock for folder in folders if (lock := lock_file(folder, instance)).exists()]
    if locks:
        return not any(LockFile.is_held(lock) for lock in locks)
    answered = any(_answers(instance_folder(folder, instance) / "control.sock") for folder in folders)
    return not answered and not Lease.is_held(instance_name(instance))


def holder_of(instance: str, folders: Iterable[Path]) -> tuple[int | None, str | None]:
    """Return the process id and the host name that the owner wrote to its lock file; None for what is unknown."""
    for folder in folders:
        try:
            pid, host = lock_file(folder, instance).read_text(encoding="utf-8", errors="replace").split()
            return int(pid), host
        except (OSError, ValueError):
            continue
    return None, None


def _answers(path: Path) -> bool:
    """Return whether a process listens on a control socket. An earlier version of Cellblock has no lock file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
        except OSError:  # the path is too long for any process to listen there
            return False


def instance_name(instance: str) -> str:
    """Return the name that an instance holds on this host."""
    return f"instance.{instance}"


def host_identity() -> tuple[str, str]:
    """Return (boot id, network namespace). Processes see each other's abstract sockets only if both are equal."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, str(os.stat("/proc/self/ns/net").st_ino)
