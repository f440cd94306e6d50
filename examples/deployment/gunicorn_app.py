"""A WSGI application: `gunicorn --workers 2 --config python:gunicorn_app gunicorn_app:application`.

POST /?agent=NAME runs the body as a cell. Each worker has a manager of its own, and any worker may serve any agent:
with ``handover=True``, the worker that has the agent's session hands it over when no call uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from cellblock.sync import Manager


@cache
def manager() -> Manager:
    """Return this worker's manager. It is made with the first request, so after the fork."""
    return Manager(max_kernels=2, keep_sessions=True)


def worker_exit(_server: object, _worker: object) -> None:
    """Keep the sessions for the next worker. Gunicorn calls it; a function of ``atexit`` would come too late."""
    if manager.cache_info().currsize:
        manager().shutdown()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Run one cell of an agent."""
    agent = parse_qs(environ["QUERY_STRING"])["agent"][0]
    code = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
    with manager().acquire_kernel(agent, timeout=60, handover=True) as (_kernel, session):
        result = manager().execute(session, code)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"worker": os.getpid(), "outcome": result.outcome, "result": result.result}).encode()]
