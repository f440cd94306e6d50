"""The option --cluster, and what it shows: the nodes of a cluster, each asked with a short deadline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from orchestrator.cli.kernelrows import DONE, HostView, Row, SilentNode, look
from orchestrator.errors import CellblockError, ClusterError, ServerUnavailableError
from orchestrator.operator.overviewform import NO_OVERVIEW, overviews
from orchestrator.settings import Settings
from orchestrator.store.noderecord import NodeRecord

if TYPE_CHECKING:
    from orchestrator.cluster.operatorcalls import OperatorCalls

Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="All nodes of the cluster: that of CELLBLOCK_STORE_URL, or that this host is a node of."
    ),
]


@dataclass(frozen=True, slots=True)
class NodeControl:
    """Acts on the kernels of one node. A ``Control``."""

    node: NodeRecord
    calls: OperatorCalls

    @property
    def key(self) -> str:
        return self.node.node_id

    @property
    def place(self) -> str:
        return self.node.address

    def __str__(self) -> str:
        return f"the node {self.place}"

    async def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Interrupt, hibernate or kill. See ``Control``."""
        session, action = request["session"], request["do"]
        if session is None:
            return {"error": "no session has this kernel."}
        path = f"/v1/operator/sessions/{quote(session, safe='')}"
        method, path = ("DELETE", path) if action == "kill" else ("POST", f"{path}/{action}")
        try:
            found = await self.calls.ask(self.node, method, path, seconds=timeout)
        except ServerUnavailableError:
            return None
        except CellblockError as error:
            return {"error": str(error)}
        return {DONE[action]: any(found.get(each) is True for each in ("interrupted", "asleep", "ended"))}


def cluster_settings() -> Settings:
    """Return the settings of a node of the cluster: this host's own, with the cluster's database.

    Raises:
        ClusterError: no database is named, and this host is no node.
    """
    from orchestrator.cluster.nodeconfig import NodeConfig

    settings = Settings.load()
    config = None if settings.store_url else NodeConfig.load(settings.state_path / "cluster")
    known = {} if config is None else config.environment
    store_url = settings.store_url or known.get("CELLBLOCK_STORE_URL", "")
    if not store_url:
        raise ClusterError(
            "it is not known which cluster is meant.",
            remedy="Set CELLBLOCK_STORE_URL to the database of its nodes, or run the command on a node.",
        )
    found = {"store_url": store_url, "node_url": settings.node_url or "none"}  # so that it opens the cluster's history
    found |= {
        name: getattr(settings, name) or known.get(f"CELLBLOCK_{name.upper()}", "")
        for name in ("blobs", "cluster_key_file", "node_ca")
    }
    return Settings.load().model_copy(update=found)


def operator_calls(settings: Settings) -> OperatorCalls:
    """Return what asks the nodes, with the token of the settings, or without one.

    Raises:
        ClusterError: a library is missing.
    """
    try:
        from orchestrator.cluster.operatorcalls import OperatorCalls
    except ImportError as error:
        raise ClusterError(
            f"--cluster needs {error.name}.", remedy='Run `pip install "cellblock[client,postgres]"`.'
        ) from error
    return OperatorCalls(operator_token_of(settings), settings.node_ca or True)


def operator_token_of(settings: Settings) -> str | None:
    """Return the token with which commands ask the nodes; None: the nodes need none.

    Raises:
        OSError: the file that the settings name cannot be read.
    """
    named = settings.operator_token_file
    path = Path(named) if named else settings.data_path / "cluster" / "operator-token"
    return path.read_text().strip() if named or path.is_file() else None


async def nodes_of(settings: Settings) -> list[NodeRecord]:
    """Return the nodes, without those that are gone for good.

    Raises:
        StoreError: the database cannot be read in time.
        ClusterError: it has no nodes.
    """
    from orchestrator.cluster.nodeview import NodeView
    from orchestrator.cluster.storedirectory import StoreDirectory

    directory = StoreDirectory(settings.history_url)
    try:
        found = [node for node in (await NodeView(directory).read()).nodes if not node.is_past]
    finally:
        await directory.close()
    if not found:
        raise ClusterError("no node has joined the cluster of this database.", remedy="Run `cellblock cluster up`.")
    return found


async def seen(cluster: bool) -> HostView:
    """Return what runs on this host, or on all nodes of the cluster."""
    return await look_at_nodes(cluster_settings()) if cluster else await look(Settings.load())


async def look_at_nodes(settings: Settings) -> HostView:
    """Ask every node what runs there.

    Raises:
        See ``nodes_of`` and ``operator_calls``.
    """
    calls = operator_calls(settings)
    answers = await calls.ask_all(await nodes_of(settings), "/v1/overview")
    rows: list[Row] = []
    seen: list[dict[str, Any]] = []
    silent = []
    for answer in answers:
        managers = None if answer.found is None else overviews(answer.found.get("managers"))
        if managers is None:
            silent.append(SilentNode(answer.node.address, answer.fault or NO_OVERVIEW))
            continue
        control = NodeControl(answer.node, calls)
        named = {"node": answer.node.address, "node_id": answer.node.node_id}
        seen += [{**named, **manager} for manager in managers]
        rows += [Row(control, kernel) for manager in managers for kernel in manager["kernels"]]
    return HostView(tuple(seen), tuple(rows), (), "node", tuple(silent))
