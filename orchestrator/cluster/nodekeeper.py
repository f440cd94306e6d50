"""NodeKeeper: keeps the server of this host running. Called by the node's actor; knows nothing of Ray."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from orchestrator import __version__
from orchestrator.cluster.detached import Detached
from orchestrator.cluster.nodeconfig import NodeConfig
from orchestrator.errors import CellblockError
from orchestrator.limits import MIB
from orchestrator.remote.connection import Connection

_LOOK = 1.0  # seconds between two looks
_ANSWER = 5.0  # seconds in which the server must answer
_PROVEN = 60.0  # seconds that a server must run for its end to begin a new series
_LONGEST = 60.0  # seconds between two starts
SERVER = "server"

Condition = Literal["starting", "serving", "silent", "waiting", "stopped"]


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as its host sees it.

    Attributes:
        condition: "serving"; "starting" until it serves for the first time; "silent" if the server runs and does not
            say that it takes new work; "waiting" before it is started again; "stopped" once the node is taken out.
        pid: of the server; 0 if none runs.
        starts: how often this supervisor has started it.
        memory_mb, free_memory_mb, cores, load: of the host: MiB, and processes that want a core, over the last minute.
        detail: why it does not serve; the end of its log.
    """

    name: str
    url: str
    condition: Condition = "starting"
    pid: int = 0
    starts: int = 0
    version: str = __version__
    memory_mb: int = 0
    free_memory_mb: int = 0
    cores: int = 0
    load: float = 0.0
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def is_ready(config: NodeConfig) -> bool:
    """Return whether the server at the node's address takes new work."""
    # No secret is sent, and only this host is asked, so that the certificate need not be one that this host trusts.
    connection = Connection(config.url, None, None, False)
    try:
        async with asyncio.timeout(_ANSWER):
            await connection.ask("GET", "/ready")
    except (CellblockError, TimeoutError, ValueError):
        return False
    finally:
        await connection.close()
    return True


class NodeKeeper:
    """Finds the server of a node if it runs, and starts it if it does not.

    It never ends a server: one that does not answer may have cells that go on.

    Attributes:
        state: as of the last look.
    """

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self._folder = folder
        self._config = config
        self._server = Detached(folder, SERVER)
        self._failures = 0
        self._not_before = 0.0
        self._started = 0.0
        self._has_served = False
        self.state = NodeState(config.name, config.url)

    async def run(self) -> None:
        """Look after the server until the node is taken out."""
        while self.state.condition != "stopped":
            try:
                await self._look()
            except (CellblockError, OSError) as error:
                self.state = replace(self.state, condition="waiting", detail=str(error))
            await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        config = await asyncio.to_thread(NodeConfig.load, self._folder)
        self._config = config or self._config  # of the last `join`
        if config is None:
            self._note("stopped")
        elif self._server.runs:
            await self._check()
        elif time.monotonic() >= self._not_before:
            await self._start()
        else:
            self._note("waiting", self._server.last_lines())
        await asyncio.to_thread(self._server.bound_log)

    async def _check(self) -> None:
        if await is_ready(self._config):
            self._has_served = True
            if time.monotonic() > self._started + _PROVEN:
                self._failures = 0
            self._note("serving")
        else:
            self._note("silent" if self._has_served else "starting", self._server.last_lines(3))

    async def _start(self) -> None:
        """Start the server. The next start is not before 1, 2, 4 … 60 s from now."""
        self._started = time.monotonic()
        self._not_before = self._started + min(_LONGEST, 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._has_served = False
        started = await asyncio.to_thread(self._server.start, self._config.command, self._config.variables)
        self.state = replace(self.state, starts=self.state.starts + started)
        self._note("starting")

    def _note(self, condition: Condition, detail: str = "") -> None:
        memory = psutil.virtual_memory()
        self.state = replace(
            self.state,
            condition=condition,
            pid=self._server.pid,
            memory_mb=memory.total // MIB,
            free_memory_mb=memory.available // MIB,
            cores=psutil.cpu_count() or 1,
            load=round(psutil.getloadavg()[0], 2),
            detail=detail,
        )
