"""GatewayKernels: the kernels of the server's groups. A kernel is the session of an agent that is named by its UUID."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from orchestrator.errors import CellblockError, InvalidInputError, UnknownSessionError
from orchestrator.principal import Principal
from orchestrator.server.directory import Directory, Served, Wish
from orchestrator.server.gateway.gatewayclient import GatewayClient
from orchestrator.server.gateway.kernelcalls import CALLER
from orchestrator.server.gateway.kernelspecs import policy_of
from orchestrator.server.gateway.livekernel import LiveKernel
from orchestrator.server.service import Service
from orchestrator.store.history import HandleRecord, History, SessionRecord

_log = logging.getLogger(__name__)
_AGENT = "jupyter-"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = "jupyter.kernel"  # the label that keeps the name under which the kernel was asked for
_LONGEST_ID = 200  # characters of a client's session id
Found = tuple[HandleRecord, SessionRecord]


class GatewayKernels:
    """The kernels, by group and id. Those that have clients are held; the others are in the directory alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._live: dict[tuple[str, str], LiveKernel] = {}
        self._work: set[asyncio.Task[Any]] = set()

    @property
    def _directory(self) -> Directory:
        return self._service.directory

    async def start(self, principal: Principal, name: str, environment: Mapping[str, str]) -> dict[str, Any]:
        """Start a kernel, and return its model.

        Raises:
            UnknownKernelNameError: the token allows no policy of this name.
            See ``Directory.open``.
        """
        kernel_id = str(uuid.uuid4())
        wish = Wish(_AGENT + kernel_id, policy_of(principal, name), environment=environment, labels={_NAME: name})
        served, _ = await self._directory.open(principal, wish)
        return self._model(served.handle, served.session.last_used_at)

    async def models(self, principal: Principal) -> list[dict[str, Any]]:
        """Return the models of the group's kernels."""
        found = await self._directory.history.run(History.handles, principal.group)
        mine = [(handle, record) for handle, record in found if _ID.fullmatch(_id_of(handle))]
        models = [self._model(handle, record.last_used_at) for handle, record in mine]
        known = {model["id"] for model in models}
        lost = [live for (group, key), live in self._live.items() if group == principal.group and key not in known]
        return [*models, *(self._model_of(live) for live in lost if not live.is_over)]

    async def model(self, principal: Principal, kernel_id: str) -> dict[str, Any]:
        """Return a kernel's model. The kernel is not woken.

        Raises:
            UnknownSessionError: the group has no such kernel.
        """
        live = self._live.get((principal.group, kernel_id))
        if live is not None and not live.is_over:
            return self._model_of(live)
        handle, record = await self._found(principal, kernel_id)
        return self._model(handle, record.last_used_at)

    @contextlib.asynccontextmanager
    async def connected(
        self, principal: Principal, kernel_id: str, session_id: str
    ) -> AsyncIterator[tuple[LiveKernel, GatewayClient, asyncio.Event]]:
        """Connect a WebSocket with a kernel: see ``LiveKernel.connected``.

        Raises:
            UnknownSessionError: the group has no such kernel.
            InvalidInputError: the client's session id is too long.
            See ``Directory.find``.
        """
        if len(session_id) > _LONGEST_ID:
            raise InvalidInputError(f"a session id has at most {_LONGEST_ID} characters.")
        CALLER.set(principal)
        live = await self._live_of(principal, kernel_id)
        async with live.connected(session_id) as (client, socket):
            yield live, client, socket

    async def interrupt(self, principal: Principal, kernel_id: str) -> None:
        """Interrupt the running cell, whoever runs it.

        Raises:
            UnknownSessionError: the group has no such kernel.
        """
        live = self._live.get((principal.group, kernel_id))
        if live is not None and not live.is_over:
            served: Served | None = live.served
        else:
            handle, _ = await self._found(principal, kernel_id)
            served = self._directory.held(handle.session_id)
        if served is not None:
            served.manager.interrupt(served.session)

    async def restart(self, principal: Principal, kernel_id: str) -> None:
        """Give a kernel's session a fresh kernel. Its files and its clients stay.

        Raises:
            UnknownSessionError: the group has no such kernel.
            See ``AgentKernelManager.restart_kernel``.
        """
        CALLER.set(principal)
        live = self._live.get((principal.group, kernel_id))
        if live is not None and not live.is_over:
            await live.restart()
            return
        await self._found(principal, kernel_id)
        served, _ = await self._directory.open(principal, Wish(_AGENT + kernel_id))
        await served.manager.restart_kernel(served.session)

    async def stop(self, principal: Principal, kernel_id: str) -> None:
        """End a kernel's session, and disconnect its clients.

        Raises:
            UnknownSessionError: the group has no such kernel.
        """
        key = principal.group, kernel_id
        live = self._live.get(key)
        try:
            await self._directory.stop(*await self._found(principal, kernel_id), "end_session")
        except UnknownSessionError:
            if live is None or live.is_over:
                raise
            # it was lost, and only its clients were left
        finally:
            if live is not None:  # last: who is disconnected finds no kernel any more
                if self._live.get(key) is live:
                    del self._live[key]
                await live.close()

    async def close(self) -> None:
        """Disconnect all clients."""
        for live in list(self._live.values()):
            await live.close()
        self._live.clear()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _found(self, principal: Principal, kernel_id: str) -> Found:
        found = None
        if _ID.fullmatch(kernel_id):
            found = await self._directory.history.run(History.handle_of_agent, principal.group, _AGENT + kernel_id)
        if found is None:
            raise UnknownSessionError(f"Kernel does not exist: {kernel_id[:64]}", session_id=kernel_id)
        return found

    async def _live_of(self, principal: Principal, kernel_id: str) -> LiveKernel:
        key = principal.group, kernel_id
        held = self._live.get(key)
        if held is None or held.is_over:
            await self._found(principal, kernel_id)
            served = await self._directory.of_agent(principal, _AGENT + kernel_id)
            held = self._live.get(key)  # another WebSocket was quicker
        if held is None or held.is_over:
            held = self._live[key] = LiveKernel(
                self._directory, served, partial(self._shutdown_asked, kernel_id), partial(self._let_go, key)
            )
        return held

    def _let_go(self, key: tuple[str, str], live: LiveKernel) -> None:
        """Forget a kernel that has no clients any longer."""
        if self._live.get(key) is live:
            del self._live[key]
        self._spawn(live.close())

    def _shutdown_asked(self, kernel_id: str, restart: bool) -> None:
        """Called in the context of the client's request."""
        work = self.restart if restart else self.stop
        self._spawn(work(CALLER.get(), kernel_id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _model_of(self, live: LiveKernel) -> dict[str, Any]:
        return self._model(live.served.handle, live.served.session.last_used_at)

    def _model(self, handle: HandleRecord, last_used_at: float) -> dict[str, Any]:
        kernel_id = _id_of(handle)
        live, held = self._live.get((handle.group, kernel_id)), self._directory.held(handle.session_id)
        busy = held is not None and held.session.is_busy
        return {
            "id": kernel_id,
            "name": handle.labels.get(_NAME, handle.policy),
            "last_activity": time_text(last_used_at if held is None else held.session.last_used_at),
            "execution_state": "busy" if busy else "idle",
            "connections": 0 if live is None else live.connections,
        }


def time_text(seconds: float) -> str:
    """Return a time as Jupyter Server writes it, always with microseconds: its gateway client wants them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _id_of(handle: HandleRecord) -> str:
    return handle.name.removeprefix(_AGENT) if handle.name.startswith(_AGENT) else ""


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except CellblockError as error:
        _log.warning("a kernel could not be ended or restarted: %s", error)
