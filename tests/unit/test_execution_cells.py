"""Cells over a kernel in memory: how they stream, end, are stopped, ask, and hold back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import pytest

from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError, KernelDiedError, KernelTimeoutError
from orchestrator.execution import Cell
from orchestrator.kernel.fakecell import (
    Ask,
    Die,
    FakeCell,
    Output,
    Step,
    Use,
    Violate,
    Wait,
    displayed,
    printed,
    returned,
)
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.interruption import AGAIN, GRACE
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.outcome import Exit, Outcome
from orchestrator.output.events import (
    CellFinished,
    CommMessage,
    DisplayData,
    Event,
    ExecuteResult,
    ExecutionResult,
    InputHandler,
    InputRequest,
    StreamOutput,
)
from orchestrator.output.watched import CellBegun
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Channels
from orchestrator.policy.sections import Output as OutputPolicy

LIMITS = KernelResourceLimits()
SHORT = KernelResourceLimits(max_execution_time=0.1)
IDLE = Output("status", {"execution_state": "idle"})
LARGE = "x" * MIB


def cell_of(
    *steps: Step,
    kernel: FakeKernel | None = None,
    script: FakeCell | None = None,
    limits: KernelResourceLimits = LIMITS,
    policy: Policy | None = None,
    answer: InputHandler | None = None,
) -> tuple[FakeKernel, Cell]:
    """Return a kernel and a cell that was sent to it."""
    kernel = kernel or FakeKernel()
    kernel.default = script or FakeCell(steps)
    cell = Cell(kernel, "x", limits, policy or Policy(), answer)
    cell.send()
    return kernel, cell


async def events_of(cell: Cell) -> list[Event]:
    async with asyncio.timeout(10):
        return [event async for event in cell.run() if not isinstance(event, CellBegun)]


async def result_of(cell: Cell) -> ExecutionResult:
    """Run the cell to its end, and return its result."""
    last = (await events_of(cell))[-1]
    assert isinstance(last, CellFinished)
    return last.result


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# Outputs


async def test_events_come_in_order_and_the_result_has_them_all() -> None:
    """Each output is an event, and the last event is the result."""
    _, cell = cell_of(printed("a"), displayed({"text/plain": "d"}), printed("b"), returned({"text/plain": "2"}))
    *events, last = await events_of(cell)
    assert list(map(type, events)) == [StreamOutput, DisplayData, StreamOutput, ExecuteResult]
    assert isinstance(last, CellFinished)
    assert (last.result.outcome, last.result.stdout, last.result.result) == ("ok", "ab", "2")
    assert cell.is_over


async def test_a_cell_that_raises_is_a_result() -> None:
    """The exception of the code is in the result; nothing is raised."""
    _, cell = cell_of(script=FakeCell([printed("a")], error=("ValueError", "boom")))
    result = await result_of(cell)
    assert (result.outcome, result.status, result.kernel_state) == ("error", "error", "idle")
    assert result.error is not None
    assert result.error.ename == "ValueError"


async def test_mime_types_that_the_policy_does_not_allow_are_left_out() -> None:
    """They are named in the result; text/plain always passes, and the list of names is bounded."""
    bundle = {"text/plain": "p", "text/html": "h", "image/png": "aWlp"}
    many = {f"application/x-{number}{'y' * 200}": "" for number in range(50)}
    policy = Policy(output=OutputPolicy(mime_types=("image/*",)))
    _, cell = cell_of(displayed(bundle), displayed(many), printed("a"), policy=policy)
    events = await events_of(cell)
    assert events[0] == DisplayData({"text/plain": "p", "image/png": "aWlp"})
    last = events[-1]
    assert isinstance(last, CellFinished)
    dropped = last.result.mime_dropped
    assert dropped[0] == "text/html"
    assert len(dropped) == 20
    assert max(map(len, dropped)) == 100


@pytest.mark.parametrize("allowed", [True, False])
async def test_comms_pass_only_where_the_policy_has_them(allowed: bool) -> None:
    """A comm's message is an event, and no output of the result."""
    comm = Output("comm_msg", {"comm_id": "c", "data": {"value": 1}})
    _, cell = cell_of(comm, printed("a"), policy=Policy(channels=Channels(comms=allowed)))
    events = await events_of(cell)
    assert [isinstance(event, CommMessage) for event in events] == [True, False, False][not allowed :]


async def test_messages_that_no_honest_kernel_sends_are_ignored() -> None:
    """An output on another channel, an enormous status and an unknown kind change nothing; nor does a second reply."""
    _, cell = cell_of(
        Output("stream", {"name": "stdout", "text": "forged"}, channel="control"),
        Output("status", {"execution_state": "idle", "more": "x" * 5000}),
        Output("unknown", {}),
        Output("stream", {"name": "stdout", "text": "forged"}, channel="shell"),
        Output("input_request", {"prompt": "forged"}, channel="stdin"),
        printed("own"),
        Output("execute_reply", {"status": "ok", "execution_count": 7}, channel="shell"),
    )
    result = await result_of(cell)
    assert (result.outcome, result.stdout, result.execution_count) == ("ok", "own", 7)


async def test_what_the_kernel_left_out_of_a_message_is_counted() -> None:
    """A piece that the kernel itself shortened is part of the truncation."""
    shortened = Output("stream", {"name": "stdout", "text": "a", "left_out": 100})
    _, cell = cell_of(shortened)
    result = await result_of(cell)
    assert result.truncated is not None
    assert (result.truncated.reason, result.truncated.dropped_bytes) == ("message_size", 100)


async def test_output_past_the_limit_keeps_head_and_tail() -> None:
    """By default the cell goes on; a message that cannot fit is not even read."""
    limits = KernelResourceLimits(max_output_size_mb=0.01)
    _, cell = cell_of(printed("first"), printed("y" * MIB), *[printed("z" * 1000)] * 20, printed("last"), limits=limits)
    result = await result_of(cell)
    assert result.outcome == "ok"
    assert result.stdout.startswith("first")
    assert result.stdout.endswith("last")
    assert result.truncated is not None
    assert result.truncated.dropped_bytes > MIB
    assert "y" not in result.stdout.replace("bytes", "")


@pytest.mark.parametrize("size", [2000, MIB])
async def test_a_policy_may_stop_a_cell_at_the_output_limit(size: int) -> None:
    """Whether the output was read or was too large to be read: the cell is interrupted, and the kernel lives."""
    limits = KernelResourceLimits(max_output_size_mb=0.001)
    policy = Policy(output=OutputPolicy(past_limit="stop"))
    kernel, cell = cell_of(printed("x" * size), Wait(), limits=limits, policy=policy)
    result = await result_of(cell)
    assert (result.outcome, result.kernel_state, result.evidence.interrupts) == ("output_limit", "idle", 1)
    assert result.error is not None
    assert "its variables are there" in result.error.evalue
    assert kernel.is_alive


# A consumer that is slower than its cell


async def test_a_kernel_waits_for_a_slow_consumer() -> None:
    """Past 1 MiB of events that nobody has taken the kernel's output is held, and released once half is taken."""
    kernel, cell = cell_of(*[printed(LARGE[: MIB // 4])] * 20)
    events = cell.run()
    await anext(events)
    await until(lambda: kernel.output_held)
    rest = [event async for event in events]
    assert not kernel.output_held
    assert sum(len(event.text) for event in rest if isinstance(event, StreamOutput)) == 19 * MIB // 4


async def test_a_cell_that_waits_for_its_consumer_still_ends_at_its_deadline() -> None:
    """The kernel is released, the consumer gets no more events, and the error's result has all of the output."""
    kernel, cell = cell_of(*[printed(LARGE)] * 4, Wait(), limits=SHORT)
    events = cell.run()
    await anext(events)
    await until(lambda: kernel.output_held)
    await asyncio.sleep(0.2)
    rest = 0
    with pytest.raises(KernelTimeoutError) as caught:
        async for _event in events:
            rest += 1
    assert rest == 1  # it had come before the deadline
    assert not kernel.output_held
    assert len(caught.value.result.stdout) == 4 * MIB


# Deadline, interrupt and cancellation


async def test_a_cell_past_its_limit_is_interrupted() -> None:
    """The error has what it printed, and the kernel lives."""
    kernel, cell = cell_of(printed("begun"), Wait(), limits=SHORT)
    with pytest.raises(KernelTimeoutError) as caught:
        await events_of(cell)
    result = caught.value.result
    assert (result.outcome, result.stdout, result.kernel_state) == ("timeout", "begun", "idle")
    assert result.evidence.stopped_after_s is not None
    assert 0.1 <= result.evidence.stopped_after_s < 1
    assert kernel.is_alive


async def test_a_cell_that_ignores_its_interrupts_costs_its_kernel() -> None:
    """After the grace period the kernel is killed, and what it used by then is measured."""
    kernel = FakeKernel(usage=Usage(0, 1.0, MIB, 0, MIB, 0, 1))
    begun = time.monotonic()
    script = FakeCell([Use({"cpu_s": 3.0}), Wait()], obeys="nothing")
    _, cell = cell_of(kernel=kernel, script=script, limits=SHORT)
    with pytest.raises(KernelTimeoutError, match="had to be killed") as caught:
        await events_of(cell)
    result = caught.value.result
    assert GRACE <= time.monotonic() - begun < GRACE + 2
    assert (result.kernel_state, result.evidence.cpu_s) == ("dead", 2.0)
    assert not kernel.is_alive
    with pytest.raises(KernelDiedError):
        Cell(kernel, "x", LIMITS, Policy()).send()


async def test_an_interrupt_on_demand_ends_the_cell() -> None:
    """Its outcome is interrupted; an interrupt once it is over does nothing."""
    kernel, cell = cell_of(Wait())
    running = asyncio.create_task(result_of(cell))
    await until(lambda: kernel.executed)
    assert 0 <= cell.age_s < 5
    cell.interrupt()
    result = await running
    assert (result.outcome, result.evidence.interrupts) == ("interrupted", 1)
    cell.interrupt()
    assert cell.partial_result().evidence.interrupts == 1


async def test_a_cell_that_has_not_begun_is_interrupted_again() -> None:
    """The first interrupt comes before the cell and does not hit it; the next one does."""
    kernel = FakeKernel()
    kernel.default = FakeCell([Wait(0.4)], obeys="nothing")
    kernel.send("shell", "execute_request", {"code": "another's"}, lambda _message: None)
    kernel.cells["x"] = FakeCell([Wait()])
    cell = Cell(kernel, "x", LIMITS, Policy())
    cell.send()
    running = asyncio.create_task(result_of(cell))
    await asyncio.sleep(0.05)
    cell.interrupt()
    result = await running
    assert result.outcome == "interrupted"
    assert result.evidence.interrupts >= 2


async def test_a_kernel_that_does_not_answer_is_interrupted_from_outside() -> None:
    """A second later, through the engine."""
    kernel, cell = cell_of(script=FakeCell([Wait()], obeys="outside"))
    running = asyncio.create_task(result_of(cell))
    await until(lambda: kernel.executed)
    await asyncio.sleep(0.01)
    kernel.answers = False
    cell.interrupt()
    begun = time.monotonic()
    result = await running
    assert result.outcome == "interrupted"
    assert time.monotonic() - begun >= AGAIN - 0.1


async def test_a_consumer_that_leaves_interrupts_the_cell() -> None:
    """``end`` waits until it is over, and the partial result says that it was cancelled."""
    kernel, cell = cell_of(printed("a"), Wait())
    async with contextlib.aclosing(cell.run()) as events:
        assert await anext(events) == StreamOutput("stdout", "a")
    assert not cell.is_over
    await asyncio.wait_for(cell.end(), 5)
    result = cell.partial_result()
    assert (result.outcome, result.stdout, result.kernel_state) == ("cancelled", "a", "idle")
    assert kernel.is_alive


async def test_a_consumer_that_leaves_a_cell_that_is_over_changes_no_outcome() -> None:
    """The partial result is the whole one."""
    kernel, cell = cell_of(printed("a"), printed("b"), returned({"text/plain": "7"}))
    events = cell.run()
    await anext(events)
    await until(lambda: cell.is_over)
    await events.aclose()
    result = cell.partial_result()
    assert (result.outcome, result.stdout, result.result) == ("ok", "ab", "7")
    assert kernel.is_alive


async def test_a_cancelled_consumer_interrupts_the_cell() -> None:
    """As one that leaves; the cancellation passes on."""
    kernel, cell = cell_of(Wait())
    task = asyncio.create_task(events_of(cell))
    await until(lambda: kernel.executed)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cell.end(), 5)
    assert cell.partial_result().outcome == "cancelled"


# The kernel's end


@pytest.mark.parametrize(
    ("step", "outcome", "exit_code", "cut"),
    [
        (Die(Exit(Outcome.KERNEL_DIED, 3)), "kernel_died", 3, False),
        (Die(Exit(Outcome.OOM, 137)), "oom", 137, False),
        (Violate(), "kernel_died", None, True),
        (Violate(excess=True), "output_limit", None, True),
    ],
)
async def test_the_end_of_the_kernel_ends_the_cell(step: Step, outcome: str, exit_code: int | None, cut: bool) -> None:
    """At once, with what it printed; a kernel that the host disconnected is noted in the audit log."""
    kernel, cell = cell_of(printed("a"), step, Wait())
    result = await result_of(cell)
    assert (result.outcome, result.stdout, result.kernel_state) == (outcome, "a", "dead")
    assert result.evidence.exit_code == exit_code
    assert kernel.notes == ([("cell.cut", {"outcome": outcome})] if cut else [])


async def test_an_engine_that_cannot_say_how_the_kernel_ended_is_lost() -> None:
    """The result says so, and has no exit code."""
    kernel, cell = cell_of(Die())
    kernel.engine_error = EngineError("the engine does not answer.")
    result = await result_of(cell)
    assert (result.outcome, result.evidence.exit_code) == ("engine_lost", None)


async def test_a_death_is_timed_when_it_happens() -> None:
    """The seconds that the engine takes to report it are not the cell's."""
    kernel, cell = cell_of(Die())
    kernel.exit_s = 0.3
    assert (await result_of(cell)).duration_s < 0.2


async def test_memory_is_measured_over_the_cell_alone() -> None:
    """A child killed while it ran is its outcome; one killed before is a warning, once."""
    kernel = FakeKernel(usage=Usage(0, 0.0, MIB, 0, MIB, 2, 1))
    _, cell = cell_of(kernel=kernel)
    result = await result_of(cell)
    assert (result.outcome, result.evidence.oom_kills) == ("ok", 0)
    assert "2 processes" in result.warnings[0]
    _, cell = cell_of(Use({"oom_kills": 3}), kernel=kernel)
    result = await result_of(cell)
    assert (result.outcome, result.evidence.oom_kills, result.warnings) == ("oom", 1, ())
    _, cell = cell_of(kernel=kernel)
    assert (await result_of(cell)).warnings == ()


# An end that may be forged


async def test_an_idle_status_long_before_the_reply_is_doubted() -> None:
    """The cell is over only after the time in which a second end would show the forgery."""
    _, cell = cell_of(script=FakeCell([IDLE, Wait(0.1)], idles=False))
    begun = time.monotonic()
    result = await result_of(cell)
    assert result.outcome == "ok"
    assert time.monotonic() - begun >= 0.35


async def test_a_kernel_that_is_disconnected_in_doubt_has_claimed_nothing() -> None:
    """Reply and idle status had come, and do not count."""
    kernel, cell = cell_of(script=FakeCell([IDLE, Wait(0.1)], idles=False))
    running = asyncio.create_task(result_of(cell))
    await asyncio.sleep(0.2)
    kernel.violate("a request ended twice")
    assert (await running).outcome == "kernel_died"


# Input


ASKING = Policy(channels=Channels(stdin=True))


async def _line(_request: InputRequest) -> str:
    return "Ada"


async def _end_of_file(_request: InputRequest) -> str:
    raise EOFError


async def _refuse(_request: InputRequest) -> str:
    raise LookupError("there is no such user")


async def test_a_cell_asks_its_caller() -> None:
    """The answer reaches the cell; EOFError goes to it as the end of its input."""
    _, cell = cell_of(Ask("name? "), policy=ASKING, answer=_line)
    assert (await result_of(cell)).stdout == "Ada"
    _, cell = cell_of(Ask("name? "), policy=ASKING, answer=_end_of_file)
    assert (await result_of(cell)).stdout == "\x04"


async def test_an_answer_that_fails_is_raised_to_the_caller() -> None:
    """The cell is interrupted, and over by then."""
    kernel, cell = cell_of(Ask("name? "), policy=ASKING, answer=_refuse)
    with pytest.raises(LookupError, match="no such user"):
        await events_of(cell)
    assert cell.is_over
    assert kernel.is_alive


@pytest.mark.parametrize(("policy", "answer"), [(ASKING, None), (Policy(), _line)])
async def test_a_question_without_an_answer_is_not_passed_on(policy: Policy, answer: InputHandler | None) -> None:
    """Where the policy, or the caller, has no answers, the cell runs to its deadline at worst."""
    _, cell = cell_of(Ask("name? "), policy=policy, answer=answer, limits=SHORT)
    with pytest.raises(KernelTimeoutError) as caught:
        await events_of(cell)
    assert caught.value.result.stdout == ""


async def test_a_cell_that_ends_while_it_asks_cancels_the_question() -> None:
    """A caller who still thinks is told so; an answer to a dead kernel is dropped."""
    cancelled: list[bool] = []

    async def think(_request: InputRequest) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return ""

    _, cell = cell_of(Ask("name? "), policy=ASKING, answer=think, limits=SHORT)
    with pytest.raises(KernelTimeoutError):
        await events_of(cell)
    await until(lambda: cancelled)


async def test_an_answer_to_a_dead_kernel_is_dropped() -> None:
    """The cell ends with its kernel."""

    async def kill(_request: InputRequest) -> str:
        kernel.die()
        return "too late"

    kernel, cell = cell_of(Ask("name? "), policy=ASKING, answer=kill)
    assert (await result_of(cell)).outcome == "kernel_died"
