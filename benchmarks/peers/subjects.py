"""What takes turns: our own kernels and a local one in this process, and each peer in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.drivers.jupyter import executing
from benchmarks.peers.drivers.serving import CODE, Execute, Server, check
from benchmarks.peers.preparation import REPOSITORY, Place
from benchmarks.subjects import manager_on, stock_kernel

_ANSWER = 120.0  # seconds a driver has for one order
_END = 60.0  # seconds a driver has to give everything back
_PASSED_ON = ("PATH", "HOME", "LANG", "DOCKER_HOST", "TMPDIR")  # of the environment: a peer copies it into sandboxes


class Orders(Protocol):
    """What a subject can be told: ``drivers.serving`` says what each order means. Times are seconds."""

    async def open(self) -> None: ...
    async def execute(self) -> float: ...
    async def shut(self) -> None: ...
    async def lease(self) -> float: ...


class PeerError(Exception):
    """A peer could not do what it was told; in its own words."""


@dataclass
class Subject:
    """One row of the table.

    Attributes:
        settings: what it was given.
        version: of the peer, or "".
        close: why it may be less far behind than others, or "".
        repeated: its repeated execute is measured, too.
        ready: waits until its pool, if it has one here, has refilled.
        executes: seconds of each execute.
        leases: seconds of each lease.
        failures: what went wrong in its turns, in its own words.
    """

    name: str
    orders: Orders
    settings: str
    version: str = ""
    close: str = ""
    repeated: bool = True
    ready: Callable[[], Awaitable[None]] = field(default=lambda: asyncio.sleep(0))
    executes: list[float] = field(default_factory=list)
    leases: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def local_sandbox() -> AsyncIterator[Execute]:
    """A stock ipykernel over ipc, as ``jupyter_client`` starts it: no sandbox at all."""
    async with stock_kernel() as stock:
        yield executing(stock.client)


def local() -> Subject:
    return Subject("local ipykernel", Server(local_sandbox), "no sandbox; jupyter_client over ipc, started on demand")


@asynccontextmanager
async def cellblock(runtime: str, *, warm: int) -> AsyncIterator[Subject]:
    """Cellblock with so many kernels kept warm."""
    async with manager_on(runtime, warm=warm) as manager:
        numbers = itertools.count()

        @asynccontextmanager
        async def sandbox() -> AsyncIterator[Execute]:
            agent = f"peers-{os.getpid()}-{runtime}-{warm}-{next(numbers)}"  # nobody has a session under this name
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):

                async def execute() -> None:
                    check((await manager.execute_code(session, CODE))["stdout"])

                yield execute
            await manager.end_session(agent)

        async def ready() -> None:
            async with asyncio.timeout(120):
                while (counts := manager.pool.counts())["ready"] < warm or counts["starting"] or counts["ending"]:
                    await asyncio.sleep(0.05)

        name = f"Cellblock, {runtime}" if warm else f"Cellblock, {runtime}, cold"
        settings = "one warm kernel in its pool" if warm else "no warm kernel: a container for each lease"
        yield Subject(name, Server(sandbox), settings, repeated=warm > 0, ready=ready)


class Driver:
    """A peer's driver, at the other end of a line."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def open(self) -> None:
        await self._order("open")

    async def execute(self) -> float:
        return await self._seconds("execute")

    async def shut(self) -> None:
        await self._order("shut")

    async def lease(self) -> float:
        return await self._seconds("lease")

    async def end(self) -> None:
        """Let it give everything back, and end it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _seconds(self, order: str) -> float:
        seconds = await self._order(order)
        assert isinstance(seconds, float)
        return seconds

    async def _order(self, order: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": order}).encode() + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER)
        except (TimeoutError, ConnectionError) as error:
            raise PeerError(f"no answer to {order!r}: {type(error).__name__}") from error
        if not line:
            raise PeerError(f"its driver ended: {self._log.read_text(errors='replace').strip().splitlines()[-1:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["seconds"]


@asynccontextmanager
async def driven(peer: Peer, python: Path, place: Place, logs: Path) -> AsyncIterator[Subject]:
    """A peer, driven in its own environment. Ctrl-C does not reach it: it is told to end."""
    log = logs / f"{peer.driver}-{peer.mode or 'only'}.log"
    with log.open("wb") as file:
        driver = Driver(await _start(peer, python, place, file), log)
    try:
        yield Subject(peer.name, driver, peer.settings, peer.version, peer.close)
    finally:
        await driver.end()


async def _start(peer: Peer, python: Path, place: Place, log: IO[bytes]) -> asyncio.subprocess.Process:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"PEERS_IMAGE": place.image, "PEERS_NETWORK": place.network, "PEERS_GATEWAY": place.gateway}
    return await asyncio.create_subprocess_exec(
        str(python),
        "-m",
        f"benchmarks.peers.drivers.{peer.driver}",
        *([peer.mode] if peer.mode else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=REPOSITORY,
        env=environment,
        start_new_session=True,
    )
