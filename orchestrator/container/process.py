"""A container's first process as this host sees it: its cgroup, its tmpfs, and a handle to kill it by.

Only where the engine runs on this host, in this pid namespace. Nothing here asks the engine, or the sandbox.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from typing import Self

from orchestrator.container.cgroup import Cgroup
from orchestrator.container.usage import Usage

# Mount points in a root that is read-only: no sandbox can put a link in their place. Under gVisor none is there.
_TMPFS = ("work", "tmp", "dev/shm")


class ContainerProcess:
    """Holds descriptors, not names: neither the pid nor the paths can come to mean something else."""

    def __init__(self, process: int, cgroup: Cgroup, tmpfs: list[int]) -> None:
        self._process = process
        self._cgroup = cgroup
        self._tmpfs = tmpfs

    @classmethod
    def find(cls, pid: int, container_id: str) -> Self | None:
        """Find a running container's process; None where this host has no such process, or may not look.

        Args:
            pid: as the engine says.
        """
        try:
            process = os.pidfd_open(pid)
        except OSError:
            return None
        # Only now: a cgroup named after the container shows that the handle is of the container's own process.
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
        """Read what it uses now; None once it is gone."""
        usage = self._cgroup.read()
        if usage is None or not self._tmpfs:
            return usage
        with contextlib.suppress(OSError):
            sizes = [os.fstatvfs(folder) for folder in self._tmpfs]
            return replace(usage, tmpfs=sum(size.f_frsize * (size.f_blocks - size.f_bfree) for size in sizes))
        return usage

    def reset_peak(self) -> None:
        """Let ``Usage.peak`` begin anew, where the host can."""
        self._cgroup.reset_peak()

    def kill(self) -> None:
        """Kill it, where this user may; the engine then sees the container as exited."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        self._cgroup.close()
        for descriptor in (self._process, *self._tmpfs):
            os.close(descriptor)
