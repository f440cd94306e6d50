"""30 agents analyse workbooks on three simulated hosts, and one host is killed in the midst: ``make cluster-demo``.

Each agent keeps a checkpoint after every cell. When its host is lost, it goes on elsewhere from the newest one, and
runs again what is not in it. Nobody runs a cell twice behind its back: the agent decides, and the report says so.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.errors import CellblockError
from tests.cluster.simulatedhosts import SimulatedHosts, simulated_hosts
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "examples"))
from spreadsheet.agents import AGENTS, Agent, modules
from spreadsheet.findings import checked
from spreadsheet.make_workbook import write

_PATIENCE = 240.0  # seconds that one agent may take in all
_KERNELS = 12  # of each host: two hosts do not hold all agents at once, so that some sleep


@dataclass
class Work:
    """One agent, and how far it is."""

    name: str
    agent: Agent
    nodes: list[str] = field(default_factory=list)
    cells: int = 0
    redone: int = 0
    failures: list[str] = field(default_factory=list)
    report: Any = None


async def analyse(manager: ClusterKernelManager, work: Work, book: Path) -> None:
    """Run the agent's cells, wherever its session is."""
    cells = list(work.agent.cells())
    displayed: Any = None
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and work.report is None:
        try:
            async with manager.acquire_kernel(work.name, timeout=60) as (_kernel, session):
                node = await manager.node_of(work.name)
                if node and node not in work.nodes:
                    work.nodes.append(node)
                found = await manager.execute(session, "globals().get('cells_done', -1)")
                done = int(found.result or -1)
                if done < 0:
                    await manager.put_file(session, book, "book.xlsx")
                    for module, place in modules():
                        await manager.put_file(session, module, place)
                    done = 0
                work.redone += max(0, work.cells - done)
                for number in range(done, len(cells)):
                    result = await manager.execute(session, f"{cells[number].code}\ncells_done = {number + 1}")
                    if result.outcome != "ok":
                        work.failures.append(str(result.outcome))
                        break
                    shown = [output.data for output in result.outputs if hasattr(output, "data")]
                    displayed = next(
                        (data["application/json"] for data in shown if "application/json" in data), displayed
                    )
                    work.cells = number + 1
                    await manager.checkpoint(session)
                else:
                    work.report = checked(work.agent.shape, displayed)
        except CellblockError as error:
            work.failures.append(type(error).__name__)
            await asyncio.sleep(0.5)


def shown(works: list[Work], lost: str) -> Table:
    """Return the agents as a table."""
    table = Table(title=f"{sum(work.report is not None for work in works)} of {len(works)} reports" + lost)
    for column in ("agent", "nodes", "cells", "run again", "report", "what went wrong on the way"):
        table.add_column(column, overflow="fold")
    for work in works:
        report = "" if work.report is None else f"{len(work.report.model_dump_json())} bytes"
        nodes = " → ".join(node[:6] for node in work.nodes)
        table.add_row(
            work.name, nodes, str(work.cells), str(work.redone or ""), report, ", ".join(dict.fromkeys(work.failures))
        )
    return table


async def run(bed: SimulatedHosts, token: str, book: Path, agents: int, console: Console) -> list[Work]:
    """Let the agents work, and kill the host that has most of them once a third of the cells have run."""
    works = [
        Work(f"{AGENTS[number % len(AGENTS)].name}-{number}", AGENTS[number % len(AGENTS)]) for number in range(agents)
    ]
    total, lost = sum(len(list(work.agent.cells())) for work in works), ""
    async with ClusterKernelManager(store_url=bed.store_url, token=token) as manager:
        tasks = [asyncio.create_task(analyse(manager, work, book)) for work in works]
        with Live(console=console, get_renderable=lambda: shown(works, lost), refresh_per_second=2, transient=True):
            while any(not task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=0.5)
                if not lost and sum(work.cells for work in works) > total / 3:
                    lost = await kill_busiest(bed, works)
        await asyncio.gather(*tasks)
    console.print(shown(works, lost))
    return works


async def kill_busiest(bed: SimulatedHosts, works: list[Work]) -> str:
    """Kill the host that most agents are on: its server, its engine and its kernels. Return what to say of it."""
    node, number = Counter(work.nodes[-1] for work in works if work.nodes and work.report is None).most_common(1)[0]
    directory = StoreDirectory(bed.store_url)
    url = next(record.url for record in await directory.nodes() if record.node_id == node)
    await directory.close()
    host = next(host for host in bed.hosts if host.url == url)
    await asyncio.to_thread(host.kill)
    return f"; {host.name} ({node[:6]}) was killed while it had {number} agents"


def main() -> int:
    """Run the demo. Return the exit status: 0 if all reports came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=30)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        book = Path(name) / "book.xlsx"
        write(book)
        console.print("cluster-demo: starting three hosts, with an engine each, and a database")
        with simulated_hosts(3, disk_mb=1024) as bed:
            token = bed.token("demo")
            for host in bed.hosts:
                host.serve("--max-kernels", str(_KERNELS), settings=bed.store)
            began = time.monotonic()
            works = asyncio.run(run(bed, token, book, options.agents, console))
            reports = sum(work.report is not None for work in works)
            moved = sum(len(work.nodes) > 1 for work in works)
            took, again = time.monotonic() - began, sum(work.redone for work in works)
            console.print(f"cluster-demo: {reports} of {len(works)} reports after {took:.0f} s")
            console.print(f"cluster-demo: {moved} agents went on on another host, and ran {again} cells again")
    return 0 if reports == len(works) else 1


if __name__ == "__main__":
    sys.exit(main())
