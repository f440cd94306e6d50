"""Find the weaknesses of a host: what they mean for sandboxes, and how to fix them. Pure, except for ``look``."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.host.openray import open_ray

# The first release of each runc branch with the fixes of November 2025, from runc's security advisories. CVE-2025-31133
# and -52565 are races on masked paths and /dev/console while a container starts; -52881 redirects writes to /proc.
_FIXED_RUNC = ((1, 2, 8), (1, 3, 3), (1, 4, 0))
_LIMITS = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU"}
_VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")


@dataclass(frozen=True, slots=True)
class Weakness:
    """A weakness of a host.

    Attributes:
        subject: one or two words.
        found: what the host has or lacks.
        consequence: what an attacker gains.
        fix: what the host's owner can do.
        broken: no kernel should start before this is fixed.
    """

    subject: str
    found: str
    consequence: str
    fix: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts about a host that are known without its engine.

    Attributes:
        vsock: a process can create an AF_VSOCK socket.
        engine_address: the value of DOCKER_HOST.
        tls: connections to that address use TLS.
        cpu: names of the CPU vulnerabilities that Linux reports as not mitigated.
        ray: addresses on which Ray listens for other hosts without a token.
    """

    vsock: bool
    engine_address: str = ""
    tls: bool = False
    cpu: tuple[str, ...] = ()
    ray: tuple[str, ...] = ()


def look() -> HostFacts:
    """Return the facts about this host."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
        vsock = True
    except OSError:
        vsock = False
    cpu = []
    for path in sorted(_VULNERABILITIES.glob("*")):
        try:
            if path.read_text().startswith("Vulnerable"):
                cpu.append(path.name)
        except OSError:
            continue
    address, tls = os.environ.get("DOCKER_HOST", ""), bool(os.environ.get("DOCKER_TLS_VERIFY"))
    return HostFacts(vsock, address, tls, tuple(cpu), open_ray())


def weaknesses(host: HostFacts, info: Mapping[str, Any], gvisor_fault: str, runc: str) -> Iterator[Weakness]:
    """Yield the weaknesses of a host and its engine.

    Args:
        info: the result of ``docker info``.
        gvisor_fault: why gVisor cannot be used, or "" if it can.
        runc: runc's version as the engine reports it, or "".
    """
    options = " ".join(info.get("SecurityOptions") or ())
    yield from _runtimes(gvisor_fault, runc)
    yield from _limits(info)
    if str(info.get("CgroupVersion") or "1") == "1":
        yield Weakness(
            "cgroups", "version 1",
            "Under runc, a kernel that runs out of memory may lose one process only. Its cell then ends a moment "
            "later, with the engine's event. UDP buffers are not limited, and TCP buffers only if Cellblock runs as "
            "root.",
            "Boot with cgroup version 2: add systemd.unified_cgroup_hierarchy=1 to the Linux command line.",
        )  # fmt: skip
    if "apparmor" not in options and "selinux" not in options:
        yield Weakness(
            "access control", "neither AppArmor nor SELinux",
            "Under runc, one layer of defense behind the seccomp filter and the masked paths is missing. runsc does "
            "not need it.",
            "On Debian: run `apt-get install apparmor`, boot with lsm=…,apparmor and restart Docker.",
        )  # fmt: skip
    if "seccomp" not in options:
        yield Weakness(
            "seccomp", "the engine does not support it",
            "Under runc, a cell can make every system call of this host's Linux kernel.",
            "Use Linux with CONFIG_SECCOMP_FILTER and an engine with seccomp support, or run all kernels under runsc.",
            broken=bool(gvisor_fault),
        )  # fmt: skip
    yield from _host(host)


def _runtimes(gvisor_fault: str, runc: str) -> Iterator[Weakness]:
    if gvisor_fault:
        yield Weakness(
            "gVisor", gvisor_fault,
            "Kernels run under runc, where an attacker can exploit a bug in this host's Linux kernel.",
            "Install the package `runsc` and register it as a runtime in /etc/docker/daemon.json with "
            '"runtimeArgs": ["--host-uds=open", "--network=none"]. Then restart Docker or send SIGHUP to dockerd.',
        )  # fmt: skip
    version = _version(runc)
    if version and not _is_fixed(version):
        yield Weakness(
            "runc", f"{runc}, without the fixes of November 2025, unless your distribution added them",
            "A user who chooses a container's image or mounts may write to the host while the container starts. Cells "
            "can choose neither, but other users of this engine may.",
            "Upgrade runc to 1.2.8, 1.3.3, 1.4.0 or later, or check your distribution's notes on CVE-2025-31133.",
        )  # fmt: skip


def _limits(info: Mapping[str, Any]) -> Iterator[Weakness]:
    missing = [said for key, said in _LIMITS.items() if info.get(key) is False]
    if missing:
        yield Weakness(
            "limits", f"the engine cannot limit {', '.join(missing)}",
            "One cell can use up all of this host.",
            "Enable the cgroup controllers: boot with cgroup_enable=memory, or delegate the controllers to Docker.",
            broken=True,
        )  # fmt: skip
    if info.get("SwapLimit") is False:
        yield Weakness(
            "swap", "the engine cannot limit it",
            "A kernel at its memory limit continues in swap and slows the host down.",
            "Turn swap off, or boot with swapaccount=1.",
        )  # fmt: skip


def _host(host: HostFacts) -> Iterator[Weakness]:
    if host.vsock:
        yield Weakness(
            "vsock", "this host has AF_VSOCK sockets",
            "They work without a network. Under runc, only the seccomp profile stops a cell from connecting to the "
            "machine that runs this virtual machine. runsc has no such sockets.",
            "If nothing needs them, unload vmw_vsock_virtio_transport and vsock, and blacklist both modules.",
        )  # fmt: skip
    if host.engine_address.startswith(("tcp://", "http://")) and not host.tls:
        yield Weakness(
            "engine's address", f"{host.engine_address}, without TLS",
            "Everybody who can connect to that port is root on the engine's host.",
            "Use the local socket, ssh:// or TLS with DOCKER_TLS_VERIFY.",
        )  # fmt: skip
    if host.ray:
        yield Weakness(
            "Ray", f"listens on {', '.join(host.ray)} without a token",
            "Everybody who can connect to one of these ports runs code on every host of the cluster, as Ray's user. If "
            "that user may use Docker, that is root.",
            "Start it with `cellblock cluster up`, or with RAY_AUTH_MODE=token and a token. Let only the hosts of the "
            "cluster connect to its ports.",
        )  # fmt: skip
    if host.cpu:
        yield Weakness(
            "CPU", f"Linux reports it as vulnerable to {', '.join(host.cpu)}",
            "Code on one core may read data of other cores. No container runtime prevents that.",
            "Update Linux and the CPU microcode. Give tenants that must be isolated machines of their own.",
        )  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _is_fixed(version: tuple[int, ...]) -> bool:
    same_line = [fixed for fixed in _FIXED_RUNC if fixed[:2] == version[:2]]
    return version >= (same_line[0] if same_line else _FIXED_RUNC[-1])
