"""The network namespaces of this host, and which abstract unix sockets are bound in them. Only root sees them all."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_FIRST_PROCESS_NAMESPACE = 0xEFFFFFFC  # its inode on every Linux (PROC_PID_INIT_INO); who is in it sees every process
_ENDED = (FileNotFoundError, ProcessLookupError)
_READINGS = 3  # Linux lists the sockets a page at a time: one may be left out while others are closed


def bound_on_host(names: Collection[str]) -> frozenset[str] | None:
    """Return which of these abstract names a socket of this host has, in whatever network namespace. Blocks.

    Returns:
        None if not every namespace can be seen: this process is in a container, or not root.
    """
    if not _sees_every_process():
        return None
    wanted = {f"@{name}".encode(): name for name in names}
    bound: set[bytes] = set()
    try:
        for processes in _processes_by_namespace():
            bound |= _bound_beside(processes, wanted)
    except OSError:
        return None
    return frozenset(wanted[each] for each in bound)


def _sees_every_process() -> bool:
    first = os.stat("/proc/self/ns/pid").st_ino == _FIRST_PROCESS_NAMESPACE
    return os.geteuid() == 0 and first and os.path.exists("/proc/1")  # /proc may be mounted with hidepid=2


def _processes_by_namespace() -> Collection[list[Path]]:
    """Return the /proc folders of all processes, those of one network namespace together.

    A process whose namespace is closed even to root is alone.
    """
    found: dict[object, list[Path]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.setdefault((process / "ns/net").stat().st_ino, []).append(process)
        except _ENDED:
            continue
        except PermissionError:
            found[process] = [process]
    return found.values()


def _bound_beside(processes: list[Path], wanted: Collection[bytes]) -> set[bytes]:
    """Return which names are bound in the namespace of these processes; none, if all of them have ended meanwhile."""
    for process in processes:
        bound = set()
        try:
            for _ in range(_READINGS):
                with (process / "net/unix").open("rb") as sockets:
                    bound |= {name for line in sockets if (name := line.rstrip(b"\n").rpartition(b" ")[2]) in wanted}
        except _ENDED:
            continue
        return bound
    return set()
