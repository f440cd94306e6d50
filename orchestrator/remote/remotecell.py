"""RemoteCell: a cell that runs on a server: its events, and the tools and the input that it asks its client for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pydantic_core

from orchestrator.errors import CellblockError, NodeLostError, ServerUnavailableError
from orchestrator.output.events import (
    CellFinished,
    Event,
    ExecutionResult,
    InputHandler,
    InputRequest,
    event_from_dict,
)
from orchestrator.remote.link import Link
from orchestrator.remote.lostcell import lost_result
from orchestrator.remote.remotesession import RemoteSession
from orchestrator.tool import Tool
from orchestrator.toolcalls import calling

_WAIT = 50.0  # seconds that one request waits for a cell's end
_RETRIES = 5  # times that a broken stream is taken up again, before any new event
_PAUSE = 0.5  # seconds before the first of them; doubled each time


class RemoteCell:
    """A cell that was started on a server. It ends like any cell, whether or not somebody waits.

    Attributes:
        id: a name that no other cell of the server has.
        session: the session that it belongs to.
        code: its code.
        started_at: seconds since the epoch.
    """

    def __init__(
        self,
        session: RemoteSession,
        form: Mapping[str, Any],
        tools: Mapping[str, Tool],
        answer: InputHandler | None,
    ) -> None:
        self.session = session
        self._link = session.connection.staying()
        self.id: str = form["cell_id"]
        self.code: str = form["code"]
        self.started_at: float = form["started_at"]
        self._helper = Helper(session, tools, answer)
        self._result: ExecutionResult | None = None
        self._answering: asyncio.Task[None] | None = None
        if tools or answer is not None:  # somebody must answer, also when nobody follows the cell
            self._answering = asyncio.create_task(self._answer_all())

    def __repr__(self) -> str:
        return f"<RemoteCell {self.id}>"

    @property
    def is_running(self) -> bool:
        """Whether its end has not been seen yet: by ``wait`` or ``events``."""
        return self._result is None

    async def wait(self, timeout: float | None = None) -> ExecutionResult:
        """See ``RunningCell.wait``."""
        async with asyncio.timeout(timeout):
            while self._result is None:
                try:
                    found = await self._link.ask("GET", self._path, query={"wait_s": _WAIT, "compact": True})
                except NodeLostError as lost:
                    self._result = self._lost(lost)
                    break
                if found["result"] is not None:
                    self._result = ExecutionResult.from_dict(found["result"])
        return self._result

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """See ``RunningCell.events``."""
        stream = resumed(self._link, self.id, self._path, after)
        try:
            async with contextlib.aclosing(stream) as events:
                async for form in events:
                    if form["type"] not in QUESTIONS:
                        event = event_from_dict(form)
                        if isinstance(event, CellFinished):
                            self._result = event.result
                        yield event
        except NodeLostError as lost:
            self._result = self._lost(lost)
            yield CellFinished(self._result)

    async def interrupt(self) -> bool:
        """See ``RunningCell.interrupt``."""
        found = await self._link.ask("POST", f"{self._path}/interrupt")
        return bool(found["interrupted"])

    def _lost(self, lost: NodeLostError) -> ExecutionResult:
        return lost_result(lost, max(0.0, time.time() - self.started_at), self.session.runtime)

    @property
    def _path(self) -> str:
        return f"{self.session.path}/cells/{self.id}"

    async def _answer_all(self) -> None:
        with contextlib.suppress(CellblockError):  # whoever waits for the cell gets it
            async with (
                self._helper.helping(),
                contextlib.aclosing(resumed(self._link, self.id, self._path, 0)) as events,
            ):
                async for form in events:
                    if form["type"] in QUESTIONS:
                        self._helper.take(self.id, form)


QUESTIONS = frozenset({"tool_call", "input_request", "question_closed"})


class Helper:
    """Answers what a cell asks its client while it runs.

    Args:
        tools: functions of this process, by name.
        answer: answers ``input()``.
    """

    def __init__(self, session: RemoteSession, tools: Mapping[str, Tool], answer: InputHandler | None) -> None:
        self._session = session
        self._tools = tools
        self._answer = answer
        self._running: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def helping(self) -> AsyncGenerator[None, None]:
        """Cancel what still runs at the end: the cell is over. A plain function in a thread cannot be stopped."""
        try:
            yield
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def take(self, cell_id: str, question: Mapping[str, Any]) -> None:
        """Begin to answer a question, unless it is being answered; or stop, if it wants no answer any longer."""
        question_id = str(question["id"])
        if question["type"] == "question_closed":
            if question_id in self._running:
                self._running[question_id].cancel()
        elif question_id not in self._running:
            task = asyncio.create_task(self._serve(cell_id, question_id, question))
            self._running[question_id] = task
            task.add_done_callback(lambda _: self._running.pop(question_id, None))

    async def _serve(self, cell_id: str, question_id: str, question: Mapping[str, Any]) -> None:
        try:
            body: dict[str, Any] = {"result": await self._answered(question)}
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the tool's own; it is raised again in the sandbox
            body = {"error": {"kind": type(error).__name__[:100], "message": str(error)[:2000]}}
        path = f"{self._session.path}/cells/{cell_id}/answers/{question_id}"
        with contextlib.suppress(CellblockError):  # the cell is over, or asks again over a new stream
            await self._session.connection.ask("POST", path, body)

    async def _answered(self, question: Mapping[str, Any]) -> Any:
        if question["type"] == "input_request":
            if self._answer is None:
                raise EOFError("nobody answers")
            return await self._answer(InputRequest(question["prompt"], question["password"]))
        tool = self._tools.get(question["name"])
        if tool is None:
            raise LookupError(f"there is no tool {question['name']!r}")
        try:
            arguments = tool.check(question["arguments"])
        except ValueError as error:
            raise ValueError(f"the arguments of {tool.name!r} are not valid: {error}") from None
        calling.set(self._session)
        if tool.is_async:
            value = await tool.function(**arguments)
        else:
            value = await asyncio.to_thread(tool.function, **arguments)
        try:
            return pydantic_core.to_jsonable_python(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise TypeError(f"the result of {tool.name!r} is no JSON: {error}") from None


async def resumed(connection: Link, cell_id: str, path: str, seen: int) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a cell's events and questions. A stream that breaks is taken up where it was.

    Raises:
        ServerUnavailableError: the server does not come back.
        Any error of the server's.
    """
    retries = 0
    while True:
        try:
            async with connection.events("GET", f"{path}/events", seen=seen) as events:
                async for number, form in events:
                    if number is not None:
                        seen, retries = number, 0
                    if form["type"] != "cell_started":
                        yield form
                    if form["type"] == "cell_finished":
                        return
            raise ServerUnavailableError(f"the server ended the stream of cell {cell_id}.")
        except ServerUnavailableError:
            retries += 1
            if retries > _RETRIES:
                raise
            await asyncio.sleep(_PAUSE * 2 ** (retries - 1))
