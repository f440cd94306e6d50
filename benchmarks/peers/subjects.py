"""The subjects: Cellblock and a local kernel in this process, and each peer in a process of its own."""

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

_ANSWER = 120.0  # seconds for a driver to carry out one order
_END = 60.0  # seconds for a driver to clean up and exit
_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "DOCKER_HOST",
    "TMPDIR",
)  # environment variables for the drivers: some peers copy theirs into sandboxes


class Orders(Protocol):
    """The orders that a subject carries out; see ``drivers.serving``. Times are in seconds."""

    async def open(self) -> None: ...
    async def execute(self) -> float: ...
    async def shut(self) -> None: ...
    async def lease(self) -> float: ...


class PeerError(Exception):
    """A peer could not carry out an order. The message is the peer's."""


@dataclass
class Subject:
    """One row of the table.

    Attributes:
        settings: a description of its settings.
        version: the peer's version, or empty.
        close: why it may be close to Cellblock, or empty.
        repeated: whether to measure its repeated execute too.
        ready: waits until its pool has refilled, if it has one in this process.
        executes: seconds of each execute.
        leases: seconds of each lease.
        failures: the messages of its failed turns.
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
    """Start a stock ipykernel over ipc with ``jupyter_client``, without a sandbox."""
    async with stock_kernel() as stock:
        yield executing(stock.client)


def local() -> Subject:
    """Return the subject for a stock local kernel."""
    return Subject("local ipykernel", Server(local_sandbox), "no sandbox; jupyter_client over ipc, started on demand")


@asynccontextmanager
async def cellblock(runtime: str, *, warm: int) -> AsyncIterator[Subject]:
    """Open a manager with ``warm`` warm kernels, and yield it as a subject."""
    async with manager_on(runtime, warm=warm) as manager:
        numbers = itertools.count()

        @asynccontextmanager
        async def sandbox() -> AsyncIterator[Execute]:
            agent = f"peers-{os.getpid()}-{runtime}-{warm}-{next(numbers)}"  # a new agent
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
        settings = "one warm kernel in its pool" if warm else "no warm kernel: each lease starts a container"
        yield Subject(name, Server(sandbox), settings, repeated=warm > 0, ready=ready)


class Driver:
    """Sends orders to a peer's driver process."""

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
        """Let the driver clean up and exit; kill it if it does not."""
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
            raise PeerError(f"its driver exited: {self._log.read_text(errors='replace').strip().splitlines()[-1:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["seconds"]


@asynccontextmanager
async def driven(peer: Peer, python: Path, place: Place, logs: Path) -> AsyncIterator[Subject]:
    """Start a peer's driver in the peer's environment, and yield the subject. Ctrl-C does not reach the driver."""
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
