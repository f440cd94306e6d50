"""The floor: the locks that every container has, whatever its policy says. Pure.

An allow-list over the whole create request: what it does not know is refused, so that a new key of the engine's, or one
that somebody adds by mistake, has to be thought about here first. ``hostconfig.create_request`` ends with it, and there
is no other way to a container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from orchestrator.errors import SandboxFloorError
from orchestrator.policy.seccomp import breaches as seccomp_breaches

Json = Mapping[str, Any]

_LEAST_UID = 1000
# What a request and its HostConfig must say to the letter.
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
    "Init": False,
    "AutoRemove": False,
}
_POSITIVE = ("Memory", "MemorySwap", "CpuPeriod", "CpuQuota", "PidsLimit", "OomScoreAdj", "ShmSize")
_CHECKED = {"Runtime", "SecurityOpt", "Tmpfs", "Mounts", "Ulimits"}
_ULIMITS = {"nofile", "nproc", "core", "msgqueue", "sigpending", "memlock"}
_TMPFS = {"/work", "/tmp", "/dev/mqueue"}  # noqa: S108 - inside the sandbox
_SIZE = re.compile(r"size=[1-9][0-9]*[km]")
_TMPFS_OPTION = re.compile(rf"rw|ro|nosuid|nodev|noexec|{_SIZE.pattern}|uid=[0-9]+|gid=[0-9]+|mode=0?[0-7]{{3}}")
_WIRE, _DATA = "/run/kernel", "/data"
_ENGINES = ("docker.sock", "containerd.sock", "podman.sock", "dockershim.sock", "crio.sock")


def check_floor(request: Json) -> None:
    """Refuse a create request that lacks any lock.

    Raises:
        SandboxFloorError: names everything that it lacks.
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
    yield from (f"no {key}" for key in _POSITIVE if not _is_positive(host.get(key)))
    if host.get("MemorySwap") != host.get("Memory"):
        yield "swap on top of the memory limit"
    if not host.get("Runtime"):
        yield "no runtime"
    yield from _user(request.get("User"))
    yield from _security(host.get("SecurityOpt"))
    yield from _tmpfs(host.get("Tmpfs"))
    yield from _mounts(host.get("Mounts"))
    yield from _ulimits(host.get("Ulimits"))


def _wrong(part: Json, fixed: Json) -> Iterator[str]:
    # Types are compared too: 1 is not True here.
    yield from (
        f"{key} is {part.get(key)!r}"
        for key, value in fixed.items()
        if part.get(key) != value or type(part.get(key)) is not type(value)
    )


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _user(user: object) -> Iterator[str]:
    uid, _, gid = user.partition(":") if isinstance(user, str) else ("", "", "")
    if not (uid.isascii() and uid.isdecimal() and uid == gid and int(uid) >= _LEAST_UID):
        yield f"user {user!r}"


def _security(options: object) -> Iterator[str]:
    if not isinstance(options, list) or len(options) != 2 or options[0] != "no-new-privileges":
        yield "security options other than no-new-privileges and a seccomp profile"
        return
    name, _, profile = str(options[1]).partition("=")
    try:
        found = seccomp_breaches(json.loads(profile))
    except (ValueError, RecursionError):
        found = ["is no JSON"]
    if name != "seccomp" or found:
        yield f"the seccomp profile {'; '.join(found[:5])}"


def _tmpfs(tmpfs: object) -> Iterator[str]:
    if not isinstance(tmpfs, dict) or tmpfs.keys() != _TMPFS:
        yield "tmpfs other than /work, /tmp and /dev/mqueue"
        return
    for path, options in tmpfs.items():
        parts = str(options).split(",")
        if sum(bool(_SIZE.fullmatch(part)) for part in parts) != 1:
            yield f"a tmpfs without a size at {path}"
        if not {"nosuid", "nodev"} <= {*parts} or not all(_TMPFS_OPTION.fullmatch(part) for part in parts):
            yield f"a tmpfs with other options than ours at {path}"


def _mounts(mounts: object) -> Iterator[str]:
    if not isinstance(mounts, list) or not mounts:
        yield "no wire"
        return
    for mount in mounts:
        target, source = str(mount.get("Target")), PurePosixPath(str(mount.get("Source")))
        data = PurePosixPath(target)
        if target != _WIRE and not (str(data.parent) == _DATA and data.name not in ("", "..")):
            yield f"a mount at {target}"
        if mount.get("Type") != "bind" or mount.get("ReadOnly") is not True:
            yield f"a writable mount at {target}"
        if mount.get("BindOptions") != {"Propagation": "rprivate", "NonRecursive": True}:
            yield f"a mount of more than one file system at {target}"
        if not source.is_absolute() or source == PurePosixPath("/") or ".." in source.parts or source.name in _ENGINES:
            yield f"a mount of {source}"


def _ulimits(ulimits: object) -> Iterator[str]:
    found = {limit.get("Name"): limit for limit in ulimits} if isinstance(ulimits, list) else {}
    yield from (f"no ulimit {name}" for name in sorted(_ULIMITS - found.keys()))
    for name, limit in found.items():
        if not all(type(limit.get(end)) is int and limit[end] >= 0 for end in ("Soft", "Hard")):
            yield f"an unlimited ulimit {name}"
    if found.get("core", {}).get("Hard") != 0:
        yield "core dumps"
