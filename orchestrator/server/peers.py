"""Peers: the other nodes of the server's cluster, for an operator who looks at all of them through this one.

A peer is asked with the operator's own token, which every node of the database knows: this server lends no right of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request

from orchestrator.errors import CellblockError, ServerError
from orchestrator.operator.overviewform import NO_OVERVIEW, overviews
from orchestrator.server.authentication import token_of
from orchestrator.sessions.membership import Membership, owner_node
from orchestrator.settings import Settings
from orchestrator.store.history import History, SessionRecord
from orchestrator.store.noderecord import NodeRecord

if TYPE_CHECKING:
    from orchestrator.cluster.operatorcalls import NodeAnswer, OperatorCalls

_ACTING: Final = 15.0  # seconds for a peer to interrupt, hibernate or kill
_READING: Final = 5.0  # seconds for it to say what a session shows; the store has most of that
Overviews = tuple[list[dict[str, Any]] | None, str]  # of a node's managers, or None and why there are none
_HERE: Final = "Cellblock-Here"  # a request with this header is for this server: it is never sent on


class Peers:
    """The nodes of one server's cluster.

    Args:
        membership: None: the server is of no cluster, and alone.
    """

    def __init__(self, settings: Settings, membership: Membership | None, history: History) -> None:
        self._settings = settings
        self._membership = membership
        self._history = history

    async def nodes(self) -> list[NodeRecord]:
        """Return all nodes but those that are gone for good; none if the server is of no cluster.

        Raises:
            StoreError: the store cannot be read.
        """
        if self._membership is None:
            return []
        return [node for node in await self._history.run(History.nodes) if not node.is_past]

    def is_this(self, node: NodeRecord) -> bool:
        """Return whether a node is this server."""
        return self._membership is not None and node.node_id == self._membership.node_id

    async def overviews(self, request: Request, nodes: Sequence[NodeRecord]) -> dict[str, Overviews]:
        """Return what each of the other nodes says of its kernels, by its id. None is waited for longer than 2 s.

        Raises:
            ServerError: a library is missing.
            StoreError: the store cannot be read.
        """
        answers = await _calls(request, self._settings).ask_all(nodes, "/v1/overview") if nodes else []
        said = {answer.node.node_id: overviews_of(answer) for answer in answers}
        named = [kernel["session"] for managers, _ in said.values() for kernel in _kernels(managers)]
        owners = await self._history.run(History.owners_of, [each for each in named if each is not None])
        for node in nodes:
            disown(said[node.node_id][0], node, owners)
        return said

    def place_of(self, record: SessionRecord, nodes: Sequence[NodeRecord]) -> NodeRecord | None:
        """Return the node that has a session."""
        owner = owner_node(record.owner)
        return next((node for node in nodes if owner == (node.node_id, node.epoch)), None)

    async def sent_on(
        self, request: Request, record: SessionRecord, *, seconds: float = _ACTING
    ) -> dict[str, Any] | None:
        """Have the node that has a session do what a request asks. Return its answer; None: this server is to do it.

        Raises:
            ServerUnavailableError: the node does not answer. Whether it did it is not known.
            Any error of the node's.
        """
        if self._membership is None or _HERE in request.headers:
            return None
        node = self.place_of(record, await self.nodes())
        if node is None or self.is_this(node) or node.is_over:
            return None  # nobody has it, or its node is lost: then this server may have it
        return await _calls(request, self._settings).ask(
            node,
            request.method,
            request.url.path,
            query=dict(request.query_params),
            headers={_HERE: "1"},
            seconds=seconds,
        )

    async def read_there(self, request: Request, record: SessionRecord) -> dict[str, Any] | None:
        """Return what the node that has a session answers, which knows outputs of the running cell; None if it cannot.

        The store has the rest.
        """
        try:
            return await self.sent_on(request, record, seconds=_READING)
        except CellblockError:
            return None


def node_row(node: NodeRecord) -> dict[str, Any]:
    """Return what operators see of a node, as JSON."""
    known = {**asdict(node), "capacity": node.capacity.as_dict()}
    return {**known, "address": node.address, "state": node.condition}


def overviews_of(answer: NodeAnswer) -> Overviews:
    """Return what a node says, or why it says nothing."""
    if answer.found is None:
        return None, answer.fault
    managers = overviews(answer.found.get("managers"))
    return managers, NO_OVERVIEW if managers is None else ""


def disown(managers: list[dict[str, Any]] | None, node: NodeRecord, owners: Mapping[str, str | None]) -> None:
    """Take from a node's overviews the sessions that the store gives to another node.

    An operator who acts on a session acts on it where the store says that it is, whatever the row looks like.
    """
    for kernel in _kernels(managers):
        if kernel["session"] is not None and owner_node(owners.get(kernel["session"])) != (node.node_id, node.epoch):
            kernel |= {"session": None, "agent": None}


def _kernels(managers: list[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    return (kernel for manager in managers or [] for kernel in manager["kernels"])


def _calls(request: Request, settings: Settings) -> OperatorCalls:
    try:
        from orchestrator.cluster.operatorcalls import OperatorCalls
    except ImportError as error:
        raise ServerError(
            f"the server cannot ask other nodes: it needs {error.name}.",
            remedy='Run `pip install "cellblock[client]"` on its host.',
        ) from error
    return OperatorCalls(
        token_of(dict(request.scope["headers"])),
        settings.node_ca or True,
        only_tls=settings.node_url.lower().startswith("https:"),
    )
