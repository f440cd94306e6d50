"""The floor: the restrictions that every container has, whatever its policy says. Pure.

The floor is an allow-list over the whole create request. It refuses keys that it does not know, so a key that is new in
the engine or added by mistake has to be considered here first. ``hostconfig.create_request`` ends with this check, and
no container is created in another way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from orchestrator.container.maskedpaths import MASKED_PATHS
from orchestrator.errors import SandboxFloorError
from orchestrator.policy.seccomp import breaches as seccomp_breaches

Json = Mapping[str, Any]

_MIN_UID = 1000
# Keys of a request and of its HostConfig that must have exactly these values.
_FIXED = {"NetworkDisabled": True, "Hostname": "sandbox", "Healthcheck": {"Test": ["NONE"]}, "StopSignal": "SIGKILL"}
_FREE = {"Image", "User", "WorkingDir", "Env", "Labels", "HostConfig"}
_FIXED_HOST = {
    "NetworkMode": "none",
    "IpcMode": "private",
    "CgroupnsMode": "private",
    "ReadonlyRootfs": True,
    "Privileged": False,
    "CapDrop": ["ALL"],
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k", "max-file": "1"}},
    "MaskedPaths": [*MASKED_PATHS],
    "Init": False,
    "AutoRemove": False,
}
_POSITIVE = ("Memory", "MemorySwap", "CpuPeriod", "CpuQuota", "PidsLimit", "OomScoreAdj", "ShmSize")
_CHECKED = {"Runtime", "SecurityOpt", "Tmpfs", "Mounts", "Ulimits"}
_ULIMITS = {"nofile", "nproc", "core", "msgqueue", "sigpending", "memlock"}
_TMPFS = {"/work", "/tmp", "/dev/mqueue"}  # noqa: S108 - inside the sandbox
_SIZE = re.compile(r"size=[1-9][0-9]*[km]")
_TMPFS_OPTION = re.compile(rf"rw|ro|nosuid|nodev|exec|noexec|{_SIZE.pattern}|uid=[0-9]+|gid=[0-9]+|mode=0?[0-7]{{3}}")
_WIRE, _DATA = "/run/kernel", "/data"
_ENGINES = ("docker.sock", "containerd.sock", "podman.sock", "dockershim.sock", "crio.sock")


def check_floor(request: Json) -> None:
    """Refuse a create request that lacks a restriction.

    Raises:
        SandboxFloorError: names every missing restriction.
    """
    found = list(_breaches(request))
    if found:
        raise SandboxFloorError(found)


def _breaches(request: Json) -> Iterator[str]:
    host: Json = request.get("HostConfig") or {}
    yield from _wrong(request, _FIXED)
    yield from _wrong(host, _FIXED_HOST)
    yield from (f"unknown key {key}" for key in request.keys() - _FIXED.keys() - _FREE)
    yield from (f"unknown key HostConfig.{key}" for key in host.keys() - _FIXED_HOST.keys() - {*_POSITIVE} - _CHECKED)
    yield from (f"{key} is not a positive number" for key in _POSITIVE if not _is_positive(host.get(key)))
    if host.get("MemorySwap") != host.get("Memory"):
        yield "MemorySwap differs from Memory, which allows swap"
    if not host.get("Runtime"):
        yield "no Runtime"
    yield from _user(request.get("User"))
    yield from _security(host.get("SecurityOpt"))
    yield from _tmpfs(host.get("Tmpfs"))
    yield from _mounts(host.get("Mounts"))
    yield from _ulimits(host.get("Ulimits"))


def _wrong(part: Json, fixed: Json) -> Iterator[str]:
    # Compare types too, so that 1 does not pass for True.
    yield from (
        f"{key} is {part.get(key)!r}"
        for key, value in fixed.items()
        if part.get(key) != value or type(part.get(key)) is not type(value)
    )


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _user(user: object) -> Iterator[str]:
    uid, _, gid = user.partition(":") if isinstance(user, str) else ("", "", "")
    if not (uid.isascii() and uid.isdecimal() and uid == gid and int(uid) >= _MIN_UID):
        yield f"User is {user!r}, not the same number of at least {_MIN_UID} for user and group"


def _security(options: object) -> Iterator[str]:
    if not isinstance(options, list) or len(options) != 2 or options[0] != "no-new-privileges":
        yield "SecurityOpt is not no-new-privileges and a seccomp profile"
        return
    name, _, profile = str(options[1]).partition("=")
    try:
        found = seccomp_breaches(json.loads(profile))
    except (ValueError, RecursionError):
        found = ["is not JSON"]
    if name != "seccomp" or found:
        yield f"the seccomp profile {'; '.join(found[:5])}"


def _tmpfs(tmpfs: object) -> Iterator[str]:
    if not isinstance(tmpfs, dict) or tmpfs.keys() != _TMPFS:
        yield "Tmpfs does not have exactly /work, /tmp and /dev/mqueue"
        return
    for path, options in tmpfs.items():
        parts = str(options).split(",")
        if sum(bool(_SIZE.fullmatch(part)) for part in parts) != 1:
            yield f"the tmpfs at {path} does not have exactly one size"
        if not {"nosuid", "nodev"} <= {*parts} or not all(_TMPFS_OPTION.fullmatch(part) for part in parts):
            yield f"the tmpfs at {path} has options that are not allowed, or lacks nosuid or nodev"


def _mounts(mounts: object) -> Iterator[str]:
    if not isinstance(mounts, list) or not mounts:
        yield "no mount for the kernel's sockets"
        return
    for mount in mounts:
        target, source = str(mount.get("Target")), PurePosixPath(str(mount.get("Source")))
        data = PurePosixPath(target)
        if target != _WIRE and not (str(data.parent) == _DATA and data.name not in ("", "..")):
            yield f"a mount at {target}, which is not {_WIRE} or directly in {_DATA}"
        if mount.get("Type") != "bind" or mount.get("ReadOnly") is not True:
            yield f"the mount at {target} is not a read-only bind mount"
        if mount.get("BindOptions") != {"Propagation": "rprivate", "NonRecursive": True}:
            yield f"the mount at {target} includes other file systems"
        if not source.is_absolute() or source == PurePosixPath("/") or ".." in source.parts or source.name in _ENGINES:
            yield f"a mount of {source}, which is not allowed as a source"


def _ulimits(ulimits: object) -> Iterator[str]:
    found = {limit.get("Name"): limit for limit in ulimits} if isinstance(ulimits, list) else {}
    yield from (f"no ulimit {name}" for name in sorted(_ULIMITS - found.keys()))
    for name, limit in found.items():
        if not all(type(limit.get(end)) is int and limit[end] >= 0 for end in ("Soft", "Hard")):
            yield f"ulimit {name} has no limit"
    if found.get("core", {}).get("Hard") != 0:
        yield "ulimit core allows core dumps"
