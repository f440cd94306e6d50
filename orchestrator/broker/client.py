"""Client: one Jupyter client of a broker, and what it has asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from orchestrator.broker.messages import Channel, JupyterMessage

_MOST_PENDING = 1000  # requests of one queue that wait: nbclient has one, JupyterLab's "run all" one for each cell
_MOST_BYTES = 16 * 1024 * 1024  # of them together; one alone may be larger

Send = Callable[[Channel, JupyterMessage], None]


class Requests:
    """Requests of one client that are served one after another.

    Args:
        serve: serves one. Must not raise.
        done: called when all are served.
    """

    def __init__(self, serve: Callable[[Channel, JupyterMessage], Awaitable[None]], done: Callable[[], None]) -> None:
        self._serve = serve
        self._done = done
        self._pending: deque[tuple[Channel, JupyterMessage]] = deque()
        self._bytes = 0
        self._work: asyncio.Task[None] | None = None

    def add(self, channel: Channel, message: JupyterMessage) -> bool:
        """Add a request. Returns False if too many wait."""
        too_large = self._pending and self._bytes + message.size > _MOST_BYTES
        if len(self._pending) >= _MOST_PENDING or too_large:
            return False
        self._bytes += message.size
        self._pending.append((channel, message))
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._run())
        return True

    def take_all(self, kind: str) -> list[tuple[Channel, JupyterMessage]]:
        """Remove the requests of a kind that wait, and return them."""
        taken = [each for each in self._pending if each[1].kind == kind]
        self._pending = deque(each for each in self._pending if each[1].kind != kind)
        self._bytes = sum(message.size for _, message in self._pending)
        return taken

    async def settled(self) -> None:
        """Wait until none is served or waits."""
        while self._work is not None:
            await asyncio.wait({self._work})

    async def close(self) -> None:
        """Serve no more. What is being served is cancelled."""
        self._pending.clear()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})

    async def _run(self) -> None:
        try:
            while self._pending:
                channel, message = self._pending.popleft()
                self._bytes -= message.size
                await self._serve(channel, message)
        finally:
            self._work = None
            self._done()

    @property
    def is_idle(self) -> bool:
        """Whether none is served or waits."""
        return self._work is None


def _nobody(_channel: Channel, _message: JupyterMessage) -> None:
    """Stands in for a client that has gone."""


class Client:
    """One client.

    Args:
        send: sends it a message on a channel. Must neither block nor raise.
        ready: set once its requests may be served; None: they may be at once.

    Attributes:
        shell: its requests that wait for cells.
        control: those that do not.
        left: whether it has gone.
    """

    left = False

    shell: Requests
    control: Requests

    def __init__(self, send: Send, ready: asyncio.Event | None = None) -> None:
        self.send = send
        self._ready = ready
        self._question: asyncio.Future[str] | None = None

    async def until_ready(self) -> None:
        """Wait until its requests may be served."""
        if self._ready is not None:
            await self._ready.wait()

    def leave(self) -> None:
        """Send it no more. What it has asked for goes on."""
        self.left = True
        self.send = _nobody

    async def ask(self, question: JupyterMessage) -> str:
        """Send an ``input_request``, and return the line that the client answers."""
        self._question = asyncio.get_running_loop().create_future()
        try:
            self.send("stdin", question)
            return await self._question
        finally:
            self._question = None

    def answer(self, message: JupyterMessage) -> None:
        """Take a message of its stdin channel."""
        if message.kind == "input_reply" and self._question is not None and not self._question.done():
            self._question.set_result(str(message.content.get("value", "")))
