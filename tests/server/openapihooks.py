"""Hooks of schemathesis, which loads this module in an environment of its own: requests that reach something.

SESSION is the id of a session that exists.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis

_ENOUGH = 20.0  # seconds: less may be too short for a kernel to start, which the server says with a status of 503


@schemathesis.check
def no_undeclared_failure(ctx: Any, response: Any, case: Any) -> None:
    """Allow no status of 5xx but 503 with a typed error, such as that no kernel is free."""
    declared = response.status_code == 503 and '"code"' in response.text
    assert response.status_code < 500 or declared, f"a status of {response.status_code}"


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Name the session that exists, three times in four."""
    if path_parameters and "session_id" in path_parameters and len(str(path_parameters)) % 4:
        path_parameters["session_id"] = os.environ["SESSION"]
    return path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Give kernels time to start, and ask no package index."""
    if isinstance(body, dict):
        if isinstance(body.get("timeout"), int | float):
            body["timeout"] = _ENOUGH
        if len(str(body.get("agent_id", ""))) % 2:  # else each request starts a kernel
            body["agent_id"] = "described"
        if "requirements" in body:
            body["requirements"] = ["no such!"]
        if isinstance(body.get("count"), int):
            body["count"] = min(body["count"], 2)
    return body
