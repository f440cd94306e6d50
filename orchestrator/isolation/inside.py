"""Collects facts inside a sandbox. The host only reads this file as text, sends it to a sandbox and runs it there.

Usage: ``python -I inside.py '{"fact": {argument: value}, …}'``. It prints one JSON object: the facts by name. Each fact
is collected independently; one that may affect the next, such as an ``unshare`` that succeeds, runs in a forked child.
The program judges nothing and uses only the standard library. A feature that a runtime lacks is reported as a fact.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import select
import signal
import socket
import stat
import sys
import time
from typing import Any

_CHILD_SECONDS = 30.0  # the time limit for one fact; walking all files takes longest, 3 s under gVisor
_CONNECT_SECONDS = 2.0
_WRITE_DEPTH = 6  # deeper folders are the image's libraries; a mount shows up above them

# System call numbers, by machine. Only calls that do nothing with these arguments if the sandbox lets them through.
_CALLS = {
    "x86_64": {
        "io_uring_setup": 425, "bpf": 321, "keyctl": 250, "add_key": 248, "request_key": 249, "userfaultfd": 323,
        "perf_event_open": 298, "ptrace": 101, "process_vm_readv": 310, "mount": 165, "umount2": 166, "fsopen": 430,
        "open_tree": 428, "move_mount": 429, "setns": 308, "pivot_root": 155, "chroot": 161, "open_by_handle_at": 304,
        "name_to_handle_at": 303, "fanotify_init": 300, "quotactl": 179, "syslog": 103, "kcmp": 312, "acct": 163,
        "sync": 162, "syncfs": 306,
    },
    "aarch64": {
        "io_uring_setup": 425, "bpf": 280, "keyctl": 219, "add_key": 217, "request_key": 218, "userfaultfd": 282,
        "perf_event_open": 241, "ptrace": 117, "process_vm_readv": 270, "mount": 40, "umount2": 39, "fsopen": 430,
        "open_tree": 428, "move_mount": 429, "setns": 268, "pivot_root": 41, "chroot": 51, "open_by_handle_at": 265,
        "name_to_handle_at": 264, "fanotify_init": 262, "quotactl": 60, "syslog": 116, "kcmp": 272, "acct": 89,
        "sync": 81, "syncfs": 267,
    },
}  # fmt: skip
_FAMILIES = {
    "AF_VSOCK": (40, socket.SOCK_STREAM, 0),
    "AF_ALG": (38, socket.SOCK_SEQPACKET, 0),
    "AF_PACKET": (17, socket.SOCK_RAW, 0),
    "AF_BLUETOOTH": (31, socket.SOCK_RAW, 1),
    "AF_XDP": (44, socket.SOCK_RAW, 0),
    "AF_TIPC": (30, socket.SOCK_RDM, 0),
    "NETLINK_NETFILTER": (16, socket.SOCK_RAW, 12),
    "NETLINK_AUDIT": (16, socket.SOCK_RAW, 9),
    "NETLINK_XFRM": (16, socket.SOCK_RAW, 6),
}
# They show what the whole host does, has or was started with.
_OF_THE_HOST = (
    "/proc/buddyinfo", "/proc/bus", "/proc/cgroups", "/proc/cmdline", "/proc/config.gz", "/proc/crypto",
    "/proc/devices", "/proc/diskstats", "/proc/fs", "/proc/interrupts", "/proc/iomem", "/proc/irq", "/proc/kallsyms",
    "/proc/key-users", "/proc/loadavg", "/proc/locks", "/proc/misc", "/proc/modules", "/proc/partitions",
    "/proc/pressure", "/proc/schedstat", "/proc/slabinfo", "/proc/softirqs", "/proc/swaps", "/proc/vmstat",
    "/proc/zoneinfo", "/proc/sys/fs/dentry-state", "/proc/sys/fs/file-nr", "/proc/sys/fs/inode-nr",
    "/proc/sys/kernel/random/boot_id", "/sys/block", "/sys/bus", "/sys/devices", "/sys/fs/ext4", "/sys/kernel",
    "/sys/module",
)  # fmt: skip
_CLONE_NEWUSER = 0x10000000
_OWN_HOSTS = ("127.", "::1", "fe00", "ff0")  # prefixes of the /etc/hosts lines that every container has


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def connections(addresses: list[list[Any]]) -> dict[str, list[Any]]:
    """Try to connect to each [host, port]; return the error's name or "connected", and the seconds it took."""
    tried = {}
    for host, port in addresses:
        begun = time.monotonic()
        said = "connected"
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            said = _name(error)
        tried[f"{host}:{port}"] = [said, round(time.monotonic() - begun, 3)]
    return tried


def abstract_socket(name: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(f"\0{name}")
    except OSError as error:
        return _name(error)
    return "connected"


def lookup(name: str) -> str:
    try:
        socket.getaddrinfo(name, 80)
    except OSError as error:
        return type(error).__name__
    return "resolved"


def identity() -> dict[str, Any]:
    return {"uids": [*os.getresuid()], "gids": [*os.getresgid()], "groups": os.getgroups()}


def status() -> dict[str, str]:
    """Return the lines of /proc/self/status about privileges."""
    wanted = ("Cap", "NoNewPrivs", "Seccomp:")
    with open("/proc/self/status") as lines:
        pairs = [line.split(":", 1) for line in lines if line.startswith(wanted)]
    return {key: value.strip() for key, value in pairs}


def kernel_log() -> str:
    """Return which kernel wrote the kernel log: gVisor names itself in its log."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(65536)
    length = libc.klogctl(3, buffer, len(buffer))
    if length < 0:
        return errno.errorcode.get(ctypes.get_errno(), "?")
    return "gVisor" if b"gVisor" in buffer.raw[:length] else "another kernel"


def rlimits() -> dict[str, list[int]]:
    names = ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_MEMLOCK")
    return {name: [*resource.getrlimit(getattr(resource, name))] for name in names}


def names() -> dict[str, Any]:
    """Return what may contain a name of the host."""
    return {
        "hostname": socket.gethostname(),
        "environment": sorted(os.environ),
        "resolvers": [line for line in _lines("/etc/resolv.conf") if line.startswith("nameserver")],
        "hosts": [line for line in _lines("/etc/hosts") if line and not line.startswith(_OWN_HOSTS)],
    }


def mounts() -> list[list[str]]:
    """Return [target, type, options] of each mount."""
    return [line.split()[1:4] for line in _lines("/proc/mounts")]


def sizes(paths: list[str]) -> dict[str, int]:
    """Return the size of each file system in bytes."""
    return {path: (info := os.statvfs(path)).f_blocks * info.f_frsize for path in paths}


def tree(skip: list[str]) -> dict[str, list[str]]:
    """Walk all files; return writable folders, the files in them, setuid files, sockets and devices."""
    found: dict[str, list[str]] = {"writable": [], "setuid": [], "sockets": [], "devices": [], "files": []}
    _walk("/", 0, {"/proc", "/sys", *skip}, found)
    return {kind: sorted(paths)[:200] for kind, paths in found.items()}


def _walk(folder: str, depth: int, skip: set[str], found: dict[str, list[str]]) -> None:
    if folder in skip:
        return
    writable = depth <= _WRITE_DEPTH and _takes_a_file(folder)
    if writable:
        found["writable"].append(folder)
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                _walk(entry.path, depth + 1, skip, found)
            elif not entry.is_symlink():
                _sort(entry, writable, found)
        except OSError:
            continue


def _sort(entry: os.DirEntry[str], writable: bool, found: dict[str, list[str]]) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if mode & (stat.S_ISUID | stat.S_ISGID):
        found["setuid"].append(entry.path)
    if stat.S_ISSOCK(mode):
        found["sockets"].append(entry.path)
    elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        found["devices"].append(entry.path)
    elif writable:
        found["files"].append(entry.path)


def _takes_a_file(folder: str) -> bool:
    path = os.path.join(folder, ".probe")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return False
    with contextlib.suppress(OSError):
        os.unlink(path)
    return True


def changes(folder: str) -> dict[str, str]:
    """Try every kind of change in a folder; return the answer to each."""
    inside = os.path.join(folder, "probe")
    config, one = os.path.join(folder, "connection.json"), os.path.join(folder, "k-1")
    attempts = {
        "create": lambda: os.open(inside, os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(inside),
        "symlink": lambda: os.symlink("/etc/passwd", inside),
        "fifo": lambda: os.mkfifo(inside),
        "link": lambda: os.link(config, inside),
        "unlink": lambda: os.unlink(one),
        "rename": lambda: os.rename(one, inside),
        "chmod": lambda: os.chmod(folder, 0o777),  # noqa: S103 - the sandbox must refuse it
        "append": lambda: os.open(config, os.O_WRONLY | os.O_APPEND),
        "bind": lambda: socket.socket(socket.AF_UNIX).bind(inside),
    }
    return {name: _attempt(attempt) for name, attempt in attempts.items()}


def calls() -> dict[str, str]:
    """Make system calls that data work does not need; return the answer to each."""
    buffer = ctypes.create_string_buffer(256)
    numbers = _CALLS.get(platform.machine(), {})
    return {name: _call(number, 1, buffer, 0, 0, 0, 0) for name, number in numbers.items()}


def families() -> dict[str, str]:
    """Open sockets of families that data work does not need; return the answer to each."""
    return {
        name: _attempt(lambda f=family, k=kind, p=protocol: socket.socket(f, k, p).close())
        for name, (family, kind, protocol) in _FAMILIES.items()
    }


def user_namespace() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    return "done" if libc.unshare(_CLONE_NEWUSER) == 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def protected() -> dict[str, str]:
    """Try to read files that reveal the host, and to open files that configure it; return the answer to each."""
    masked = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware")
    steering = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger")
    found = {f"read {path}": _content(path) for path in masked}
    return found | {f"write {path}": _attempt(lambda p=path: os.open(p, os.O_WRONLY)) for path in steering}


def watched() -> dict[str, str]:
    """Try to read what shows the host at work; return the answer to each."""
    return {path: _content(path) for path in _OF_THE_HOST}


def _content(path: str) -> str:
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            return "readable" if os.listdir(path) else "empty"
        if stat.S_ISCHR(info.st_mode):
            return "empty"  # masked: /dev/null is mounted over it
        with open(path, "rb") as file:
            return "readable" if file.read(1) else "empty"
    except OSError as error:
        return _name(error)


def processes() -> list[str]:
    """Return the names of all visible processes."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/comm") as file:
                found.append(file.read().strip())
    return sorted(found)


def exists(path: str) -> bool:
    return os.path.exists(path)


def oom_score() -> int:
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())


def _call(number: int, *arguments: Any) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    return "done" if libc.syscall(number, *arguments) >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def _attempt(attempt: Any) -> str:
    try:
        attempt()
    except OSError as error:
        return _name(error)
    return "done"


def _name(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _in_child(find: Any) -> Any:
    """Run ``find`` in a forked child; return its result, or the child's wait status if it failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            found = find()
        except BaseException as error:  # noqa: BLE001 - the child must not run the parent's code
            found = _failed(error)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    said, end = b"", time.monotonic() + _CHILD_SECONDS
    while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        piece = os.read(reader, 65536)
        if not piece:
            break
        said += piece
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    return json.loads(said) if said else {"failed": f"the probe ended with wait status {ended}"}


def main() -> None:
    wanted: dict[str, dict[str, Any]] = json.loads(sys.argv[1])
    print(json.dumps({fact: _find(globals()[fact], given) for fact, given in wanted.items()}))


def _find(fact: Any, given: dict[str, Any]) -> Any:
    if fact in (calls, user_namespace):
        return _in_child(fact)
    try:
        return fact(**given)
    except Exception as error:  # noqa: BLE001 - one failing fact must not hide the others
        return _failed(error)


def _failed(error: BaseException) -> dict[str, str]:
    return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
