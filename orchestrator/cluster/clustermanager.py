"""ClusterKernelManager: ``AgentKernelManager`` over the nodes of a cluster: the same calls, types and errors."""

from __future__ import annotations

import random

from orchestrator.cluster.agentlink import AgentLink
from orchestrator.cluster.nodeconfig import NodeConfig
from orchestrator.cluster.nodedirectory import NodeDirectory
from orchestrator.cluster.router import Router
from orchestrator.cluster.storedirectory import StoreDirectory
from orchestrator.errors import ClusterError
from orchestrator.inputs import check_agent_id
from orchestrator.remote.remotemanager import RemoteKernelManager
from orchestrator.settings import Settings


class ClusterKernelManager(RemoteKernelManager):
    """The kernels of a cluster's nodes. Use it as an async context manager.

    Its calls are those of ``RemoteKernelManager``. Each goes to the node that owns the agent's session, over HTTP:
    Ray takes no part in it. When a node is lost, the agent's next call goes to another one, which continues the session
    from its newest checkpoint.

    - A cell runs at most once. If its node is lost while it runs, its result says "kernel_died".
    - Any other call during which the node is lost raises NodeLostError.
    - A program that dies leaves a cell of ``execute`` running until its time limit. A cell of ``stream_code`` is
      interrupted after 30 s.

    Args:
        address: "auto": the cluster that this host is a node of; there is no other address. Ignored with ``store_url``.
        store_url: the cluster's database, "postgresql+psycopg://…", as its nodes have it in CELLBLOCK_STORE_URL. The
            program that uses it may run anywhere, and only reads there.
        token: of `cellblock token create`; None: the nodes need none.
        verify: for HTTPS: the file of a certificate authority; True: the system's authorities.
        policy: of new sessions; "": the token's first.
        seed: of the samples among the nodes; None: at random.
        directory: the nodes, and who owns which session, in place of a database.

    Raises:
        ClusterError: ``address`` is another one than "auto", such as "ray://…", and there is no ``store_url``; or this
            host is part of no cluster.
        StoreError: the database's URL is invalid, or needs a driver that is not installed.
    """

    def __init__(
        self,
        address: str = "auto",
        store_url: str = "",
        *,
        token: str | None = None,
        verify: str | bool = True,
        policy: str = "",
        seed: int | None = None,
        directory: NodeDirectory | None = None,
    ) -> None:
        chance = random.Random(seed)  # noqa: S311 - it spreads load, and guards nothing
        self._own = None if directory is not None else StoreDirectory(store_url or _store_of(address))
        known = directory or self._own
        assert known is not None
        self._router = Router(known, token=token, verify=verify, policy=policy, chance=chance)
        self._policy = policy
        self._cells = {}

    async def shutdown(self) -> None:
        """Close the connections. The sessions stay as they are."""
        await self._router.close()
        if self._own is not None:
            await self._own.close()

    async def node_of(self, agent_id: str) -> str | None:
        """Return the name of the node that owns the agent's session; None while nobody does.

        Raises:
            StoreError: the directory cannot be read.
        """
        check_agent_id(agent_id)
        found = await self._router.session_of(agent_id)
        return None if found is None else found.node_id

    def _link(self, agent_id: str, policy: str = "", image: str = "") -> AgentLink:
        return AgentLink(self._router, agent_id, policy, image)

    async def _session_id(self, agent_id: str) -> str | None:
        check_agent_id(agent_id)
        found = await self._router.session_of(agent_id)
        return None if found is None else found.session_id


def _store_of(address: str) -> str:
    """Return the database of the cluster that this host is a node of."""
    if address != "auto":  # Ray is not asked: a program that reaches it could name another database to every client
        raise ClusterError(
            f"a cluster cannot be found by the address {address!r}: calls do not go through Ray.",
            remedy="Give store_url, the nodes' CELLBLOCK_STORE_URL, and a token of `cellblock token create`.",
        )
    config = NodeConfig.load(Settings.load().state_path / "cluster")
    url = "" if config is None else config.environment.get("CELLBLOCK_STORE_URL", "")
    if not url:
        raise ClusterError(
            "it is not known which cluster is meant.",
            remedy="Give store_url, the nodes' CELLBLOCK_STORE_URL; or make this host a node of a cluster with a "
            "database: `cellblock cluster up --store-url …`.",
        )
    return url
