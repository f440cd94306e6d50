"""The CIS Docker Benchmark, section 5, on the record of a live kernel's container."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.isolation.benchmark import judge
from orchestrator.isolation.verification import Laboratory

pytestmark = pytest.mark.asyncio(loop_scope="module")

Records = tuple[dict[str, Any], dict[str, Any]]
ITEMS = [f"5.{number}" for number in range(1, 33)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def records(bench: Laboratory) -> Records:
    """Return the engine's records of a live kernel's container and of itself."""
    engine = bench.instance.engine
    async with bench.subject(whole=False) as subject:
        return await subject.record(), await engine.retry(engine.client.info)


async def test_no_item_fails(records: Records) -> None:
    """None of the 32 items fails, and at least 20 of them hold."""
    found = {finding.number: finding for finding in judge(*records)}
    assert list(found) == ITEMS
    assert [finding for finding in found.values() if finding.standing == "fails"] == []
    assert sum(finding.standing == "holds" for finding in found.values()) >= 20
    lacking = {number for number, finding in found.items() if finding.standing == "the host lacks it"}
    assert lacking <= {"5.2", "5.3", "5.22"}  # a host may lack these features


CHANGES: dict[str, tuple[str, Any]] = {
    "5.4": ("CapAdd", ["NET_ADMIN"]), "5.5": ("Privileged", True), "5.10": ("NetworkMode", "host"),
    "5.11": ("Memory", 0), "5.12": ("CpuQuota", 0), "5.13": ("ReadonlyRootfs", False),
    "5.15": ("RestartPolicy", {"Name": "always"}), "5.16": ("PidMode", "host"), "5.17": ("IpcMode", "host"),
    "5.18": ("Devices", [{"PathOnHost": "/dev/kmsg"}]), "5.19": ("Ulimits", []), "5.21": ("UTSMode", "host"),
    "5.22": ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]), "5.25": ("CgroupParent", "/x"),
    "5.26": ("SecurityOpt", []), "5.29": ("PidsLimit", 0), "5.30": ("NetworkMode", "default"),
    "5.31": ("UsernsMode", "host"),
}  # fmt: skip


@pytest.mark.parametrize("number", CHANGES)
async def test_an_item_fails_where_it_is_broken(records: Records, number: str) -> None:
    """An item fails in a record that violates it."""
    container, engine = copy.deepcopy(records[0]), records[1]
    key, value = CHANGES[number]
    container["HostConfig"][key] = value
    found = {finding.number: finding.standing for finding in judge(container, engine)}
    assert found[number] == "fails"


@pytest.mark.parametrize(("source", "numbers"), [("/var/run/docker.sock", {"5.6", "5.32"}), ("/etc/shadow", {"5.6"})])
async def test_sensitive_mounts_of_the_host_fail(records: Records, source: str, numbers: set[str]) -> None:
    """A sensitive mount of the host fails its items, and shared propagation fails 5.20."""
    container = copy.deepcopy(records[0])
    container["Mounts"].append({"Type": "bind", "Source": source, "Destination": "/x", "Propagation": "rshared"})
    failed = {finding.number for finding in judge(container, records[1]) if finding.standing == "fails"}
    assert failed == numbers | {"5.20"}
