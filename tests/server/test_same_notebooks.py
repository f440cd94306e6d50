"""Notebooks over a server: the manager's own tests of them, and the routes of ``/v1``.

The tests of ``Notebooks`` are those of ``tests/docker/test_notebooks.py``; only the manager is another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
import pytest_asyncio

from orchestrator.output.tokencount import tokens
from orchestrator.remote.remotesession import RemoteSession
from tests.docker.test_notebooks import (
    notebooks,
    test_a_flood_of_output_is_answered_within_the_budget,
    test_a_run_that_is_cancelled_leaves_its_cell_stale_and_the_kernel_free,
    test_a_timeout_and_a_death_are_results_and_lost_variables_make_code_stale,
    test_every_operation_of_the_protocol,
    test_files_of_the_sandbox_in_place_of_the_hosts,
    test_outputs_are_those_of_jupyter,
    test_stale_cells_are_run_in_their_order,
    test_the_dispatcher_is_the_single_entry,
)
from tests.mcp.servers import call, http_client
from tests.server.conftest import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def http(server: Server, session: RemoteSession) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{server.url}{session.path}/", timeout=60) as client:
        yield client


async def do(http: httpx.AsyncClient, op: str, status: int = 200, **fields: Any) -> dict[str, Any]:
    answer = await http.post("notebooks", json={"op": op, **fields})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_operation_is_one_request(http: httpx.AsyncClient) -> None:
    """Made, run, saved in the sandbox, downloaded and closed; the answers are those of the dispatcher."""
    made = await do(http, "create_notebook")
    name = made["notebook_id"]
    added = await do(http, "add_cell", source="x = 6 * 7\nx")
    assert added["outputs"] == [{"type": "execute_result", "text": "42"}]
    without = {key: value for key, value in added.items() if key != "token_estimate"}
    assert added["token_estimate"] == tokens(json.dumps(without))
    assert (await do(http, "add_cell", source="1 / 0"))["status"] == "error"
    assert (await do(http, "save_notebook", path="v1.ipynb"))["path"] == "v1.ipynb"
    listed = (await http.get("notebooks")).json()
    assert {"notebook_id": name, "path": "v1.ipynb"} in listed["notebooks"]
    file = await http.get(f"notebooks/{name}")
    assert file.headers["content-type"] == "application/x-ipynb+json"
    nbformat.validate(nbformat.reads(file.text, as_version=4))
    assert file.content == (await http.get("files/content", params={"path": "v1.ipynb"})).content
    await do(http, "close_notebook")


async def test_refusals_are_typed_and_no_path_leads_to_the_host(http: httpx.AsyncClient) -> None:
    """A problem with the error's own code, and the status of its kind."""
    refused = await do(http, "open_notebook", 422, path=str(Path(__file__)))
    assert (refused["code"], refused["fields"]) == ("notebook_creation", {})
    assert (await do(http, "get_cells", 404, notebook_id="nb-none"))["code"] == "notebook_not_found"
    await do(http, "create_notebook")
    assert (await do(http, "edit_cell", 404, cell_id="none", source="x"))["code"] == "cell_not_found"
    found = await do(http, "add_cell", 422, source="x", position=7)
    assert (found["code"], found["fields"]) == ("invalid_position", {"position": 7, "total": 0})
    assert (await do(http, "explode", 422))["code"] == "invalid_input"
    assert (await http.get("notebooks/nb-none")).status_code == 404
    await do(http, "add_cell", source="a = 1")
    await do(http, "save_notebook", path="conflict.ipynb")
    theirs = (await http.get("files/content", params={"path": "conflict.ipynb"})).json()
    theirs["cells"][0]["source"] = "a = 3"
    await http.put("files/content", params={"path": "conflict.ipynb"}, content=json.dumps(theirs))
    cell = await do(http, "edit_cell", index=0, source="a = 2")
    conflict = await do(http, "save_notebook", 409)
    assert conflict["code"] == "notebook_conflict"
    assert conflict["fields"] == {"path": "conflict.ipynb", "cells": [cell["cell_id"]]}
    await do(http, "close_notebook", save=False)


async def test_a_client_that_disconnects_interrupts_its_cell(http: httpx.AsyncClient) -> None:
    """And one that sends a request twice with one key runs it once."""
    await do(http, "create_notebook")
    with pytest.raises(httpx.ReadTimeout):
        await http.post("notebooks", json={"op": "add_cell", "source": "while True: pass"}, timeout=1.5)
    async with asyncio.timeout(20):
        assert (await do(http, "add_cell", source="n = 0"))["status"] == "ok"
    key, body = {"Idempotency-Key": "once"}, {"op": "execute_cell", "source": "n += 1; n"}
    answers = [(await http.post("notebooks", json=body, headers=key)).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["outputs"] == [{"type": "execute_result", "text": "1"}]


async def test_mcp_and_http_see_the_same_notebooks(http: httpx.AsyncClient, server: Server) -> None:
    await do(http, "create_notebook")
    await do(http, "add_cell", source="over_http = 1")
    async with http_client(f"{server.url}/mcp") as client:
        found = json.loads(await call(client, "notebook", op="get_cells", session="agent"))
    assert [cell["source"] for cell in found["cells"]] == ["over_http = 1"]
