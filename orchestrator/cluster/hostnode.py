"""HostNode: this host as a node of a cluster: it starts, shows and ends it. The room's front door."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from orchestrator.cluster.detached import Detached
from orchestrator.cluster.nodeconfig import NodeConfig
from orchestrator.cluster.nodekeeper import SERVER, is_ready
from orchestrator.cluster.raycluster import RayCluster
from orchestrator.errors import ClusterError, RayMissingError, RayUnavailableError
from orchestrator.limits import Deadline
from orchestrator.settings import Settings

_SERVING = 120.0  # seconds in which the server must serve
_STOP = 90.0  # seconds in which the server keeps its sessions
_FOLDER = "cluster"


class HostNode:
    """This host.

    Args:
        token_file: the file with Ray's token; None: the one in the data folder.
    """

    def __init__(self, settings: Settings, token_file: Path | None = None) -> None:
        settings.refuse_foreign_folders()
        self._folder = settings.state_path / _FOLDER
        self._data = settings.data_path / _FOLDER
        self._token_file = token_file
        self._server = Detached(self._folder, SERVER)

    @property
    def config(self) -> NodeConfig | None:
        """The node of this host; None if it is part of no cluster."""
        return NodeConfig.load(self._folder)

    def ray(self, config: NodeConfig) -> RayCluster:
        """Return Ray on this host.

        Raises:
            RayMissingError: it is not installed.
        """
        return RayCluster(self._folder, self._data, config.ray, config.host, self._token_file)

    async def start(self, config: NodeConfig) -> None:
        """Start what is missing of Ray, its supervision and the server, and wait until the server serves. Idempotent.

        Raises:
            RayMissingError, RayUnavailableError, ClusterError: what could not be started. What runs goes on.
        """
        known = self.config
        if known is not None and known.name != config.name:
            raise ClusterError(
                f"this host is the node {known.name!r} already; nothing changed.",
                remedy="Run `cellblock cluster down`.",
            )
        ray = self.ray(config)
        if config.is_head:
            ray.make_token()
        if config.ray != "auto":
            await ray.start(head=config.is_head)
        config.save(self._folder)
        await ray.place(config.name, self._folder)
        await self._await_server(config)

    async def states(self) -> tuple[list[dict[str, Any]], str]:
        """Return the state of each node, and why Ray does not tell them: then only this host's is there.

        Raises:
            ClusterError: this host is part of no cluster.
        """
        config = self.config
        if config is None:
            raise ClusterError(
                "this host is part of no cluster.", remedy="Run `cellblock cluster up`, or `cellblock cluster join`."
            )
        try:
            return await self.ray(config).states(), ""
        except (RayMissingError, RayUnavailableError) as error:
            condition = "serving" if await is_ready(config) else "silent" if self._server.runs else "stopped"
            return [{"name": config.name, "url": config.url, "condition": condition, "pid": self._server.pid}], str(
                error
            )

    async def url_of(self, name: str) -> str:
        """Return where a node's server answers.

        Raises:
            ClusterError: there is no such node, or nobody knows where it is.
        """
        found, fault = await self.states()
        for state in found:
            if state["name"] == name and "url" in state:
                return str(state["url"])
        raise ClusterError(
            f"there is no node {name!r}. {fault}".strip(), remedy="`cellblock cluster status` lists them."
        )

    async def stop(self) -> bool:
        """End everything that ``start`` started on this host, in the order in which nothing is started again.

        The server keeps every session. Returns whether anything ran. Idempotent.

        Raises:
            ClusterError: a process does not end.
        """
        config = self.config
        NodeConfig.forget(self._folder)  # from now on, no supervisor starts the server
        if config is not None:
            with contextlib.suppress(RayMissingError, RayUnavailableError):  # then nobody supervises it
                await self.ray(config).remove(config.name)
        served = await self._server.stop(_STOP)
        ran = await Detached(self._folder, "ray").stop(_STOP)
        return served or ran or config is not None

    async def _await_server(self, config: NodeConfig) -> None:
        deadline = Deadline(_SERVING)
        while not (self._server.runs and await is_ready(config)):
            if not deadline.remaining():
                raise ClusterError(
                    f"the server of {config.name} does not serve after {_SERVING:.0f} s; it is tried again:\n"
                    f"{self._server.last_lines()}\n",
                    remedy=f"Read {self._server.log}, and run `cellblock cluster down` to give up.",
                )
            await asyncio.sleep(0.2)
