"""Folders of the host that sandboxes may read: resolved, and refused where reading them would be more than reading."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

# Of the system's: with names, keys or sockets of the host in them. Neither they nor what holds or lies in them.
_SYSTEM = ("/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/var/run", "/var/lib/docker", "/var/lib/containerd",
           "/var/lib/cellblock", "/var/log", "/var/spool")  # fmt: skip
_OPENS = ((stat.S_ISSOCK, "socket"), (stat.S_ISFIFO, "fifo"), (stat.S_ISBLK, "device"), (stat.S_ISCHR, "device"))


def check(folder: Path) -> Path:
    """Return the folder with all symbolic links resolved.

    Raises:
        ValueError: it is no folder, belongs to the system, cannot be read by the sandbox's user, or holds a socket, a
            fifo or a device, which a sandbox could open although the folder is mounted read-only, or another mounted
            file system, which would not be read-only, and under which runsc cannot mount.
    """
    if str(folder).startswith("~") or "/~" in str(folder):
        raise ValueError(f"{folder}: ~ is not expanded; give the whole path")
    try:
        resolved = folder.resolve(strict=True)
        mode = resolved.stat().st_mode
        if not stat.S_ISDIR(mode):
            raise ValueError(f"{folder} is not a folder")
        _refuse_system(resolved)
        if mode & 0o005 != 0o005:
            raise ValueError(f"{resolved} cannot be read by the sandbox's user: chmod o+rx it")
        for mounted in _mounts_below(resolved):
            raise ValueError(f"{resolved} holds another file system ({mounted}): name that one instead, or as well")
        for path, kind in _doors(resolved):
            raise ValueError(f"{resolved} holds a {kind} ({path}), which a sandbox could open")
    except (OSError, RuntimeError) as error:  # RuntimeError: links that form a loop
        raise ValueError(f"{folder} cannot be used: {error}") from error
    return resolved


def _refuse_system(folder: Path) -> None:
    for name in _SYSTEM:
        system = Path(name).resolve()
        if folder in (system, *system.parents) or system in folder.parents:
            raise ValueError(f"{folder} belongs to the system ({name})")
    home = Path.home().resolve()
    if folder in (home, *home.parents):
        raise ValueError(f"{folder} holds the home folder {home}")


def _mounts_below(folder: Path) -> list[str]:
    mounted = (partition.mountpoint for partition in psutil.disk_partitions(all=True))
    return [path for path in mounted if folder in Path(path).parents]


def _doors(folder: Path) -> Iterator[tuple[str, str]]:
    """Find what can be opened to reach somebody else. Links are not followed: inside, they lead nowhere of the host."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    mode = entry.stat(follow_symlinks=False).st_mode
                    yield from ((entry.path, kind) for opens, kind in _OPENS if opens(mode))
