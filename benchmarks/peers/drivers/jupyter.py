"""The trivial cell on a kernel that ``jupyter_client`` talks to directly."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.drivers.serving import CODE, Execute, check

_SECONDS = 60.0  # for one message


async def run(client: Any) -> str:
    """Execute the cell, and return what it printed. Done means: idle and reply."""
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
    async def execute() -> None:
        check(await run(client))

    return execute
