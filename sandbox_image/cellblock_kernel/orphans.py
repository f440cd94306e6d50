"""Reap the sandbox's orphans, as process 1 has to, and end what an interrupted cell has left running.

A process whose parent dies becomes a child of process 1, which is the kernel. The children that the kernel's own code
starts are not orphans: their exit statuses belong to subprocess, multiprocessing or the cell. They are known because
every function that starts one notes its id.
"""

import _posixsubprocess
import contextlib
import functools
import os
import subprocess
import threading
from collections.abc import Callable
from os import WNOHANG, getpid, kill, listdir, waitpid
from signal import SIGKILL
from time import sleep
from typing import Any, NamedTuple

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

PAUSE = 0.5  # seconds between two looks while processes may be left
SPAWNS = 32  # processes that a cell starts until the next look


class Orphans:
    """Knows the children that the session's code started itself, and reaps all others. Reaps only as process 1."""

    def __init__(self) -> None:
        self._children: set[int] = set()
        self._sessions: set[int] = set()  # of commands: what they leave behind is not the cell's
        self._lock: Any = threading.RLock()  # held while a child starts: it must be known before it can be reaped
        self._first = 0  # the first process that the running cell started; 0: none
        self._spawned = 0
        self._may_be = threading.Semaphore(0)
        self._init = getpid() == 1
        os.register_at_fork(after_in_child=self._enter_child)
        for owner, name in ((os, "fork"), (os, "forkpty"), (os, "posix_spawn"), (os, "posix_spawnp"),
                            (_posixsubprocess, "fork_exec")):  # fmt: skip
            setattr(owner, name, self._noting(getattr(owner, name)))
        subprocess._fork_exec = _posixsubprocess.fork_exec  # type: ignore[attr-defined]
        if self._init:
            threading.Thread(target=self._watch, name="Orphans", daemon=True).start()

    def _enter_child(self) -> None:
        self._lock, self._children, self._init = threading.RLock(), set(), False

    def _noting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(start)
        def noting(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                started = start(*args, **kwargs)
                pid = started[0] if isinstance(started, tuple) else started
                if pid:
                    self._children.add(pid)
                    self._first = self._first or pid
                    self._spawned += 1
            if pid and self._init:
                if self._spawned % SPAWNS == 0:
                    self.reap()
                self._may_be.release()
            return started

        return noting

    def begin_cell(self) -> None:
        """Count what starts from now on as the new cell's."""
        self._first = 0

    def reap(self) -> bool:
        """Reap every orphan that has ended. Returns whether any other process is left in the sandbox."""
        with self._lock:
            present = {int(name) for name in listdir("/proc") if name.isdecimal()}
            self._children &= present
            for pid in present - self._children - {getpid()}:
                with contextlib.suppress(ChildProcessError):
                    if waitpid(pid, WNOHANG)[0]:
                        present.discard(pid)
        return len(present) > 1

    def kill_descendants(self) -> None:
        """Kill what the cell's processes left running: all orphans as young as the cell.

        Direct children of the kernel and their descendants stay: the cell, or one after it, has a handle on them.
        """
        if not self._first or not self._init:
            return
        for _ in range(10):  # one that forks all the time may escape a single look
            found = {each.pid: each for each in processes()}
            self._sessions &= {each.session for each in found.values()}
            left = {pid for pid in found if pid >= self._first and not self._is_kept(pid, found)}
            for pid in parents_first(left, {each.pid: each.parent for each in found.values()}):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, SIGKILL)
            if not left:
                break
            sleep(0.005)
            self.reap()

    def keep_session(self, session: int) -> None:
        """Do not count the processes of a process session as a cell's."""
        self._sessions.add(session)

    def _is_kept(self, pid: int, found: dict[int, "Process"]) -> bool:
        for _ in range(len(found)):
            if pid in self._children:
                return True
            if pid <= 1 or pid not in found:
                return False
            if found[pid].session in self._sessions:
                return True
            pid = found[pid].parent
        return False

    def _watch(self) -> None:
        """Reap while processes are left; sleep without waking up while there are none."""
        while True:
            self._may_be.acquire()
            pause = PAUSE / 8
            while self.reap():
                sleep(pause)
                pause = min(2 * pause, PAUSE)
            while self._may_be.acquire(blocking=False):
                pass


class Process(NamedTuple):
    """A process of the sandbox: its id, and those of its parent, its process group and its process session."""

    pid: int
    parent: int
    group: int
    session: int


def parents_first(pids: set[int], parents: dict[int, int]) -> list[int]:
    """Return ``pids`` in an order in which a process comes before its children."""
    ordered: list[int] = []
    rest = pids
    while rest:  # at least one of them has no parent among them: a process is no descendant of its own
        layer = {pid for pid in rest if parents.get(pid) not in rest} or rest  # /proc changes while it is read
        ordered += sorted(layer)
        rest = rest - layer
    return ordered


def processes() -> list[Process]:
    """Return the processes of the sandbox that have not ended."""
    found = []
    for name in listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent, group, session = file.read().rpartition(b")")[2].split()[:4]
            if state != b"Z":
                found.append(Process(int(name), int(parent), int(group), int(session)))
    return found
