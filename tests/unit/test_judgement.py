"""How a cell ended, from every combination of what the host saw and what the kernel claimed."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.container.usage import Usage
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.outcome import Exit, Outcome, Stop
from orchestrator.output.cellfacts import CellFacts
from orchestrator.output.judgement import judge, make_result, timeout_error
from orchestrator.output.outputs import ErrorOutput, StreamOutput
from orchestrator.output.result import Truncation

RAISED = ErrorOutput("ValueError", "boom")
CLAIMED = ErrorOutput("KeyError", "claimed")
LIMITS = KernelResourceLimits(max_memory_mb=100, max_execution_time=10)
DISCONNECTED = {"kernel_lives": False, "completed": False, "disconnect_reason": "it hung up"}


def used(memory: float = 0, peak: float = 0, oom_kills: int = 0, cpu_s: float = 0) -> Usage:
    """Return a usage; ``memory`` and ``peak`` in MiB."""
    return Usage(0.0, cpu_s, int(memory * MIB), 0, int(peak * MIB), oom_kills, 1)


def facts(**fields: Any) -> CellFacts:
    return CellFacts(**{"limits": LIMITS, **fields})


@pytest.mark.parametrize(
    ("known", "outcome", "error"),
    [
        # The kernel's claims alone
        ({}, "ok", None),
        ({"error": RAISED, "reply_error": CLAIMED}, "error", RAISED),
        ({"reply_error": CLAIMED}, "error", CLAIMED),
        ({"error": RAISED}, "ok", None),  # shown as an output, but the reply says that the cell went well
        ({"interrupts": 1}, "ok", None),  # the cell caught its interrupt
        ({"interrupts": 1, "reply_error": CLAIMED}, "interrupted", CLAIMED),
        # The host stopped it, whatever the kernel claims
        ({"stopped": Outcome.TIMEOUT}, "timeout", None),
        ({"stopped": Outcome.TIMEOUT, "error": RAISED, "reply_error": CLAIMED}, "timeout", RAISED),
        ({"stopped": Outcome.CANCELLED, "reply_error": CLAIMED, "interrupts": 2}, "cancelled", CLAIMED),
        ({"stopped": Outcome.TIMEOUT, **DISCONNECTED, "end": Exit(Outcome.OOM, 137)}, "timeout", None),
        ({"stopped": Outcome.CANCELLED, **DISCONNECTED, "violated": True}, "cancelled", None),
        # Memory: the kernel lived on, or died of it
        ({"before": used(oom_kills=1), "after": used(oom_kills=2)}, "oom", "ChildOutOfMemory"),
        ({"before": used(oom_kills=1), "after": used(oom_kills=2), "reply_error": CLAIMED}, "oom", "ChildOutOfMemory"),
        ({"before": used(oom_kills=1), "after": used(oom_kills=1)}, "ok", None),
        ({"before": None, "after": used(oom_kills=2)}, "ok", None),
        ({**DISCONNECTED, "end": Exit(Outcome.OOM, 137)}, "oom", "KernelOutOfMemory"),
        # The kernel is gone
        ({**DISCONNECTED, "end": Exit(Outcome.KERNEL_DIED, 3)}, "kernel_died", "KernelDied"),
        ({**DISCONNECTED, "error": RAISED, "end": Exit(Outcome.KERNEL_DIED, 3)}, "kernel_died", "KernelDied"),
        ({**DISCONNECTED, "end": Exit(Outcome.ENGINE_LOST, None)}, "engine_lost", "EngineLost"),
        ({**DISCONNECTED, "end": Exit(Outcome.OUTPUT_LIMIT, None)}, "output_limit", "KernelOutputLimit"),
        (DISCONNECTED, "kernel_died", "KernelDied"),
        # The kernel died after it had claimed a good end
        ({"kernel_lives": False, "end": Exit(Outcome.KERNEL_DIED, 3)}, "ok", None),
        # It broke the protocol: nothing that it claimed counts, nor the exit code of its forced end
        ({**DISCONNECTED, "violated": True}, "kernel_died", "KernelDied"),
        ({**DISCONNECTED, "completed": True, "violated": True}, "kernel_died", "KernelDied"),
        ({**DISCONNECTED, "violated": True, "excess": True}, "output_limit", "KernelOutputLimit"),
        ({**DISCONNECTED, "violated": True, "end": Exit(Outcome.OOM, 137)}, "kernel_died", "KernelDied"),
        # Too much output, where the policy stops the cell
        ({"stopped": Outcome.OUTPUT_LIMIT, "reply_error": CLAIMED}, "output_limit", "KernelOutputLimit"),
        ({"stopped": Outcome.OUTPUT_LIMIT, **DISCONNECTED}, "output_limit", "KernelOutputLimit"),
    ],
)
def test_an_outcome_follows_from_the_evidence(
    known: dict[str, Any], outcome: str, error: ErrorOutput | str | None
) -> None:
    """The host's evidence comes first; what the kernel claims only separates ok from error."""
    result = judge(facts(**known))
    assert result.outcome == outcome
    assert result.outcome.ends_cell
    assert result.status == ("ok" if outcome == "ok" else "error")
    assert result.kernel_state == ("idle" if known.get("kernel_lives", True) else "dead")
    if isinstance(error, str):
        assert result.error is not None
        assert result.error.ename == error
    else:
        assert result.error == error


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"end": Exit(Outcome.OOM, 137)}, "the kernel exceeded its memory limit and was killed (exit code 137)"),
        ({"end": Exit(Outcome.KERNEL_DIED, 0)}, "the kernel ended (exit code 0)"),
        ({"end": Exit(Outcome.KERNEL_DIED, None)}, "the kernel was ended: it hung up"),
        ({}, "the kernel was ended: it hung up"),
    ],
)
def test_a_death_says_how_the_kernel_ended(known: dict[str, Any], message: str) -> None:
    """With the exit code where the engine knows it, else with the reason of the disconnection."""
    error = judge(facts(**DISCONNECTED, **known)).error
    assert error is not None
    assert error.evalue == message


@pytest.mark.parametrize(
    ("lives", "truncated", "says"),
    [
        (True, Truncation("output.messages", 10, 5, 2), ["(output.messages)", "its variables are there"]),
        (False, None, ["limit, and the cell was stopped; its kernel had to be killed"]),
    ],
)
def test_a_stopped_output_says_what_remains(lives: bool, truncated: Truncation | None, says: list[str]) -> None:
    """The limit that was exceeded, and whether the variables are there."""
    error = judge(facts(stopped=Outcome.OUTPUT_LIMIT, kernel_lives=lives, truncated=truncated)).error
    assert error is not None
    assert all(part in error.evalue for part in says)


@pytest.mark.parametrize("stopped", [None, Outcome.TIMEOUT])
def test_evidence_is_what_the_host_saw(stopped: Stop | None) -> None:
    """Differences of usage, the exit, and counts; an OOM of the kernel itself counts where no cgroup shows it."""
    evidence = judge(
        facts(
            before=used(cpu_s=1, memory=30), after=used(cpu_s=3.5, memory=10, peak=20), interrupts=2, stopped=stopped,
            stopped_after_s=1.5, end=Exit(Outcome.OOM, 137), output_bytes=7, output_messages=3,
        )
    ).evidence  # fmt: skip
    assert evidence.as_dict() == {
        "exit_code": 137, "signal": "SIGKILL", "oom_kills": 1, "interrupts": 2, "stopped_after_s": 1.5,
        "output_bytes": 7, "output_messages": 3, "cpu_s": 2.5, "peak_memory_mb": 30,
        "tool_calls": 0, "tool_s": 0.0,
    }  # fmt: skip


def test_evidence_is_none_where_the_host_cannot_read() -> None:
    """Without a usage there is no guess; a clock that steps back gives no negative use."""
    evidence = judge(facts(before=None, after=used(cpu_s=3))).evidence
    assert (evidence.cpu_s, evidence.peak_memory_mb, evidence.oom_kills) == (None, None, 0)
    evidence = judge(facts(before=used(cpu_s=3, oom_kills=2), after=used(cpu_s=1, oom_kills=1))).evidence
    assert (evidence.cpu_s, evidence.oom_kills) == (0.0, 0)


@pytest.mark.parametrize(
    ("known", "warnings"),
    [
        ({"after": used(memory=79, peak=79), "duration_s": 7.9}, []),
        ({"after": used(memory=80, peak=90)}, ["memory: the kernel holds 80 of 100 MiB"]),
        ({"after": used(memory=20, peak=90)}, ["memory: the cell needed up to 90 of 100 MiB"]),
        ({"after": used(memory=90), "kernel_lives": False}, []),
        ({"killed_before": 1}, ["memory: a process of an earlier cell ran out of memory and was killed"]),
        ({"killed_before": 3}, ["memory: 3 processes of earlier cells ran out of memory and were killed"]),
        ({"killed_before": -1}, []),
        ({"duration_s": 8.0}, ["time: the cell took 8.0 of 10 s"]),
        ({"duration_s": 10.5, "stopped": Outcome.TIMEOUT}, []),
        ({"duration_s": 5.0, "warn_percent": 50, "after": used(memory=50)}, ["memory", "time"]),
    ],
)
def test_a_warning_comes_before_the_limit(known: dict[str, Any], warnings: list[str]) -> None:
    """From the policy's share of a limit on, and not of a kernel that is gone or a cell that was stopped."""
    found = judge(facts(**known)).warnings
    assert [said[: len(start)] for said, start in zip(found, warnings, strict=True)] == warnings


def test_a_result_has_what_the_cell_put_out() -> None:
    """Outputs and what is missing of them pass through, for a known outcome too."""
    known = facts(
        msg_id="m", runtime="runsc", outputs=(StreamOutput("stdout", "x"),), mime_dropped=("text/html",),
        truncated=Truncation("output.messages", 10, 5, 2), execution_count=4, duration_s=0.5,
    )  # fmt: skip
    for result in (judge(known), make_result(known, Outcome.CANCELLED, None)):
        assert (result.msg_id, result.runtime, result.execution_count) == ("m", "runsc", 4)
        assert (result.stdout, result.mime_dropped, result.duration_s) == ("x", ("text/html",), 0.5)
        assert result.truncated == known.truncated


@pytest.mark.parametrize(
    ("lives", "says", "remedy"), [(True, "its variables are there", False), (False, "killed", True)]
)
def test_a_timeout_says_what_remains(lives: bool, says: str, remedy: bool) -> None:
    """The limit, the state of the kernel, and what helps where it is gone."""
    result = judge(facts(stopped=Outcome.TIMEOUT, kernel_lives=lives))
    error = timeout_error(result, 10.0)
    assert error.result is result
    assert "its limit of 10 s" in error.message
    assert says in error.message
    assert bool(error.remedy) is remedy


def test_the_kernel_s_warnings_are_marked_as_its_own() -> None:
    """They are claims of hostile code."""
    assert judge(facts(kernel_warnings=("memory: fine",))).warnings == ("kernel: memory: fine",)
