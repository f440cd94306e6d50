"""StoreDirectory: the nodes and the owners, as the cluster's database has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orchestrator.cluster.nodedirectory import Ownership
from orchestrator.errors import StoreError
from orchestrator.sessions.membership import owner_node
from orchestrator.store.database import Database
from orchestrator.store.noderecord import NodeRecord
from orchestrator.store.nodetable import NodeTable

_AT_ONCE = 4  # reads
T = TypeVar("T")


class StoreDirectory:
    """A ``NodeDirectory`` in a database, which it only reads.

    Args:
        url: "postgresql+psycopg://…", as the nodes have it in CELLBLOCK_STORE_URL.

    Raises:
        StoreError: the URL is invalid, or needs a driver that is not installed.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._table = NodeTable(self._database)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cellblock-directory")

    async def nodes(self) -> Sequence[NodeRecord]:
        """See ``NodeDirectory``."""
        return await self._read(self._table.nodes)

    async def owner_of(self, agent_id: str) -> Ownership | None:
        """See ``NodeDirectory``."""
        found = await self._read(lambda: self._table.session_of(agent_id))
        if found is None:
            return None
        session_id, is_live, owner = found
        node_id, epoch = owner_node(owner) or (None, 0)
        return Ownership(session_id, "live" if is_live else "asleep", node_id, epoch)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        self._database.close()

    async def _read(self, query: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, query)
        except RuntimeError as error:
            raise StoreError("the cluster's directory is closed.") from error
