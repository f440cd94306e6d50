"""Measures how long kernels take to start, to run cells and to end, for the simulation in ``scheduling.py``.

``make service-times`` runs it on real kernels and replaces ``servicetimes.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from rich.progress import track

from benchmarks.command import run_main
from benchmarks.subjects import manager_on
from orchestrator import AgentKernelManager

FILE = Path(__file__).with_suffix(".json")
CELLS = (
    "1 + 1",
    "import pandas as pd, numpy as np",
    "rows = pd.DataFrame({'key': np.arange(200_000) % 97, 'value': np.random.default_rng(1).normal(size=200_000)})",
    "rows.describe()",
    "rows.groupby('key').value.agg(['mean', 'std', 'count']).sort_values('mean').head()",
    "rows.to_csv('rows.csv', index=False); len(pd.read_csv('rows.csv'))",
    "import matplotlib.pyplot as plt",
    "figure, axes = plt.subplots(); axes.hist(rows.value, bins=50); figure.savefig('values.png'); plt.close(figure)",
    "sum(n * n for n in range(1_000_000))",
    "print(open('rows.csv').readline())",
)


@dataclass
class ServiceTimes:
    """Observed times in seconds.

    Attributes:
        start: from the request for a kernel to its lease, with an empty pool.
        cell: from sending a cell to its result.
        end: from the end of a session until its kernel is removed.
    """

    start: list[float] = field(default_factory=list)
    cell: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)

    @classmethod
    def load(cls) -> Self:
        """Return the times of ``servicetimes.json``."""
        return cls(**json.loads(FILE.read_text()))


async def observe(manager: AgentKernelManager, found: ServiceTimes) -> None:
    """Run all cells as one agent in a new kernel, and add the times to ``found``."""
    asked = time.monotonic()
    async with manager.acquire_kernel("agent", timeout=120) as (_kernel, session):
        found.start.append(time.monotonic() - asked)
        for code in CELLS:
            sent = time.monotonic()
            result = await manager.execute_code(session, code)
            found.cell.append(time.monotonic() - sent)
            assert result["status"] == "ok", result
    ended = time.monotonic()
    await manager.end_session("agent")
    found.end.append(time.monotonic() - ended)


async def measure(runtime: str, sessions: int) -> ServiceTimes:
    """Return the times of ``sessions`` sessions, one after the other."""
    found = ServiceTimes()
    async with manager_on(runtime, warm=0) as manager:
        await manager.start()
        for _ in track(range(sessions), f"sessions under {runtime}"):
            await observe(manager, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m benchmarks.servicetimes --sessions 5"
    )
    parser.add_argument("--sessions", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--runtime", default="runc", help="default: %(default)s")
    options = parser.parse_args()
    found = asyncio.run(measure(options.runtime, options.sessions))
    rounded = {name: [round(seconds, 4) for seconds in observed] for name, observed in asdict(found).items()}
    FILE.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    run_main(main)
