"""What another local user can reach of a running manager. Started as root, it becomes that user before it looks.

python -m tests.regressions.localprobe UID <PLAN     prints a list of [what the user can do, with what]
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_READ_OF_PROCESS = ("environ", "maps", "mem", "io", "auxv", "stack", "syscall", "fd", "map_files", "cwd", "root", "exe")
_WRITTEN_OF_PROCESS = ("comm", "oom_score_adj", "mem", "coredump_filter")
_PTRACE_SEIZE = 0x4206
_PIDFD_GETFD = 438  # the system call's number


def main() -> None:
    plan = json.load(sys.stdin)
    uid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    print(json.dumps([*_files(plan["files"]), *_sockets(plan["abstract"]), *_processes(plan["processes"], libc)]))


def _tried(name: str, subject: object, attempt: Callable[..., object], *arguments: Any) -> Iterator[tuple[str, str]]:
    """Yield what was done, if it succeeds."""
    with contextlib.suppress(OSError):
        attempt(*arguments)
        yield name, str(subject)


def _files(paths: list[str]) -> Iterator[tuple[str, str]]:
    for path in map(Path, paths):
        yield from _tried("read", path, _opened, path, os.O_RDONLY)
        yield from _tried("list", path, os.listdir, path)
        yield from _tried("write", path, _opened, path, os.O_WRONLY)
        yield from _tried("lock", path, _locked, path)
        yield from _tried("create in", path, (path / f"planted-{os.getuid()}").touch)
        yield from _tried("link into", path, (path / "control.sock").symlink_to, "/dev/null")
        yield from _tried("rename", path, _renamed, path)
        yield from _tried("chmod", path, path.chmod, 0o777)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            yield from _tried("connect to", path, _connected, str(path), kind)


def _sockets(names: list[str]) -> Iterator[tuple[str, str]]:
    """Try the abstract sockets. To learn that a datagram socket exists is no connection."""
    for name in names:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            yield from _tried("connect to", name, _connected, f"\0{name}", kind)
        yield from _tried("bind", name, _bound, f"\0{name}")


def _processes(pids: list[int], libc: ctypes.CDLL) -> Iterator[tuple[str, str]]:
    for pid in pids:
        for entry in (Path(f"/proc/{pid}/{name}") for name in _READ_OF_PROCESS):
            yield from _tried("read", entry, _seen, entry)
        for entry in (Path(f"/proc/{pid}/{name}") for name in _WRITTEN_OF_PROCESS):
            yield from _tried("write", entry, _opened, entry, os.O_WRONLY)
        yield from _tried("signal", pid, os.kill, pid, 0)
        yield from _tried("set the priority of", pid, os.setpriority, os.PRIO_PROCESS, pid, 19)
        yield from _tried("trace", pid, _traced, pid, libc)
        yield from _tried("take a descriptor of", pid, _stolen, pid, libc)


def _opened(path: Path, flags: int) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK))


def _renamed(path: Path) -> None:
    path.rename(f"{path}-").rename(path)


def _locked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _connected(address: str, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(5)
        client.connect(address)


def _bound(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(address)


def _seen(path: Path) -> None:
    if path.is_symlink():
        path.readlink()
    elif path.is_dir():
        os.listdir(path)
    else:
        _opened(path, os.O_RDONLY)


def _traced(pid: int, libc: ctypes.CDLL) -> None:
    _checked(libc.ptrace(_PTRACE_SEIZE, pid, None, None))


def _stolen(pid: int, libc: ctypes.CDLL) -> None:
    process = os.pidfd_open(pid)
    try:
        os.close(_checked(libc.syscall(_PIDFD_GETFD, process, 0, 0)))
    finally:
        os.close(process)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


if __name__ == "__main__":
    main()
