"""Judges how a cell ended: by the host's own evidence first, and only then by what the kernel claims. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.errors import KernelTimeoutError
from orchestrator.limits import MIB
from orchestrator.outcome import Exit, Outcome
from orchestrator.output.cellfacts import CellFacts
from orchestrator.output.outputs import ErrorOutput
from orchestrator.output.result import Evidence, ExecutionResult

_DEATHS = {
    Outcome.OOM: "KernelOutOfMemory",
    Outcome.OUTPUT_LIMIT: "KernelOutputLimit",
    Outcome.ENGINE_LOST: "EngineLost",
}


def judge(facts: CellFacts) -> ExecutionResult:
    """Return the result of a cell that is over."""
    error = facts.error or facts.reply_error
    if facts.stopped is Outcome.OUTPUT_LIMIT:
        return make_result(facts, Outcome.OUTPUT_LIMIT, _stopped_error(facts))
    if facts.stopped is not None:
        return make_result(facts, facts.stopped, error)
    if not facts.completed or facts.violated:
        return _death(facts)
    if facts.oom_kills:
        return make_result(facts, Outcome.OOM, _killed_child_error(facts))
    if facts.reply_error is None:
        return make_result(facts, Outcome.OK, None)
    return make_result(facts, Outcome.INTERRUPTED if facts.interrupts else Outcome.ERROR, error)


def make_result(facts: CellFacts, outcome: Outcome, error: ErrorOutput | None) -> ExecutionResult:
    """Return the result of a cell whose outcome is known already."""
    return ExecutionResult(
        status="ok" if outcome is Outcome.OK else "error",
        outcome=outcome,
        outputs=facts.outputs,
        error=error,
        msg_id=facts.msg_id,
        execution_count=facts.execution_count,
        duration_s=facts.duration_s,
        truncated=facts.truncated,
        mime_dropped=facts.mime_dropped,
        kernel_state="idle" if facts.kernel_lives else "dead",
        runtime=facts.runtime,
        evidence=_evidence(facts),
        warnings=tuple(_warnings(facts)),
        updates=facts.updates,
        changed_files=facts.changed_files,
    )


def timeout_error(result: ExecutionResult, limit_s: float) -> KernelTimeoutError:
    """Return the error for a cell that exceeded its limit of ``limit_s`` seconds."""
    lives = result.kernel_state == "idle"
    state = "it was interrupted, and its variables are there" if lives else "its kernel had to be killed"
    return KernelTimeoutError(
        f"the cell ran past its limit of {limit_s:g} s; {state}.",
        result=result,
        remedy="" if lives else "Acquire the agent's kernel again: it gets a fresh one.",
    )


def _death(facts: CellFacts) -> ExecutionResult:
    """Return the result of a cell in which the kernel died, or was disconnected for breaking the protocol."""
    end = facts.end or Exit(Outcome.KERNEL_DIED, None)
    outcome: Outcome = end.reason
    if facts.violated:
        outcome = Outcome.OUTPUT_LIMIT if facts.excess else Outcome.KERNEL_DIED
    how = end.describe() if end.exit_code is not None else f"was ended: {facts.disconnect_reason}"
    return make_result(facts, outcome, ErrorOutput(_DEATHS.get(outcome, "KernelDied"), f"the kernel {how}"))


def _stopped_error(facts: CellFacts) -> ErrorOutput:
    limit = "" if facts.truncated is None else f" ({facts.truncated.reason})"
    state = "its variables are there" if facts.kernel_lives else "its kernel had to be killed"
    said = f"the cell's output exceeded the policy's limit{limit}, and the cell was stopped; {state}"
    return ErrorOutput("KernelOutputLimit", said)


def _killed_child_error(facts: CellFacts) -> ErrorOutput:
    said = (
        f"a process that the cell started was killed: together, the sandbox's processes exceeded the memory limit of "
        f"{facts.limits.max_memory_mb} MiB. The kernel lives, and its variables are there"
    )
    return ErrorOutput("ChildOutOfMemory", said)


def _evidence(facts: CellFacts) -> Evidence:
    before, after, end = facts.before, facts.after, facts.end
    return Evidence(
        exit_code=None if end is None else end.exit_code,
        signal=None if end is None else end.signal,
        oom_kills=max(facts.oom_kills, 1 if end is not None and end.reason is Outcome.OOM else 0),
        interrupts=facts.interrupts,
        stopped_after_s=facts.stopped_after_s,
        output_bytes=facts.output_bytes,
        output_messages=facts.output_messages,
        tool_calls=facts.tool_calls,
        tool_s=facts.tool_s,
        cpu_s=max(0.0, after.cpu_s - before.cpu_s) if before and after else None,
        peak_memory_mb=max(after.peak, after.memory, before.memory) / MIB if before and after else None,
    )


def _warnings(facts: CellFacts) -> Iterator[str]:
    """Yield a warning for each limit that the cell came close to, while there is time to act on it.

    Then yield what the kernel itself warns of, marked as the kernel's words.
    """
    share = facts.warn_percent / 100
    if facts.after is not None and facts.kernel_lives:
        limit = facts.limits.max_memory_mb
        now, peak = facts.after.memory / MIB, facts.after.peak / MIB
        if now >= share * limit:
            yield f"memory: the kernel holds {now:.0f} of {limit} MiB; above that it is killed and loses its variables"
        elif peak >= share * limit:
            yield f"memory: the cell needed up to {peak:.0f} of {limit} MiB; above that its kernel is killed"
    if facts.killed_before > 0:
        many = facts.killed_before > 1
        killed = f"{facts.killed_before} processes of earlier cells" if many else "a process of an earlier cell"
        yield f"memory: {killed} ran out of memory and {'were' if many else 'was'} killed"
    limit_s = facts.limits.max_execution_time
    if facts.stopped is None and facts.duration_s >= share * limit_s:
        yield f"time: the cell took {facts.duration_s:.1f} of {limit_s:g} s; above that it is interrupted"
    for warning in facts.kernel_warnings:
        yield f"kernel: {warning}"
