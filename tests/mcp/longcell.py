"""A cell of many minutes through `cellblock mcp`: python -m tests.mcp.longcell [--minutes 10]

Every answer has to come within 60 s, with the output so far, and the last one with all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from mcp import Client

from tests.mcp.servers import call, id_in, stdio_server, text_of

CODE = "import time\nfor i in range({count}): print('step', i, flush=True); time.sleep(10)\n'done'"


async def run(minutes: float) -> None:
    count, slowest, answers = round(minutes * 6), 0.0, 1
    async with Client(stdio_server("orchestrator.cli.entry", "mcp", "--policy", "data-science")) as client:
        await call(client, "run_python", code="kept = 1")
        begun = asked = time.monotonic()
        result = await client.call_tool("run_python", {"code": CODE.format(count=count)}, read_timeout_seconds=60)
        while (result.meta or {})["org.cellblock/outcome"] == "running":
            slowest, answers = max(slowest, time.monotonic() - asked), answers + 1
            assert "step " in text_of(result)
            asked = time.monotonic()
            result = await client.call_tool("wait", {"id": id_in(result)}, read_timeout_seconds=60)
        assert text_of(result).startswith("step 0\n")
        assert f"step {count - 1}\n'done'" in text_of(result)
        assert await call(client, "run_python", code="kept") == "1"
    took = time.monotonic() - begun
    print(f"a cell of {took / 60:.1f} minutes: {answers} answers, the slowest after {slowest:.1f} s, no output lost")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    asyncio.run(run(parser.parse_args().minutes))
