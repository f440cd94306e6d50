"""Broker: any number of Jupyter's clients on one agent's session.

Requests are served in each client's own order; cells of several clients, and of the host, take turns in the session's.
Whatever a cell puts out goes to all clients, as the host's own message: no byte of the kernel's passes unparsed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from orchestrator.broker import messages
from orchestrator.broker.asked import ASKED, Asked
from orchestrator.broker.bundles import allowed
from orchestrator.broker.client import Client, Requests
from orchestrator.broker.kernelside import KernelSide
from orchestrator.broker.messages import Channel, JupyterMessage, MessageMaker, State
from orchestrator.broker.sessioncalls import SessionCalls
from orchestrator.celloptions import CellOptions
from orchestrator.errors import CellblockError, KernelTimeoutError
from orchestrator.output.events import (
    CellFinished,
    ErrorOutput,
    ExecutionResult,
    InputRequest,
    OutputEvent,
    StreamOutput,
)
from orchestrator.output.watched import CellEnded, CellStarted
from orchestrator.sessions.session import KernelSession

Subscriber = Callable[[JupyterMessage], None]
_AT_ONCE = frozenset(("kernel_info_request", "comm_info_request"))  # are answered also while a cell runs


class Broker:
    """Serves the requests of its clients on one session.

    Args:
        calls: the manager.
        session: the session that its agent has now.
        caller: who uses the kernel, for the audit log.
        on_shutdown: called once a client has asked for a shutdown, with whether it asked for a restart. The reply was
            sent.
    """

    def __init__(
        self, calls: SessionCalls, session: KernelSession, on_shutdown: Callable[[bool], None], caller: str = ""
    ) -> None:
        self._calls = calls
        self._agent = session.agent_id
        self._caller = caller
        self._on_shutdown = on_shutdown
        self._subscribers: tuple[Subscriber, ...] = ()
        self._clients: set[Client] = set()
        self._host_cell: Asked | None = None
        self._lost = False  # whether the session has lost its variables, and its clients were not told yet
        self.maker = MessageMaker()
        self.kernel_side = KernelSide(self.maker, self._publish)
        self._session, self._kernel_id = session, session.kernel_id
        self._unwatch = session.watch(self._watch)

    # Its clients

    def add(self, client: Client) -> None:
        """Add a client, before its first message."""
        serve, done = partial(self._serve, client), partial(self._forget, client)
        client.shell, client.control = Requests(serve, done), Requests(serve, done)
        self._clients.add(client)

    def remove(self, client: Client) -> None:
        """Remove a client that has gone. What it has asked for goes on, as in any Jupyter kernel."""
        client.leave()
        self._forget(client)

    async def drop(self, client: Client) -> None:
        """Remove a client, and serve none of its requests any more. A cell that it runs is interrupted."""
        client.leave()
        await client.shell.close()
        await client.control.close()
        self._clients.discard(client)

    def _forget(self, client: Client) -> None:
        if client.left and client.shell.is_idle and client.control.is_idle:
            self._clients.discard(client)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` with every message for all clients. Return what ends this.

        Args:
            subscriber: must neither block nor raise.
        """
        self._subscribers += (subscriber,)

        def end() -> None:
            self._subscribers = tuple(one for one in self._subscribers if one is not subscriber)

        return end

    def take(self, client: Client, channel: Channel, message: JupyterMessage) -> None:
        """Take a message of a client."""
        if channel == "stdin":
            client.answer(message)
            return
        requests = client.control if channel == "control" or message.kind in _AT_ONCE else client.shell
        if not requests.add(channel, message):
            self._reply(client, channel, message, _refused("TooManyRequests", "too many requests of this client wait."))

    def announce(self, state: State) -> None:
        """Tell all clients what the kernel does, beside any request."""
        self._publish(self.maker.status(state, {}))

    def restarted(self, session: KernelSession) -> None:
        """Tell all clients that somebody has given the agent's session a fresh kernel.

        Not "restarting": JupyterLab says then that the kernel has died.
        """
        self._follow(session)
        self._lost = False
        self.announce("starting")
        self.announce("idle")

    async def close(self) -> None:
        """Serve nobody any more. A cell that a client runs is interrupted."""
        self._unwatch()
        for client in list(self._clients):
            await self.drop(client)

    # Requests

    async def _serve(self, client: Client, channel: Channel, message: JupyterMessage) -> None:
        await client.until_ready()
        if message.kind == "execute_request":
            await self._execute(client, channel, message)
            return
        self._publish(self.maker.status("busy", message.header))
        try:
            reply = await self._answer(message)
        except CellblockError as error:
            reply = _refused(type(error).__name__, error.message)
        except TimeoutError:
            reply = _refused("TimeoutError", "the kernel has not answered.")
        if reply is not None:
            self._reply(client, channel, message, reply)
        self._publish(self.maker.status("idle", message.header))
        self._tell_loss()

    async def _answer(self, message: JupyterMessage) -> dict[str, Any] | None:
        """Return the content of a request's reply; None where it has none."""
        match message.kind:
            case "interrupt_request":
                self._calls.interrupt(self._session)
                return {"status": "ok"}
            case "shutdown_request":
                restart = message.content.get("restart") is True
                asyncio.get_running_loop().call_soon(self._on_shutdown, restart)
                return {"status": "ok", "restart": restart}
        async with self._acquired() as session:
            return await self.kernel_side.answer(session, message)

    def _reply(self, client: Client, channel: Channel, request: JupyterMessage, content: dict[str, Any]) -> None:
        kind = request.kind.removesuffix("_request") + "_reply"
        metadata = {"status": content.get("status", "ok")}
        client.send(channel, self.maker.make(kind, content, request.header, metadata))
        if kind == "shutdown_reply":  # all clients learn of it
            self._publish(self.maker.make(kind, content, request.header, metadata))

    @contextlib.asynccontextmanager
    async def _acquired(self) -> AsyncIterator[KernelSession]:
        """Yield the agent's session with a live kernel: a fresh one, if its last one was lost."""
        if self._session.is_awake:
            self._follow(self._session)
            with self._session.in_use():
                yield self._session
            return
        async with self._calls.acquire_kernel(self._agent, caller=self._caller) as (_kernel, session):
            self._follow(session)
            yield session

    def _follow(self, session: KernelSession) -> None:
        if session is not self._session:
            self._unwatch()
            self._session, self._unwatch = session, session.watch(self._watch)
        if session.kernel_id != self._kernel_id:
            self._kernel_id = session.kernel_id
            self._lost = session.restored is None  # else it was woken, and has its variables

    def _tell_loss(self) -> None:
        """Tell all clients after a request that found the kernel lost: they forget what they have asked before."""
        if self._lost:
            self._lost = False
            self.announce("restarting")
            self.announce("idle")

    # Cells

    async def _execute(self, client: Client, channel: Channel, message: JupyterMessage) -> None:
        asked = Asked(self, message.header)
        started = messages.now()
        token = ASKED.set(asked)
        try:
            content = await self._run(client, message, asked)
        finally:
            ASKED.reset(token)
        self._busy(asked)
        metadata = {"started": started, "dependencies_met": True, "status": content["status"]}
        client.send(channel, self.maker.make("execute_reply", content, message.header, metadata))
        self._publish(self.maker.status("idle", message.header))
        self._tell_loss()
        if content["status"] != "ok" and message.content.get("stop_on_error", True):
            for waiting in client.shell.take_all("execute_request"):
                self._abort(client, *waiting)

    def _abort(self, client: Client, channel: Channel, message: JupyterMessage) -> None:
        self._publish(self.maker.status("busy", message.header))
        self._reply(client, channel, message, {"status": "aborted"})
        self._publish(self.maker.status("idle", message.header))

    async def _run(self, client: Client, message: JupyterMessage, asked: Asked) -> dict[str, Any]:
        """Run a client's cell, and return its reply's content."""
        content = message.content

        async def answer(request: InputRequest) -> str:
            form = {"prompt": request.prompt, "password": request.password}
            return await client.ask(self.maker.make("input_request", form, message.header))

        try:
            async with self._acquired() as session:
                events = self._calls.stream_code(
                    session,
                    str(content.get("code", "")),
                    answer=answer if content.get("allow_stdin") else None,
                    options=_options(content),
                )
                async with contextlib.aclosing(events):
                    async for event in events:
                        if isinstance(event, CellFinished):
                            self._show_end(asked, event.result)
                            return messages.reply_content(event.result, asked.extras)
        except KernelTimeoutError as error:
            self._show_end(asked, error.result)
            return self._failed(asked, error) | {"execution_count": error.result.execution_count or 0}
        except CellblockError as error:
            return self._failed(asked, error)
        raise AssertionError("unreachable: a stream ends with CellFinished or an error")

    def _failed(self, asked: Asked, error: CellblockError) -> dict[str, Any]:
        """Publish an error of the host, and return the reply's content."""
        lines = [f"{type(error).__name__}: {error.message}", *([error.remedy] if error.remedy else [])]
        shown = ErrorOutput(type(error).__name__, error.message, tuple(lines))
        self._show(asked, shown)
        return {"status": "error", "execution_count": 0, **messages.error_content(shown)}

    def _show_end(self, asked: Asked, result: ExecutionResult) -> None:
        """Publish what the host knows of a cell's end and no output has said."""
        if result.error is not None and not asked.failed:
            self._show(asked, result.error)
        for warning in result.warnings:
            self._show(asked, StreamOutput("stderr", f"[cellblock] {warning}\n"))

    # What all clients see

    def _watch(self, event: CellStarted | OutputEvent | CellEnded) -> None:
        """Publish what a cell of the session does. Called in the context of whoever runs it."""
        asked = ASKED.get()
        if asked is None or asked.broker is not self:
            self._watch_host(event)
        elif isinstance(event, CellEnded):
            asked.extras = allowed(dict(event.extras), self._session.policy.output.passes)
        else:
            self._show(asked, event)

    def _watch_host(self, event: CellStarted | OutputEvent | CellEnded) -> None:
        """Publish a cell that none of this broker's clients has asked for."""
        if self._host_cell is None:
            code = event.code if isinstance(event, CellStarted) else ""
            self._host_cell = Asked(None, self.maker.execute_request(code))
        asked = self._host_cell
        if isinstance(event, CellEnded):
            self._busy(asked)
            self._show_end(asked, event.result)
            self._publish(self.maker.status("idle", asked.parent))
            self._host_cell = None
        else:
            self._show(asked, event)

    def _show(self, asked: Asked, event: CellStarted | OutputEvent) -> None:
        self._busy(asked)
        if isinstance(event, CellStarted):
            form = {"code": event.code, "execution_count": event.execution_count or 0}
            self._publish(self.maker.make("execute_input", form, asked.parent))
            return
        asked.failed = asked.failed or isinstance(event, ErrorOutput)
        self._publish(self.maker.of_event(event, asked.parent))

    def _busy(self, asked: Asked) -> None:
        if not asked.busy:
            asked.busy = True
            self._publish(self.maker.status("busy", asked.parent))

    def _publish(self, message: JupyterMessage) -> None:
        for subscriber in self._subscribers:
            subscriber(message)


def _options(content: Any) -> CellOptions:
    expressions = content.get("user_expressions")
    silent = content.get("silent") is True
    return CellOptions(
        silent=silent,
        store_history=content.get("store_history", not silent) is True,
        user_expressions={str(name): str(text) for name, text in expressions.items()}
        if isinstance(expressions, dict)
        else {},
    )


def _refused(name: str, text: str) -> dict[str, Any]:
    return {"status": "error", "ename": name, "evalue": text, "traceback": []}
