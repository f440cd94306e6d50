"""What a host is weak in, what follows from that for a sandbox, and the mend. Pure, but for ``look``."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The first releases of each line with the fixes of November 2025 (CVE-2025-31133, -52565 and -52881: masked paths and
# /dev/console raced while a container starts, writes to /proc redirected), as runc's own advisories have them.
_MENDED_RUNC = ((1, 2, 8), (1, 3, 3), (1, 4, 0))
_LIMITS = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU"}
_VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")


@dataclass(frozen=True, slots=True)
class Weakness:
    """One thing that a host lacks, or has and should not.

    Attributes:
        subject: in a word or two.
        found: what was seen.
        consequence: what an attacker gains.
        mend: what the host's owner can do.
        broken: no kernel should be started before it is mended.
    """

    subject: str
    found: str
    consequence: str
    mend: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is seen without the engine.

    Attributes:
        vsock: whether a process may make an AF_VSOCK socket.
        engine_address: DOCKER_HOST.
        tls: whether that is spoken to over TLS.
        cpu: names of hardware weaknesses that the kernel calls vulnerable.
    """

    vsock: bool
    engine_address: str = ""
    tls: bool = False
    cpu: tuple[str, ...] = ()


def look() -> HostFacts:
    """Look at this host."""
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
    return HostFacts(vsock, address, tls, tuple(cpu))


def weaknesses(host: HostFacts, info: Mapping[str, Any], gvisor_fault: str, runc: str) -> Iterator[Weakness]:
    """Judge a host and its engine.

    Args:
        info: ``docker info``.
        gvisor_fault: why gVisor cannot be used; "" when it can.
        runc: the version that the engine says runc has; "" when it says none.
    """
    options = " ".join(info.get("SecurityOptions") or ())
    yield from _runtimes(gvisor_fault, runc)
    yield from _limits(info)
    if str(info.get("CgroupVersion") or "1") == "1":
        yield Weakness(
            "cgroups", "version 1",
            "Under runc, running out of memory may kill one process of a kernel and leave the rest; the cell is told "
            "of it by the engine's events, a moment later.",
            "Boot with version 2: systemd.unified_cgroup_hierarchy=1 on the kernel's command line.",
        )  # fmt: skip
    if "apparmor" not in options and "selinux" not in options:
        yield Weakness(
            "access control", "neither AppArmor nor SELinux",
            "Under runc one layer fewer stands behind the seccomp filter and the masked paths. runsc does not need it.",
            "On Debian: apt-get install apparmor, boot with lsm=…,apparmor, and restart Docker.",
        )  # fmt: skip
    if "seccomp" not in options:
        yield Weakness(
            "seccomp", "the engine has none",
            "Under runc a cell reaches every system call of this host's kernel.",
            "Use a kernel with CONFIG_SECCOMP_FILTER and an engine built with seccomp, or run all kernels under runsc.",
            broken=bool(gvisor_fault),
        )  # fmt: skip
    yield from _host(host)


def _runtimes(gvisor_fault: str, runc: str) -> Iterator[Weakness]:
    if gvisor_fault:
        yield Weakness(
            "gVisor", gvisor_fault,
            "Kernels run under runc: a bug in this host's kernel is within an attacker's reach.",
            "Install the package `runsc`, and register it in /etc/docker/daemon.json as a runtime with "
            '"runtimeArgs": ["--host-uds=open", "--network=none"]; then restart Docker or send dockerd a SIGHUP.',
        )  # fmt: skip
    version = _version(runc)
    if version and not _is_mended(version):
        yield Weakness(
            "runc", f"{runc}, before the fixes of November 2025, unless your distribution has put them in",
            "Whoever chooses a container's image or mounts may race its start and write to the host. Cellblock lets no "
            "cell choose either; what else runs on this engine may.",
            "Upgrade to 1.2.8, 1.3.3, 1.4.0 or later, or see your distribution's notes on CVE-2025-31133.",
        )  # fmt: skip


def _limits(info: Mapping[str, Any]) -> Iterator[Weakness]:
    missing = [said for key, said in _LIMITS.items() if info.get(key) is False]
    if missing:
        yield Weakness(
            "limits", f"the engine cannot limit {', '.join(missing)}",
            "One cell can take all of this host.",
            "Turn the cgroup controllers on: cgroup_enable=memory on the kernel's command line, or delegate them.",
            broken=True,
        )  # fmt: skip
    if info.get("SwapLimit") is False:
        yield Weakness(
            "swap", "the engine cannot limit it",
            "A kernel at its memory limit goes on in swap, and slows the host down.",
            "Turn swap off, or boot with swapaccount=1.",
        )  # fmt: skip


def _host(host: HostFacts) -> Iterator[Weakness]:
    if host.vsock:
        yield Weakness(
            "vsock", "AF_VSOCK sockets can be made here",
            "Having no network does not cover them: under runc the seccomp profile alone keeps a cell from the machine "
            "that this one runs in. runsc has no such sockets.",
            "Where nothing needs it: unload vmw_vsock_virtio_transport and vsock, and keep them from loading.",
        )  # fmt: skip
    if host.engine_address.startswith(("tcp://", "http://")) and not host.tls:
        yield Weakness(
            "engine's address", f"{host.engine_address}, without TLS",
            "Whoever reaches that port is root on the engine's host.",
            "Use the local socket, ssh://, or TLS with DOCKER_TLS_VERIFY.",
        )  # fmt: skip
    if host.cpu:
        yield Weakness(
            "CPU", f"the kernel calls it vulnerable: {', '.join(host.cpu)}",
            "Code on one core may read what others compute. No runtime promises anything there.",
            "Update the kernel and the microcode; give tenants who must not share machines of their own.",
        )  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _is_mended(version: tuple[int, ...]) -> bool:
    same_line = [mended for mended in _MENDED_RUNC if mended[:2] == version[:2]]
    return version >= (same_line[0] if same_line else _MENDED_RUNC[-1])
