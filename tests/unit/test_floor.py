"""The floor: no policy removes a restriction, and every request that lacks one is refused."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.container.floor import check_floor
from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.errors import PolicyError, SandboxFloorError
from orchestrator.policy.policy import Policy

SPEC = ContainerSpec("cellblock-x", "image", "runc", Path("/run/cellblock/x/wire"), 200001, "i", "k", ("b", "n"), "h")


def request_of(policy: Policy, spec: ContainerSpec = SPEC) -> dict[str, Any]:
    return create_request(spec, policy, policy.resource_limits())


def assert_restricted(request: dict[str, Any]) -> None:
    """Assert every restriction. Nothing here comes from the code under test."""
    host = request["HostConfig"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert not host.get("CapAdd")
    assert "no-new-privileges" in host["SecurityOpt"]
    profile = json.loads(next(option for option in host["SecurityOpt"] if option.startswith("seccomp="))[8:])
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert not allowed & {"io_uring_setup", "bpf", "keyctl", "userfaultfd", "perf_event_open", "unshare", "mount"}
    assert host["NetworkMode"] == "none"
    assert request["NetworkDisabled"] is True
    for namespace in ("PidMode", "UTSMode", "UsernsMode"):
        assert not host.get(namespace)
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    assert host["ReadonlyRootfs"] is True
    assert host["MemorySwap"] == host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["CpuQuota"] > 0
    for key in ("Binds", "VolumesFrom", "Devices", "DeviceRequests", "PortBindings", "GroupAdd", "ExtraHosts", "Links"):
        assert not host.get(key)
    for mount in host["Mounts"]:
        assert mount["ReadOnly"] is True
        assert mount["Type"] == "bind"
        assert "docker.sock" not in mount["Source"]
        assert mount["Target"] == "/run/kernel" or mount["Target"].startswith("/data/")
    for options in host["Tmpfs"].values():
        sizes = [part for part in options.split(",") if part.startswith("size=")]
        assert len(sizes) == 1
        assert int(sizes[0][5:-1]) > 0
    assert host["ShmSize"] > 0
    uid, gid = request["User"].split(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000


numbers = st.one_of(st.integers(-10, 2**40), st.floats(allow_nan=True), st.sampled_from([0, 1, 64, 80, 100, 512, 1024]))
scalars = st.one_of(numbers, st.booleans(), st.text(max_size=8))
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "limits": st.fixed_dictionaries(
        {},
        optional={
            "cpu_percent": st.floats(0.1, 100),
            "memory_mb": st.integers(2048, 2**20),
            "pids": st.integers(32, 2**15),
            "open_files": st.integers(64, 2**20),
            "output_mb": st.floats(0.001, 1024),
        },
    ),
    "tmpfs": st.fixed_dictionaries(
        {}, optional={name: st.integers(1, 200) for name in ("work_mb", "tmp_mb", "shm_mb")}
    ),
    "runtime": st.sampled_from(["auto", "runc", "runsc", "require-runsc"]),
    "environment": st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(max_size=20), max_size=3),
    "output": st.just({"mime_types": ["*/*"]}),
    "channels": st.fixed_dictionaries({}, optional={"stdin": st.booleans(), "comms": st.booleans()}),
}
HOSTILE_KEYS = ["privileged", "network", "user", "cap_add", "mounts", "devices", "pid", "HostConfig", "volumes"]
hostile = st.dictionaries(st.sampled_from([*LIKELY, *HOSTILE_KEYS, "seccomp", "data"]), st.one_of(
    scalars, st.dictionaries(st.sampled_from(["memory_mb", "pids", "work_mb", "x", "docker"]), scalars, max_size=3)
))  # fmt: skip


@given(st.fixed_dictionaries({}, optional=LIKELY), hostile)
def test_no_policy_removes_a_restriction(likely: dict[str, Any], changes: dict[str, Any]) -> None:
    """A policy file with any content is refused, or its container has every restriction."""
    for content in (likely, likely | changes):
        with tempfile.NamedTemporaryFile("wb", suffix=".toml") as file:
            file.write(tomlkit.dumps(content).encode("utf-8", "replace"))
            file.flush()
            try:
                policy = Policy.load(file.name)
            except PolicyError:
                continue
        assert_restricted(request_of(policy))


@given(st.fixed_dictionaries({}, optional=LIKELY))
def test_likely_policies_are_valid(content: dict[str, Any]) -> None:
    """The generator reaches the floor: likely policies load, once variables with reserved names are removed."""
    content.pop("environment", None)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(tomlkit.dumps(content))
        file.flush()
        assert_restricted(request_of(Policy.load(file.name)))


def _host(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda request: request["HostConfig"].__setitem__(key, value)


def _top(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda request: request.__setitem__(key, value)


def _mount(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(request: dict[str, Any]) -> None:
        mounts = request["HostConfig"]["Mounts"]
        mounts.append(mounts[0] | {"Target": "/data/x", "Source": "/srv/x"} | changes)

    return change


def _tmpfs(path: str, options: str) -> Callable[[dict[str, Any]], None]:
    return lambda request: request["HostConfig"]["Tmpfs"].__setitem__(path, options)


WEAKENED = {
    "privileged": _host("Privileged", True),
    "privileged-as-number": _host("Privileged", 1),
    "host network": _host("NetworkMode", "host"),
    "bridge": _host("NetworkMode", "bridge"),
    "another's network": _host("NetworkMode", "container:x"),
    "network enabled": _top("NetworkDisabled", False),
    "host pid": _host("PidMode", "host"),
    "host ipc": _host("IpcMode", "host"),
    "host uts": _host("UTSMode", "host"),
    "host userns": _host("UsernsMode", "host"),
    "host cgroupns": _host("CgroupnsMode", "host"),
    "capability": _host("CapAdd", ["CHOWN"]),
    "keeps capabilities": _host("CapDrop", []),
    "new privileges": _host("SecurityOpt", ["seccomp={}"]),
    "unconfined": _host("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
    "an allowing profile": _host(
        "SecurityOpt", ["no-new-privileges", 'seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}']
    ),
    "apparmor off": _host("SecurityOpt", ["no-new-privileges", "apparmor=unconfined"]),
    "writable root": _host("ReadonlyRootfs", False),
    "writable mount": _mount(ReadOnly=False),
    "writable by omission": _mount(ReadOnly=None),
    "docker.sock": _mount(Source="/var/run/docker.sock"),
    "the whole host": _mount(Source="/"),
    "a climbing source": _mount(Source="/srv/../etc"),
    "a mount elsewhere": _mount(Target="/etc"),
    "a climbing target": _mount(Target="/data/../etc"),
    "a volume": _mount(Type="volume"),
    "recursive": _mount(BindOptions={"Propagation": "rshared"}),
    "binds": _host("Binds", ["/:/host"]),
    "devices": _host("Devices", [{"PathOnHost": "/dev/kmsg"}]),
    "gpus": _host("DeviceRequests", [{"Count": -1}]),
    "device rule": _host("DeviceCgroupRules", ["a *:* rwm"]),
    "no memory limit": _host("Memory", 0),
    "swap": _host("MemorySwap", -1),
    "no pids limit": _host("PidsLimit", None),
    "no cpu limit": _host("CpuQuota", 0),
    "no shm size": _host("ShmSize", 0),
    "unsized tmpfs": _tmpfs("/work", "rw,nosuid,nodev"),
    "size zero": _tmpfs("/work", "rw,nosuid,nodev,size=0m"),
    "size twice": _tmpfs("/work", "rw,nosuid,nodev,size=5m,size=0"),
    "tmpfs elsewhere": _tmpfs("/etc", "rw,nosuid,nodev,size=5m"),
    "tmpfs with devices": _tmpfs("/work", "rw,nosuid,size=5m,dev"),
    "root": _top("User", "0:0"),
    "root by name": _top("User", "root"),
    "root's group": _top("User", "200001:0"),
    "no user": _top("User", ""),
    "system user": _top("User", "33:33"),
    "group": _host("GroupAdd", ["docker"]),
    "cores": _host("Ulimits", [{"Name": "core", "Soft": -1, "Hard": -1}]),
    "sysctl": _host("Sysctls", {"net.ipv4.ip_forward": "1"}),
    "cgroup parent": _host("CgroupParent", "/"),
    "unmasked": _host("MaskedPaths", []),
    "less masked": _host("MaskedPaths", ["/proc/kcore", "/proc/keys", "/sys/firmware"]),
    "oom disabled": _host("OomKillDisable", True),
    "init": _host("Init", True),
    "unbounded log": _host("LogConfig", {"Type": "json-file", "Config": {}}),
    "restart": _host("RestartPolicy", {"Name": "always"}),
    "volumes": _top("Volumes", {"/x": {}}),
    "ports": _top("ExposedPorts", {"22/tcp": {}}),
    "host's name": _top("Hostname", "host"),
    "healthcheck": _top("Healthcheck", {"Test": ["CMD", "true"]}),
    "entry point": _top("Entrypoint", ["sh"]),
    "unknown": _host("SomethingNew", 1),
}


@pytest.mark.parametrize("name", WEAKENED)
def test_a_request_without_one_restriction_is_refused(name: str) -> None:
    """A request that lacks a single restriction is refused."""
    request = copy.deepcopy(request_of(Policy()))
    check_floor(request)
    WEAKENED[name](request)
    with pytest.raises(SandboxFloorError) as caught:
        check_floor(request)
    assert caught.value.breaches


@given(st.data())
def test_no_key_can_be_left_out(data: st.DataObject) -> None:
    """A request without any one key of HostConfig is refused."""
    request = copy.deepcopy(request_of(Policy()))
    host = request["HostConfig"]
    key = data.draw(st.sampled_from(sorted(host)))
    del host[key]
    with pytest.raises(SandboxFloorError):
        check_floor(request)
