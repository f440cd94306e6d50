"""From limits to what Docker is asked for. Pure. The one place that decides how a container is locked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.container.floor import check_floor
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.policy import Policy

LABEL = "org.cellblock"
INSTANCE_LABEL = f"{LABEL}.instance"
KERNEL_LABEL = f"{LABEL}.kernel"
BOOT_LABEL = f"{LABEL}.boot"
USER_LABEL = f"{LABEL}.user"
NAMESPACE_LABEL = f"{LABEL}.network-namespace"
LOCK_LABEL = f"{LABEL}.lock"
HOME_LABEL = f"{LABEL}.home"

KERNEL_MOUNT = "/run/kernel"
DATA_MOUNT = "/data"
WORKDIR = "/work"
_OOM_SCORE = 900  # of 1000: when the whole host runs out of memory, a sandbox goes before the host's own processes
_CPU_PERIOD_US = 100_000  # the kernel's default period for CFS quotas


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What distinguishes one container from the next.

    Attributes:
        name: unique on this engine; creating it twice fails, so that a lost reply makes no duplicate.
        wire: host folder of the kernel's sockets, mounted read-only.
        uid: user and group id inside, and outside.
        home: stands for the folders of state and data: the next start with the same may go on with the kernel.
        host: what ``lease.host_identity`` says, so that only a neighbour who can judge removes it as an orphan.
    """

    name: str
    image: str
    runtime: str
    wire: Path
    uid: int
    instance: str
    kernel_id: str
    host: tuple[str, str]
    home: str


def create_request(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
    """Build the body of the engine's ``POST /containers/create``.

    Raises:
        SandboxFloorError: it lacks a lock; see ``floor``.
    """
    request: dict[str, Any] = {
        "Image": spec.image,
        "User": f"{spec.uid}:{spec.uid}",
        "WorkingDir": WORKDIR,
        "Hostname": "sandbox",
        "Env": [f"{key}={value}" for key, value in (policy.environment | _environment()).items()],
        "Labels": {
            INSTANCE_LABEL: spec.instance,
            KERNEL_LABEL: spec.kernel_id,
            USER_LABEL: str(spec.uid),
            BOOT_LABEL: spec.host[0],
            NAMESPACE_LABEL: spec.host[1],
            HOME_LABEL: spec.home,
        },
        "NetworkDisabled": True,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, policy, limits),
    }
    check_floor(request)
    request["Labels"][LOCK_LABEL] = _digest(request, policy, limits)
    return request


def _digest(request: dict[str, Any], policy: Policy, limits: KernelResourceLimits) -> str:
    """Sum up all that a container is locked by, so that a later process knows whether it would lock it the same way."""
    locks = [request, policy.lock_digest, asdict(limits)]
    return hashlib.sha256(json.dumps(locks, sort_keys=True).encode()).hexdigest()


def _environment() -> dict[str, str]:
    return {
        "HOME": WORKDIR,
        "IPYTHONDIR": "/tmp/ipython",  # noqa: S108 - inside the sandbox
        "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - inside the sandbox
    }


def _host_config(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
    memory = limits.max_memory_mb * MIB
    nproc, pids = _process_limits(spec.runtime, policy.limits.pids)
    owner = f"uid={spec.uid},gid={spec.uid},mode=0700"
    return {
        "Runtime": spec.runtime,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",  # else /proc/self/cgroup names the container to itself on cgroup v1
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={policy.seccomp_json}"],  # runsc ignores the profile
        "Memory": memory,
        "MemorySwap": memory,  # equal to Memory: no swap on top
        "CpuPeriod": _CPU_PERIOD_US,
        "CpuQuota": max(1000, int(_CPU_PERIOD_US * limits.max_cpu_percent / 100)),  # the kernel's least quota is 1 ms
        "PidsLimit": pids,
        "OomScoreAdj": _OOM_SCORE,
        "ShmSize": policy.tmpfs.shm_mb * MIB,
        "Tmpfs": {
            WORKDIR: f"rw,nosuid,nodev,size={policy.tmpfs.work_mb}m,{owner}",
            # runsc adds an unsized writable /tmp unless one is given
            "/tmp": f"rw,nosuid,nodev,size={policy.tmpfs.tmp_mb}m,{owner}",  # noqa: S108
            # in place of the writable queue file system that the engine mounts there
            "/dev/mqueue": "ro,nosuid,nodev,noexec,size=4k,mode=0555",
        },
        "Mounts": [
            _read_only(spec.wire, KERNEL_MOUNT),
            *(_read_only(folder, f"{DATA_MOUNT}/{name}") for name, folder in policy.data.items()),
        ],
        "Ulimits": [
            {"Name": "nofile", "Soft": policy.limits.open_files, "Hard": policy.limits.open_files},
            {"Name": "nproc", "Soft": nproc, "Hard": nproc},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "msgqueue", "Soft": 0, "Hard": 0},
            {"Name": "sigpending", "Soft": 1024, "Hard": 1024},
            {"Name": "memlock", "Soft": 65536, "Hard": 65536},
        ],
        # Holds what the launcher says before it points its descriptors at /dev/null, for the error of a failed start.
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "1"}},
        "Init": False,
        "AutoRemove": False,  # the exit state is evidence; the owner removes it
    }


def _read_only(source: Path, target: str) -> dict[str, Any]:
    """Mount a folder without what is mounted below it: read-only holds for the folder's own file system alone."""
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True, "BindOptions": options}


def _process_limits(runtime: str, pids: int) -> tuple[int, int]:
    """Return the nproc ulimit and the pids cgroup limit.

    Under runsc the cgroup counts the sandbox's own threads, and going over it kills the whole sandbox silently:
    there nproc limits, inside gVisor, and pids is a distant second wall (3 n + 64, measured).
    """
    if runtime == "runsc":
        return pids, 3 * pids + 64
    return pids, pids
