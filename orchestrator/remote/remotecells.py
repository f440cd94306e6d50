"""RemoteCellCalls: the part of ``RemoteKernelManager`` that runs cells."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from nbformat import NotebookNode

from orchestrator.errors import CellblockError, InvalidInputError, KernelTimeoutError, NodeLostError, SessionBusyError
from orchestrator.inputs import check_code, check_environment
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.output.events import CellFinished, Event, ExecutionResult, InputHandler, event_from_dict
from orchestrator.remote.lostcell import lost_result
from orchestrator.remote.remotecell import QUESTIONS, Helper, RemoteCell
from orchestrator.remote.remotesession import RemoteSession
from orchestrator.sessions.notebook import notebook_outputs
from orchestrator.tool import Tool, ToolFunction, tools_by_name
from orchestrator.toolcalls import calling

_CELLS_KNOWN = 1000  # of ``start_code``


class RemoteCellCalls:
    """Runs cells of a session, one at a time."""

    _cells: dict[str, RemoteCell]

    async def execute(
        self,
        session: RemoteSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> ExecutionResult:
        """See ``AgentKernelManager.execute``. Tools and ``answer`` run in this process."""
        offered = session.offered(tools_by_name(tools))
        body = _body(code, answer, timeout, output_limit, environment, offered)
        if not offered and answer is None:
            _refuse_within_tool(session)
            return await _run(session, body)
        async with contextlib.aclosing(_stream(session, body, offered, answer)) as events:
            async for event in events:
                if isinstance(event, CellFinished):
                    return event.result
        raise AssertionError("unreachable: a stream ends with CellFinished or an error")

    async def execute_code(
        self,
        session: RemoteSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> dict[str, Any]:
        """See ``AgentKernelManager.execute_code``."""
        result = await self.execute(
            session,
            code,
            answer=answer,
            timeout=timeout,
            output_limit=output_limit,
            environment=environment,
            tools=tools,
        )
        return _raised_if_timed_out(result).as_dict()

    async def stream_code(
        self,
        session: RemoteSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> AsyncGenerator[Event, None]:
        """See ``AgentKernelManager.stream_code``."""
        offered = session.offered(tools_by_name(tools))
        body = _body(code, answer, timeout, output_limit, environment, offered)
        async with contextlib.aclosing(_stream(session, body, offered, answer)) as events:
            async for event in events:
                if isinstance(event, CellFinished):
                    _raised_if_timed_out(event.result)
                yield event

    async def start_code(
        self,
        session: RemoteSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> RemoteCell:
        """See ``AgentKernelManager.start_code``. The cell also outlives this process, if it has no tools."""
        offered = session.offered(tools_by_name(tools))
        body = _body(code, answer, timeout, output_limit, environment, offered)
        cell = RemoteCell(session, await self._ask(session, "POST", "cells", body), offered, answer)
        self._cells[cell.id] = cell
        while len(self._cells) > _CELLS_KNOWN:
            del self._cells[next(iter(self._cells))]
        return cell

    async def find_cell(self, cell_id: str, session: RemoteSession | None = None) -> RemoteCell:
        """Return a cell of ``start_code`` by its id.

        Args:
            session: where to look for a cell that another process has started.

        Raises:
            InvalidInputError: there is no such cell.
        """
        if cell_id in self._cells:
            return self._cells[cell_id]
        if session is None or not cell_id.isalnum():
            raise InvalidInputError(f"there is no started cell {cell_id!r}.")
        return RemoteCell(session, await self._ask(session, "GET", f"cells/{cell_id}"), {}, None)

    async def interrupt(self, session: RemoteSession) -> bool:
        """See ``AgentKernelManager.interrupt``."""
        return bool((await self._ask(session, "POST", "interrupt"))["interrupted"])

    async def execute_code_for_notebook(self, session: RemoteSession, code: str) -> list[NotebookNode]:
        """See ``AgentKernelManager.execute_code_for_notebook``."""
        return notebook_outputs(await self.execute_code(session, code))

    async def _ask(
        self, session: RemoteSession, method: str, what: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with session.noticing_its_end():
            return await session.connection.ask(method, f"{session.path}/{what}", body)


async def _run(session: RemoteSession, body: Mapping[str, Any]) -> ExecutionResult:
    """Run a cell that asks its client for nothing."""
    began = time.monotonic()
    try:
        with session.noticing_its_end():
            found = await session.connection.ask("POST", f"{session.path}/execute", body, query={"compact": True})
            return ExecutionResult.from_dict(found)
    except NodeLostError as lost:
        if lost.undone:
            raise
        return lost_result(lost, time.monotonic() - began, session.runtime)


async def _stream(
    session: RemoteSession, body: Mapping[str, Any], tools: Mapping[str, Tool], answer: InputHandler | None
) -> AsyncGenerator[Event, None]:
    """Run a cell and yield its events. It is interrupted when the consumer stops before its end."""
    _refuse_within_tool(session)
    helper, cell_id, began = Helper(session, tools, answer), "", time.monotonic()
    finished = False
    try:
        async with (
            helper.helping(),
            session.connection.events("POST", f"{session.path}/execute", body) as events,
        ):
            async for _, form in events:
                if form["type"] == "cell_started":
                    cell_id = form["cell_id"]
                elif form["type"] in QUESTIONS:
                    helper.take(cell_id, form)
                else:
                    finished = form["type"] == "cell_finished"
                    yield event_from_dict(form)
    except CellblockError as error:
        finished = True  # the server says that it is over
        if not isinstance(error, NodeLostError) or error.undone:
            raise
        yield CellFinished(lost_result(error, time.monotonic() - began, session.runtime))
    finally:
        if cell_id and not finished:
            with contextlib.suppress(CellblockError):
                await session.connection.ask("POST", f"{session.path}/cells/{cell_id}/interrupt")


def _body(
    code: str,
    answer: InputHandler | None,
    timeout: float | None,
    output_limit: int | None,
    environment: Mapping[str, str] | None,
    tools: Mapping[str, Tool],
) -> dict[str, Any]:
    """Return the request for a cell.

    Raises:
        InvalidCodeError, InvalidInputError: see ``AgentKernelManager.execute``. Nothing was sent.
    """
    check_code(code)
    check_environment(environment)
    try:
        KernelResourceLimits().within(timeout, output_limit)
    except ValueError as error:
        raise InvalidInputError(str(error)) from None
    return {
        "code": code,
        "timeout": None if timeout is None else min(float(timeout), 7 * 86400.0),
        "output_limit": output_limit,
        "environment": dict(environment or {}),
        "tools": [
            {"name": tool.name, "description": tool.description, "parameters": tool.schema, "checked": False}
            for tool in tools.values()
        ],
        "input": answer is not None,
    }


def _refuse_within_tool(session: RemoteSession) -> None:
    """Refuse a cell that a tool of the session's own cell wants to run.

    Raises:
        SessionBusyError: it would wait for itself.
    """
    if calling.get() is session:
        raise SessionBusyError(
            "a tool cannot run a cell of the session whose cell calls it: it would wait for itself.",
            agent_id=session.agent_id,
            waited=0.0,
            remedy="Use another session for it.",
        )


def _raised_if_timed_out(result: ExecutionResult) -> ExecutionResult:
    """Return a result.

    Raises:
        KernelTimeoutError: the cell exceeded its time limit; the error has the result.
    """
    if result.outcome is Outcome.TIMEOUT:
        raise KernelTimeoutError(
            f"the cell exceeded its time limit and was stopped after {result.duration_s:.1f} s.", result=result
        )
    return result
