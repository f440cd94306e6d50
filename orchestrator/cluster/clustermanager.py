"""ClusterKernelManager: ``AgentKernelManager`` over the nodes of a cluster: the same calls, types and errors."""

from __future__ import annotations

import random

from orchestrator.cluster.agentlink import AgentLink
from orchestrator.cluster.nodedirectory import NodeDirectory
from orchestrator.cluster.router import Router
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.inputs import check_agent_id
from orchestrator.remote.remotemanager import RemoteKernelManager


class ClusterKernelManager(RemoteKernelManager):
    """The kernels of a cluster's nodes. Use it as an async context manager.

    Its calls are those of ``RemoteKernelManager``. Each goes to the node that owns the agent's session, over HTTP:
    the cluster's head takes no part in it. When a node is lost, the agent's next call goes to another one, which
    continues the session from its newest checkpoint.

    - A cell runs at most once. If its node is lost while it runs, its result says "kernel_died".
    - Any other call during which the node is lost raises NodeLostError.
    - A program that dies leaves a cell of ``execute`` running until its time limit. A cell of ``stream_code`` is
      interrupted after 30 s.

    Args:
        directory: the nodes, and who owns which session.
        token: of `cellblock token create`; None: the nodes need none.
        verify: for HTTPS: the file of a certificate authority; True: the system's authorities.
        policy: of new sessions; "": the token's first.
        seed: of the samples among the nodes; None: at random.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        *,
        token: str | None = None,
        verify: str | bool = True,
        policy: str = "",
        seed: int | None = None,
    ) -> None:
        chance = random.Random(seed)  # noqa: S311 - it spreads load, and guards nothing
        self._router = Router(directory, token=token, verify=verify, policy=policy, chance=chance)
        self._policy = policy
        self._cells = {}
        self._own: StoreDirectory | None = None

    @classmethod
    def of(
        cls, store_url: str, *, token: str | None = None, verify: str | bool = True, policy: str = ""
    ) -> ClusterKernelManager:
        """Return the manager of the nodes of a database.

        Args:
            store_url: "postgresql+psycopg://…", as the nodes have it in CELLBLOCK_STORE_URL.
            token, verify, policy: see the class.

        Raises:
            StoreError: the URL is invalid, or needs a driver that is not installed.
        """
        directory = StoreDirectory(store_url)
        manager = cls(directory, token=token, verify=verify, policy=policy)
        manager._own = directory
        return manager

    async def shutdown(self) -> None:
        """Close the connections. The sessions stay as they are."""
        await self._router.close()
        if self._own is not None:
            await self._own.close()

    def _link(self, agent_id: str, policy: str = "", image: str = "") -> AgentLink:
        return AgentLink(self._router, agent_id, policy, image)

    async def _session_id(self, agent_id: str) -> str | None:
        check_agent_id(agent_id)
        found = await self._router.session_of(agent_id)
        return None if found is None else found.session_id
