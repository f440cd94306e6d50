"""Run one cell: send it, stream its outputs, race the kernel's death, and stop it at its deadline.

A cell ends only on reply *and* idle of its own request, or on the host's own evidence: the deadline, a cut wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace

from orchestrator.container.exits import Exit
from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError, KernelDiedError, KernelTimeoutError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.translate import OUTPUT_KINDS, Reply, left_out, to_event, to_input_request
from orchestrator.limits import MIB, KernelResourceLimits, OutputLimits
from orchestrator.outcome import Outcome, Stop
from orchestrator.output.collector import OutputCollector, cost
from orchestrator.output.events import (
    CellFinished,
    DisplayData,
    ErrorOutput,
    Event,
    Evidence,
    ExecuteResult,
    ExecutionResult,
    InputHandler,
    InputRequest,
    KernelState,
    OutputEvent,
    UpdateDisplayData,
)
from orchestrator.policy.policy import Policy

_LONGEST_STATUS = 4096  # bytes; an honest one has thirty
_END_OF_FILE = "\x04"  # what a kernel takes for one
_MOST_MIMES = 20  # names of dropped mime types that a result keeps
_LONGEST_MIME = 100  # characters of each
_INTERRUPT_AGAIN = 1.0  # seconds
_STRAY = 2.0  # seconds that a cell which has ended waits for the last interrupt to have been, lest it hit the next
_AT_ONCE = 0.05  # seconds between a cell's idle and its reply, beyond which the idle may be forged
_SECOND_END = 0.25  # seconds in which the true idle follows its reply; the forger's kernel is cut then
_BEHIND = 1024 * 1024  # bytes of events that may wait for the consumer before the kernel has to
INTERRUPT_GRACE = 3.0  # seconds between interrupting a cell and killing its kernel; an interrupt took 0.02-0.23 s


class Cell:
    """One cell on its way through a kernel. Used once.

    Args:
        answer: answers its ``input()``, where the kernel's policy has ``channels.stdin``. Without, asking is an error.
    """

    def __init__(
        self,
        kernel: Kernel,
        code: str,
        limits: KernelResourceLimits,
        policy: Policy,
        answer: InputHandler | None = None,
    ) -> None:
        self._kernel = kernel
        self._code = code
        self._limits = limits
        self._policy = policy
        self._events: deque[OutputEvent] = deque()
        self._events_cost = 0
        self._held = False  # whether the kernel has to wait for the consumer
        self._muted = False  # whether the consumer gets no more events, since it kept a cell that is to end waiting
        self._collector = OutputCollector(
            OutputLimits(limits.max_output_bytes, policy.output.messages, policy.output.displays)
        )
        self._wake: asyncio.Future[None] | None = None
        self._reply: Reply | None = None
        self._idle = self._busy = False
        self._idle_since = 0.0
        self._doubt: asyncio.TimerHandle | None = None  # while an end that may be forged is not believed
        self._error: ErrorOutput | None = None
        self._channels = policy.channels
        self._answer = answer if self._channels.stdin else None
        self._answering: asyncio.Task[None] | None = None
        self._unanswered: Exception | None = None
        self._mime_dropped: dict[str, None] = {}
        self._stopped: Stop | None = None
        self._interrupts = 0
        self._interrupting: set[asyncio.Task[None]] = set()
        self._settling: asyncio.TimerHandle | None = None
        self._stopped_after: float | None = None
        self._end: Exit | None = None
        self._started = time.monotonic()
        self._ended: float | None = None
        self._before = kernel.usage()
        self._after: Usage | None = None
        self._killed_before = 0 if self._before is None else self._before.oom_kills - kernel.oom_kills_reported
        self._loop = asyncio.get_running_loop()
        self._id = ""
        kernel.reset_peak()

    def send(self) -> None:
        """Have the kernel run it.

        Raises:
            KernelDiedError: the kernel was gone before.
        """
        self._id = self._kernel.send("shell", "execute_request", self._request(), self._receive, accept=self._accept)
        self._call_off = self._kernel.on_lost(self._lost)
        self._timer = self._loop.call_later(self._limits.max_execution_time, self._stop, Outcome.TIMEOUT)

    async def run(self) -> AsyncGenerator[Event, None]:
        """Yield the outputs of a cell that was sent, as they come, and ``CellFinished`` as the last event.

        The time limit holds however slowly the consumer takes the events. When the consumer stops early or is
        cancelled, the cell is interrupted, and its kernel killed if that does not help; ``end`` waits for that.

        Raises:
            KernelTimeoutError: the cell ran past its limit. Its outputs were yielded before.
            Exception: whatever ``answer`` raised, but for EOFError, which goes to the cell. The cell is over by then.
        """
        try:
            while not self.is_over or self._events:
                while self._events:
                    yield self._next_event()
                await self._woken()
            for event in self._collector.finish():
                if not self._muted:
                    yield event
            result = await self._result()
            if self._unanswered is not None:
                raise self._unanswered
            if result.outcome is Outcome.TIMEOUT:
                raise self._timeout_error(result)
            yield CellFinished(result)
        except (asyncio.CancelledError, GeneratorExit):
            self._stop(Outcome.CANCELLED)
            self._muted = True
            self._hold(False)
            raise
        finally:
            if self.is_over:
                self._tidy()

    async def end(self) -> None:
        """Wait until a cell is over whose ``run`` ended early: at most the grace period."""
        while not self.is_over:
            self._events.clear()
            await self._woken()
        self._tidy()

    @property
    def is_over(self) -> bool:
        """Whether reply and idle have come, are to be believed, and no interrupt is on its way any more.

        Or the kernel is gone, or the cell could not be sent.
        """
        ended = self._has_ended and self._doubt is None and not self._interrupting
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
        for timer in (self._settling, self._doubt):
            if timer is not None:
                timer.cancel()
        self._forget_interrupts()
        self._timer.cancel()
        self._call_off()
        self._kernel.forget(self._id)

    @property
    def age_s(self) -> float:
        """Seconds since it was sent."""
        return time.monotonic() - self._started

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the cell, on somebody's demand. What it makes of it is its own affair."""
        if self._runs:
            self._count_interrupt()
            asked = self._send_interrupt(self._kernel.interrupt())
            self._loop.call_later(_INTERRUPT_AGAIN, self._insist, asked)
            if not self._busy:  # it has not begun, and would not be hit
                self._loop.call_later(_INTERRUPT_AGAIN / 4, self.interrupt)

    def _insist(self, asked: asyncio.Task[None]) -> None:
        """Interrupt from outside, where the kernel has not answered: its control thread cannot run."""
        if self._runs and not asked.done():
            self._send_interrupt(self._kernel.interrupt_from_outside())

    def partial_result(self) -> ExecutionResult:
        """What is known of a cell that is over, and was cancelled or lost."""
        self._measure()
        for _ in self._collector.finish():
            pass
        if self._has_ended and self._stopped is None:  # it was its consumer that stopped, once it was over
            return self._judge()
        return self._make_result(self._stopped or Outcome.CANCELLED, self._error)

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
        """Whether a message is to be parsed: an output only where it may be kept."""
        if kind in OUTPUT_KINDS:
            if self._collector.wants(size):
                return True
            self._collector.refuse(size)
            self._check_output()
            return False
        if kind == "input_request":
            return self._answer is not None and self._answering is None
        if kind == "status":
            return size <= _LONGEST_STATUS
        return kind == "execute_reply" or self._channels.comms

    def _receive(self, message: Message) -> None:
        if message.channel == "shell":
            if message.kind == "execute_reply" and self._reply is None:
                self._reply = Reply.of(message.content)
                self._weigh_end()
        elif message.channel == "stdin":
            if self._answer is not None and message.kind == "input_request":
                self._answering = self._loop.create_task(self._ask(self._answer, to_input_request(message.content)))
        elif message.channel != "iopub":
            return  # no honest kernel says anything of a cell there
        elif message.kind == "status":
            self._busy = True
            if message.content.get("execution_state") == "idle" and not self._idle:
                self._idle, self._idle_since = True, time.monotonic()
        elif (event := to_event(message.kind, message.content)) is not None:
            self._take(self._allowed(event))
            if missing := left_out(message.content):
                self._collector.miss(missing)
        if self._has_ended:
            self._note_end()
        if self._has_ended and self._interrupting and self._settling is None:
            self._settling = self._loop.call_later(_STRAY, self._forget_interrupts)
        self._awake()

    def _weigh_end(self) -> None:
        """Wait for a second end where the idle came long before its reply: an honest kernel sends both at once."""
        if self._idle and time.monotonic() - self._idle_since > _AT_ONCE:
            self._doubt = self._loop.call_later(_SECOND_END, self._believe)

    def _believe(self) -> None:
        self._doubt = None
        self._awake()

    async def _ask(self, answer: InputHandler, request: InputRequest) -> None:
        """Pass a question on to whoever runs the cell, one at a time. A cell that nobody answers meets its deadline."""
        try:
            line = await answer(request)
        except EOFError:
            line = _END_OF_FILE
        except Exception as error:  # noqa: BLE001 - the caller's own, and it gets it back from ``run``
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
        if shown is not None and not self._muted:
            self._events.append(shown)
            self._events_cost += cost(shown)
            self._hold(self._events_cost > _BEHIND)
        self._check_output()

    def _next_event(self) -> OutputEvent:
        event = self._events.popleft()
        self._events_cost -= cost(event)
        self._hold(self._held and self._events_cost > _BEHIND // 2)
        return event

    def _hold(self, held: bool) -> None:
        """Let the kernel wait for the consumer, or go on."""
        if held != self._held:
            self._held = held
            self._kernel.hold_output(held)

    def _check_output(self) -> None:
        if self._policy.output.past_limit == "stop" and self._collector.is_past_limit:
            self._stop(Outcome.OUTPUT_LIMIT)

    def _allowed(self, event: OutputEvent) -> OutputEvent:
        """Leave out what the policy's mime types do not name; text/plain always stays."""
        if not isinstance(event, DisplayData | UpdateDisplayData | ExecuteResult):
            return event
        passes = self._policy.output.passes
        dropped = [mime for mime in event.data if mime != "text/plain" and not passes(mime)]
        if not dropped:
            return event
        for mime in dropped[: _MOST_MIMES - len(self._mime_dropped)]:
            self._mime_dropped[mime[:_LONGEST_MIME]] = None
        return replace(event, data={mime: item for mime, item in event.data.items() if mime not in dropped})

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _woken(self) -> None:
        """Wait until the cell is done, or an event has come."""
        if self.is_over or self._events:
            return
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _stop(self, why: Stop) -> None:
        """Interrupt the cell, and kill its kernel when that does not end it within the grace period."""
        if not self._runs or self._stopped is not None:
            return
        self._stopped = why
        self._count_interrupt()
        self._release()
        self._send_interrupt(self._kernel.interrupt())
        self._loop.call_later(_INTERRUPT_AGAIN, self._interrupt_until_done)
        self._timer.cancel()
        self._timer = self._loop.call_later(INTERRUPT_GRACE, self._kill, why)

    def _release(self) -> None:
        """Let a cell go on to its end that waits for its consumer; the events are in the result."""
        self._muted = self._muted or self._held
        self._hold(False)

    def _count_interrupt(self) -> None:
        self._interrupts += 1
        if self._stopped_after is None:
            self._stopped_after = time.monotonic() - self._started

    def _interrupt_until_done(self) -> None:
        """Interrupt again, each second: the first may have come before the cell had begun, or met a kernel whose
        control thread cannot run, since C code holds the interpreter's lock."""
        if self._runs:
            self._send_interrupt(self._kernel.interrupt_from_outside())
            self._loop.call_later(_INTERRUPT_AGAIN, self._interrupt_until_done)

    def _send_interrupt(self, interrupt: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(interrupt)
        self._interrupting.add(task)
        task.add_done_callback(self._interrupt_was)
        return task

    def _interrupt_was(self, task: asyncio.Task[None]) -> None:
        self._interrupting.discard(task)
        self._awake()

    def _forget_interrupts(self) -> None:
        for task in self._interrupting:
            task.cancel()

    def _kill(self, why: Stop) -> None:
        if self._runs:
            self._measure()
            self._kernel.kill(why)

    def _lost(self) -> None:
        """Called once the wire is cut. The cgroup may be gone a moment later."""
        self._measure()
        self._note_end()
        self._awake()

    def _note_end(self) -> None:
        """Note when it ended: its consumer may take longer, and so may the engine, to say how it did."""
        self._ended = self._ended or time.monotonic()

    @property
    def _duration(self) -> float:
        return (self._ended or time.monotonic()) - self._started

    def _measure(self) -> None:
        self._after = self._kernel.usage() or self._after
        if self._after is not None:
            self._kernel.oom_kills_reported = self._after.oom_kills

    async def _result(self) -> ExecutionResult:
        if self._kernel.is_alive:
            self._measure()
        else:
            self._end = await self._kernel_exit()
        return self._judge()

    def _judge(self) -> ExecutionResult:
        """Say how the cell ended: by the host's own evidence first, and only then by what the kernel claims."""
        ended = self._reply is not None and self._idle and not self._kernel.violated
        if self._stopped is Outcome.OUTPUT_LIMIT:
            return self._make_result(Outcome.OUTPUT_LIMIT, self._stopped_error())
        error = self._error or (None if self._reply is None else self._reply.error)
        if self._stopped is not None:
            return self._make_result(self._stopped, error)
        if not ended:
            return self._death(self._end or Exit(Outcome.KERNEL_DIED, None))
        if self._oom_kills():
            return self._make_result(Outcome.OOM, self._killed_child_error())
        if self._reply is None or self._reply.error is None:
            return self._make_result(Outcome.OK, None)
        return self._make_result(Outcome.INTERRUPTED if self._interrupts else Outcome.ERROR, error)

    async def _kernel_exit(self) -> Exit:
        try:
            return await self._kernel.exit()
        except EngineError:
            return Exit(Outcome.ENGINE_LOST, None)

    def _death(self, end: Exit) -> ExecutionResult:
        if self._kernel.violated:
            outcome: Outcome = Outcome.OUTPUT_LIMIT if self._kernel.excess else Outcome.KERNEL_DIED
            self._kernel.note("cell.cut", outcome=outcome)
        else:
            outcome = end.reason
        names: dict[str, str] = {
            "oom": "KernelOutOfMemory",
            "output_limit": "KernelOutputLimit",
            "engine_lost": "EngineLost",
        }
        seen = end.exit_code is not None
        said = f"the kernel {end.describe()}" if seen else f"the kernel was ended: {self._kernel.disconnect_reason}"
        return self._make_result(outcome, ErrorOutput(names.get(outcome, "KernelDied"), said))

    def _stopped_error(self) -> ErrorOutput:
        truncation = self._collector.truncation
        limit = "" if truncation is None else f" ({truncation.reason})"
        fate = "its variables are there" if self._kernel.is_alive else "its kernel had to be killed"
        said = f"the cell put out more than the policy allows{limit} and was stopped; {fate}"
        return ErrorOutput("KernelOutputLimit", said)

    def _killed_child_error(self) -> ErrorOutput:
        said = (
            f"a process that the cell started was killed: together they went past the memory limit of "
            f"{self._limits.max_memory_mb} MiB. The kernel lives, and its variables are there"
        )
        return ErrorOutput("ChildOutOfMemory", said)

    def _oom_kills(self) -> int:
        if self._before is None or self._after is None:
            return 0
        return max(0, self._after.oom_kills - self._before.oom_kills)

    def _evidence(self) -> Evidence:
        before, after, end = self._before, self._after, self._end
        known = before is not None and after is not None
        oom_kills = max(self._oom_kills(), 1 if end is not None and end.reason is Outcome.OOM else 0)
        return Evidence(
            exit_code=None if end is None else end.exit_code,
            signal=None if end is None else end.signal,
            oom_kills=oom_kills,
            interrupts=self._interrupts,
            stopped_after_s=self._stopped_after,
            output_bytes=self._collector.bytes_seen,
            output_messages=self._collector.messages_seen,
            cpu_s=max(0.0, after.cpu_s - before.cpu_s) if known and before and after else None,
            peak_memory_mb=max(after.peak, after.memory, before.memory) / MIB if before and after else None,
        )

    def _warnings(self) -> tuple[str, ...]:
        """What comes near a limit, while there is time to do something about it."""
        share = self._policy.limits.warn_percent / 100
        said: list[str] = []
        if self._after is not None and self._kernel.is_alive:
            limit = self._limits.max_memory_mb
            now, peak = self._after.memory / MIB, self._after.peak / MIB
            if now >= share * limit:
                said.append(
                    f"memory: the kernel holds {now:.0f} of {limit} MiB; beyond that it is ended with all it has"
                )
            elif peak >= share * limit:
                said.append(f"memory: the cell needed up to {peak:.0f} of {limit} MiB; beyond that its kernel is ended")
        if self._killed_before > 0:
            killed = "a process" if self._killed_before == 1 else f"{self._killed_before} processes"
            said.append(f"memory: before this cell {killed} of earlier ones ran out of it, and was killed")
        duration, limit_s = self._duration, self._limits.max_execution_time
        if self._stopped is None and duration >= share * limit_s:
            said.append(f"time: the cell took {duration:.1f} of {limit_s:g} s; beyond that it is interrupted")
        return tuple(said)

    def _make_result(self, outcome: Outcome, error: ErrorOutput | None) -> ExecutionResult:
        state: KernelState = "idle" if self._kernel.is_alive else "dead"
        return ExecutionResult(
            status="ok" if outcome is Outcome.OK else "error",
            outcome=outcome,
            outputs=self._collector.outputs(),
            error=error,
            msg_id=self._id,
            execution_count=None if self._reply is None else self._reply.count,
            duration_s=self._duration,
            truncated=self._collector.truncation,
            mime_dropped=tuple(self._mime_dropped),
            kernel_state=state,
            runtime=self._kernel.runtime,
            evidence=self._evidence(),
            warnings=self._warnings(),
        )

    def _timeout_error(self, result: ExecutionResult) -> KernelTimeoutError:
        alive = result.kernel_state == "idle"
        fate = "it was interrupted, and its variables are there" if alive else "its kernel had to be killed"
        return KernelTimeoutError(
            f"the cell ran past its limit of {self._limits.max_execution_time:g} s; {fate}.",
            result=result,
            remedy="" if alive else "Acquire the agent's kernel again: it gets a fresh one.",
        )
