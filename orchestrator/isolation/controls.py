"""Negative controls: containers that each lack one defence. The probes must turn red in them.

Each control starts from the real container request and removes one defence. Where gVisor itself is the defence, the
control runs under runc.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.kernel.guard import Guard, Receive
from orchestrator.kernel.kernelconfig import ContainerRequest, KernelConfig
from orchestrator.kernel.line import Line
from orchestrator.kernel.loopshare import KernelShare, LoopShare
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy.policy import Policy

_log = logging.getLogger(__name__)
_SETUID = 0o4755
_ENDLESS_MB = 2**20
_DOCKER_SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Scenery:
    """What the host prepares for the controls.

    Attributes:
        folder: a folder of the host that everyone may write to, with a setuid file in it.
        docker_socket: a listening socket that stands in for the engine's.
        network: the name of a network of the engine.
        uid: the user of a live neighbour.
    """

    folder: Path
    docker_socket: Path
    network: str
    uid: int


Weaken = Callable[[dict[str, Any], Scenery], None]


@dataclass(frozen=True, slots=True)
class Control:
    """A container that lacks one defence.

    Attributes:
        lacks: a description of the missing defence.
        weaken: removes the defence from the container request.
        reds: the claims that must turn red, by runtime. The control does not run under a runtime that is not listed.
        prelude: a cell that runs before the probes.
        deserted: whether the host does not stop the kernel when it should.
        unguarded: whether the guard puts no bound on what the kernel sends.
        unlimited_sockets: whether the host removes the limit on the memory of sockets after the start.
    """

    name: str
    lacks: str
    weaken: Weaken
    reds: Mapping[str, tuple[str, ...]]
    prelude: str = ""
    deserted: bool = False
    unguarded: bool = False
    unlimited_sockets: bool = False

    def config(self, config: KernelConfig, scenery: Scenery) -> KernelConfig:
        """Return the configuration for kernels that lack the defence, given the correct configuration."""
        config = replace(config, container_request=self._weakened(scenery))
        if self.unguarded:
            return replace(config, guard=_Unguarded, limits=replace(config.limits, max_output_size_mb=_ENDLESS_MB))
        return config

    def _weakened(self, scenery: Scenery) -> ContainerRequest:

        def weakened(spec: ContainerSpec, policy: Policy, limits: KernelResourceLimits) -> dict[str, Any]:
            request = create_request(spec, policy, limits)
            self.weaken(request, scenery)
            return request

        return weakened


@contextlib.contextmanager
def scenery(network: str, uid: int) -> Iterator[Scenery]:
    """Prepare what the controls need, and remove it when the context ends."""
    folder = Path(tempfile.mkdtemp(prefix="cellblock-control-"))
    listener = socket.socket(socket.AF_UNIX)
    try:
        shared = folder / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        setuid = shared / "setuid"
        setuid.write_bytes(b"")
        setuid.chmod(_SETUID)
        path = folder / "docker.sock"
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o666)
        yield Scenery(shared, path, network, uid)
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def network_name() -> str:
    return f"cellblock-control-{secrets.token_hex(4)}"


def _privileged(request: dict[str, Any], _: Scenery) -> None:
    host = request["HostConfig"]
    host["Privileged"] = True
    del host["CapDrop"]


def _unconfined(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["SecurityOpt"] = ["no-new-privileges", "seccomp=unconfined"]


def _writable_mount(request: dict[str, Any], scenery: Scenery) -> None:
    _mount(request, scenery.folder, "/mnt", readonly=False)


def _docker_socket(request: dict[str, Any], scenery: Scenery) -> None:
    _mount(request, scenery.docker_socket, _DOCKER_SOCKET, readonly=True)


def _mount(request: dict[str, Any], source: Path, target: str, *, readonly: bool) -> None:
    mount = {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": readonly}
    request["HostConfig"]["Mounts"].append(mount)


def _writable_wire(request: dict[str, Any], _: Scenery) -> None:
    wire = request["HostConfig"]["Mounts"][0]
    wire["ReadOnly"] = False
    os.chmod(wire["Source"], 0o777)  # noqa: S103 - this control needs a writable folder


def _host_network(request: dict[str, Any], _: Scenery) -> None:
    _network(request, "host")
    del request["Hostname"]  # the engine refuses a host name on the host's network


def _bridge_network(request: dict[str, Any], scenery: Scenery) -> None:
    _network(request, scenery.network)


def _network(request: dict[str, Any], mode: str) -> None:
    request["NetworkDisabled"] = False
    request["HostConfig"]["NetworkMode"] = mode


def _root(request: dict[str, Any], _: Scenery) -> None:
    _run_as(request, 0)


def _shared_user(request: dict[str, Any], scenery: Scenery) -> None:
    _run_as(request, scenery.uid)


def _run_as(request: dict[str, Any], uid: int) -> None:
    old = request["User"].partition(":")[0]
    request["User"] = f"{uid}:{uid}"
    tmpfs = request["HostConfig"]["Tmpfs"]
    for path, options in tmpfs.items():
        tmpfs[path] = options.replace(f"uid={old},gid={old}", f"uid={uid},gid={uid}")


def _no_memory_limit(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"].update(Memory=0, MemorySwap=0)


def _unsized_tmpfs(request: dict[str, Any], _: Scenery) -> None:
    tmpfs = request["HostConfig"]["Tmpfs"]
    for path, options in tmpfs.items():
        tmpfs[path] = ",".join(part for part in options.split(",") if not part.startswith("size="))


def _host_ipc(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["IpcMode"] = "host"
    del request["HostConfig"]["ShmSize"]


def _host_names(request: dict[str, Any], _: Scenery) -> None:
    request["Hostname"] = socket.gethostname()
    request["Env"].append("HOST_PROXY=host.example")


def _unlimited(request: dict[str, Any], _: Scenery) -> None:
    host = request["HostConfig"]
    host.update(PidsLimit=None, CpuQuota=0, CpuPeriod=0, Ulimits=[])


def _writable_root(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["ReadonlyRootfs"] = False


def _capability(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"].update(
        CapAdd=["CHOWN"], SecurityOpt=["seccomp=unconfined"]
    )  # no filter without no-new-privileges


def _device(request: dict[str, Any], _: Scenery) -> None:
    device = {"PathOnHost": "/dev/zero", "PathInContainer": "/dev/odd", "CgroupPermissions": "rwm"}
    request["HostConfig"]["Devices"] = [device]


def _init(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["Init"] = True


def _unmasked(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"].update(MaskedPaths=[], ReadonlyPaths=[])


def _last_to_die(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["OomScoreAdj"] = 0


def _bare_runc(request: dict[str, Any], scenery: Scenery) -> None:
    """Run under runc, without the defences that gVisor provides."""
    request["HostConfig"]["Runtime"] = "runc"
    _unconfined(request, scenery)
    _host_network(request, scenery)
    _unmasked(request, scenery)


def _careless(request: dict[str, Any], scenery: Scenery) -> None:
    for weaken in (_host_ipc, _host_names, _capability, _device, _unmasked, _last_to_die, _writable_root):
        weaken(request, scenery)


def _other_runtime(request: dict[str, Any], _: Scenery) -> None:
    request["HostConfig"]["Runtime"] = "io.containerd.runc.v2"


def _nothing(request: dict[str, Any], _: Scenery) -> None:
    """Leave the request as it is: the control is weakened elsewhere."""


class _EndlessShare(KernelShare):
    """A share of the event loop that is never used up."""

    def end(self) -> None:
        """Count nothing."""


class _Unguarded(Guard):
    """A guard without bounds: it queues every message, gives its kernel the whole loop, and ignores violations.

    It logs the reasons that its kernel gives as they are.
    """

    def __init__(self, message_bound: int, share: KernelShare) -> None:
        super().__init__(2**62, _EndlessShare(LoopShare()))

    def lines(self, receive: Receive) -> Mapping[str, Line]:
        def log_and_receive(channel: str, frames: list[bytes]) -> None:
            if channel in ("shell", "control") and b'"reason"' in frames[-1]:
                _log.warning("%s", json.loads(frames[-1]).get("reason"))
            receive(channel, frames)

        return super().lines(log_and_receive)

    def disconnect(self, reason: str, violated: bool = False, excess: bool = False) -> None:
        if not violated:
            super().disconnect(reason)


def _control(
    name: str,
    lacks: str,
    weaken: Weaken,
    both: tuple[str, ...],
    *,
    runc: tuple[str, ...] = (),
    prelude: str = "",
    deserted: bool = False,
    unguarded: bool = False,
    unlimited_sockets: bool = False,
) -> Control:
    reds = {"runc": both + runc, "runsc": both}
    return Control(name, lacks, weaken, reds, prelude, deserted, unguarded, unlimited_sockets)


_WAITING_INPUT = "import time; get_ipython().kernel.raw_input = lambda *_: time.sleep(60)"

CONTROLS = (
    # The two slowest controls come first, so that the others run beside them.
    _control(
        "left-paused", "a host that unpauses the container before it stops it", _nothing,
        ("paused_kernel_is_removed_whole",), deserted=True,
    ),
    _control(
        "unguarded", "a guard on its wire, and an output limit", _nothing,
        ("wire_excess_disconnects_the_kernel", "wire_floods_are_bounded", "wire_violations_end_the_kernel",
         "wire_forgeries_end_the_kernel", "expensive_output_is_bounded", "cell_output_has_a_total",
         "kernels_words_are_one_printable_line", "command_output_is_bounded"), unguarded=True,
    ),
    _control(
        "privileged", "every defence that --privileged removes", _privileged,
        ("container_has_no_privilege", "container_paths_are_masked", "kernel_has_no_capability"),
        runc=("kernel_surface_is_small", "kernel_sees_no_device"),
    ),
    _control(
        "seccomp-unconfined", "a seccomp filter", _unconfined,
        ("container_has_the_policys_seccomp_profile",),
        runc=("kernel_surface_is_small", "kernel_has_no_odd_socket_family", "kernel_makes_no_namespace_on_the_host"),
    ),
    _control(
        "writable-mount", "the absence of a writable mount", _writable_mount,
        ("container_mounts_nothing_writable", "kernel_writes_to_sized_tmpfs_alone", "kernel_starts_empty",
         "kernel_finds_no_setuid_file"),
    ),
    _control(
        "writable-wire", "a read-only wire folder", _writable_wire,
        ("container_mounts_nothing_writable", "kernel_cannot_change_its_wire"),
    ),
    _control(
        "host-network", "a network namespace of its own", _host_network, ("container_has_its_own_namespaces",),
        runc=("kernel_cannot_reach_network", "kernel_cannot_connect_to_abstract_sockets_of_the_host"),
    ),
    _control(
        "bridge-network", "the absence of a network", _bridge_network, ("container_has_its_own_namespaces",),
        runc=("kernel_cannot_reach_network",),
    ),
    _control("root", "an unprivileged user", _root, ("kernel_runs_as_nobody", "container_user_is_from_the_range")),
    _control(
        "shared-user", "a user of its own", _shared_user,
        ("kernel_shares_its_user_with_no_other", "inotify_bomb_leaves_the_neighbour_its_own"),
    ),
    _control(
        "no-memory-limit", "a memory limit", _no_memory_limit,
        ("container_memory_is_limited", "memory_bomb_ends_its_own_kernel", "childs_memory_counts",
         "container_sockets_are_limited"), unlimited_sockets=True,
    ),
    _control(
        "unsized-tmpfs", "sizes of its tmpfs mounts", _unsized_tmpfs,
        ("container_tmpfs_are_sized", "kernel_tmpfs_have_the_policys_sizes", "files_hit_a_wall"),
    ),
    _control(
        "docker-socket", "the absence of docker.sock", _docker_socket,
        ("kernel_finds_no_foreign_socket", "container_mounts_nothing_writable"),
    ),
    _control(
        "unlimited", "limits on processes and CPU", _unlimited,
        ("container_processes_and_files_are_limited", "container_cpu_is_limited", "kernel_dumps_no_core",
         "fork_bomb_hits_a_wall", "thread_bomb_hits_a_wall", "descriptor_bomb_hits_a_wall"),
    ),
    _control(
        "init", "the kernel's launcher as its first process", _init,
        ("container_log_is_bounded", "container_output_costs_nothing"),
    ),
    _control(
        "waiting-input", "an input() that fails at once", _nothing, ("input_fails_at_once",), prelude=_WAITING_INPUT,
    ),
    _control(
        "careless", "several smaller defences at once", _careless,
        ("container_has_its_own_namespaces", "kernel_has_its_own_ipc", "kernel_knows_no_name_of_the_host",
         "container_root_is_read_only", "kernel_has_no_capability", "container_has_no_privilege",
         "kernel_sees_no_device", "container_paths_are_masked", "kernel_dies_before_the_host"),
        runc=("kernel_cannot_steer_the_host", "kernel_cannot_watch_the_host"),
    ),
    Control("bare-runc", "gVisor, and all that it provides", _bare_runc, {"runsc": (
        "container_runs_under_its_runtime", "kernel_surface_is_small", "kernel_has_no_odd_socket_family",
        "kernel_makes_no_namespace_on_the_host", "kernel_cannot_reach_network", "kernel_cannot_steer_the_host",
        "kernel_cannot_watch_the_host", "kernel_cannot_connect_to_abstract_sockets_of_the_host",
    )}),
    Control("other-runtime", "the requested runtime", _other_runtime,
            {"runc": ("container_runs_under_its_runtime",)}),
)  # fmt: skip
