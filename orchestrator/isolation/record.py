"""Claims about how the engine configured a container, judged from the engine's own record (``docker inspect``).

Nothing here uses ``container/hostconfig.py`` or ``container/floor.py``, because their output is what is checked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.isolation.claims import Claim, Probe, Verdict, verdict
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MIB

_WIRE = "/run/kernel"
_LARGEST_LOG = ("64k", "1")  # size and number of files: room for the launcher's own messages
_CERTAINLY_MASKED = ("/proc/cmdline", "/proc/diskstats", "/proc/kcore", "/proc/keys", "/proc/loadavg", "/sys/firmware")
_CERTAINLY_READONLY = ("/proc/sys", "/proc/sysrq-trigger")

_MOST_SOCKETS = 64 * MIB

Judge = Callable[[dict[str, Any]], list[str]]  # the HostConfig in, faults out
PolicyJudge = Callable[[Subject, dict[str, Any]], list[str]]  # compares the HostConfig with the subject's policy


def _privileges(config: dict[str, Any]) -> list[str]:
    faults = ["privileged"] if config["Privileged"] else []
    faults += [f"added capability {name}" for name in config["CapAdd"] or ()]
    if config["CapDrop"] != ["ALL"]:
        faults.append(f"dropped capabilities: {config['CapDrop']}")
    if "no-new-privileges" not in _options(config):
        faults.append("new privileges can be gained")
    return faults + [f"device {device}" for device in (config["Devices"] or []) + (config["DeviceRequests"] or [])]


def _seccomp(subject: Subject, config: dict[str, Any]) -> list[str]:
    profiles = [option.partition("=")[2] for option in _options(config) if option.startswith("seccomp=")]
    if len(profiles) != 1:
        return [f"{len(profiles)} seccomp profiles"]
    try:
        same = json.loads(profiles[0]) == json.loads(subject.policy.seccomp_json)
    except ValueError:
        return [f"seccomp={profiles[0][:40]}"]
    return [] if same else ["the seccomp profile is not the policy's"]


def _namespaces(config: dict[str, Any]) -> list[str]:
    wanted = {
        "NetworkMode": ("none",),
        "IpcMode": ("private",),
        "PidMode": ("",),
        "UTSMode": ("",),
        "UsernsMode": ("",),
        "CgroupnsMode": ("private",),
    }
    return [f"{key} {config[key]!r}" for key, values in wanted.items() if config.get(key, values[0]) not in values]


def _mounts(subject: Subject, config: dict[str, Any]) -> list[str]:
    expected = {_WIRE: str(subject.kernel.wire)} | {
        f"/data/{name}": str(folder) for name, folder in subject.policy.data.items()
    }
    faults = [f"bind {bind}" for bind in config["Binds"] or ()] + [f"volume {v}" for v in config["VolumesFrom"] or ()]
    for mount in config["Mounts"] or ():
        if expected.get(mount["Target"]) != mount["Source"] or mount["Type"] != "bind":
            faults.append(f"{mount['Source']} at {mount['Target']}")
        elif not mount.get("ReadOnly"):
            faults.append(f"{mount['Target']} is writable")
    return faults


def _root(config: dict[str, Any]) -> list[str]:
    return [] if config["ReadonlyRootfs"] else ["the root file system is writable"]


def _memory(subject: Subject, config: dict[str, Any]) -> list[str]:
    wanted = subject.limits.max_memory_mb * MIB
    faults = [] if config["Memory"] == wanted else [f"memory limit {config['Memory']}, not {wanted}"]
    if config["MemorySwap"] != wanted:
        faults.append(f"memory and swap {config['MemorySwap']}, not {wanted}")
    return faults + (["the OOM killer is disabled"] if config["OomKillDisable"] else [])


def _processes(subject: Subject, config: dict[str, Any]) -> list[str]:
    wanted = subject.policy.limits
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in config["Ulimits"] or ()}
    most = {"nproc": wanted.pids, "nofile": wanted.open_files, "core": 0}
    faults = [f"ulimit {name} {ulimits.get(name)}" for name, n in most.items() if ulimits.get(name) != (n, n)]
    pids = config["PidsLimit"] or 0
    if not 0 < pids <= 3 * wanted.pids + 64:  # under runsc the limit also covers gVisor's own threads
        faults.append(f"pids limit {pids}")
    return faults


def _cpu(subject: Subject, config: dict[str, Any]) -> list[str]:
    quota, period = config["CpuQuota"], config["CpuPeriod"]
    wanted = subject.limits.max_cpu_percent / 100
    share = quota / period if period else 0.0
    return [] if 0 < share <= wanted + 0.01 else [f"CPU share {share:g}, not {wanted:g}"]


def _tmpfs(config: dict[str, Any]) -> list[str]:
    faults = [f"{path} has no size" for path, options in (config["Tmpfs"] or {}).items() if "size=" not in options]
    faults += [f"{path} is not a tmpfs" for path in ("/work", "/tmp") if path not in (config["Tmpfs"] or {})]
    return faults + ([] if config["ShmSize"] else ["/dev/shm has no size"])


def _paths(config: dict[str, Any]) -> list[str]:
    masked, readonly = config["MaskedPaths"] or (), config["ReadonlyPaths"] or ()
    faults = [f"{path} is not masked" for path in _CERTAINLY_MASKED if path not in masked]
    return faults + [f"{path} is not read-only" for path in _CERTAINLY_READONLY if path not in readonly]


def _log(config: dict[str, Any]) -> list[str]:
    log = config["LogConfig"]
    found = (log["Config"].get("max-size"), log["Config"].get("max-file"))
    faults = [] if log["Type"] == "none" or found == _LARGEST_LOG else [f"log {log['Type']} {found}"]
    return faults + (["an init process keeps the log open"] if config["Init"] else [])


def _user(config: dict[str, Any]) -> list[str]:
    faults = [f"added group {group}" for group in config["GroupAdd"] or ()]
    return faults + (["published ports"] if config["PublishAllPorts"] or config["PortBindings"] else [])


def _options(config: dict[str, Any]) -> list[str]:
    return config["SecurityOpt"] or []


def _probe(judge: Judge, holds: str) -> Probe:
    return _policy_probe(lambda _subject, config: judge(config), holds)


def _policy_probe(judge: PolicyJudge, holds: str) -> Probe:
    async def probe(subject: Subject) -> Verdict:
        return verdict(judge(subject, (await subject.record())["HostConfig"]), holds)

    return probe


async def _runtime(subject: Subject) -> Verdict:
    found = (await subject.record())["HostConfig"]["Runtime"]
    return Verdict(found == subject.runtime, f"runtime {found}")


async def _identity(subject: Subject) -> Verdict:
    record = await subject.record()
    uid, _, gid = record["Config"]["User"].partition(":")
    first, count = subject.config.uid_base, subject.config.uid_count
    good = uid == gid and uid.isdecimal() and first <= int(uid) < first + count
    faults = _user(record["HostConfig"]) + ([] if good else [f"user {record['Config']['User']!r}"])
    return verdict(faults, f"user {uid}:{gid}, no other group, no published port")


async def _sockets(subject: Subject) -> Verdict:
    record = await subject.record()
    try:
        limit = None if subject.is_gvisor else int(_socket_limit(record["State"]["Pid"]).read_text())
    except OSError:
        limit = None
    if limit is None:  # gVisor's sockets, and those on cgroup v2, count as the container's memory
        memory = record["HostConfig"]["Memory"]
        return Verdict(memory > 0, f"sockets count as memory, whose limit is {memory // MIB} MiB")
    return Verdict(limit <= _MOST_SOCKETS, f"the buffers of sockets are limited to {limit // MIB} MiB")


async def remove_socket_limit(subject: Subject) -> None:
    """Remove the limit on the memory of sockets, for a negative control. Does nothing on cgroup v2."""
    with contextlib.suppress(OSError):
        _socket_limit((await subject.record())["State"]["Pid"]).write_text("-1")


def _socket_limit(pid: int) -> Path:
    """Return the file with the limit of a process's cgroup v1 on buffers of TCP sockets.

    Raises:
        FileNotFoundError: this host does not see the process, or its memory is in a cgroup v2.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.kmem.tcp.limit_in_bytes")
    raise FileNotFoundError(f"process {pid} has no memory cgroup of version 1")


CLAIMS = (
    Claim("container_runs_under_its_runtime", "H5", "The container runs under the requested runtime.", _runtime),
    Claim(
        "container_has_no_privilege",
        "H6",
        "The container is unprivileged, with no capabilities and no devices, and it cannot gain privileges.",
        _probe(_privileges, "no privilege, no capability, no device"),
    ),
    Claim(
        "container_has_the_policys_seccomp_profile",
        "H5",
        "The container has the seccomp profile of its policy.",
        _policy_probe(_seccomp, "the policy's profile"),
    ),
    Claim(
        "container_has_its_own_namespaces",
        "T3",
        "The container shares no namespace with the host or with another container.",
        _probe(_namespaces, "network none; ipc and cgroup private; no namespace is shared"),
    ),
    Claim(
        "container_mounts_nothing_writable",
        "O5",
        "Only the wire folder and the policy's data folders are mounted, all of them read-only.",
        _policy_probe(_mounts, "the wire folder and the policy's data folders, read-only"),
    ),
    Claim("container_root_is_read_only", "H2", "The root file system is read-only.", _probe(_root, "read-only")),
    Claim("container_tmpfs_are_sized", "H2", "Every tmpfs has a size.", _probe(_tmpfs, "every tmpfs has a size")),
    Claim(
        "container_memory_is_limited",
        "H4",
        "Memory has the policy's limit, and no swap is allowed.",
        _policy_probe(_memory, "the policy's limit, no swap"),
    ),
    Claim(
        "container_sockets_are_limited",
        "H4",
        "Buffers of TCP sockets count as the container's memory, or have a limit of their own.",
        _sockets,
    ),
    Claim(
        "container_processes_and_files_are_limited",
        "H3",
        "Processes, threads and open files are limited.",
        _policy_probe(_processes, "pids, nproc, nofile and core are limited"),
    ),
    Claim(
        "container_cpu_is_limited", "H3", "CPU use has the policy's limit.", _policy_probe(_cpu, "the policy's share")
    ),
    Claim(
        "container_paths_are_masked",
        "H6",
        "The engine masks the paths that reveal the host, and makes the paths that configure it read-only.",
        _probe(_paths, "the engine's masked and read-only paths are in place"),
    ),
    Claim(
        "container_log_is_bounded",
        "H1",
        "The container's log on the engine has a maximum size.",
        _probe(_log, "64 kB at most, no init process"),
    ),
    Claim(
        "container_user_is_from_the_range",
        "T2",
        "The engine runs the container as one user of the configured range, in no other group.",
        _identity,
    ),
)
