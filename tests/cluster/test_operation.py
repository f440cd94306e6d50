"""Looking after a cluster as after one host: two nodes with audit logs of their own, and one database."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from orchestrator.cluster.clustermanager import ClusterKernelManager
from tests.cluster.test_real_cluster import Nodes, nodes_of
from tests.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")
COMMAND = [sys.executable, "-m", "orchestrator.cli.entry"]
FOREVER = "import time\nwhile True: time.sleep(0.05)"


@pytest.fixture(scope="module")
def nodes(postgres_url: str) -> Iterator[Nodes]:
    with nodes_of(postgres_url, 2) as nodes:
        yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(nodes: Nodes) -> AsyncIterator[ClusterKernelManager]:
    async with ClusterKernelManager(store_url=nodes.url) as manager:
        yield manager


def environment(nodes: Nodes, folder: Path) -> dict[str, str]:
    """Return the environment of a host that is no node."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CELLBLOCK_")}
    own |= {
        "CELLBLOCK_STORE_URL": nodes.url,
        "CELLBLOCK_DATA_DIR": str(folder / "data"),
        "CELLBLOCK_STATE_DIR": str(folder / "state"),
        "CELLBLOCK_AUDIT_LOG": str(folder / "audit.jsonl"),
        "COLUMNS": "200",
    }
    return own


def cellblock(nodes: Nodes, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host that is no node."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(nodes, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


async def asked(nodes: Nodes, folder: Path, *arguments: str, status: int = 0) -> Any:
    """Return what a command prints with --json."""
    done = await asyncio.to_thread(cellblock, nodes, folder, *arguments, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def address(nodes: Nodes, node_id: str) -> str:
    return urlsplit(nodes.servers[node_id].url).netloc


def audited(nodes: Nodes, node_id: str, event: str) -> list[dict[str, Any]]:
    """Return the entries of one event in a node's own audit log."""
    log = Path(nodes.servers[node_id].environment["CELLBLOCK_AUDIT_LOG"])
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


async def on_each_node(nodes: Nodes, manager: ClusterKernelManager) -> dict[str, str]:
    """Run a cell in sessions until each node has one. Return an agent of each node."""
    agents: dict[str, str] = {}
    for number in range(20):
        agent = f"agent-{number}"
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute(session, "x = 41")
        agents.setdefault(await nodes.of(manager, agent), agent)
        if len(agents) == len(nodes.servers):
            return agents
    raise AssertionError(f"all sessions are on {agents}")


async def test_one_table_has_the_kernels_and_the_sessions_of_all_nodes(
    nodes: Nodes, manager: ClusterKernelManager, tmp_path: Path
) -> None:
    """Each row has its node; `sessions show` and `export` read a session of any node."""
    agents = await on_each_node(nodes, manager)
    found = await asked(nodes, tmp_path, "ps", "--cluster")
    placed = {(kernel["agent"], host["node"]) for host in found for kernel in host["kernels"] if kernel["agent"]}
    listed = {(row["agent_id"], row["node"]) for row in await asked(nodes, tmp_path, "sessions", "list", "--cluster")}
    for node_id, agent in agents.items():
        assert (f"local:{agent}", address(nodes, node_id)) in placed & listed
    table = await asyncio.to_thread(cellblock, nodes, tmp_path, "ps", "--cluster")
    assert all(address(nodes, node_id) in table.stdout for node_id in nodes.servers)
    for node_id, agent in agents.items():
        shown = await asked(nodes, tmp_path, "sessions", "show", f"local:{agent}", "--cluster")
        assert (shown["node"], shown["cells"][0]["code"]) == (address(nodes, node_id), "x = 41")
        done = await asyncio.to_thread(
            cellblock, nodes, tmp_path, "sessions", "export", f"local:{agent}", "--format", "py", "--cluster"
        )
        assert "x = 41" in done.stdout


async def test_an_operator_acts_on_a_session_of_any_node(
    nodes: Nodes, manager: ClusterKernelManager, tmp_path: Path
) -> None:
    """It is done, and the node that did it has it in its log. A session is deleted once no node has it."""
    for node_id, agent in (await on_each_node(nodes, manager)).items():
        name = f"local:{agent}"
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            running = await manager.start_code(session, FOREVER)
            await asyncio.sleep(0.5)
            assert (await asked(nodes, tmp_path, "interrupt", name, "--cluster"))["interrupted"] is True
            assert (await running.wait()).outcome == "interrupted"
        async with asyncio.timeout(30):  # the server may still hold the session for a moment
            while (await asked_any(nodes, tmp_path, "hibernate", name, "--cluster")).get("hibernated") is not True:
                await asyncio.sleep(0.2)
        assert await manager.node_of(agent) is None
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            assert (await manager.execute(session, "x + 1")).result == "42"
        owner = await nodes.of(manager, agent)
        refused = await asyncio.to_thread(cellblock, nodes, tmp_path, "sessions", "delete", name, "--yes", "--cluster")
        assert refused.returncode == 1
        assert address(nodes, owner) in " ".join(refused.stderr.split())
        killed = await asked(nodes, tmp_path, "kill", name, "--cluster")
        assert (killed["killed"], killed["node"]) == (True, address(nodes, owner))
        assert session.session_id in {entry["session"] for entry in audited(nodes, owner, "operator.kill")}
        assert session.session_id in {entry["session"] for entry in audited(nodes, node_id, "operator.interrupt")}
        await asked(nodes, tmp_path, "sessions", "delete", session.session_id, "--yes", "--cluster")
        left = await asked(nodes, tmp_path, "sessions", "list", "--cluster")
        assert session.session_id not in {row["session_id"] for row in left}


async def asked_any(nodes: Nodes, folder: Path, *arguments: str) -> Any:
    """Return what a command prints with --json, whatever its exit status."""
    done = await asyncio.to_thread(cellblock, nodes, folder, *arguments, "--json")
    return json.loads(done.stdout)


async def test_each_node_reaches_the_sessions_of_the_others(nodes: Nodes, manager: ClusterKernelManager) -> None:
    """What an operator asks of one node is done by the node that has the session, once."""
    agents = await on_each_node(nodes, manager)
    (one, mine), (other, _) = agents.items()
    async with httpx.AsyncClient(timeout=60) as http:
        found = (await http.get(f"{nodes.servers[other].url}/v1/operator/nodes")).json()["nodes"]
        assert {(row["address"], row["state"], row["is_this"]) for row in found} == {
            (address(nodes, one), "up", False),
            (address(nodes, other), "up", True),
        }
        there = next(row for row in found if not row["is_this"])
        assert f"local:{mine}" in {kernel["agent"] for each in there["managers"] for kernel in each["kernels"]}
        async with manager.acquire_kernel(mine, timeout=60) as (_kernel, session):
            path = f"{nodes.servers[other].url}/v1/operator/sessions/{session.session_id}"
            running = await manager.start_code(session, f"print('seen', flush=True)\n{FOREVER}")
            async with asyncio.timeout(30):
                while "seen" not in (await http.get(f"{path}/view?first=1&last=20")).text:
                    await asyncio.sleep(0.1)
            assert (await http.post(f"{path}/interrupt")).json() == {"interrupted": True}
            assert (await running.wait()).outcome == "interrupted"
            assert (await http.get(path)).json()["node"] == address(nodes, one)
        done = {node: [each["session"] for each in audited(nodes, node, "operator.interrupt")] for node in agents}
        assert done[one].count(session.session_id) == 1
        assert session.session_id not in done[other]
        assert (await http.delete(path)).json() == {"ended": True}
        assert await manager.node_of(mine) is None


async def test_the_metrics_of_the_cluster(nodes: Nodes, manager: ClusterKernelManager) -> None:
    """Each node says the same of all nodes; a node's own page has nothing of the cluster."""
    agents = await on_each_node(nodes, manager)
    async with httpx.AsyncClient(timeout=60) as http:
        pages = [(await http.get(f"{server.url}/metrics/cluster")).text for server in nodes.servers.values()]
        own = (await http.get(f"{nodes.servers[next(iter(agents))].url}/metrics")).text
    for page in pages:
        assert 'cellblock_cluster_nodes{state="up"} 2.0' in page
        for node_id in nodes.servers:
            values = {
                name: float(re.search(rf'^{name}{{node="{address(nodes, node_id)}"}} (\S+)$', page, re.M)[1])  # type: ignore[index]
                for name in (f"cellblock_cluster_node_{each}" for each in ("places", "sessions", "lease_age_seconds"))
            }
            places, sessions, age = values.values()
            assert places == 10
            assert sessions >= 1
            assert age <= 4
    assert "cellblock_cells_total" in own
    assert "cellblock_cluster" not in own


async def test_a_drained_node_is_put_back(nodes: Nodes, manager: ClusterKernelManager, tmp_path: Path) -> None:
    """Its sessions move with their variables, it takes none, then it takes some again; its log has who asked."""
    agents = await on_each_node(nodes, manager)
    drained = next(iter(agents))
    done = await asyncio.to_thread(cellblock, nodes, tmp_path, "cluster", "drain", address(nodes, drained))
    assert done.returncode == 0, done.stderr
    async with manager.acquire_kernel(agents[drained], timeout=60) as (_kernel, session):
        assert (await manager.execute(session, "x + 1")).result == "42"
    assert await nodes.of(manager, agents[drained]) != drained
    done = await asyncio.to_thread(cellblock, nodes, tmp_path, "cluster", "undrain", address(nodes, drained))
    assert done.returncode == 0, done.stderr
    assert set(await on_each_node(nodes, manager)) == set(nodes.servers)
    for event in ("operator.drain", "operator.undrain"):
        (entry,) = audited(nodes, drained, event)
        assert entry["operator"]["name"] == "local"


async def test_whose_audit_chain_is_whole(nodes: Nodes, manager: ClusterKernelManager, tmp_path: Path) -> None:
    """A line that was altered is found on its node; the newest entries of all nodes are one list, without code."""
    first, second = nodes.servers
    chains = await asked(nodes, tmp_path, "audit", "verify", "--cluster")
    assert [chain["state"] for chain in chains] == ["whole", "whole"]
    heads = [f"--head={chain['node']}={chain['verdict']['head']}" for chain in chains]
    await asked(nodes, tmp_path, "audit", "verify", "--cluster", *heads)
    wrong = [heads[0], f"--head={chains[1]['node']}=1:{'0' * 64}"]
    found = await asked(nodes, tmp_path, "audit", "verify", "--cluster", *wrong, status=1)
    assert sorted(chain["state"] for chain in found) == ["broken", "whole"]
    log = Path(nodes.servers[second].environment["CELLBLOCK_AUDIT_LOG"])
    log.write_text(log.read_text().replace('"cell.started"', '"cell.nothing"', 1))
    found = {chain["node"]: chain for chain in await asked(nodes, tmp_path, "audit", "verify", "--cluster", status=1)}
    assert found[address(nodes, first)]["state"] == "whole"
    broken = found[address(nodes, second)]
    assert (broken["state"], broken["verdict"]["fault"]["kind"]) == ("broken", "altered")
    done = await asyncio.to_thread(cellblock, nodes, tmp_path, "audit", "tail", "-n", "500", "--cluster", "--json")
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["log_of"] for entry in entries} == {address(nodes, node) for node in nodes.servers}
    assert not any("code" in entry for entry in entries)
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)


async def test_a_node_that_does_not_answer_is_a_row_that_says_so(
    nodes: Nodes, manager: ClusterKernelManager, tmp_path: Path
) -> None:
    """The other node's kernels are shown all the same, by the commands and by the node that answers."""
    silent, other = nodes.servers
    nodes.servers[silent].process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(180):
            table = await asyncio.to_thread(cellblock, nodes, tmp_path, "ps", "--cluster")
            assert table.returncode == 0, table.stderr
            (row,) = [line for line in table.stdout.splitlines() if address(nodes, silent) in line]
            assert "has not answered" in row or "lease is over" in row
            assert address(nodes, other) in table.stdout
            top = Terminal([*COMMAND, "top", "--cluster"], environment(nodes, tmp_path))
            await top.until(lambda text: all(address(nodes, node) in text for node in nodes.servers), 60)
            top.press("q")
            assert await top.wait(30) == 0
            found = await asked(nodes, tmp_path, "audit", "verify", "--cluster", status=1)
            assert "unread" in {chain["state"] for chain in found}
            async with httpx.AsyncClient(timeout=60) as http:
                rows = (await http.get(f"{nodes.servers[other].url}/v1/operator/nodes")).json()["nodes"]
        assert {row["is_this"]: row["managers"] is None for row in rows} == {True: False, False: True}
    finally:
        nodes.servers[silent].process.send_signal(signal.SIGCONT)
