"""Runs one cell: sends it, streams its outputs, watches for the kernel's death, and stops it at its deadline.

A cell ends only on the reply *and* the idle status of its own request, or on the host's own evidence: the deadline, a
disconnected wire. ``output.judgement`` decides how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

from orchestrator.celloptions import CellOptions
from orchestrator.celltimer import CellTimer
from orchestrator.cellusage import CellUsage
from orchestrator.errors import EngineError, KernelDiedError
from orchestrator.eventqueue import EventQueue
from orchestrator.kernel.boundedjson import load
from orchestrator.kernel.channel import Message
from orchestrator.kernel.interruption import Interruption
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import (
    COMM_KINDS,
    OUTPUT_KINDS,
    Reply,
    count,
    left_out,
    to_comm,
    to_event,
    to_input_request,
)
from orchestrator.limits import KernelResourceLimits, OutputLimits
from orchestrator.outcome import Exit, Outcome, Stop
from orchestrator.output.cellfacts import CellFacts
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    CellFinished,
    ErrorOutput,
    Event,
    ExecutionResult,
    InputHandler,
    InputRequest,
    Output,
    OutputEvent,
)
from orchestrator.output.judgement import judge, make_result, timeout_error
from orchestrator.output.mimefilter import MimeFilter
from orchestrator.output.watched import CellBegun
from orchestrator.policy.policy import Policy
from orchestrator.toolcalls import ToolCalls

TOOL_KINDS = frozenset(("tool_request", "tool_cancel"))
_LONGEST_STATUS = 4096  # bytes; an honest one has thirty
_END_OF_FILE = "\x04"  # what a kernel takes for the end of its input
_NOT_BEGUN = 0.25  # seconds after which a cell that had not begun is interrupted again: the first did not reach it
_AT_ONCE = 0.05  # seconds between a cell's idle status and its reply, above which the idle status may be forged
_SECOND_END = 0.25  # seconds in which the true idle status follows its reply; then the channel disconnects the forger
_DEFAULTS = CellOptions()


class Cell:
    """One cell on its way through a kernel. Used once.

    Args:
        limits: the time that it may take, and the size of its output.
        policy: what else its output may be, and whether it may ask for input.
        answer: answers its ``input()``, where the policy has ``channels.stdin``. Without it, ``input()`` fails.
        environment: variables that it has beside those of the kernel.
        tools: the tools of the host that it may call.
        options: see ``CellOptions``.

    Attributes:
        announced: whether ``run`` yields ``CellBegun`` too. Set it before ``send``.
    """

    announced = False

    _doubt: asyncio.TimerHandle | None = None  # set while the end may be forged
    _answering: asyncio.Task[None] | None = None
    _unanswered: Exception | None = None
    _stopped_after: float | None = None

    def __init__(
        self,
        kernel: Kernel,
        code: str,
        limits: KernelResourceLimits,
        policy: Policy,
        answer: InputHandler | None = None,
        environment: Mapping[str, str] | None = None,
        tools: ToolCalls | None = None,
        options: CellOptions = _DEFAULTS,
    ) -> None:
        self._options = options
        self._begun = False
        self._environment = dict(environment or {})
        self._tools = tools
        self._timer = CellTimer(limits.max_execution_time, partial(self._stop, Outcome.TIMEOUT))
        self._kernel = kernel
        self._code = code
        self._limits = limits
        self._policy = policy
        self._events = EventQueue(kernel.hold_output)
        self._collector = OutputCollector(
            OutputLimits(limits.max_output_bytes, policy.output.messages, policy.output.displays)
        )
        self._wake: asyncio.Future[None] | None = None
        self._reply: Reply | None = None
        self._idle = self._busy = False
        self._idle_since = 0.0
        self._error: ErrorOutput | None = None
        self._channels = policy.channels
        self._answer = answer if self._channels.stdin else None
        self._mimes = MimeFilter(policy.output.passes)
        self._stopped: Stop | None = None
        self._interrupts = 0
        self._interruption = Interruption(kernel, lambda: self._runs, self._awake)
        self._end: Exit | None = None
        self._started = time.monotonic()
        self._ended: float | None = None
        self._usage = CellUsage(kernel)
        self._loop = asyncio.get_running_loop()
        self._id = ""

    def send(self) -> None:
        """Send the cell to the kernel.

        Raises:
            KernelDiedError: the kernel is gone.
        """
        self._id = self._kernel.send("shell", "execute_request", self._request(), self._receive, accept=self._accept)
        self._undo = self._kernel.on_lost(self._lost)
        self._timer.start()
        if self._tools is not None:
            self._tools.on_busy = self._pause_timer

    def _pause_timer(self, busy: bool) -> None:
        """Stop the cell's clock while a tool of the host runs, at most for the time that tools may take in all."""
        assert self._tools is not None
        if self._stopped is not None or self._has_ended:
            return
        if busy:
            self._timer.pause(self._policy.tools.time_s - self._tools.seconds)
        else:
            self._timer.start()

    def _close_tools(self) -> None:
        if self._tools is not None:
            self._tools.close()

    async def run(self) -> AsyncGenerator[Event | CellBegun, None]:
        """Yield the outputs of a cell that was sent, as they come, and ``CellFinished`` as the last event.

        The time limit holds however slowly the consumer takes the events. When the consumer stops early or is
        cancelled, the cell is interrupted, and its kernel is killed if the interrupt does not end the cell; ``end``
        waits for that.

        Raises:
            KernelTimeoutError: the cell exceeded its time limit. Its outputs were yielded before.
            Exception: ``answer`` raised it, and the cell is over. EOFError is not raised here: the cell gets it.
        """
        try:
            while not self.is_over or self._events:
                while self._events:
                    yield self._events.take()
                await self._woken()
            for event in self._collector.finish():
                if not self._events.muted:
                    yield event
            result = await self._result()
            if self._unanswered is not None:
                raise self._unanswered
            if result.outcome is Outcome.TIMEOUT:
                raise timeout_error(result, self._limits.max_execution_time)
            yield CellFinished(result)
        except (asyncio.CancelledError, GeneratorExit):
            self._stop(Outcome.CANCELLED)
            self._events.mute()
            raise
        finally:
            if self.is_over:
                self._tidy()

    async def end(self) -> None:
        """Wait until the cell is over, at most the grace period. Call it when ``run`` was closed early."""
        while not self.is_over:
            self._events.clear()
            await self._woken()
        self._tidy()

    @property
    def is_over(self) -> bool:
        """Whether the kernel is gone, the cell could not be sent, or it has ended for certain.

        That is: its reply and its idle status have come, neither may be forged, and no interrupt is pending.
        """
        ended = self._has_ended and self._doubt is None and not self._interruption.is_pending
        return ended or not self._kernel.is_alive or not self._id

    @property
    def _has_ended(self) -> bool:
        return self._reply is not None and self._idle

    @property
    def _runs(self) -> bool:
        return self._kernel.is_alive and not self._has_ended

    def _tidy(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        if self._doubt is not None:
            self._doubt.cancel()
        self._close_tools()
        self._interruption.cancel()
        self._timer.cancel()
        self._undo()
        self._kernel.forget(self._id)

    @property
    def extras(self) -> Mapping[str, Any]:
        """What its reply has for Jupyter's clients: see ``Reply``."""
        return {} if self._reply is None else self._reply.extras

    @property
    def age_s(self) -> float:
        """Seconds since it was sent."""
        return time.monotonic() - self._started

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the cell, on demand. The cell may catch it."""
        if self._runs:
            self._count_interrupt()
            self._interruption.interrupt()
            if not self._busy:
                self._loop.call_later(_NOT_BEGUN, self.interrupt)

    def outputs_so_far(self, most: int) -> tuple[list[Output], int]:
        """Return the first outputs as they are now, and how many there are."""
        return self._collector.so_far(most)

    def partial_result(self) -> ExecutionResult:
        """Return what is known of a cell that is over, and was cancelled or lost."""
        self._usage.measure()
        list(self._collector.finish())
        if self._has_ended and self._stopped is None:  # its consumer stopped once the cell was over
            return self._judge()
        return make_result(self._facts(), self._stopped or Outcome.CANCELLED, self._error)

    def _request(self) -> dict[str, object]:
        environment = {"environment": self._environment} if self._environment else {}
        definitions = None if self._tools is None else self._tools.definitions()
        tools = {} if definitions is None else {"tools": definitions}
        return {
            **environment,
            **tools,
            "code": self._code,
            "silent": self._options.silent,
            "store_history": self._options.store_history,
            "user_expressions": dict(self._options.user_expressions),
            "allow_stdin": self._answer is not None,  # without it, input() fails at once with an error that says why
            "stop_on_error": False,
        }

    def _accept(self, kind: str, size: int) -> bool:
        """Return whether to parse a message: an output only where it may be kept."""
        if kind in OUTPUT_KINDS:
            if self._collector.wants(size):
                return True
            self._collector.refuse(size, text=kind == "stream")
            self._check_output()
            return False
        if kind in TOOL_KINDS:
            return self._tools is not None and size <= _LONGEST_STATUS  # the arguments are a buffer
        if kind == "input_request":
            return self._answer is not None and self._answering is None
        if kind == "status":
            return size <= _LONGEST_STATUS
        if kind == "execute_input":
            return self.announced and not self._begun
        return kind == "execute_reply" or self._channels.comms

    def _receive(self, message: Message) -> None:
        if message.channel == "shell":
            if message.kind == "execute_reply" and self._reply is None:
                self._reply = Reply.of(message.content)
                self._weigh_end()
        elif message.channel == "stdin":
            if message.kind in TOOL_KINDS:
                if self._tools is not None:
                    self._tools.take(message)
            elif self._answer is not None and message.kind == "input_request":
                self._answering = self._loop.create_task(self._ask(self._answer, to_input_request(message.content)))
        elif message.channel != "iopub":
            return  # an honest kernel sends nothing about a cell there
        elif message.kind == "status":
            self._busy = True
            if message.content.get("execution_state") == "idle" and not self._idle:
                self._idle, self._idle_since = True, time.monotonic()
        elif message.kind == "execute_input":
            self._begin(count(message.content.get("execution_count")))
        elif message.kind in COMM_KINDS:
            if (comm := to_comm(message.kind, message.content, load(message.metadata), message.buffers)) is not None:
                self._take(comm)
        elif (event := to_event(message.kind, message.content)) is not None:
            self._take(self._mimes.filter(event))
            if missing := left_out(message.content):
                self._collector.miss(missing)
        if self._has_ended:
            self._close_tools()
            self._note_end()
            self._interruption.settle()
        self._awake()

    def _begin(self, number: int | None) -> None:
        if self.announced and not self._begun:
            self._begun = True
            self._events.announce(CellBegun(number))

    def _weigh_end(self) -> None:
        """Wait for a second end if the idle status came long before the reply: an honest kernel sends both at once."""
        if self._idle and time.monotonic() - self._idle_since > _AT_ONCE:
            self._doubt = self._loop.call_later(_SECOND_END, self._believe)

    def _believe(self) -> None:
        self._doubt = None
        self._awake()

    async def _ask(self, answer: InputHandler, request: InputRequest) -> None:
        """Pass a question of the cell to ``answer``. The cell waits for the line until its deadline."""
        try:
            line = await answer(request)
        except EOFError:
            line = _END_OF_FILE
        except Exception as error:  # noqa: BLE001 - the caller's own; ``run`` raises it
            self._unanswered = error
            self._stop(Outcome.CANCELLED)
            return
        finally:
            self._answering = None
        with contextlib.suppress(KernelDiedError):
            self._kernel.forget(self._kernel.send("stdin", "input_reply", {"value": line}, lambda _message: None))

    def _take(self, event: OutputEvent) -> None:
        if isinstance(event, ErrorOutput):
            self._error = event
        shown = self._collector.add(event)
        if shown is not None:
            self._events.add(shown)
        self._check_output()

    def _check_output(self) -> None:
        if self._policy.output.past_limit == "stop" and self._collector.is_past_limit:
            self._stop(Outcome.OUTPUT_LIMIT)

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _woken(self) -> None:
        """Wait until the cell is over, or an event has come."""
        if self.is_over or self._events:
            return
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _stop(self, why: Stop) -> None:
        """Interrupt the cell, and kill its kernel when the interrupts do not end it within the grace period."""
        if not self._runs or self._stopped is not None:
            return
        self._stopped = why
        self._close_tools()
        self._count_interrupt()
        self._events.release()
        self._timer.cancel()
        self._interruption.stop(partial(self._kill, why))

    def _count_interrupt(self) -> None:
        self._interrupts += 1
        if self._stopped_after is None:
            self._stopped_after = time.monotonic() - self._started

    def _kill(self, why: Stop) -> None:
        self._usage.measure()
        self._kernel.kill(why)

    def _lost(self) -> None:
        """Called once the kernel is disconnected. Measures at once: its cgroup may be gone a moment later."""
        self._close_tools()
        self._usage.measure()
        self._note_end()
        self._awake()

    def _note_end(self) -> None:
        """Note when the cell ended. The engine's report and the consumer may take longer."""
        self._ended = self._ended or time.monotonic()

    async def _result(self) -> ExecutionResult:
        if self._kernel.is_alive:
            self._usage.measure()
        else:
            self._end = await self._kernel_exit()
        return self._judge()

    def _judge(self) -> ExecutionResult:
        result = judge(self._facts())
        if self._kernel.violated and self._stopped is None:
            self._kernel.note("cell.cut", outcome=result.outcome)
        return result

    async def _kernel_exit(self) -> Exit:
        try:
            return await self._kernel.exit()
        except EngineError:
            return Exit(Outcome.ENGINE_LOST, None)

    def _facts(self) -> CellFacts:
        kernel, collector, reply = self._kernel, self._collector, self._reply
        return CellFacts(
            msg_id=self._id,
            runtime=kernel.runtime,
            limits=self._limits,
            warn_percent=self._policy.limits.warn_percent,
            completed=self._has_ended,
            error=self._error,
            reply_error=None if reply is None else reply.error,
            execution_count=None if reply is None else reply.count,
            stopped=self._stopped,
            interrupts=self._interrupts,
            stopped_after_s=self._stopped_after,
            duration_s=(self._ended or time.monotonic()) - self._started,
            kernel_lives=kernel.is_alive,
            violated=kernel.violated,
            excess=kernel.excess,
            disconnect_reason=kernel.disconnect_reason,
            end=self._end,
            before=self._usage.before,
            after=self._usage.after,
            killed_before=self._usage.killed_before,
            outputs=collector.outputs(),
            updates=collector.updates,
            truncated=collector.truncation,
            tool_calls=0 if self._tools is None else self._tools.count,
            tool_s=0.0 if self._tools is None else self._tools.seconds,
            output_bytes=collector.bytes_seen,
            output_messages=collector.messages_seen,
            kernel_warnings=() if reply is None else reply.warnings,
            changed_files=() if reply is None else reply.changed_files,
            mime_dropped=self._mimes.removed,
        )
