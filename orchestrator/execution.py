"""Run one cell: send it, stream its outputs, race the kernel's death, and stop it at its deadline.

A cell ends only on reply *and* idle of its own request, or on the host's own evidence: the deadline, a cut wire.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

from orchestrator.errors import EngineError, KernelDiedError, KernelTimeoutError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import count, to_error, to_event
from orchestrator.limits import Deadline, KernelResourceLimits, OutputBudget
from orchestrator.outputs import (
    CellFinished,
    ErrorOutput,
    Event,
    ExecutionResult,
    KernelState,
    Outcome,
    OutputCollector,
    OutputEvent,
    Truncation,
)

INTERRUPT_GRACE = 3.0  # seconds between interrupting a cell and killing its kernel; an interrupt took 0.02-0.23 s


class Cell:
    """One cell on its way through a kernel. Used once."""

    def __init__(self, kernel: Kernel, code: str, limits: KernelResourceLimits) -> None:
        self._kernel = kernel
        self._code = code
        self._limits = limits
        self._events: deque[OutputEvent] = deque()
        self._collector = OutputCollector()
        self._budget = OutputBudget(limits.max_output_bytes)
        self._wake: asyncio.Future[None] | None = None
        self._reply: Message | None = None
        self._idle = False
        self._error: ErrorOutput | None = None
        self._count: int | None = None
        self._outcome: Outcome | None = None
        self._started = time.monotonic()
        self._id = ""

    async def run(self) -> AsyncGenerator[Event, None]:
        """Yield the outputs as they come, and ``CellFinished`` as the last event.

        When the consumer stops early or is cancelled, the cell is interrupted, or its kernel killed, before this
        generator ends: no cell runs on unseen.

        Raises:
            KernelDiedError: the kernel was gone before the cell was sent, or the engine is, so nobody can tell.
            KernelTimeoutError: the cell ran past its limit. Its outputs were yielded before.
        """
        self._id = self._kernel.send("shell", "execute_request", self._request(), self._receive)
        call_off = self._kernel.when_lost(self._awake)
        try:
            async for event in self._follow(Deadline(self._limits.max_execution_time)):
                yield event
            if not self._done():
                self._outcome = "timeout"
                async for event in self._stop():
                    yield event
            result = await self._result()
            if result.outcome == "timeout":
                raise self._timeout_error(result)
            yield CellFinished(result)
        except (asyncio.CancelledError, GeneratorExit):
            if not self._done():
                self._outcome = "cancelled"
                async for _ in self._stop():
                    pass
            raise
        finally:
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
            "allow_stdin": False,  # a cell that asks for input fails at once, with an error that says so
            "stop_on_error": False,
        }

    def _receive(self, message: Message) -> None:
        if message.channel == "shell":
            if message.kind == "execute_reply":
                self._reply = message
                self._count = count(message.content.get("execution_count"))
        elif message.kind == "status":
            self._idle = self._idle or message.content.get("execution_state") == "idle"
        elif (event := to_event(message.kind, message.content)) is not None:
            self._take(event)
        if self._done() or self._events:
            self._awake()

    def _take(self, event: OutputEvent) -> None:
        if isinstance(event, ErrorOutput):
            self._error = event
        if self._budget.take(event.size() + 16):  # 16: an event that holds nothing still takes room
            self._collector.add(event)
            self._events.append(event)

    def _done(self) -> bool:
        return (self._reply is not None and self._idle) or not self._kernel.is_alive

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _follow(self, deadline: Deadline) -> AsyncGenerator[OutputEvent, None]:
        """Yield events until the cell is done or the deadline has passed."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._done() or deadline.passed():
                return
            self._wake = asyncio.get_running_loop().create_future()
            timer = asyncio.get_running_loop().call_later(deadline.remaining(), self._awake)
            try:
                await self._wake
            finally:
                timer.cancel()
                self._wake = None

    async def _stop(self) -> AsyncGenerator[OutputEvent, None]:
        """Interrupt the cell; kill the kernel when that does not end it within the grace period."""
        self._kernel.interrupt()
        async for event in self._follow(Deadline(INTERRUPT_GRACE)):
            yield event
        if not self._done():
            await self._kernel.stop()

    def _state(self) -> KernelState:
        return "idle" if self._kernel.is_alive else "dead"

    async def _result(self) -> ExecutionResult:
        if self._outcome == "timeout":
            return self._make_result("timeout", self._error, self._state())
        if self._reply is not None and self._idle:
            failed = self._reply.content.get("status") != "ok"
            if failed and self._error is None:
                self._error = to_error(self._reply.content)
            return self._make_result("error" if failed else "ok", self._error if failed else None, self._state())
        return await self._death()

    async def _death(self) -> ExecutionResult:
        try:
            end = await self._kernel.exit()
        except EngineError as error:
            raise KernelDiedError(
                f"the kernel is gone, and the engine cannot say how: {error.message}",
                kernel_id=self._kernel.kernel_id,
                reason="engine_lost",
                remedy=error.remedy,
            ) from error
        outcome: Outcome = end.reason
        if self._kernel.violated:
            outcome = "output_limit"
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
            execution_count=self._count,
            duration_s=time.monotonic() - self._started,
            truncated=self._truncation(),
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
