"""RemoteKernelManager: ``AgentKernelManager`` over a server: the same calls, types and errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.errors import InvalidInputError
from orchestrator.inputs import check_agent_id, check_lease_request
from orchestrator.output.variableinfo import VariableInfo
from orchestrator.remote.connection import Connection
from orchestrator.remote.link import Link
from orchestrator.remote.remotecells import RemoteCellCalls
from orchestrator.remote.remotecommands import RemoteCommandCalls
from orchestrator.remote.remotefiles import RemoteFileCalls
from orchestrator.remote.remotesession import RemoteKernel, RemoteSession, restored_of
from orchestrator.sessions.checkpoint import Checkpoint
from orchestrator.sessions.restored import Lost, Restored
from orchestrator.store.wholefile import save_whole
from orchestrator.tool import Tool, ToolFunction, tools_by_name


class RemoteKernelManager(RemoteCellCalls, RemoteCommandCalls, RemoteFileCalls):
    """The kernels of a server. ``AgentKernelManager.connect`` makes it; use it as an async context manager.

    Its calls are those of ``AgentKernelManager``, with two differences. What needs no wait in a process of its own is
    awaited here: ``interrupt``, ``find_cell``, ``list_commands``, and the methods of started cells and commands. And
    the server decides about policies, limits and how many kernels there are.

    Every call raises ServerUnavailableError if the server does not answer, and UnauthorizedError if it does not accept
    the token.
    """

    def __init__(self, url: str, *, token: str | None, uds: str | None, verify: str | bool, policy: str) -> None:
        self._connection = Connection(url, token, uds, verify)
        self._policy = policy
        self._cells = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        """Close the connections. The server's sessions stay as they are."""
        await self._connection.close()

    @contextlib.asynccontextmanager
    async def acquire_kernel(
        self,
        agent_id: str,
        timeout: float | None = None,
        *,
        caller: str = "",
        policy: str = "",
        image: str = "",
        environment: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_s: float | None = None,
        priority: int = 0,
        tools: Iterable[Tool | ToolFunction] | None = None,
    ) -> AsyncIterator[tuple[RemoteKernel, RemoteSession]]:
        """Yield the agent's kernel and session: those that it has, with its variables, or new ones.

        Args:
            timeout: seconds to wait for a free kernel; None, and at most: 600.
            caller: who uses the kernel, for the server's audit log, which has it beside the token's name.
            policy: of a new session; "": that of ``connect``.
            image: of a new session; "": the policy's.
            environment: variables of every cell and command of a new session.
            labels: what to keep with a new session.
            ttl_s: seconds from now after which a new session ends; None: never.
            priority, tools: see ``AgentKernelManager.acquire_kernel``.

        Raises:
            ForbiddenError: the token does not allow the policy.
            See ``AgentKernelManager.acquire_kernel``.
        """
        check_agent_id(agent_id)
        check_lease_request(None, priority)
        offered = None if tools is None else tools_by_name(tools)
        if timeout is not None and not timeout >= 0:
            raise InvalidInputError("the timeout must be a number of seconds, 0 or more.")
        body = {
            "agent_id": agent_id,
            "policy": policy or self._policy,
            "image": image,
            "environment": dict(environment or {}),
            "labels": dict(labels or {}),
            "ttl_s": ttl_s,
            "timeout": 600.0 if timeout is None else min(float(timeout), 600.0),
            "priority": priority,
            "caller": caller,
        }
        link = self._link(agent_id, policy or self._policy, image)
        session = RemoteSession.of(link, await link.acquire(body))
        with session.offering(offered):
            yield session.kernel, session

    async def restart_kernel(
        self, session: RemoteSession, *, keep_files: bool = True, timeout: float | None = None
    ) -> None:
        """See ``AgentKernelManager.restart_kernel``."""
        body = {"keep_files": keep_files, "timeout": timeout}
        session.update(await self._ask(session, "POST", "restart", body))

    async def install(self, session: RemoteSession, requirements: Sequence[str]) -> list[str]:
        """See ``AgentKernelManager.install``."""
        found = await self._ask(session, "POST", "packages", {"requirements": list(requirements)})
        return [str(title) for title in found["installed"]]

    async def end_session(self, agent_id: str) -> bool:
        """See ``AgentKernelManager.end_session``."""
        session_id = await self._session_id(agent_id)
        if session_id is None:
            return False
        return bool((await self._link(agent_id).ask("DELETE", f"/v1/sessions/{session_id}"))["ended"])

    async def checkpoint(self, session: RemoteSession) -> Checkpoint:
        """See ``AgentKernelManager.checkpoint``. The file is on the server: ``path`` is only its name there."""
        made = await self._ask(session, "POST", "checkpoints")
        return Checkpoint(
            made["checkpoint_id"],
            made["session_id"],
            session.agent_id,
            made["created_at"],
            made["cell"],
            made["bytes"],
            tuple(Lost(**loss) for loss in made["lost"]),
            Path(made["checkpoint_id"]),
        )

    async def restore(
        self, session: RemoteSession, checkpoint: Checkpoint | str, timeout: float | None = None
    ) -> Restored:
        """See ``AgentKernelManager.restore``.

        Args:
            checkpoint: what ``checkpoint`` returned, or its id.
        """
        checkpoint_id = checkpoint.checkpoint_id if isinstance(checkpoint, Checkpoint) else checkpoint
        body = {"checkpoint_id": str(checkpoint_id), "timeout": timeout}
        return restored_of(await self._ask(session, "POST", "restore", body))

    async def fork(
        self, session: RemoteSession, count: int, *, agent_ids: Sequence[str] | None = None
    ) -> list[RemoteSession]:
        """See ``AgentKernelManager.fork``."""
        body = {"count": count, "agent_ids": None if agent_ids is None else list(agent_ids)}
        found = await self._ask(session, "POST", "fork", body)
        return [RemoteSession.of(self._link(form["agent_id"], form["policy"]), form) for form in found["sessions"]]

    async def hibernate(self, agent_id: str) -> bool:
        """See ``AgentKernelManager.hibernate``."""
        session_id = await self._session_id(agent_id)
        if session_id is None:
            return False
        return bool((await self._link(agent_id).ask("POST", f"/v1/sessions/{session_id}/hibernate"))["asleep"])

    async def list_variables(self, session: RemoteSession) -> tuple[VariableInfo, ...]:
        """See ``AgentKernelManager.list_variables``."""
        found = await self._ask(session, "GET", "variables")
        return tuple(
            VariableInfo(
                form["name"],
                form["type"],
                form["size"],
                None if form["shape"] is None else tuple(form["shape"]),
                form["preview"],
            )
            for form in found["variables"]
        )

    async def list_sessions(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """Return the sessions of the token's group, the last used first, as the server describes them."""
        found = await self._link("").ask("GET", "/v1/sessions", query={"ended": ended})
        sessions: list[dict[str, Any]] = found["sessions"]
        return sessions

    async def export_history(self, session: RemoteSession) -> dict[str, Any]:
        """Return the session's identity and history."""
        return {
            "session_id": session.session_id,
            "kernel_id": session.kernel_id,
            "agent_id": session.agent_id,
            "execution_history": await session.history(),
        }

    async def export_notebook(self, session: RemoteSession, output_path: str | Path, title: str = "") -> None:
        """See ``AgentKernelManager.export_notebook``."""
        async with session.connection.download(f"{session.path}/notebook", {"title": title}) as answer:
            text = (await answer.aread()).decode()
        save_whole(Path(output_path), text)

    async def get_kernel_resource_usage(self, session: RemoteSession) -> dict[str, Any]:
        """See ``AgentKernelManager.get_kernel_resource_usage``; "asleep" alone for a session without a kernel."""
        return await self._ask(session, "GET", "usage")

    def _link(self, _agent_id: str, _policy: str = "", _image: str = "") -> Link:
        """Return how an agent's session is reached."""
        return self._connection

    async def _session_id(self, agent_id: str) -> str | None:
        check_agent_id(agent_id)
        for form in await self.list_sessions():
            if form["agent_id"] == agent_id:
                return str(form["session_id"])
        return None
