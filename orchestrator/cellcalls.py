"""CellCalls: the part of ``AgentKernelManager`` that runs cells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.celloptions import CellOptions
from orchestrator.errors import InvalidInputError, KernelTimeoutError
from orchestrator.inputs import check_code, check_environment
from orchestrator.kernel import variables
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.output.eventlog import EventLog
from orchestrator.output.events import CellFinished, Event, ExecutionResult, InputHandler
from orchestrator.output.variableinfo import VariableInfo
from orchestrator.policy.policy import Policy
from orchestrator.sessions.cellhandle import RunningCell
from orchestrator.sessions.checkpoint import capture_if_due
from orchestrator.sessions.session import KernelSession
from orchestrator.sessions.startedcells import StartedCells
from orchestrator.telemetry import Telemetry
from orchestrator.tool import Tool, ToolFunction, tools_by_name
from orchestrator.wiring.lifespan import Lifespan
from orchestrator.wiring.parts import Parts

if TYPE_CHECKING:
    from nbformat import NotebookNode

_DEFAULTS = CellOptions()
_LOG_LEAST = 4 * MIB  # bytes of a started cell's events, beyond twice its output limit
_UNREACHABLE = "unreachable: a stream ends with CellFinished or an error"


class CellCalls:
    """Runs cells of a session, one at a time."""

    _life: Lifespan
    _parts: Parts
    _started: StartedCells
    policy: Policy
    resource_limits: KernelResourceLimits
    telemetry: Telemetry

    @property
    def runtime(self) -> str:
        """The container runtime of new kernels: "runsc", "runc" or the one in the settings; "" before ``start``."""
        return self._parts.runtime

    async def execute(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> ExecutionResult:
        """Run one cell and return its result, however the cell ended: a timeout is a result with outcome "timeout".

        Args:
            answer: answers the cell's ``input()``, if the policy has ``channels.stdin``. The cell's time limit does
                not pause. Without a handler, or under another policy, ``input()`` fails at once.
            timeout: seconds that the cell may take; the manager's ``max_execution_time`` at most, and if None.
            output_limit: bytes that the cell may output; the manager's ``max_output_size_mb`` at most, and if None.
            environment: variables of ``os.environ`` while the cell runs; afterwards they are as before.
            tools: functions of this program that the cell may call, beside those of ``acquire_kernel``.

        Raises:
            InvalidCodeError: see ``check_code``. No cell ran.
            InvalidInputError: a limit is not above 0, or a variable cannot be used. No cell ran.
            KernelDiedError, SessionEndedError: there is no kernel to run the cell.
            StoreError: the result could not be kept; the error has it.
            QuotaExceededError: the agent keeps as much as it may. No cell ran.
        """
        events = self.stream_code(
            session,
            code,
            answer=answer,
            timeout=timeout,
            output_limit=output_limit,
            environment=environment,
            tools=tools,
        )
        try:
            return await _result_of(events)
        except KernelTimeoutError as error:
            return error.result

    async def execute_code(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> dict[str, Any]:
        """Run one cell and return its result as a dict: the reference's keys, and all of ``ExecutionResult``.

        An error of the code is a result with status "error"; so is a kernel that its own cell has ended.

        Args:
            answer, timeout, output_limit, environment, tools: see ``execute``.

        Raises:
            KernelTimeoutError: the cell ran past its time limit; the error has the result so far.
            InvalidCodeError, InvalidInputError, KernelDiedError, SessionEndedError, StoreError: see ``execute``.
        """
        events = self.stream_code(
            session,
            code,
            answer=answer,
            timeout=timeout,
            output_limit=output_limit,
            environment=environment,
            tools=tools,
        )
        return (await _result_of(events)).as_dict()

    async def stream_code(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
        options: CellOptions = _DEFAULTS,
    ) -> AsyncGenerator[Event, None]:
        """Run one cell and yield its outputs as they come; the last event is ``CellFinished`` with the result.

        To stop early, close the generator (``contextlib.aclosing``) or cancel the task: both interrupt the cell.

        Args:
            answer, timeout, output_limit, environment, tools: see ``execute``.
            options: see ``CellOptions``.

        Raises:
            See ``execute_code``.
        """
        check_code(code)
        check_environment(environment)
        offered = tools_by_name(tools)
        limits = self._limits(timeout, output_limit)
        finished: CellFinished | None = None
        async with self._life.in_use(session):
            with self.telemetry.span("execute_cell", runtime=self.runtime) as span:
                try:
                    async with contextlib.aclosing(
                        session.run(code, limits, answer, environment, offered, options)
                    ) as events:
                        async for event in events:
                            if isinstance(event, CellFinished):
                                finished = event
                                span.set_attribute("cellblock.outcome", event.result.outcome)
                            else:
                                yield event
                except KernelTimeoutError:
                    span.set_attribute("cellblock.outcome", "timeout")
                    raise
            await capture_if_due(session, self._parts.registry.files, self.policy.sessions.checkpoint_every)
        assert finished is not None
        yield finished

    def _limits(self, timeout: float | None, output_limit: int | None) -> KernelResourceLimits:
        try:
            return self.resource_limits.within(timeout, output_limit)
        except ValueError as error:
            raise InvalidInputError(str(error)) from None

    async def start_code(
        self,
        session: KernelSession,
        code: str,
        *,
        answer: InputHandler | None = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Iterable[Tool | ToolFunction] = (),
    ) -> RunningCell:
        """Start a cell that outlives this call. Wait for it, or interrupt it, with what is returned.

        It runs when its turn comes. The session stays awake until it is over. At ``shutdown`` it is cancelled.

        Args:
            answer, timeout, output_limit, environment, tools: see ``execute``.

        Raises:
            InvalidCodeError, InvalidInputError: see ``execute``. No cell was started.
        """
        check_code(code)
        check_environment(environment)
        offered = list(tools_by_name(tools).values())
        limits = self._limits(timeout, output_limit)
        self._life.check_caller()
        log = EventLog(2 * limits.max_output_bytes + _LOG_LEAST)
        events = self.stream_code(
            session,
            code,
            answer=answer,
            timeout=timeout,
            output_limit=output_limit,
            environment=environment,
            tools=offered,
        )
        running = asyncio.create_task(_logged(events, log))
        cell = RunningCell(session, code, self._parts.background.add(running), log)
        running.add_done_callback(partial(_end_log, log))
        self._started.add(cell)
        await asyncio.sleep(0)  # it takes its place in the queue of the session
        return cell

    def find_cell(self, cell_id: str) -> RunningCell:
        """Return a cell of ``start_code`` by its id. The last 1,000 that have ended are known, or 64 MiB of them.

        Raises:
            InvalidInputError: there is no such cell.
        """
        self._life.check_caller()
        return self._started.find(cell_id)

    def interrupt(self, session: KernelSession) -> bool:
        """Raise KeyboardInterrupt in the session's running cell, as Ctrl-C does. The cell may catch it.

        A cell that ends with an error after that has the outcome "interrupted". Its kernel and variables stay.

        Returns:
            Whether a cell was running.
        """
        self._life.check_caller()
        return session.interrupt()

    async def execute_code_for_notebook(self, session: KernelSession, code: str) -> list[NotebookNode]:
        """Run one cell and return its outputs in nbformat's form. Raises what ``execute_code`` raises."""
        from orchestrator.sessions import notebook  # imports nbformat, which most processes do not need

        return notebook.notebook_outputs(await self.execute_code(session, code))

    async def list_variables(self, session: KernelSession) -> tuple[VariableInfo, ...]:
        """Return the session's variables, 1,000 at most: name, type, size, shape and a short preview.

        It works also while a cell runs. No code of the session is called for it.

        Raises:
            TimeoutError: the kernel does not answer within 30 s, as while C code in a cell keeps Python's lock.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._life.in_use(session):
            return await variables.list_variables(session.live_kernel())


async def _result_of(events: AsyncGenerator[Event, None]) -> ExecutionResult:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, CellFinished):
                return event.result
    raise AssertionError(_UNREACHABLE)


async def _logged(events: AsyncGenerator[Event, None], log: EventLog) -> ExecutionResult:
    """Run a cell to its end, and log its events. Returns its result."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                log.add(event)
                if isinstance(event, CellFinished):
                    return event.result
    except KernelTimeoutError as error:
        log.add(CellFinished(error.result))
        return error.result
    raise AssertionError(_UNREACHABLE)


def _end_log(log: EventLog, task: asyncio.Task[ExecutionResult]) -> None:
    """Close a cell's log; its error, which nobody may wait for, is in the history too."""
    log.close(None if task.cancelled() else task.exception())
