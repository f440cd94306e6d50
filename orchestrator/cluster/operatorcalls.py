"""OperatorCalls: what an operator asks the nodes of a cluster: one, or all at once, each with a deadline of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.nodeconnections import NodeConnections
from orchestrator.errors import CellblockError, NodeLostError, ServerUnavailableError
from orchestrator.limits import MIB
from orchestrator.remote.link import Query
from orchestrator.store.noderecord import NodeRecord

ANSWER = 2.0  # seconds in which a node must say what runs there
_AT_ONCE = 64  # nodes
_LARGEST = 64 * MIB  # bytes of an answer
_LARGEST_OF_ALL = 4 * MIB  # bytes of each answer, where all nodes are asked


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node said.

    Attributes:
        found: None: it said nothing.
        fault: then, why.
    """

    node: NodeRecord
    found: dict[str, Any] | None
    fault: str = ""


class OperatorCalls:
    """Requests with the right of an operator. A node checks it, and has who asked in its audit log.

    Args:
        token: one with the right `operator`; None: the nodes need none.
        verify, only_tls: see ``NodeConnections``.
    """

    def __init__(self, token: str | None, verify: str | bool = True, *, only_tls: bool = False) -> None:
        self._connections = NodeConnections(token, verify, only_tls=only_tls)

    async def ask(
        self,
        node: NodeRecord,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER,
        largest: int = _LARGEST,
    ) -> dict[str, Any]:
        """Send a request to one node, and return the answer's JSON.

        Args:
            largest: bytes of the answer.

        Raises:
            NodeLostError: its lease is over; it was not asked.
            ServerUnavailableError: it does not answer in time. What it has done is not known.
            See ``NodeConnections.to`` and ``Connection.ask``.
        """
        if node.is_over:
            raise NodeLostError(
                f"the node {node.address} is {node.condition}: its lease is over.", node_id=node.node_id, undone=True
            )
        connection = self._connections.to(node.url)
        try:
            async with asyncio.timeout(seconds):
                return await connection.ask(method, path, body, query=query, headers=headers, largest=largest)
        except TimeoutError as error:
            if isinstance(error, CellblockError):
                raise
            raise ServerUnavailableError(f"the node {node.address} has not answered for {seconds:g} s.") from None
        finally:
            await connection.close()

    async def ask_all(
        self, nodes: Iterable[NodeRecord], path: str, *, query: Query | None = None, seconds: float = ANSWER
    ) -> list[NodeAnswer]:
        """Ask all nodes at once. One that does not answer costs ``seconds``, and no other node's answer."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def asked(node: NodeRecord) -> NodeAnswer:
            async with places:
                try:
                    found = await self.ask(node, "GET", path, query=query, seconds=seconds, largest=_LARGEST_OF_ALL)
                    return NodeAnswer(node, found)
                except CellblockError as error:
                    return NodeAnswer(node, None, error.message)

        return list(await asyncio.gather(*map(asked, nodes)))
