"""Run one cell: send it, stream its outputs, race the kernel's death, and stop it at its deadline.

A cell ends only on reply *and* idle of its own request, or on the host's own evidence: the deadline, a cut wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import re
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Literal

from orchestrator.container.exits import Exit
from orchestrator.errors import EngineError, KernelDiedError, KernelTimeoutError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import OUTPUT_KINDS, Reply, to_event, to_input_request
from orchestrator.limits import KernelResourceLimits, OutputBudget
from orchestrator.outputs import (
    Answer,
    CellFinished,
    CommMessage,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    ExecutionResult,
    InputRequest,
    KernelState,
    Outcome,
    OutputCollector,
    OutputEvent,
    Truncation,
    UpdateDisplayData,
    memory_of,
)

Stop = Literal["timeout", "cancelled"]
_END_OF_FILE = "\x04"  # what a kernel takes for one
_MOST_MIMES = 20  # names of dropped mime types that a result keeps
_LONGEST_MIME = 100  # characters of each
_INTERRUPT_AGAIN = 1.0  # seconds
INTERRUPT_GRACE = 3.0  # seconds between interrupting a cell and killing its kernel; an interrupt took 0.02-0.23 s


class Cell:
    """One cell on its way through a kernel. Used once.

    Args:
        answer: answers its ``input()``, where the kernel's policy has ``channels.stdin``. Without, asking is an error.
    """

    def __init__(self, kernel: Kernel, code: str, limits: KernelResourceLimits, answer: Answer | None = None) -> None:
        self._kernel = kernel
        self._code = code
        self._limits = limits
        self._events: deque[OutputEvent] = deque()
        self._collector = OutputCollector()
        self._budget = OutputBudget(limits.max_output_bytes)
        self._wake: asyncio.Future[None] | None = None
        self._reply: Reply | None = None
        self._idle = False
        self._error: ErrorOutput | None = None
        self._channels = kernel.policy.channels
        self._answer = answer if self._channels.stdin else None
        self._answering: asyncio.Task[None] | None = None
        self._unanswered: Exception | None = None
        self._mime_types = re.compile("|".join(map(fnmatch.translate, kernel.policy.output.mime_types)), re.IGNORECASE)
        self._mime_dropped: dict[str, None] = {}
        self._outcome: Outcome | None = None
        self._started = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._id = ""

    async def run(self) -> AsyncGenerator[Event, None]:
        """Yield the outputs as they come, and ``CellFinished`` as the last event.

        The time limit holds however slowly the consumer takes the events. When the consumer stops early or is
        cancelled, the cell is interrupted, or its kernel killed, before this generator ends: no cell runs on unseen.

        Raises:
            KernelDiedError: the kernel was gone before the cell was sent, or the engine is, so nobody can tell.
            KernelTimeoutError: the cell ran past its limit. Its outputs were yielded before.
            Exception: whatever ``answer`` raised, but for EOFError, which goes to the cell. The cell is over by then.
        """
        self._id = self._kernel.send("shell", "execute_request", self._request(), self._receive, accept=self._accept)
        call_off = self._kernel.when_lost(self._awake)
        self._timer = self._loop.call_later(self._limits.max_execution_time, self._stop, "timeout")
        try:
            while not self._done() or self._events:
                while self._events:
                    yield self._events.popleft()
                await self._woken()
            result = await self._result()
            if self._unanswered is not None:
                raise self._unanswered
            if result.outcome == "timeout":
                raise self._timeout_error(result)
            yield CellFinished(result)
        except (asyncio.CancelledError, GeneratorExit):
            await self._see_it_end()
            raise
        finally:
            if self._answering is not None:
                self._answering.cancel()
            self._timer.cancel()
            call_off()
            self._kernel.forget(self._id)

    def partial_result(self) -> ExecutionResult:
        """What is known of a cell that was cancelled or lost."""
        return self._make_result(self._outcome or "cancelled", self._error, self._state())

    def _request(self) -> dict[str, object]:
        return {
            "code": self._code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": self._answer is not None,  # else a cell that asks fails at once, with an error that says so
            "stop_on_error": False,
        }

    def _accept(self, kind: str, size: int) -> bool:
        """Whether a message is to be parsed: an output only as far as the budget goes."""
        if kind in OUTPUT_KINDS:
            return self._budget.fits(size) or self._budget.drop(size)
        if kind == "input_request":
            return self._answer is not None and self._answering is None and self._budget.take(size)
        return kind in ("execute_reply", "status") or self._channels.comms

    def _receive(self, message: Message) -> None:
        if message.channel == "shell":
            if message.kind == "execute_reply" and self._reply is None:
                self._reply = Reply.of(message.content)
        elif message.channel == "stdin":
            if self._answer is not None and message.kind == "input_request":
                self._answering = self._loop.create_task(self._ask(self._answer, to_input_request(message.content)))
        elif message.kind == "status":
            self._idle = self._idle or message.content.get("execution_state") == "idle"
        elif (event := to_event(message.kind, message.content)) is not None:
            self._take(event)
        self._awake()

    async def _ask(self, answer: Answer, request: InputRequest) -> None:
        """Pass a question on to whoever runs the cell, one at a time. A cell that nobody answers meets its deadline."""
        try:
            line = await answer(request)
        except EOFError:
            line = _END_OF_FILE
        except Exception as error:  # noqa: BLE001 - the caller's own, and it gets it back from ``run``
            self._unanswered = error
            self._stop("cancelled")
            return
        finally:
            self._answering = None
        with contextlib.suppress(KernelDiedError):
            self._kernel.forget(self._kernel.send("stdin", "input_reply", {"value": line}, lambda _message: None))

    def _take(self, event: OutputEvent) -> None:
        if isinstance(event, CommMessage):
            if self._budget.take(memory_of(event.data)):
                self._events.append(event)
            return
        event = self._allowed(event)
        if not self._budget.take(self._collector.cost(event)):
            return
        if isinstance(event, ErrorOutput):
            self._error = event
        self._collector.add(event)
        self._events.append(event)

    def _allowed(self, event: OutputEvent) -> OutputEvent:
        """Leave out what the policy's mime types do not name; text/plain always stays."""
        if not isinstance(event, DisplayData | UpdateDisplayData | ExecuteResult):
            return event
        dropped = [mime for mime in event.data if mime != "text/plain" and not self._mime_types.fullmatch(mime)]
        if not dropped:
            return event
        for mime in dropped[: _MOST_MIMES - len(self._mime_dropped)]:
            self._mime_dropped[mime[:_LONGEST_MIME]] = None
        return replace(event, data={mime: item for mime, item in event.data.items() if mime not in dropped})

    def _done(self) -> bool:
        return (self._reply is not None and self._idle) or not self._kernel.is_alive

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _woken(self) -> None:
        """Wait until the cell is done, or an event has come."""
        if self._done() or self._events:
            return
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _stop(self, why: Stop) -> None:
        """Interrupt the cell, and kill its kernel when that does not end it within the grace period."""
        if self._done() or self._outcome is not None:
            return
        self._outcome = why
        self._interrupt()
        self._timer.cancel()
        self._timer = self._loop.call_later(INTERRUPT_GRACE, self._kill, why)

    def _interrupt(self) -> None:
        """Interrupt, and once more a second later: the first may have come before the cell had begun."""
        if not self._done():
            self._kernel.interrupt()
            self._loop.call_later(_INTERRUPT_AGAIN, self._interrupt)

    def _kill(self, why: Stop) -> None:
        if not self._done():
            self._kernel.condemn(why)

    async def _see_it_end(self) -> None:
        """Stop the cell and wait until it is over, however often the waiting task is cancelled."""
        self._stop("cancelled")
        while not self._done():
            self._events.clear()
            with contextlib.suppress(asyncio.CancelledError):
                await self._woken()

    def _state(self) -> KernelState:
        return "idle" if self._kernel.is_alive else "dead"

    async def _result(self) -> ExecutionResult:
        if self._outcome == "timeout":
            if not self._kernel.is_alive:
                await self._ended()
            return self._make_result("timeout", self._error, self._state())
        if self._reply is not None and self._idle and not self._kernel.violated:
            failed = self._reply.error is not None
            if failed and self._error is None:
                self._error = self._reply.error
            return self._make_result("error" if failed else "ok", self._error if failed else None, self._state())
        return await self._death()

    async def _ended(self) -> Exit:
        try:
            return await self._kernel.exit()
        except EngineError as error:
            raise KernelDiedError(
                f"the kernel is gone, and the engine cannot say how: {error.message}",
                kernel_id=self._kernel.kernel_id,
                reason="engine_lost",
                remedy=error.remedy,
            ) from error

    async def _death(self) -> ExecutionResult:
        end = await self._ended()
        outcome: Outcome = "oom" if end.reason == "oom" else "kernel_died"
        if self._kernel.excess:
            outcome = "output_limit"
        if self._kernel.violated:
            self._kernel.note("cell.cut", outcome=outcome, dropped_bytes=self._budget.dropped)
        seen = end.exit_code is not None
        said = f"the kernel {end.describe()}" if seen else f"the kernel was ended: {self._kernel.cut_reason}"
        names = {"oom": "KernelOutOfMemory", "output_limit": "KernelOutputLimit"}
        return self._make_result(outcome, ErrorOutput(names.get(outcome, "KernelDied"), said), "dead")

    def _make_result(self, outcome: Outcome, error: ErrorOutput | None, state: KernelState) -> ExecutionResult:
        return ExecutionResult(
            status="ok" if outcome == "ok" else "error",
            outcome=outcome,
            outputs=self._collector.outputs(),
            error=error,
            msg_id=self._id,
            execution_count=None if self._reply is None else self._reply.count,
            duration_s=time.monotonic() - self._started,
            truncated=self._truncation(),
            mime_dropped=tuple(self._mime_dropped),
            kernel_state=state,
            runtime=self._kernel.runtime,
        )

    def _truncation(self) -> Truncation | None:
        if not self._budget.dropped:
            return None
        return Truncation("max_output_size_mb", self._budget.limit, self._budget.dropped)

    def _timeout_error(self, result: ExecutionResult) -> KernelTimeoutError:
        alive = result.kernel_state == "idle"
        fate = "it was interrupted, and its variables are there" if alive else "its kernel had to be killed"
        return KernelTimeoutError(
            f"the cell ran past its limit of {self._limits.max_execution_time:g} s; {fate}.",
            result=result,
            remedy="" if alive else "Acquire the agent's kernel again: it gets a fresh one.",
        )
