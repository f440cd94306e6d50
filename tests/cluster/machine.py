"""A simulated machine: processes with namespaces of their own, which end together, however this process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from orchestrator.host.enginedaemon import find_program

_CGROUPS = Path("/sys/fs/cgroup")
_FREEZER = _CGROUPS / "freezer"  # of cgroup version 1
_START = 30.0  # seconds
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
# The first process reads a pipe that this process holds open. When the pipe closes, it ends, and Linux kills every
# other process of its namespace. It ignores SIGCHLD, so that Linux reaps the orphans that it gets.
_SCRIPT = """
set -e
hostname "$1"
awk '$3 == "overlay" && $2 != "/" { print $2 }' /proc/mounts | xargs -r umount -l  # those of this machine's containers
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$2/boot" /proc/sys/kernel/random/boot_id
ip link set lo up
mkdir /run/data
if [ -e "$2/disk" ]; then mount -o loop "$2/disk" /run/data; chmod 700 /run/data; fi

echo started
exec env --ignore-signal=CHLD cat >/dev/null
"""


class Machine:
    """Has a network, a /run, a host name, a boot id and a process tree of its own. The rest is this machine's.

    ``/run/data`` in it is its disk, which outlives its end.

    Args:
        folder: its files.
        cgroup: the path of its cgroup, below the root of each hierarchy.
        disk_mb: the size of its disk, which takes the room of what is written; 0: no disk.
    """

    device = "eth0"

    def __init__(self, name: str, folder: Path, cgroup: str, *, disk_mb: int = 0) -> None:
        self.name = name
        self.folder = folder
        self.address = ""
        self._cgroup = cgroup
        self._first: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._spawned: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, mode=0o700)
        if disk_mb:
            with (folder / "disk").open("wb") as disk:
                disk.truncate(disk_mb * 1024 * 1024)
            subprocess.run([find_program("mkfs.ext4") or "mkfs.ext4", "-q", "-m", "0", folder / "disk"], check=True)

    @property
    def pid(self) -> int:
        """The id of its first process, for this machine. It is another one after each start."""
        assert self.runs, f"{self.name} does not run"
        return self._pid

    @property
    def runs(self) -> bool:
        return self._first is not None and self._first.poll() is None

    def start(self) -> None:
        """Boot it. Each boot has another id, and an empty /run."""
        assert not self.runs
        (self.folder / "boot").write_text(f"{uuid.uuid4()}\n")
        with (self.folder / "console").open("ab") as console:
            self._first = subprocess.Popen(
                ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child",
                 *self._in_cgroup(["sh", "-c", _SCRIPT, "sh", self.name, str(self.folder)])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=console, start_new_session=True,
            )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"started\n", (self.folder / "console").read_text()[-2000:]
        (self._pid,) = (child.pid for child in psutil.Process(self._first.pid).children())

    def kill(self) -> None:
        """Kill every process at once, as a power failure does. Its disk stays."""
        if self._first is None:
            return
        if self.runs:
            for pid in (*_processes(self._cgroup), self._pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.thaw()  # a frozen process dies when it is thawed
        for process in (self._first, *self._spawned):
            process.wait(_START)
        for pipe in (self._first.stdin, self._first.stdout):
            assert pipe is not None
            pipe.close()
        remove_cgroups(self._cgroup)
        self._first = None

    def freeze(self) -> None:
        """Stop every process where it is, with those in containers, until ``thaw``. Nothing is closed."""
        set_frozen(self._cgroup, frozen=True)

    def thaw(self) -> None:
        set_frozen(self._cgroup, frozen=False)

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """Return the command that runs another one in this machine."""
        within = ["nsenter", "--target", str(self.pid), *_NAMESPACES, f"--wd={os.getcwd()}", "--"]
        return self._in_cgroup([*within, *map(str, arguments)])

    def run(
        self,
        *arguments: str | Path,
        seconds: float = 60,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this machine to its end."""
        done = subprocess.run(
            self.command(arguments), capture_output=True, text=True, check=False, timeout=seconds, env=environment
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: {arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done

    def spawn(
        self, *arguments: str | Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in this machine. The process that is returned is nsenter, the parent of the command."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._spawned.append(process)
        return process

    def path(self, path: str) -> Path:
        """Return where a file of this machine is for this process."""
        return Path(f"/proc/{self.pid}/root{path}")

    def processes(self) -> list[psutil.Process]:
        """Return every process of this machine, with those in its containers."""
        found = []
        for pid in _processes(self._cgroup):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def ip(self, *arguments: str) -> None:
        """Run the program ip in its network."""
        self.run("ip", *arguments)

    def _in_cgroup(self, command: Sequence[str]) -> list[str]:
        groups = [str(folder) for folder in _own_folders(self._cgroup)]
        enter = (
            'for group in $1; do mkdir -p "$group" && echo 0 >"$group/cgroup.procs" || exit 1; done; shift; exec "$@"'
        )
        return ["sh", "-c", enter, "sh", " ".join(groups), *command]


def _own_folders(cgroup: str) -> list[Path]:
    """Return the cgroups of a machine's own processes: those of its containers are beside or below it.

    In version 2 only leaves have processes.
    """
    if _FREEZER.is_dir():
        return [_CGROUPS / kind / cgroup for kind in ("freezer", "memory", "cpuacct")]
    return [_CGROUPS / cgroup / "own"]


def _tree(cgroup: str) -> Iterator[Path]:
    """Yield the folders of a machine's cgroups in the hierarchy that freezes."""
    top = (_FREEZER if _FREEZER.is_dir() else _CGROUPS) / cgroup
    for folder, _, _ in os.walk(top):
        yield Path(folder)


def _processes(cgroup: str) -> list[int]:
    found: list[int] = []
    for folder in _tree(cgroup):
        with contextlib.suppress(OSError):
            found += map(int, (folder / "cgroup.procs").read_text().split())
    return found


def set_frozen(cgroup: str, *, frozen: bool) -> None:
    """Freeze or thaw the processes of a cgroup and of those below it, and wait until they are."""
    if _FREEZER.is_dir():
        file, wanted, shown = _FREEZER / cgroup / "freezer.state", "FROZEN" if frozen else "THAWED", ""
    else:
        file, wanted = _CGROUPS / cgroup / "cgroup.freeze", str(int(frozen))
        shown = f"frozen {wanted}"
    if not file.exists():
        return
    file.write_text(wanted)
    end = time.monotonic() + _START
    while not (shown in file.with_name("cgroup.events").read_text() if shown else file.read_text().strip() == wanted):
        assert time.monotonic() < end, f"{file} does not become {wanted}"
        time.sleep(0.02)


def end_processes(cgroup: str) -> None:
    """Kill every process of a cgroup and of those below it, frozen ones too, and remove the cgroups."""
    for machine in [*_tree(cgroup)]:
        set_frozen(str(machine.relative_to(_FREEZER if _FREEZER.is_dir() else _CGROUPS)), frozen=False)
    for pid in _processes(cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    remove_cgroups(cgroup)


def remove_cgroups(cgroup: str) -> None:
    """Remove a cgroup and those below it, in every hierarchy, once their processes have ended."""
    end = time.monotonic() + _START
    left = _remove(cgroup)
    while left:
        assert time.monotonic() < end, f"processes are left in {left}"
        time.sleep(0.05)
        left = _remove(cgroup)


def _remove(cgroup: str) -> list[Path]:
    left = []
    for top in {_CGROUPS / cgroup, *(_CGROUPS.glob(f"*/{cgroup}"))}:
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                left.append(Path(folder))
    return left
