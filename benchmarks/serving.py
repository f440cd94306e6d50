"""Measures `cellblock serve`: what a call over HTTP costs beside one in the process, and how it stands 200 clients.

Run it with ``make serving``: about seven minutes, on an otherwise idle machine.

- A trivial ``execute`` over HTTP beside the same in a process of its own, in turn: with the standard library's client,
  which shows what the wire costs, and with ``AgentKernelManager.connect``.
- A lease with its first result, likewise. Each takes a warm kernel.
- 200 clients for five minutes: cells, streams, commands, files, new and ended sessions. Refusals are counted by code;
  anything else that is not an answer is an error. ``/health`` is asked all the time, and the server
  says for how long its event loop was held up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.command import run_main
from orchestrator import AgentKernelManager, CellblockError, CellFinished, Settings, StreamOutput
from orchestrator.remote.remotemanager import RemoteKernelManager

ROUNDS = 300
LEASES = 40
CLIENTS = 200
SECONDS = 300.0
SEED = 1
KERNELS = 12
REFILLED = 1.5  # seconds after which another warm kernel is there
PLAIN, PYTHON, LOCAL = "plain HTTP", "AgentKernelManager.connect", "in the process"
POLICY = """
[limits]
memory_mb = 256
[tmpfs]
work_mb = 64
tmp_mb = 64
[pool]
warm = 2
[scheduling]
memory_overcommit = 4
"""


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        done: how many calls of each kind were answered.
        refused: by error code.
        faults: whatever must not happen.
        health_ms: how long ``/health`` took, each time.
        lag_ms: for how long the server's event loop was late at most.
        busy_ms: for how long it computed meanwhile, at most: the rest is waiting for a core or another thread.
        rss_mb: the server's memory at each second.
    """

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    lag_ms: float = 0.0
    busy_ms: float = 0.0
    rss_mb: list[float] = field(default_factory=list)


REFUSALS = frozenset({"kernel_pool_exhausted", "too_many_requests", "session_ended", "kernel_died", "session_busy"})


@contextlib.contextmanager
def server(folder: Path, runtime: str, *options: str) -> Iterator[tuple[str, int]]:
    """Run a server. Yields its address and its process id."""
    environment = {
        **os.environ,
        "CELLBLOCK_DATA_DIR": str(folder / "data"),
        "CELLBLOCK_AUDIT_LOG": "off",
        "CELLBLOCK_RUNTIME": runtime,
    }
    command = [sys.executable, "-m", "orchestrator.cli.entry", "serve", "--port", "0", *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.terminate()
        process.wait(90)
        process.stdout.close()


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return milliseconds."""
    begun = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - begun)


async def leased(manager: Any, agent: str) -> None:
    """Take a kernel and run a cell in it."""
    async with manager.acquire_kernel(agent, 60) as (_, session):
        await manager.execute(session, "1")


def report(name: str, ours: list[float], theirs: list[float]) -> str:
    """Return one line: the medians with the middle half's range, and their ratio."""
    spread = [sorted(each) for each in (ours, theirs)]
    shown = [
        f"{statistics.median(each):.2f} ms ({each[len(each) // 4]:.2f}-{each[-len(each) // 4 - 1]:.2f})"
        for each in spread
    ]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"{name}: {shown[0]} beside {shown[1]} in the process, ratio {ratio:.2f}"


class PlainClient:
    """The server, through the standard library's HTTP client: what the wire itself costs."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request, and return its answer. It blocks the event loop, in which nothing else runs."""
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        return json.loads(self._connection.getresponse().read())

    async def session(self, agent: str) -> str:
        """Return the path of an agent's session."""
        return f"/v1/sessions/{(await self.ask('POST', '/v1/sessions', {'agent_id': agent}))['session_id']}"

    async def execute(self, path: str) -> None:
        """Run a trivial cell."""
        result = await self.ask("POST", f"{path}/execute", {"code": "1"})
        assert result["result"] == "1"

    async def lease(self, agent: str) -> None:
        """Take a kernel and run a cell in it."""
        await self.execute(await self.session(agent))

    async def end(self, agent: str) -> None:
        """End a session."""
        await self.ask("DELETE", await self.session(agent))


async def measure_calls(runtime: str, rounds: int, leases: int) -> None:
    """Print the ratios."""
    with tempfile.TemporaryDirectory() as name, server(Path(name), runtime) as (url, _):
        os.environ["CELLBLOCK_DATA_DIR"] = f"{name}/own"
        settings = Settings.load().model_copy(update={"runtime": runtime, "audit_log": "off"})
        local, remote, plain = AgentKernelManager(settings=settings), AgentKernelManager.connect(url), PlainClient(url)
        async with local, remote:
            async with local.acquire_kernel("a", 60) as (_, here), remote.acquire_kernel("a", 60) as (_, there):
                path = await plain.session("a")
                calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
                    (PLAIN, lambda: plain.execute(path)),
                    (PYTHON, lambda: remote.execute(there, "1")),
                    (LOCAL, lambda: local.execute(here, "1")),
                ]
                times: dict[str, list[float]] = {kind: [] for kind, _ in calls}
                for number in range(rounds + 20):
                    for kind, call in calls:
                        taken = await timed(call)
                        if number >= 20:
                            times[kind].append(taken)
            for kind in (PLAIN, PYTHON):
                print(report(f"{runtime}: execute, {kind}", times[kind], times[LOCAL]), flush=True)
            first: dict[str, list[float]] = {kind: [] for kind in times}
            await asyncio.sleep(3)
            for number in range(leases):
                agent = f"r{number}"
                first[PLAIN].append(await timed(partial(plain.lease, agent)))
                await plain.end(agent)
                for kind, manager in ((PYTHON, remote), (LOCAL, local)):
                    await asyncio.sleep(REFILLED)
                    first[kind].append(await timed(partial(leased, manager, agent)))
                    await manager.end_session(agent)
                await asyncio.sleep(REFILLED)
            for kind in (PLAIN, PYTHON):
                print(report(f"{runtime}: lease and first result, {kind}", first[kind], first[LOCAL]), flush=True)


async def client(manager: RemoteKernelManager, number: int, until: float, chance: random.Random, load: Load) -> None:
    """Work as one client: one thing after another, until the time is over."""
    agent = f"agent-{number % (KERNELS - 2)}"
    while time.monotonic() < until:
        kind = chance.choices(
            ["cell", "stream", "command", "files", "list", "new", "history"], [30, 20, 15, 15, 15, 2, 3]
        )[0]
        try:
            await asyncio.wait_for(_work(manager, kind, agent, number, chance, load), 120)
            load.done[kind] += 1
        except CellblockError as error:
            load.refused[error.code] += 1
            if error.code not in REFUSALS:
                load.faults.append(f"{kind}: {error!r}"[:300])
        except Exception as error:  # noqa: BLE001 - each is a finding
            load.faults.append(f"{kind}: {error!r}"[:300])


async def _work(
    manager: RemoteKernelManager, kind: str, agent: str, number: int, chance: random.Random, load: Load
) -> None:
    if kind == "list":
        await manager.list_sessions()
        return
    if kind == "new":
        agent = f"new-{number}"
    async with manager.acquire_kernel(agent, 60) as (_, session):
        if kind in ("cell", "new"):
            value = chance.randrange(10**9)
            result = await manager.execute(session, f"{value} + 1")
            if result.outcome == "ok" and result.result != str(value + 1):
                load.faults.append(f"a wrong result: {result.result}")
        elif kind == "stream":
            code = "for n in range(50): print(n, flush=True)"
            text, last = "", None
            async for event in manager.stream_code(session, code):
                text += event.text if isinstance(event, StreamOutput) else ""
                last = event
            if not isinstance(last, CellFinished):
                load.faults.append("a stream without an end")
            elif last.result.outcome == "ok" and text != "".join(f"{n}\n" for n in range(50)):
                load.faults.append("a stream out of order")
        elif kind == "command":
            await manager.run_command(session, "head -c 20000 /dev/urandom | sha256sum")
        elif kind == "files":
            data = chance.randbytes(100_000)
            await manager.write_file(session, f"f{number}", data)
            if await manager.read_file(session, f"f{number}") != data:
                load.faults.append("a file came back changed")
        else:
            await session.history()
    if kind == "new":
        await manager.end_session(agent)


async def watch(url: str, pid: int, load: Load) -> None:
    """Ask for health all the time, and look at the server's memory each second."""
    process, last = psutil.Process(pid), 0.0
    async with httpx.AsyncClient(base_url=url, timeout=30) as asking:
        while True:
            try:
                load.health_ms.append(await timed(lambda: asking.get("/health")))
            except httpx.HTTPError as error:
                load.faults.append(f"health: {error!r}")
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                load.rss_mb.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def watching(url: str, pid: int, load: Load) -> AsyncIterator[None]:
    """Watch the server while the block runs."""
    task = asyncio.create_task(watch(url, pid, load))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        async with httpx.AsyncClient(base_url=url, timeout=30) as asking:
            page = (await asking.get("/metrics")).text
        load.lag_ms = 1000 * float(page.split("cellblock_server_loop_lag_seconds ")[-1].split()[0])
        load.busy_ms = 1000 * float(page.split("cellblock_server_loop_busy_seconds ")[-1].split()[0])


async def under_load(url: str, pid: int, clients: int, seconds: float, seed: int) -> Load:
    """Let so many clients work at once for so many seconds. Returns what they saw."""
    load, until = Load(), time.monotonic() + seconds
    async with AgentKernelManager.connect(url) as manager, watching(url, pid, load):
        chances = [random.Random(seed * 1000 + number) for number in range(clients)]  # noqa: S311 - seeded work
        await asyncio.gather(*(client(manager, number, until, chance, load) for number, chance in enumerate(chances)))
    return load


def measure_load(runtime: str, clients: int, seconds: float, seed: int) -> int:
    """Print what the clients saw. Returns 1 if anything was wrong."""
    with tempfile.TemporaryDirectory() as name:
        policy = Path(name, "load.toml")
        policy.write_text(POLICY)
        options = ("--policy", str(policy), "--max-kernels", str(KERNELS), "--concurrent", str(2 * clients))
        with server(Path(name), runtime, *options) as (url, pid):
            load = asyncio.run(under_load(url, pid, clients, seconds, seed))
        log = Path(name, "log").read_text()
    health, memory = sorted(load.health_ms), load.rss_mb
    third = len(memory) // 3 or 1
    first, middle, last = map(statistics.mean, (memory[:third], memory[third : 2 * third], memory[-third:]))
    print(f"{runtime}: {clients} clients, {seconds:g} s: {load.done.total()} calls ({dict(load.done)})")
    refused = dict(load.refused) or "none"
    print(f"  refused: {refused}; faults: {len(load.faults)}; tracebacks: {log.count('Traceback')}")
    tail = f"p99 {health[len(health) * 99 // 100]:.1f} ms, longest {health[-1]:.1f} ms"
    print(f"  /health: median {statistics.median(health):.1f} ms, {tail}")
    print(f"  event loop: computed for {load.busy_ms:.0f} ms at a time at most, late for {load.lag_ms:.0f} ms at most")
    print(f"  memory: {first:.0f} MiB in the first third, {middle:.0f} in the second, {last:.0f} in the last")
    for fault in load.faults[:10]:
        print(f"  {fault}")
    return 1 if load.faults or "Traceback" in log else 0


def main() -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--leases", type=int, default=LEASES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--runtime", default="runc")
    parser.add_argument("--only", choices=["calls", "load"])
    wanted = parser.parse_args()
    if wanted.only != "load":
        asyncio.run(measure_calls(wanted.runtime, wanted.rounds, wanted.leases))
    if wanted.only != "calls":
        return measure_load(wanted.runtime, wanted.clients, wanted.seconds, wanted.seed)
    return 0


if __name__ == "__main__":
    run_main(main)
