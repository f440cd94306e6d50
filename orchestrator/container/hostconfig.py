"""Build the engine's create request from a policy and limits. Pure. No other module restricts a container."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.container.floor import check_floor
from orchestrator.container.maskedpaths import MASKED_PATHS
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.policy.policy import Policy

LABEL = "org.cellblock"
INSTANCE_LABEL = f"{LABEL}.instance"
KERNEL_LABEL = f"{LABEL}.kernel"
BOOT_LABEL = f"{LABEL}.boot"
USER_LABEL = f"{LABEL}.user"
NAMESPACE_LABEL = f"{LABEL}.network-namespace"
RESTRICTIONS_LABEL = f"{LABEL}.lock"
HOME_LABEL = f"{LABEL}.home"

KERNEL_MOUNT = "/run/kernel"
DATA_MOUNT = "/data"
WORKDIR = "/work"
# Libraries start as many threads as the host has cores unless these variables say otherwise.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "PYTHON_CPU_COUNT",
)
_OOM_SCORE = 900  # of 1000: if the whole host runs out of memory, a sandbox is killed before the host's own processes
_CPU_PERIOD_US = 100_000  # the kernel's default period for CFS quotas


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What distinguishes one container from another.

    Attributes:
        name: unique on this engine. Creating it twice fails, so a lost reply causes no duplicate.
        wire: the host's folder with the kernel's sockets, mounted read-only.
        uid: user and group id, the same inside and outside.
        home: identifies the folders of state and data. A later start with the same home may adopt the kernel.
        host: the result of ``lease.host_identity``. Only processes with the same can tell whether the owner is dead.
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
        SandboxFloorError: the request lacks a restriction; see ``floor``.
    """
    request: dict[str, Any] = {
        "Image": spec.image,
        "User": f"{spec.uid}:{spec.uid}",
        "WorkingDir": WORKDIR,
        "Hostname": "sandbox",
        "Env": [f"{key}={value}" for key, value in _environment(policy, limits).items()],
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
    request["Labels"][RESTRICTIONS_LABEL] = _digest(request, policy, limits)
    return request


def _digest(request: dict[str, Any], policy: Policy, limits: KernelResourceLimits) -> str:
    """Return a digest of all restrictions. A later process compares it with the one that it would create itself."""
    restrictions = [request, policy.restrictions_digest, asdict(limits)]
    return hashlib.sha256(json.dumps(restrictions, sort_keys=True).encode()).hexdigest()


def _environment(policy: Policy, limits: KernelResourceLimits) -> dict[str, str]:
    """Return the sandbox's variables: the policy's win over the numbers of threads, and the sandbox's own over both."""
    cores = str(max(1, math.ceil(limits.max_cpu_percent / 100)))
    own = {
        "HOME": WORKDIR,
        "IPYTHONDIR": "/tmp/ipython",  # noqa: S108 - inside the sandbox
        "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - inside the sandbox
    }
    return dict.fromkeys(THREAD_VARIABLES, cores) | policy.environment | own


def _host_config(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
    memory = limits.max_memory_mb * MIB
    nproc, pids = _process_limits(spec.runtime, policy.limits.pids)
    owner = f"uid={spec.uid},gid={spec.uid},mode=0700"
    return {
        "Runtime": spec.runtime,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",  # otherwise /proc/self/cgroup shows the container's id on cgroup v1
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={policy.seccomp_json}"],  # runsc ignores the profile
        "MaskedPaths": [*MASKED_PATHS],
        "Memory": memory,
        "MemorySwap": memory,  # equal to Memory: no swap
        "CpuPeriod": _CPU_PERIOD_US,
        "CpuQuota": max(1000, int(_CPU_PERIOD_US * limits.max_cpu_percent / 100)),  # the kernel's minimum is 1 ms
        "PidsLimit": pids,
        "OomScoreAdj": _OOM_SCORE,
        "ShmSize": policy.tmpfs.shm_mb * MIB,
        "Tmpfs": {
            # "exec", since the engine adds "noexec" otherwise: a script that a session writes can be run
            WORKDIR: f"rw,exec,nosuid,nodev,size={policy.tmpfs.work_mb}m,{owner}",
            # without this, runsc adds a writable /tmp without a size
            "/tmp": f"rw,exec,nosuid,nodev,size={policy.tmpfs.tmp_mb}m,{owner}",  # noqa: S108
            # replaces the writable queue file system that the engine mounts there
            "/dev/mqueue": "ro,nosuid,nodev,noexec,size=4k,mode=0555",
        },
        "Mounts": [
            _read_only(spec.wire, KERNEL_MOUNT),
            *(_read_only(folder, f"{DATA_MOUNT}/{name}") for name, folder in policy.data.items()),
        ],
        "Ulimits": _ulimits(policy.limits.open_files, nproc),
        # Keeps what the kernel prints before it redirects its output to /dev/null, for the error of a failed start.
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "1"}},
        "Init": False,
        "AutoRemove": False,  # the owner reads the exit state and then removes the container
    }


def _ulimits(open_files: int, nproc: int) -> list[dict[str, Any]]:
    limits = {
        "nofile": open_files,
        "nproc": nproc,
        "core": 0,
        "msgqueue": 0,
        "sigpending": 1024,
        "memlock": 65536,
    }
    return [{"Name": name, "Soft": limit, "Hard": limit} for name, limit in limits.items()]


def _read_only(source: Path, target: str) -> dict[str, Any]:
    """Return a read-only mount of a folder, without file systems mounted below it, which would stay writable."""
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True, "BindOptions": options}


def _process_limits(runtime: str, pids: int) -> tuple[int, int]:
    """Return the nproc ulimit and the pids cgroup limit.

    Under runsc the cgroup counts the sandbox's own threads, and exceeding its limit kills the whole sandbox without a
    message. So nproc is the limit there, which gVisor enforces inside, and pids is a looser second one (3 n + 64,
    measured).
    """
    if runtime == "runsc":
        return pids, 3 * pids + 64
    return pids, pids
