"""Measures a cluster: what a cell costs through a node beside one in the process, and what a distant database costs.

Run it with ``make clusters``: about four minutes, on an otherwise idle machine. Everything is measured in turn, in one
run, under runc.

- A trivial cell, 10,000 prints, 10 MB of output, and a lease with its first result: through a node and
  ``ClusterKernelManager``, beside a manager in the process.
- A trivial cell with PostgreSQL on this host, and with 0.5 ms of round-trip time to it.
- What a node costs that does nothing: its memory, and its share of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.command import run_main
from benchmarks.serving import timed
from orchestrator import AgentKernelManager, Settings
from orchestrator.cluster.clustermanager import ClusterKernelManager
from tests.postgres import postgres_server
from tests.postgresproxy import PostgresProxy

ROUNDS = 200
HEAVY = 12
LEASES = 12
IDLE = 20.0  # seconds
ROUND_TRIP = 0.0005  # seconds
PRINTS = "for n in range(10_000): print(n)"
MEGABYTES = "print('x' * 10_000_000)"


@contextlib.contextmanager
def node(folder: Path, store_url: str) -> Iterator[psutil.Process]:
    """Run a node of the cluster."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "CELLBLOCK_DATA_DIR": str(folder / "data"),
        "CELLBLOCK_STATE_DIR": str(folder / "s"),
        "CELLBLOCK_AUDIT_LOG": "off",
        "CELLBLOCK_RUNTIME": "runc",
        "CELLBLOCK_STORE_URL": store_url,
        "CELLBLOCK_NODE_URL": f"http://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "orchestrator.cli.entry", "serve", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(90)
        process.stdout.close()


@contextlib.asynccontextmanager
async def local(folder: Path, store_url: str = "") -> AsyncIterator[AgentKernelManager]:
    """Run a manager in this process."""
    settings = Settings(
        data_dir=str(folder / "data"), state_dir=str(folder / "s"), audit_log="off", runtime="runc", store_url=store_url
    )
    async with AgentKernelManager(settings=settings) as manager:
        yield manager


async def in_turn(rounds: int, *work: Callable[[], Awaitable[object]], pause: float = 0.0) -> list[list[float]]:
    """Do each piece of work once in each round, and return the milliseconds of each."""
    taken: list[list[float]] = [[] for _ in work]
    for number in range(rounds + 3):
        for one, times in zip(work, taken, strict=True):
            if pause:
                await asyncio.sleep(pause)
            times.append(await timed(one))
        if number == 2:
            taken = [[] for _ in work]  # the first rounds prepare
    return taken


def row(name: str, ours: list[float], theirs: list[float], bound: str) -> tuple[str, ...]:
    """Return the medians with the middle half's range, and their ratio."""
    shown = []
    for each in (sorted(ours), sorted(theirs)):
        low, high = each[len(each) // 4], each[-len(each) // 4 - 1]
        shown.append(f"{statistics.median(each):.2f} ms ({low:.2f}-{high:.2f})")
    return name, *shown, f"{statistics.median(ours) / statistics.median(theirs):.2f}", bound


async def cells(manager: Any, agent: str, code: str) -> Callable[[], Awaitable[object]]:
    """Return what runs ``code`` in a session of its own."""
    context = manager.acquire_kernel(agent, 60)
    _, session = await context.__aenter__()  # until the manager ends
    return lambda: manager.execute(session, code)


async def measure(console: Console) -> None:
    table = Table("what", "ours", "beside", "ratio", "asked")
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cb-"))) for _ in range(4)]
        url = stack.enter_context(postgres_server())
        other = stack.enter_context(postgres_server())
        proxy = stack.enter_context(contextlib.closing(PostgresProxy(other)))
        direct = stack.enter_context(contextlib.closing(PostgresProxy(url)))
        server = stack.enter_context(node(folders[0], url))
        async with contextlib.AsyncExitStack() as managers:
            remote = await managers.enter_async_context(ClusterKernelManager(store_url=url))
            here = await managers.enter_async_context(local(folders[1]))
            for name, code, rounds, bound in (
                ("a trivial cell", "1", ROUNDS, "1.3"),
                ("10,000 prints", PRINTS, HEAVY, "1.11"),
                ("10 MB of output", MEGABYTES, HEAVY, "1.11"),
            ):
                console.print(f"measuring {name}")
                ways = [await cells(manager, f"{name} {code[:9]}", code) for manager in (remote, here)]
                ours, theirs = await in_turn(rounds, *ways)
                table.add_row(*row(f"{name}: a node, the process", ours, theirs, bound))
            console.print("measuring leases")
            ours, theirs = await leases(remote, here)
            table.add_row(*row("a lease and its first result: a node, the process", ours, theirs, "2"))
            await here.shutdown()
            console.print("measuring a node that does nothing")
            await remote.end_session("a trivial cell 1")
            server.cpu_percent()
            await asyncio.sleep(IDLE)
            idle = f"{server.memory_info().rss / 2**20:.0f} MiB, {server.cpu_percent():.1f} % of a core"
        console.print("measuring a distant database")
        async with local(folders[2], direct.url) as near, local(folders[3], proxy.url) as far:
            ways = [await cells(manager, "a", "1") for manager in (far, near)]
            proxy.delay_s = ROUND_TRIP / 2
            ours, theirs = await in_turn(ROUNDS, *ways)
            table.add_row(*row("a trivial cell: the database 0.5 ms away, here", ours, theirs, "1.2"))
            proxy.delay_s = 0.0
    console.print(table)
    console.print(f"a node that does nothing: {idle}")


async def leases(remote: Any, here: Any) -> list[list[float]]:
    """Take kernels for new agents, each of which is ready."""
    number = 0

    async def lease(manager: Any) -> None:
        nonlocal number
        number += 1
        async with manager.acquire_kernel(f"lease {number}", 60) as (_, session):
            await manager.execute(session, "1")
        ending.append(asyncio.ensure_future(manager.end_session(f"lease {number}")))

    ending: list[asyncio.Future[bool]] = []
    found = await in_turn(LEASES, lambda: lease(remote), lambda: lease(here), pause=1.5)
    await asyncio.gather(*ending)
    return found


def main() -> None:
    """Measure, and print a table."""
    asyncio.run(measure(Console()))


if __name__ == "__main__":
    run_main(main)
