"""Nodes on the bed: they come up, join, and go down; and a server goes on when whatever supervises it is killed."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import AgentKernelManager
from tests.cluster.simulatedhost import SimulatedHost
from tests.cluster.simulatedhosts import SimulatedHosts, simulated_hosts
from tests.conformance.__main__ import environment

_LONG = 180.0  # seconds, on a busy machine
_RAYS_FILE = "/run/data/cluster/ray-token"
_ASKS = {"CELLBLOCK_ASK_NODES": "4"}
_RESERVED = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
groups = ray.util.placement_group_table().values()
print(sum(group["state"] == "CREATED" for group in groups))
"""


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _LONG
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def server_of(host: SimulatedHost) -> psutil.Process:
    (found,) = [each for each in host.processes() if "serve" in cmdline(each) and "nsenter" not in cmdline(each)[:1]]
    return found


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def of_ray(host: SimulatedHost, name: str) -> list[psutil.Process]:
    return [each for each in host.processes() if cmdline(each) and name in " ".join(cmdline(each)[:4])]


def status(host: SimulatedHost) -> tuple[dict[str, dict[str, Any]], str]:
    """Return what the command says: each node's state by its name, and the fault."""
    shown = host.cellblock("cluster", "status", "--json", check=False)
    form = json.loads(shown.stdout)
    return {state["name"]: state for state in form["nodes"]}, form["fault"]


def share_token(bed: SimulatedHosts, host: SimulatedHost, token: bytes | None = None) -> None:
    host.run("mkdir", "-p", "-m", "700", "/run/data/cluster")
    host.path(_RAYS_FILE).write_bytes(bed.hosts[0].path(_RAYS_FILE).read_bytes() if token is None else token)


@pytest.fixture(scope="module")
def bed() -> Iterator[SimulatedHosts]:
    """A bed whose hosts have Ray."""
    with simulated_hosts(3, python=environment("ray")) as bed:
        yield bed


@pytest.fixture(scope="module")
def nodes(bed: SimulatedHosts) -> Iterator[SimulatedHosts]:
    """A cluster of h1, which has Ray's head, and h2."""
    head, second, _ = bed.hosts
    head.cellblock("cluster", "up", "--host", head.address, settings={**bed.store, **_ASKS}, seconds=_LONG)
    share_token(bed, second)
    join(bed, second)
    yield bed
    for host in (second, head):
        host.cellblock("cluster", "down", seconds=_LONG)


def join(bed: SimulatedHosts, host: SimulatedHost) -> None:
    settings = {**bed.store, **_ASKS}
    host.cellblock("cluster", "join", f"{bed.hosts[0].address}:6379", settings=settings, seconds=_LONG)


@contextlib.asynccontextmanager
async def session_on(bed: SimulatedHosts, host: SimulatedHost) -> AsyncIterator[tuple[Any, Any]]:
    token = bed.hosts[0].path("/run/data/cluster/operator-token").read_text()
    async with (
        AgentKernelManager.connect(host.url, token=token) as manager,
        manager.acquire_kernel(f"agent-{host.name}", timeout=120) as (_kernel, session),
    ):
        yield manager, session


async def test_both_nodes_serve_and_are_shown(nodes: SimulatedHosts) -> None:
    """Each is serving where others reach it, with usual priority, and runs a cell."""
    found, fault = status(nodes.hosts[0])
    assert fault == ""
    for host in nodes.hosts[:2]:
        assert (found[host.name]["condition"], found[host.name]["url"]) == ("serving", host.url)
        server = server_of(host)
        assert server.nice() == 0
        assert Path(f"/proc/{server.pid}/oom_score_adj").read_text() == "0\n"
        async with session_on(nodes, host) as (manager, session):
            assert (await manager.execute_code(session, "kept = 41"))["status"] == "ok"


def test_an_operator_looks_after_all_nodes_from_one_of_them(nodes: SimulatedHosts) -> None:
    """It knows the database and the token of `up`. A node is named as Ray names it."""
    head = nodes.hosts[0]
    assert {each["node"] for each in head.json("ps", "--cluster")} == {
        host.url.removeprefix("http://") for host in nodes.hosts[:2]
    }
    head.cellblock("cluster", "drain", "h2", seconds=_LONG)
    head.cellblock("cluster", "undrain", "h2")
    chains = head.json("audit", "verify", "--cluster")
    assert [chain["state"] for chain in chains] == ["whole", "whole"]


def test_nodes_with_sessions_are_reserved(nodes: SimulatedHosts) -> None:
    """So Ray's autoscaler, which knows nothing of sessions, ends none of them."""
    head = nodes.hosts[0]
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": _RAYS_FILE}
    command = (environment("ray"), "-c", _RESERVED, f"{head.address}:6379")
    until(
        lambda: head.run(*command, environment={**head.environment(), **ray}).stdout.strip() == "2",
        "the nodes are not reserved",
    )


async def test_a_server_outlives_its_actor_and_the_next_one_finds_it(nodes: SimulatedHosts) -> None:
    host = nodes.hosts[1]
    server = server_of(host)
    (actor,) = of_ray(host, "ray::NodeActor")
    actor.kill()
    until(lambda: status(host)[0].get("h2", {}).get("condition") == "serving", "the actor does not come back")
    assert of_ray(host, "ray::NodeActor")[0] != actor
    assert server_of(host) == server
    assert status(host)[0]["h2"]["starts"] == 0
    async with session_on(nodes, host) as (manager, session):
        assert (await manager.execute_code(session, "kept + 1"))["result"] == "42"


async def test_a_server_that_is_killed_is_started_again(nodes: SimulatedHosts) -> None:
    """It finds its sessions: the kernel that it left is adopted, or wakes from a checkpoint."""
    host = nodes.hosts[1]
    server = server_of(host)
    server.kill()
    until(lambda: status(host)[0]["h2"]["condition"] == "serving", "the server does not come back")
    assert server_of(host) != server
    async with session_on(nodes, host) as (manager, session):
        assert (await manager.execute_code(session, "kept + 1"))["result"] == "42"


def test_a_server_outlives_the_raylet_and_joins_again(nodes: SimulatedHosts) -> None:
    """Ray ends on this host with its raylet; after a second `join`, the same server is supervised again."""
    host = nodes.hosts[1]
    server = server_of(host)
    for raylet in of_ray(host, "/raylet/raylet"):
        raylet.kill()
    until(lambda: not of_ray(host, "ray.scripts.scripts"), "Ray does not end")
    assert server_of(host) == server
    join(nodes, host)
    assert server_of(host) == server
    assert status(host)[0]["h2"]["condition"] == "serving"


async def test_servers_outlive_the_head_and_are_found_again(nodes: SimulatedHosts) -> None:
    """With the head killed, cells run, and `status` shows this host's node; `up` and `join` find the servers."""
    head, second, _ = nodes.hosts
    servers = [server_of(head), server_of(second)]
    for process in of_ray(head, "gcs_server"):
        process.kill()
    until(lambda: not of_ray(head, "ray.scripts.scripts"), "Ray does not end")
    found, fault = status(head)
    assert "no Ray head answers" in fault
    assert {name: state["condition"] for name, state in found.items()} == {"h1": "serving"}
    async with session_on(nodes, second) as (manager, session):
        assert (await manager.execute_code(session, "kept + 1"))["result"] == "42"
    head.cellblock("cluster", "up", "--host", head.address, settings=nodes.store, seconds=_LONG)
    for raylet in of_ray(second, "ray.scripts.scripts"):  # it would end by itself a minute after its head
        raylet.send_signal(signal.SIGTERM)
    until(lambda: not of_ray(second, "ray.scripts.scripts"), "Ray does not end")
    join(nodes, second)
    assert [server_of(head), server_of(second)] == servers
    assert {name: state["condition"] for name, state in status(head)[0].items()} == {"h1": "serving", "h2": "serving"}


def test_a_host_with_another_token_is_refused(nodes: SimulatedHosts) -> None:
    """Nothing of it runs afterwards, and the cluster has no such node."""
    stranger = nodes.hosts[2]
    share_token(nodes, stranger, b"0" * 64)
    address = f"{nodes.hosts[0].address}:6379"
    refused = stranger.cellblock("cluster", "join", address, settings=nodes.store, seconds=300, check=False)
    assert refused.returncode == 1
    assert "Ray" in refused.stderr
    assert "token" in refused.stderr
    assert not [each for each in stranger.processes() if "serve" in cmdline(each)]
    assert "h3" not in status(nodes.hosts[0])[0]
    stranger.cellblock("cluster", "down")


async def test_down_ends_everything_and_keeps_the_sessions(nodes: SimulatedHosts) -> None:
    """A second `down` says that there is nothing; after `join`, the agent goes on."""
    host = nodes.hosts[1]
    host.cellblock("cluster", "down", seconds=_LONG)
    assert not [each for each in host.processes() if "serve" in cmdline(each)]
    assert not of_ray(host, "ray")
    assert "h2" not in status(nodes.hosts[0])[0]
    assert host.containers() == {}
    assert "part of no cluster" in host.cellblock("cluster", "down").stdout
    join(nodes, host)
    async with session_on(nodes, host) as (manager, session):
        assert (await manager.execute_code(session, "kept + 1"))["result"] == "42"
