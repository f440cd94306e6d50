"""Executes the trivial cell through ``jupyter_client``."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.drivers.serving import CODE, Execute, check

_SECONDS = 60.0  # maximum wait for one message


async def run(client: Any) -> str:
    """Execute the cell until its idle message and reply, and return its output."""
    request = client.execute(CODE)
    printed = ""
    while True:
        message = await client.get_iopub_msg(timeout=_SECONDS)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            break
    await client.get_shell_msg(timeout=_SECONDS)
    return printed


def executing(client: Any) -> Execute:
    """Return a function that executes the cell on a client and checks the output."""

    async def execute() -> None:
        check(await run(client))

    return execute
