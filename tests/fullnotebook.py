"""A notebook of 40 cells over the full image: ``python -m tests.fullnotebook``. ``make full-image`` runs it.

Each cell uses a library of the image and ends with an expression of which the value is known. One session runs them all
under each runtime, and sleeps once in between.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator import AgentKernelManager, Settings

POLICY = """
[image]
requirements = "full"
[limits]
memory_mb = 2048
execution_time_s = 120
idle_timeout_s = 3600
"""
SLEEP_AFTER = 20  # cells
CELLS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["cell"]


async def run(policy: Path, runtime: str, table: Table) -> int:
    """Run the notebook, and return the number of cells that did not give what they should."""
    settings = Settings(policy=str(policy), runtime=runtime, data_dir=str(policy.parent / runtime), audit_log="off")
    wrong = 0
    async with AgentKernelManager(max_kernels=1, settings=settings) as manager:
        for number, cell in enumerate(CELLS, 1):
            async with manager.acquire_kernel("analyst", timeout=120) as (_, session):
                begun = time.monotonic()
                result = await manager.execute(session, cell["code"])
                took = time.monotonic() - begun
                shown = {kind for output in result.outputs for kind in getattr(output, "data", {})}
                good = (result.outcome, result.result) == ("ok", cell["result"]) and shown.issuperset(
                    cell.get("shows", ())
                )
                wrong += not good
                said = result.result if result.outcome == "ok" else result.as_text(limit=400)
                table.add_row(runtime, str(number), cell["library"], "ok" if good else f"WRONG: {said}", f"{took:.2f}")
            if number == SLEEP_AFTER:
                wrong += not await manager.hibernate("analyst")
    return wrong


async def main() -> int:
    """Run the notebook under each runtime, and return the number of wrong cells."""
    table = Table("runtime", "cell", "library", "result", "seconds", title=f"{len(CELLS)} cells over the full image")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "full.toml")
        policy.write_text(POLICY)
        for runtime in os.environ.get("CELLBLOCK_TEST_RUNTIMES", "runc,runsc").split(","):
            wrong += await run(policy, runtime, table)
    Console(width=120).print(table)
    print(f"full image: {wrong} cells are wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main()) else 0)
