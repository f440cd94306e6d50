"""Checks a live container against the CIS Docker Benchmark 1.6.0, section 5 (container runtime).

The benchmark is an independent checklist for containers of all kinds. Some items do not apply to a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Standing = Literal["holds", "fails", "does not apply", "the host lacks it"]
_SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/run/docker.sock", "/var/run/docker.sock")


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The result of one item of the benchmark for one container.

    Attributes:
        number, title: the item's number and its title, shortened.
        evidence: the value in the container's or the engine's record.
    """

    number: str
    title: str
    standing: Standing
    evidence: str


@dataclass(frozen=True, slots=True)
class _Record:
    """What the engine reports about a container and about itself."""

    container: Mapping[str, Any]
    engine: Mapping[str, Any]
    gvisor: bool

    @property
    def host(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.container["HostConfig"]
        return config

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.container["Config"]
        return config

    def has(self, option: str) -> bool:
        return any(f"name={option}" in entry for entry in self.engine.get("SecurityOptions") or ())


_Assessment = tuple[Standing, str]  # where the container stands, and the evidence
_Check = Callable[[_Record], _Assessment]


def _held(condition: bool, evidence: str) -> _Assessment:
    return ("holds" if condition else "fails"), evidence


def _setting(key: str, *good: object) -> _Check:
    """Return a check that one key of the HostConfig has one of the good values."""
    return lambda record: _held(record.host.get(key) in good, f"{key} {record.host.get(key)!r}")


def _irrelevant(reason: str) -> _Check:
    """Return a check for an item that does not apply to a sandbox."""
    return lambda _: ("does not apply", reason)


def _apparmor(record: _Record) -> _Assessment:
    profile = record.container.get("AppArmorProfile") or ""
    if record.gvisor:
        return "does not apply", "a cell's system calls reach gVisor's kernel, not the kernel that AppArmor guards"
    if not record.has("apparmor"):
        return "the host lacks it", "the engine reports no AppArmor"
    return _held(profile not in ("", "unconfined"), f"profile {profile!r}")


def _selinux(record: _Record) -> _Assessment:
    if not record.has("selinux"):
        return "the host lacks it", "the engine reports no SELinux"
    options = record.host["SecurityOpt"] or []
    return _held("label=disable" not in options and "label:disable" not in options, f"{record.host['SecurityOpt']}")


def _sensitive(record: _Record) -> _Assessment:
    sources = [mount["Source"] for mount in record.container["Mounts"] if mount["Type"] == "bind"]
    found = [source for source in sources if source in _SENSITIVE or source.startswith(("/etc/", "/proc/", "/sys/"))]
    return _held(not found, f"bind mounts: {', '.join(sources)}")


def _ports(record: _Record) -> _Assessment:
    ports = record.container["NetworkSettings"].get("Ports") or {}
    return _held(not ports and not record.host.get("PortBindings"), f"{len(ports)} ports")


def _memory(record: _Record) -> _Assessment:
    return _held(record.host["Memory"] > 0, f"{record.host['Memory']} bytes, {record.host['MemorySwap']} with swap")


def _cpu(record: _Record) -> _Assessment:
    quota, period = record.host["CpuQuota"], record.host["CpuPeriod"]
    return _held(quota > 0, f"a quota of {quota} of {period} us, a hard limit, unlike CPU shares")


def _restart(record: _Record) -> _Assessment:
    name = record.host["RestartPolicy"]["Name"]
    return _held(name in ("", "no"), f"restart policy {name or 'no'!r}: a sandbox is never used again after it ends")


def _ulimits(record: _Record) -> _Assessment:
    limits = {limit["Name"]: limit["Hard"] for limit in record.host["Ulimits"] or ()}
    bounded = {"nofile", "nproc", "core"} <= limits.keys() and limits["core"] == 0
    return _held(bounded, ", ".join(f"{name} {hard}" for name, hard in sorted(limits.items())))


def _propagation(record: _Record) -> _Assessment:
    modes = {mount.get("Propagation") or "none" for mount in record.container["Mounts"]}
    return _held(not any("shared" in mode for mode in modes), f"propagation {', '.join(sorted(modes))}")


def _seccomp(record: _Record) -> _Assessment:
    options = [option for option in record.host["SecurityOpt"] or () if option.startswith("seccomp")]
    if options and "unconfined" in options[0]:
        return "fails", "seccomp=unconfined"
    if record.gvisor:
        return "does not apply", "gVisor handles system calls itself, and filters those that it makes to the host"
    if not record.has("seccomp"):
        return "the host lacks it", "the engine reports no seccomp"
    return _held(bool(options), "a custom profile, stricter than Docker's default")


def _privileges(record: _Record) -> _Assessment:
    return _held("no-new-privileges" in (record.host["SecurityOpt"] or ()), "no-new-privileges")


def _capabilities(record: _Record) -> _Assessment:
    dropped, added = record.host["CapDrop"], record.host["CapAdd"]
    return _held(dropped == ["ALL"] and not added, f"dropped {dropped}, added {added}")


def _swarm(record: _Record) -> _Assessment:
    state = (record.engine.get("Swarm") or {}).get("LocalNodeState", "inactive")
    return ("holds" if state == "inactive" else "the host lacks it"), f"swarm {state}"


def _pids(record: _Record) -> _Assessment:
    return _held((record.host["PidsLimit"] or 0) > 0, f"{record.host['PidsLimit']} processes and threads")


def _bridge(record: _Record) -> _Assessment:
    return _held(record.host["NetworkMode"] == "none", f"network {record.host['NetworkMode']}")


def _socket(record: _Record) -> _Assessment:
    found = [mount["Source"] for mount in record.container["Mounts"] if mount["Source"].endswith("docker.sock")]
    return _held(not found, ", ".join(found) or "not mounted")


_ITEMS: tuple[tuple[str, str, _Check], ...] = (
    ("5.1", "Swarm mode is off", _swarm),
    ("5.2", "An AppArmor profile is on", _apparmor),
    ("5.3", "SELinux options are set", _selinux),
    ("5.4", "Capabilities are restricted", _capabilities),
    ("5.5", "No privileged container", _setting("Privileged", False)),
    ("5.6", "No sensitive host directory is mounted", _sensitive),
    ("5.7", "No sshd in the container", _irrelevant("the image has no sshd, and there is no network")),
    ("5.8", "No privileged port is mapped", _ports),
    ("5.9", "Only needed ports are open", _ports),
    ("5.10", "The host's network namespace is not shared", _bridge),
    ("5.11", "Memory is limited", _memory),
    ("5.12", "CPU is apportioned", _cpu),
    ("5.13", "The root file system is read-only", _setting("ReadonlyRootfs", True)),
    ("5.14", "Incoming traffic is bound to one interface", _irrelevant("there is no network")),
    ("5.15", "Restarts are bounded", _restart),
    ("5.16", "The host's process namespace is not shared", _setting("PidMode", "", None)),
    ("5.17", "The host's IPC namespace is not shared", _setting("IpcMode", "private")),
    ("5.18", "No host device is exposed", _setting("Devices", None, [])),
    ("5.19", "Ulimits are set", _ulimits),
    ("5.20", "Mount propagation is not shared", _propagation),
    ("5.21", "The host's UTS namespace is not shared", _setting("UTSMode", "", None)),
    ("5.22", "Seccomp is not off", _seccomp),
    ("5.23", "No docker exec --privileged", _irrelevant("docker exec is never used")),
    ("5.24", "No docker exec as root", _irrelevant("docker exec is never used")),
    ("5.25", "Cgroup use is confirmed", _setting("CgroupParent", "")),
    ("5.26", "No additional privileges can be gained", _privileges),
    ("5.27", "Health is checked", _irrelevant("the orchestrator sees at once when a kernel's connection closes")),
    ("5.28", "The latest image is used", _irrelevant("the image's name contains the digest of its sources")),
    ("5.29", "The PIDs limit is used", _pids),
    ("5.30", "The default bridge is not used", _bridge),
    ("5.31", "The host's user namespace is not shared", _setting("UsernsMode", "", None)),
    ("5.32", "The Docker socket is not mounted", _socket),
)


def judge(container: Mapping[str, Any], engine: Mapping[str, Any]) -> list[ItemResult]:
    """Return the result of every item of section 5.

    Args:
        container: what ``docker inspect`` reports about a running container.
        engine: what ``docker info`` reports.
    """
    record = _Record(container, engine, container["HostConfig"]["Runtime"] == "runsc")
    return [ItemResult(number, title, *check(record)) for number, title, check in _ITEMS]
