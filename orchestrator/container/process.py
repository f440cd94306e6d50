"""A container's first process as this host sees it: measure it and kill it without asking the engine or the sandbox.

Works only if the engine runs on this host, in this pid namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from typing import Self

from orchestrator.container.cgroup import Cgroup
from orchestrator.container.usage import Usage

# Mount points in a read-only root, which a sandbox cannot replace by links. Under gVisor they do not exist.
_TMPFS = ("work", "tmp", "dev/shm")


class ContainerProcess:
    """Holds file descriptors instead of a pid and paths, which could come to mean something else."""

    def __init__(self, process: int, cgroup: Cgroup, tmpfs: list[int]) -> None:
        self._process = process
        self._cgroup = cgroup
        self._tmpfs = tmpfs

    @classmethod
    def find(cls, pid: int, container_id: str) -> Self | None:
        """Return a running container's process, or None if this host has none or this user may not look.

        Args:
            pid: the process id that the engine reports.
        """
        try:
            process = os.pidfd_open(pid)
        except OSError:
            return None
        # In this order: a cgroup named after the container proves that the descriptor is of its own process.
        cgroup = Cgroup.find(pid, container_id)
        if cgroup is None:
            os.close(process)
            return None
        tmpfs = []
        for path in _TMPFS:
            with contextlib.suppress(OSError):
                tmpfs.append(os.open(f"/proc/{pid}/root/{path}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        return cls(process, cgroup, tmpfs if len(tmpfs) == len(_TMPFS) else [])

    def usage(self) -> Usage | None:
        """Return what the container uses now, or None if the process is gone."""
        usage = self._cgroup.read()
        if usage is None or not self._tmpfs:
            return usage
        with contextlib.suppress(OSError):
            sizes = [os.fstatvfs(folder) for folder in self._tmpfs]
            return replace(usage, tmpfs=sum(size.f_frsize * (size.f_blocks - size.f_bfree) for size in sizes))
        return usage

    def reset_peak(self) -> None:
        """Reset ``Usage.peak``, if the host can."""
        self._cgroup.reset_peak()

    def kill(self) -> None:
        """Kill the process, if this user may. The engine then reports the container as exited."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        self._cgroup.close()
        for descriptor in (self._process, *self._tmpfs):
            os.close(descriptor)
