"""Detached: a process that outlives the one that started it, and that any later process finds again.

<folder>/<name>.lock   held by the process while it lives, however it ends
<folder>/<name>.json   its process id, and when it started
<folder>/<name>.log    what it writes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.container.lockfile import LockFile
from orchestrator.errors import ClusterError
from orchestrator.host.enginedaemon import start_ticks
from orchestrator.limits import Deadline

_LARGEST_LOG = 32 * 1024 * 1024  # bytes
_LEAVING = 30.0  # seconds for a process to leave its parent
_POLL = 0.1  # seconds


class Detached:
    """A process of this name in this folder, whether it runs or not.

    The lock says whether it runs. A process id alone cannot: another process may have it by now.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self._lock = folder / f"{name}.lock"
        self._record = folder / f"{name}.json"
        self.log = folder / f"{name}.log"

    @property
    def runs(self) -> bool:
        return LockFile.is_held(self._lock)

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run, or has not left its parent yet."""
        if not self.runs:
            return 0
        try:
            record = json.loads(self._record.read_text())
            pid, started = int(record["pid"]), int(record["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return pid if start_ticks(pid) == started else 0

    def start(self, command: Sequence[str], environment: Mapping[str, str], niceness: int = 0) -> bool:
        """Start the process unless it runs. Return whether it was started now.

        Args:
            niceness: as this user may set it.

        Raises:
            ClusterError: it could not be started.
        """
        try:
            self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = LockFile.take(self._lock)
            if held is None:
                return False
            try:
                self._record.unlink(missing_ok=True)
                self._spawn(command, environment, niceness, held.descriptor)
            finally:
                held.leave()
        except (OSError, subprocess.SubprocessError) as error:
            raise ClusterError(
                f"the process {self._name} was not started: {error}.", remedy=f"Read {self.log}."
            ) from error
        return True

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], niceness: int, lock: int) -> None:
        own = [sys.executable, "-P", "-m", "orchestrator.cluster.detach", str(lock), str(self._record), str(niceness)]
        with self.log.open("ab") as log:
            os.chmod(self.log, 0o600)
            subprocess.run(
                [*own, *command], env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[lock], start_new_session=True, check=True, timeout=_LEAVING,
            )  # fmt: skip

    async def stop(self, seconds: float) -> bool:
        """End the process with SIGTERM, and after so many seconds with SIGKILL, together with its process group.

        Returns:
            Whether it ran.

        Raises:
            ClusterError: it still runs.
        """
        if not self.runs:
            return False
        self._signal(signal.SIGTERM)
        if not await self._ended(seconds):
            self._signal(signal.SIGKILL)
            if not await self._ended(_LEAVING):
                raise ClusterError(
                    f"the process {self._name} (process id {self.pid}) does not end.",
                    remedy="Kill it by its process id.",
                )
        return True

    def last_lines(self, count: int = 15) -> str:
        """Return the end of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 20_000))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def bound_log(self) -> None:
        """Copy a log that is too large over the last copy, and empty it. The process goes on writing to it."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > _LARGEST_LOG:
                shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                if start_ticks(pid) and self.pid == pid:  # still the process that the descriptor is of
                    signal.pidfd_send_signal(handle, number)
                    if number == signal.SIGKILL:
                        os.killpg(pid, number)
            finally:
                os.close(handle)

    async def _ended(self, seconds: float) -> bool:
        deadline = Deadline(seconds)
        while self.runs:
            if not deadline.remaining():
                return False
            await asyncio.sleep(_POLL)
        return True
