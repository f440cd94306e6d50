"""Read a container's cgroup, version 1 or 2: what the container uses and how many of its processes were OOM-killed.

The files stay open and are read again each time. That saves the path lookup, and a read fails once the cgroup is gone,
instead of reading another one with the same path. Reads never wait for a disk, so they happen on the event loop.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from orchestrator.container.usage import Usage

_MOUNT = Path("/sys/fs/cgroup")
_LARGEST = 16 * 1024  # the most bytes read of one file
_Parse = Callable[[bytes], int]


def _number(content: bytes) -> int:
    return int(content)


def _field(*names: bytes) -> _Parse:
    """Return a parser for files of "name value" lines: the first of these fields that the file has, or 0."""

    patterns = [re.compile(rb"^%s (\d+)$" % name, re.MULTILINE) for name in names]

    def parse(content: bytes) -> int:
        found = next((match for pattern in patterns if (match := pattern.search(content))), None)
        return 0 if found is None else int(found[1])

    return parse


# For each quantity: the controller of cgroup v1, the file, its parser and the factor to multiply by.
_V1: dict[str, tuple[str, str, _Parse, float]] = {
    "cpu_s": ("cpuacct", "cpuacct.usage", _number, 1e-9),
    "memory": ("memory", "memory.usage_in_bytes", _number, 1),
    "cache": ("memory", "memory.stat", _field(b"total_inactive_file", b"inactive_file"), 1),
    "rss": ("memory", "memory.stat", _field(b"total_rss", b"rss"), 1),
    "peak": ("memory", "memory.max_usage_in_bytes", _number, 1),
    "oom_kills": ("memory", "memory.oom_control", _field(b"oom_kill"), 1),
    "pids": ("pids", "pids.current", _number, 1),
}
_V2: dict[str, tuple[str, str, _Parse, float]] = {
    "cpu_s": ("", "cpu.stat", _field(b"usage_usec"), 1e-6),
    "memory": ("", "memory.current", _number, 1),
    "cache": ("", "memory.stat", _field(b"inactive_file"), 1),
    "rss": ("", "memory.stat", _field(b"anon"), 1),
    "peak": ("", "memory.peak", _number, 1),
    "oom_kills": ("", "memory.events", _field(b"oom_kill"), 1),
    "pids": ("", "pids.current", _number, 1),
}
# Buffers of TCP and UDP sockets, which cgroup v1 does not count as memory, and which runc 1.x leaves without a limit.
_SOCKETS = "memory.kmem.tcp.limit_in_bytes"
_SOCKET_BYTES = 16 * 1024 * 1024
_OPTIONAL = ("peak",)  # memory.peak came with Linux 5.19


class Cgroup:
    """The open files of one container's cgroup."""

    def __init__(self, folders: Mapping[str, Path], table: Mapping[str, tuple[str, str, _Parse, float]]) -> None:
        self._table = table
        self._files: dict[str, int] = {}
        self._old_peak = 0  # a high-water mark that could not be reset: until it rises, it is not this cell's
        try:
            for quantity, (controller, name, _parse, _factor) in table.items():
                if name not in self._files:
                    self._open(folders[controller] / name, optional=quantity in _OPTIONAL)
        except BaseException:
            self.close()
            raise

    @classmethod
    def find(cls, pid: int, container_id: str) -> Self | None:
        """Return the cgroup of a container, after limiting its sockets' memory; None if this host cannot see it.

        The host cannot see it if the engine is on another machine or the cgroup file system is hidden. The limit takes
        root, and is needed on cgroup v1 only.

        Args:
            pid: the id of the container's first process, as the engine reports it.
        """
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            paths = {name: path for line in lines for names, path in [_line(line)] for name in names.split(",")}
            table = _V1 if "memory" in paths else _V2
            folders = {
                name: (_MOUNT / name / paths[name].lstrip("/")) if name else _MOUNT / paths[""].lstrip("/")
                for name in {row[0] for row in table.values()}
            }
            if not all(container_id in str(folder) for folder in folders.values()):
                return None  # another process has this pid here: the engine uses another pid namespace
            if table is _V1:
                _limit_sockets(folders["memory"])
            return cls(folders, table)
        except (OSError, KeyError):
            return None

    def read(self) -> Usage | None:
        """Return what the container uses now, or None if its cgroup is gone."""
        try:
            contents = {name: os.pread(file, _LARGEST, 0) for name, file in self._files.items()}
            values = {
                quantity: parse(contents[name]) * factor if name in contents else 0
                for quantity, (_controller, name, parse, factor) in self._table.items()
            }
        except (OSError, ValueError):
            return None
        cache = int(values["cache"])
        risen = int(values["peak"]) if values["peak"] > self._old_peak else 0
        return Usage(
            at=time.monotonic(),
            cpu_s=float(values["cpu_s"]),
            memory=max(0, int(values["memory"]) - cache),
            rss=int(values["rss"]),
            peak=max(risen, int(values["memory"])) - cache,
            oom_kills=int(values["oom_kills"]),
            pids=int(values["pids"]),
        )

    def reset_peak(self) -> None:
        """Begin a new peak of memory use. A mark that the host cannot reset counts again once it rises."""
        _controller, name, parse, _factor = self._table["peak"]
        with contextlib.suppress(OSError, ValueError):
            if name in self._files:
                self._old_peak = parse(os.pread(self._files[name], _LARGEST, 0))
                os.pwrite(self._files[name], b"0", 0)
                self._old_peak = 0

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def _open(self, path: Path, *, optional: bool) -> None:
        """Open a file for reading, and an optional one for writing too, if this user may.

        cgroup v2 resets a mark, since Linux 6.12, for the descriptor through which it is written.
        """
        if optional:
            with contextlib.suppress(OSError):
                self._files[path.name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                return
        try:
            self._files[path.name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not optional:
                raise


def _limit_sockets(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / _SOCKETS).write_text(str(_SOCKET_BYTES))


def _line(line: str) -> tuple[str, str]:
    """Return the controllers ("" for cgroup v2) and the path in a line of /proc/PID/cgroup."""
    fields = line.split(":", 2)
    return fields[1], fields[2]
