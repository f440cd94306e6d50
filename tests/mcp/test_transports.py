"""The server with the SDK's client: both transports, both eras of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from mcp import Client

from tests.conftest import make_manager
from tests.mcp.servers import call, ended, http_client, http_server, images_of, stdio_server, text_of

PLOT = "import matplotlib.pyplot as plt; _ = plt.plot([1, 4, 9]); plt.show()"
LOOP = "import time\nprint('looping', flush=True)\nwhile True: time.sleep(0.1)"


@contextlib.asynccontextmanager
async def connected(transport: str, mode: str) -> AsyncIterator[Client]:
    if transport == "stdio":
        async with Client(stdio_server("tests.mcp.servers"), mode=mode) as client:
            yield client
    else:
        async with make_manager("runc") as manager, http_server(manager) as url, http_client(url, mode=mode) as client:
            yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_client_of_each_era_over_each_transport(transport: str, mode: str) -> None:
    """Text, state, a picture, an error, progress, a cell of many answers, and a cancelled endless loop."""
    async with asyncio.timeout(60), connected(transport, mode) as client:
        assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")

        assert await call(client, "run_python", code="x = 6\nprint('hello')\nx * 7") == "hello\n42"

        plot = await ended(client, await client.call_tool("run_python", {"code": PLOT}))
        assert [each.mime_type for each in images_of(plot)] == ["image/png"]
        assert plot.structured_content is None
        assert images_of(plot)[0].data not in text_of(plot)

        failed = await client.call_tool("run_python", {"code": "1 / 0"})
        assert not failed.is_error
        assert (failed.meta or {})["org.cellblock/outcome"] == "error"
        assert text_of(failed).endswith("ZeroDivisionError: division by zero")

        seen: list[float] = []

        async def see(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)

        slow = "import time\nfor i in range(5): print('step', i, flush=True); time.sleep(0.3)"
        first = await client.call_tool("run_python", {"code": slow}, progress_callback=see)
        assert seen == sorted(seen)
        assert len(seen) >= 2
        assert "step 1" in text_of(first)
        assert "still running" in text_of(first)
        job = (first.meta or {})["org.cellblock/id"]
        assert (await call(client, "wait", id=job)).startswith("step 0\nstep 1\n")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await client.call_tool("run_python", {"code": LOOP})
        after = await call(client, "run_python", code="print(x)")
        assert after.startswith("6\n[An earlier call was given up")
        lost = after.partition('wait("')[2].partition('"')[0]
        assert "looping" in await call(client, "wait", id=lost)
        assert await call(client, "run_python", code="x + 1") == "7"
