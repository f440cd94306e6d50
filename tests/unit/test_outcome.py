"""The one vocabulary of endings."""

from __future__ import annotations

import copy
import json
import pickle
from typing import get_args

import pytest

from orchestrator.errors import KernelDiedError, SessionEndedError
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.outcome import CellOutcome, KernelEnd, Outcome, Stop, kernel_end
from orchestrator.policy.policy import Policy
from orchestrator.sessions.session import KernelSession

# As results, stores and audit logs have had them: a value that changes breaks those who read them.
CELLS = "ok error interrupted timeout cancelled output_limit oom kernel_died engine_lost"
KERNELS = "timeout cancelled output_limit oom kernel_died engine_lost"
SESSIONS = f"{KERNELS} idle evicted hibernate restart reconfigured shutdown end_session killed orchestrator_lost"
SESSIONS += " taken_over never_started asleep"


def test_the_strings_are_those_that_stores_and_logs_have() -> None:
    """Each of cells, kernels and sessions ends by a known set of strings."""
    assert {str(outcome) for outcome in Outcome if outcome.ends_cell} == set(CELLS.split())
    assert {str(outcome) for outcome in Outcome if outcome.ends_kernel} == set(KERNELS.split())
    assert {str(outcome) for outcome in Outcome if outcome.ends_session} == set(SESSIONS.split())


def test_the_types_name_the_same_members_as_the_table() -> None:
    """``CellOutcome`` and ``KernelEnd`` are the members that the enum marks so, and the host's stops end both."""
    assert set(get_args(CellOutcome)) == {outcome for outcome in Outcome if outcome.ends_cell}
    assert set(get_args(KernelEnd)) == {outcome for outcome in Outcome if outcome.ends_kernel}
    assert all(outcome.ends_cell and outcome.ends_kernel for outcome in get_args(Stop))


def test_no_kernel_outlives_its_own_end() -> None:
    """Only what can be a cell's outcome says, or leaves open, that the kernel lives."""
    assert all(outcome.ends_cell for outcome in Outcome if outcome.kernel_lives is not False)
    assert not any(outcome.ends_kernel for outcome in Outcome if outcome.kernel_lives)


@pytest.mark.parametrize("outcome", Outcome)
def test_a_member_is_its_string(outcome: Outcome) -> None:
    """It compares, prints and travels as the plain string, and is found by it."""
    assert outcome == outcome.value
    assert f"{outcome}" == str(outcome) == outcome.value
    assert repr(outcome) == repr(outcome.value)
    assert json.loads(json.dumps({"outcome": outcome})) == {"outcome": outcome.value}
    assert Outcome(outcome.value) is outcome
    assert pickle.loads(pickle.dumps(outcome)) is copy.deepcopy(outcome) is outcome  # noqa: S301 - made here


@pytest.mark.parametrize("outcome", Outcome)
def test_a_session_that_ended_with_its_kernel_says_that_the_kernel_died(outcome: Outcome) -> None:
    """Every end of a kernel, ``output_limit`` too, is a KernelDiedError with that reason; others end the session."""
    session = KernelSession.of("a", FakeKernel(), Policy())
    session.ended = outcome
    if outcome.ends_kernel:
        with pytest.raises(KernelDiedError) as died:
            session.live_kernel()
        assert died.value.reason is outcome
    else:
        with pytest.raises(SessionEndedError) as ended:
            session.live_kernel()
        assert ended.value.reason == outcome


@pytest.mark.parametrize("reason", [None, "", "idle", "ok", "for a reason of my own"])
def test_other_reasons_are_no_ends_of_a_kernel(reason: str | None) -> None:
    """``end_session`` takes any text; only a kernel's own end counts as one."""
    assert kernel_end(reason) is None
