"""The dashboard of one node, in a real browser, over all nodes of its cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from orchestrator.store.database import Database
from orchestrator.store.noderecord import Capacity
from orchestrator.store.nodetable import NodeTable
from tests.cluster.test_real_cluster import Nodes, nodes_of
from tests.dashboard.chromium import browser_page
from tests.dashboard.conftest import World
from tests.dashboard.served import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")
FOREVER = "import time\nwhile True: time.sleep(0.05)"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[World, Served]]:
    """Two nodes with tokens, and a browser at the first; the second is beside it."""
    folder = tmp_path_factory.mktemp("browser")
    with nodes_of(postgres_url, 2) as nodes:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client, browser_page(folder) as page:
            here, there = (
                Served(server.url, Path(server.environment["CELLBLOCK_AUDIT_LOG"]), server.environment, client)
                for server in nodes.servers.values()
            )
            operator = here.token("olga", "--group", "ops", "--operator")
            alice = here.token("alice", "--group", "alice")
            _add_hostile_node(nodes)
            await page.look()
            yield World(here, page, operator, alice, "", folder), there


def _add_hostile_node(nodes: Nodes) -> None:
    """Enter a node whose address is markup, and which nobody can reach."""
    capacity = Capacity(kernels=1, free=1, memory_free_mb=1, cores=1, load=0)
    database = Database(nodes.url)
    try:
        NodeTable(database).join_cluster(
            "hostile",
            url=f"http://{HOSTILE}:1",
            version="1",
            protocol=1,
            lease_s=3600,
            capacity=capacity,
        )
    finally:
        database.close()


def operators(server: Served) -> list[dict[str, Any]]:
    entries = map(json.loads, server.audit.read_text().splitlines())
    return [entry for entry in entries if entry["event"].startswith("operator.")]


async def test_an_operator_sees_and_acts_on_every_node(worlds: tuple[World, Served]) -> None:
    """Rows say which node they are of; a button reaches the node, whose log has the operator's name."""
    world, there = worlds
    page = world.page
    agent = f"{HOSTILE} worker"
    session = await there.session(world.alice, agent)
    await there.run(world.alice, session, "x = 42")
    await there.start(world.alice, session, f"print('seen here', flush=True)\n{FOREVER}")
    await world.enter(world.operator)
    place = urlsplit(there.url).netloc
    row = f"[...document.querySelectorAll('tbody tr')].find(e => e.innerText.includes({agent!r}))"
    await page.until(f"{row}?.innerText.includes('busy')")
    assert place in await page.evaluate(f"{row}.innerText")
    await page.until("document.querySelector('.facts').innerText.includes('no answer')")
    facts = await page.evaluate("document.querySelector('.facts').innerText")
    assert HOSTILE in facts
    assert place in facts
    assert await page.evaluate("document.querySelector('#view img')") is None
    assert not [said for said in page.said if "dialog" in said]
    await page.evaluate(f"location.hash = '#/sessions/{session}'")
    await page.until("document.querySelector('.cells')?.innerText.includes('seen here')")
    await world.press_button(f"Interrupt alice:{agent}")
    await world.said(f"The running cell of alice:{agent} was interrupted.")
    async with asyncio.timeout(30):
        while await there.state(world.alice, session) != "asleep":
            await world.press_button(f"Hibernate alice:{agent}")
            await asyncio.sleep(0.5)
    await there.run(world.alice, session, "x")
    await world.press_button(f"End alice:{agent}")
    await page.until("document.getElementById('question').open")
    await page.click("document.getElementById('question-yes')")
    await world.said(f"The session of alice:{agent} has ended.")
    done = [entry for entry in operators(there) if entry["session"] == session]
    assert {"operator.interrupt", "operator.hibernate", "operator.kill"} <= {entry["event"] for entry in done}
    assert {entry["operator"]["name"] for entry in done} == {"olga"}
    assert "operator.kill" not in {entry["event"] for entry in operators(world.server)}


async def test_a_caller_of_a_group_sees_no_node(worlds: tuple[World, Served]) -> None:
    """The list of nodes, and what is sent on to them, are an operator's alone."""
    world, there = worlds
    head = {"Authorization": f"Bearer {world.alice}"}
    session = await there.session(world.alice, "mine")
    for method, path in (("GET", "nodes"), ("POST", f"sessions/{session}/interrupt"), ("GET", "audit/verify")):
        answer = await there.client.request(method, f"{world.server.url}/v1/operator/{path}", headers=head)
        assert answer.status_code == 403
