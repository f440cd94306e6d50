"""A WSGI application whose workers share the kernels of one server: `gunicorn --workers 4 wsgi_app:application`.

POST /?agent=NAME runs the body as a cell. Any worker serves any agent, since the sessions are the server's: there is
nothing to hand over. Set CELLBLOCK_URL, and CELLBLOCK_TOKEN to what `cellblock token create` has printed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import httpx


@cache
def server() -> httpx.Client:
    """Return this worker's connections to the server. They are made with the first request, so after the fork."""
    headers = {"Authorization": f"Bearer {os.environ['CELLBLOCK_TOKEN']}"}
    return httpx.Client(base_url=os.environ["CELLBLOCK_URL"], headers=headers, timeout=120)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Run one cell of an agent. The agent comes from the user that you have authenticated, never from a client."""
    agent = parse_qs(environ["QUERY_STRING"])["agent"][0]
    code = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
    session = server().post("/v1/sessions", json={"agent_id": agent}).raise_for_status().json()
    answer = server().post(f"/v1/sessions/{session['session_id']}/execute", json={"code": code})
    found = answer.raise_for_status().json()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"worker": os.getpid(), "outcome": found["outcome"], "result": found["result"]}).encode()]
