"""Service: what the server's doors share: its managers, its sessions, who may come in, and whether it shuts down."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from importlib.metadata import version
from typing import Any

from orchestrator.limits import MIB
from orchestrator.server.authentication import Authentication
from orchestrator.server.directory import Directory
from orchestrator.server.idempotency import Idempotency
from orchestrator.server.looplag import LoopLag
from orchestrator.server.managers import Managers
from orchestrator.server.operatortrail import OperatorTrail
from orchestrator.server.peers import Peers
from orchestrator.server.slots import Slots
from orchestrator.server.usagehistory import UsageHistory
from orchestrator.sessions.kept import Kept
from orchestrator.sessions.membership import Membership, capacity_of
from orchestrator.settings import Settings
from orchestrator.store.history import History, folder_id

_COMMANDS, _COMMANDS_BYTES = 1000, 64 * MIB  # background commands that are over, and their output
Forget = Callable[[], object]


class Service:
    """One server, without its sockets.

    Args:
        policies: the policies of callers while there are no tokens; the first is started with the server.
        max_kernels: of each policy.
        concurrent: how many requests, and how many streams, each token may have open at once.

    Attributes:
        membership: the node of a cluster that the server is; None: of no cluster.
        process_id: a name that no other process has. A request may say that it is for this process only.
        version: of Cellblock. Reading it parses the package's metadata, so it is read once.
        ended_commands: forget the background commands that are over, which clients may come back to.
        draining: whether it takes no new work any longer.
        verifying: held while the audit log is verified.
    """

    def __init__(
        self,
        settings: Settings,
        policies: Sequence[str] = ("default",),
        *,
        max_kernels: int = 10,
        concurrent: int = 256,
    ) -> None:
        self.settings = settings
        self.policies = tuple(policies)
        self.membership: Membership | None = None
        self.process_id = secrets.token_hex(8)
        self.version = version("cellblock")
        self.draining = False
        self.managers = Managers(settings, max_kernels)
        self.slots = Slots(concurrent)
        self.lag = LoopLag()
        self.usage = UsageHistory(lambda: self.managers)
        self.trail = OperatorTrail(self.managers)
        self.verifying = asyncio.Lock()
        self.idempotency = Idempotency()
        self.ended_commands: Kept[Forget] = Kept(_COMMANDS, _COMMANDS_BYTES)
        self._history: History | None = None
        self._directory: Directory | None = None
        self._authentication: Authentication | None = None

    @property
    def directory(self) -> Directory:
        """The sessions. Only while the server runs."""
        assert self._directory is not None
        return self._directory

    @property
    def authentication(self) -> Authentication:
        """Who calls. Only while the server runs."""
        assert self._authentication is not None
        return self._authentication

    @property
    def peers(self) -> Peers:
        """The other nodes of its cluster. Only while the server runs."""
        return Peers(self.settings, self.membership, self.directory.history)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Start everything, and close it at the end with every session kept.

        Raises:
            StoreError: the store cannot be read or written.
            EngineError, PolicyError, SettingsError: no kernel can be started.
        """
        history = await asyncio.to_thread(self._open_history)
        beside: set[asyncio.Task[None]] = set()
        try:
            self._history = history
            is_open = not await history.run(History.has_tokens)
            self._authentication = Authentication(history, self.policies, is_open=is_open)
            self._directory = Directory(self.managers, history)
            if self.settings.node_url:
                self.membership = self.managers.membership = await self._join(history)
            await self.managers.of(self.policies[0])
            await self._directory.expiries.load()
            always = [self._directory.expiries.run(), self.usage.run(), self.lag.run()]
            if self.membership is not None:
                always.append(self.membership.run())
            beside = {asyncio.create_task(work) for work in always}
            yield
        finally:
            self.draining = True
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            try:
                await self.managers.close()
                if self.membership is not None:
                    await self.membership.leave()
            finally:
                await asyncio.to_thread(history.close)

    async def drain(self, seconds: float) -> dict[str, str]:
        """Take no more sessions, and give those that are here to other nodes. See ``AgentKernelManager.drain``.

        Raises:
            StoreError: the other nodes cannot be told.
        """
        if self.membership is not None:
            self.membership.state = "draining"
            await self.membership.renew()
        return await self.managers.drain(seconds)

    async def undrain(self) -> None:
        """Take sessions again. Idempotent.

        Raises:
            StoreError: the other nodes cannot be told; the server takes sessions of those that know it.
        """
        self.managers.undrain()
        if self.membership is not None:
            self.membership.state = "up"
            await self.membership.renew()

    async def is_ready(self) -> bool:
        """Return whether it takes new work: it does not shut down, and its store can be read."""
        if self.draining or self._history is None:
            return False
        await self._history.run(History.has_tokens)
        return True

    def overview(self) -> list[dict[str, Any]]:
        """Return ``AgentKernelManager.overview`` of each manager."""
        return [manager.overview() for manager in self.managers]

    def _open_history(self) -> History:
        self.settings.refuse_foreign_folders()
        return History.of(self.settings)

    async def _join(self, history: History) -> Membership:
        membership = Membership(
            history,
            await asyncio.to_thread(folder_id, self.settings.data_path),
            url=self.settings.node_url,
            version=self.version,
            lease_s=self.settings.node_lease_s,
            capacity=lambda: capacity_of(manager.capacity() for manager in self.managers),
        )
        await membership.join()
        return membership
