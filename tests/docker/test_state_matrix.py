"""Every kind of state is restored equal, or reported as lost: a table of kinds, under each runtime."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from orchestrator import AgentKernelManager, KernelSession
from tests.conftest import one_session
from tests.docker.state_kinds import KINDS, StateKind


async def set_up(manager: AgentKernelManager, session: KernelSession, kinds: Iterable[StateKind]) -> None:
    for kind in kinds:
        result = await manager.execute_code(session, kind.setup)
        assert result["status"] == "ok", (kind.name, result["error"])


async def faults_of(
    manager: AgentKernelManager, session: KernelSession, kinds: Iterable[StateKind], *, restored: bool
) -> list[str]:
    """Check every kind, and tell of each that is not as the table says.

    Args:
        restored: whether the session has moved to a fresh kernel: then what was lost must say so when it is used.
    """
    faults = []
    for kind in kinds:
        for use in kind.uses:
            result = await manager.execute_code(session, use)
            refused = result["error"] is not None and result["error"]["ename"] == "NotRestoredError"
            if refused != restored:
                faults.append(f"{kind.name}: {use}: {result['error'] or result['result']}")
        result = await manager.execute_code(session, kind.check)
        if (result["status"], result["result"]) != ("ok", "True"):
            faults.append(f"{kind.name}: {result['error'] or result['result']}")
    return faults


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
async def test_every_kind_of_state_is_restored_equal_or_reported(runtime: str, alone: bool) -> None:
    """In a fresh kernel, and again in the one after; nothing is lost silently, and nothing is reported falsely."""
    kinds = [kind for kind in KINDS if kind.alone == alone]
    lost = {loss for kind in kinds for loss in kind.lost.items()}
    expected = lost | {loss for kind in kinds for loss in kind.beside.items()}
    faults = []
    async with one_session(runtime) as (manager, session):
        await set_up(manager, session, kinds)
        made = await manager.checkpoint(session)
        for generation in (1, 2):
            reported = {(loss.name, loss.kind): loss.reason for loss in made.lost}
            faults += [f"{generation}: lost silently: {loss}" for loss in expected - reported.keys()]
            faults += [f"{generation}: reported: {loss}: {reported[loss]}" for loss in reported.keys() - expected]
            restored = await manager.restore(session, made)
            faults += [f"{generation}: lost in loading: {loss}" for loss in restored.lost if loss not in made.lost]
            expected = lost
            made = await manager.checkpoint(session)  # before the checks, which change what they look at
            faults += [f"{generation}: {fault}" for fault in await faults_of(manager, session, kinds, restored=True)]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
async def test_the_checks_hold_where_nothing_was_restored(runtime: str, alone: bool) -> None:
    """So that one which fails after a restore tells of the restore; and a checkpoint changes nothing in the kernel."""
    kinds = [kind for kind in KINDS if kind.alone == alone]
    async with one_session(runtime) as (manager, session):
        await set_up(manager, session, kinds)
        await manager.checkpoint(session)
        faults = await faults_of(manager, session, kinds, restored=False)
    assert not faults, "\n" + "\n".join(faults)


BOTTOMLESS = "x = []\nfor _i in range(50_000): x = [x]\ndel _i\n"


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("x", {"x", "_"}),  # too deep to be shown, and the last result all the same
        ("class Quiet(list):\n    def __repr__(self): return 'quiet'\nQuiet([x])", {"x", "_", "Out[2]"}),
        ("import sys, types\nsys.modules['made'] = types.ModuleType('made'); sys.modules['made'].x = x", {"x"}),
        ("import decimal; decimal.x = x", {"x", "decimal.x"}),
    ],
)
async def test_what_is_nested_too_deeply_is_lost_alone(runtime: str, code: str, lost: set[str]) -> None:
    """Wherever it lies: the rest is captured, and restored."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, "kept = [1, 2]\n" + BOTTOMLESS)
        await manager.execute_code(session, code)
        made = await manager.checkpoint(session)
        assert lost <= {loss.name for loss in made.lost}
        await manager.restore(session, made)
        assert (await manager.execute_code(session, "kept"))["result"] == "[1, 2]"
