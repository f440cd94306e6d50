"""NodeActor: what Ray runs once on each host. It may end: the server goes on, and the next actor finds it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from orchestrator.cluster.autoscaling import Autoscaling, RayAutoscaler
from orchestrator.cluster.demand import Demand
from orchestrator.cluster.nodeconfig import NodeConfig
from orchestrator.cluster.nodekeeper import NodeKeeper
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.errors import ClusterError


class NodeActor:
    """Supervises the server of its host.

    Args:
        folder: of the node, on its host.
        place: the id of the Ray node that it belongs to.
    """

    def __init__(self, folder: str, place: str) -> None:
        config = NodeConfig.load(Path(folder))
        if config is None:
            raise ClusterError(f"{folder} has no node.", remedy="Run `cellblock cluster join` on that host.")
        self._place = place
        self._keeper = NodeKeeper(Path(folder), config)
        threading.Thread(target=lambda: asyncio.run(self._keeper.run()), daemon=True).start()
        if config.asks_nodes:
            threading.Thread(target=lambda: asyncio.run(_autoscaling(config, place).run()), daemon=True).start()

    def place(self) -> str:
        """Return the id of its Ray node."""
        return self._place

    def state(self) -> dict[str, Any]:
        """Return ``NodeState.as_dict``."""
        return self._keeper.state.as_dict()


def _autoscaling(config: NodeConfig, place: str) -> Autoscaling:
    directory = StoreDirectory(config.variables["CELLBLOCK_STORE_URL"])
    return Autoscaling(directory, config.url, Demand(config.asks_nodes), RayAutoscaler(place))
