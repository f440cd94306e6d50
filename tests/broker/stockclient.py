"""A stock Jupyter client of a broker, and what it receives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo

READY = 30.0  # seconds


def connection(folder: Path, key: str = "a key of the host's") -> dict[str, Any]:
    """Return a connection file's content, with sockets in ``folder``."""
    ports = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    return {"transport": "ipc", "ip": f"{folder}/b", "key": key, "signature_scheme": "hmac-sha256", **ports}


@dataclass
class Answer:
    """A reply, and the messages on iopub that came for its request, up to the idle status."""

    reply: dict[str, Any]
    shown: list[tuple[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[Any]:
        """Return the contents of the messages of one type."""
        return [content for each, content in self.shown if each == kind]

    @property
    def text(self) -> str:
        """What was printed."""
        return "".join(content["text"] for content in self.of("stream"))


class StockClient:
    """jupyter_client's own client."""

    def __init__(self, connection_info: Mapping[str, Any]) -> None:
        self.client = AsyncKernelClient()
        self.client.load_connection_info(cast("KernelConnectionInfo", dict(connection_info)))
        self.others: list[dict[str, Any]] = []

    async def execute(self, code: str, timeout: float = READY, **options: Any) -> Answer:
        """Run a cell, and collect all that belongs to it."""
        return await self.answer(self.client.execute(code, **options), timeout)

    async def answer(self, message_id: str, timeout: float = READY) -> Answer:
        """Wait for the reply to a request, and for its idle status. Messages of other requests are kept aside."""
        async with asyncio.timeout(timeout):
            reply = await self.client.get_shell_msg(timeout=timeout)
            while reply["parent_header"].get("msg_id") != message_id:
                reply = await self.client.get_shell_msg(timeout=timeout)
            found = Answer(reply["content"])
            while True:
                message = await self.client.get_iopub_msg(timeout=timeout)
                if message["parent_header"].get("msg_id") != message_id:
                    self.others.append(message)
                    continue
                found.shown.append((message["msg_type"], message["content"]))
                if message["content"].get("execution_state") == "idle":
                    return found

    async def heard(self, *kinds: str, timeout: float = READY) -> dict[str, Any]:
        """Return the next message of these types that another's request caused."""
        async with asyncio.timeout(timeout):
            while True:
                message = self.others.pop(0) if self.others else await self.client.get_iopub_msg(timeout=timeout)
                if message["msg_type"] in kinds:
                    return message


@contextlib.asynccontextmanager
async def stock_client(connection_info: Mapping[str, Any]) -> AsyncIterator[StockClient]:
    """Connect a client, and wait until it is ready."""
    stock = StockClient(connection_info)
    stock.client.start_channels()
    try:
        await stock.client.wait_for_ready(timeout=READY)
        yield stock
    finally:
        stock.client.stop_channels()
