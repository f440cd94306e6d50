"""Limits, budgets and deadlines."""

from __future__ import annotations

import math

import pytest

from orchestrator.limits import Deadline, KernelResourceLimits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_cpu_percent": -1}, "CPU percent must be positive"),
        ({"max_cpu_percent": 0}, "CPU percent must be positive"),
        ({"max_cpu_percent": math.nan}, "CPU percent must be positive"),
        ({"max_cpu_percent": 100.1}, "CPU percent cannot exceed 100"),
        ({"max_memory_mb": -1}, "Memory limit must be positive"),
        ({"max_execution_time": 0}, "Execution time must be positive"),
        ({"max_output_size_mb": -0.1}, "Output size must be positive"),
        ({"max_output_size_mb": math.inf}, "Output size must be finite"),
        ({"max_memory_mb": math.inf}, "Memory limit must be finite"),
        ({"idle_timeout_seconds": math.nan}, "Idle timeout must be positive"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], message: str) -> None:
    """Each limit names itself in its error."""
    with pytest.raises(ValueError, match=message):
        KernelResourceLimits(**limits)  # type: ignore[arg-type]


def test_a_deadline_passes() -> None:
    """Nothing remains of a deadline of no seconds, and something of a long one."""
    assert Deadline(0).remaining() == Deadline(-1).remaining() == 0
    assert 0 < Deadline(100).remaining() <= 100


@pytest.mark.parametrize("number", [10**400, 2**63, float("inf")])
def test_a_limit_of_any_size_is_at_most_the_managers(number: float) -> None:
    limits = KernelResourceLimits(max_execution_time=5, max_output_size_mb=2)
    found = limits.within(number, number)  # type: ignore[arg-type] # a whole number, or infinite
    assert (found.max_execution_time, found.max_output_size_mb) == (5, 2)
    assert limits.within(None, 1024 * 1024).max_output_size_mb == 1
