"""Weaknesses of a host, as `cellblock doctor` shows them: each is found, with its consequence and a fix."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.host.weakness import HostFacts, weaknesses

STRONG: dict[str, Any] = {
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"],
    "CgroupVersion": "2",
    "MemoryLimit": True, "SwapLimit": True, "PidsLimit": True, "CpuCfsQuota": True,
}  # fmt: skip
QUIET = HostFacts(vsock=False)


def subjects(
    host: HostFacts = QUIET, info: dict[str, Any] | None = None, gvisor_fault: str = "", runc: str = "1.3.3"
) -> list[str]:
    found = list(weaknesses(host, STRONG if info is None else info, gvisor_fault, runc))
    assert all(one.found and one.consequence and one.fix for one in found)
    return [one.subject for one in found]


def test_a_strong_host_has_no_weakness() -> None:
    assert subjects() == []


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"CgroupVersion": "1"}, "cgroups"),
        ({"CgroupVersion": None}, "cgroups"),
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, "access control"),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp"),
        ({"MemoryLimit": False}, "limits"),
        ({"PidsLimit": False}, "limits"),
        ({"CpuCfsQuota": False}, "limits"),
        ({"SwapLimit": False}, "swap"),
    ],
)
def test_what_the_engine_lacks_is_reported(change: dict[str, Any], subject: str) -> None:
    assert subjects(info=STRONG | change) == [subject]


@pytest.mark.parametrize(
    ("host", "subject"),
    [
        (HostFacts(vsock=True), "vsock"),
        (HostFacts(vsock=False, engine_address="tcp://10.0.0.1:2375"), "engine's address"),
        (HostFacts(vsock=False, cpu=("mds",)), "CPU"),
        (HostFacts(vsock=False, ray=("10.0.0.1:6379",)), "Ray"),
    ],
)
def test_what_the_host_has_is_reported(host: HostFacts, subject: str) -> None:
    assert subjects(host) == [subject]


def test_an_engine_over_tls_is_no_weakness() -> None:
    assert subjects(HostFacts(vsock=False, engine_address="tcp://10.0.0.1:2376", tls=True)) == []


def test_a_missing_gvisor_is_reported() -> None:
    assert subjects(gvisor_fault="the engine has no runtime runsc") == ["gVisor"]


@pytest.mark.parametrize("version", ["1.1.5+ds1", "1.2.7", "1.3.2", "1.0.0-rc93"])
def test_an_old_runc_is_reported(version: str) -> None:
    assert subjects(runc=version) == ["runc"]


@pytest.mark.parametrize("version", ["1.2.8", "1.2.9", "1.3.3+ds1", "1.4.0", "1.4.2", "2.0.0", ""])
def test_a_fixed_or_unknown_runc_is_not_reported(version: str) -> None:
    assert subjects(runc=version) == []


def test_without_seccomp_and_gvisor_nothing_should_run() -> None:
    info = STRONG | {"SecurityOptions": ["name=apparmor"]}
    broken = {one.subject for one in weaknesses(QUIET, info, "there is none", "1.3.3") if one.broken}
    assert broken == {"seccomp"}
