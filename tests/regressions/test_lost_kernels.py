"""The first result in a fresh kernel says what was lost with the last one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.container.exits import Exit
from orchestrator.errors import StoreError
from orchestrator.outcome import Outcome
from orchestrator.sessions.restored import is_loss
from orchestrator.store.history import History
from tests.conftest import one_session
from tests.unit.sessionworld import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def test_a_new_session_after_a_lost_one_says_what_is_gone_once(world: World) -> None:
    session = await world.acquire("a")
    await world.run(session)
    for number in range(7):
        session.note_file_in(f"data/{number}.csv")
    await world.die(session, Exit(Outcome.OOM, 137))
    again = await world.acquire("a")
    (warning,) = (await world.run(again)).warnings
    assert "ended (oom)" in warning
    assert "variables and all files" in warning
    assert "data/0.csv, data/1.csv, data/2.csv, data/3.csv, data/4.csv and 2 more" in warning
    assert (await world.run(again)).warnings == ()
    await world.die(again)
    (warning,) = (await world.run(await world.acquire("a"))).warnings
    assert "put_file" not in warning


async def test_a_woken_session_says_from_which_checkpoint_it_continues(world: World) -> None:
    """Also when no cell was lost: files may be."""
    session = await world.acquire("a")
    await world.run(session)
    session.note_file_in("before.csv")
    made = await world.checkpoint(session)
    session.note_file_in("after.csv")
    await world.die(session)
    (warning,) = (await world.run(await world.acquire("a"))).warnings
    assert f"checkpoint {made.checkpoint_id[:12]} after cell 1" in warning
    assert "ended (kernel_died)" in warning
    assert "after.csv" in warning
    assert "before.csv" not in warning


async def test_a_session_that_slept_in_peace_says_nothing(world: World) -> None:
    session = await world.acquire("a")
    await world.run(session)
    session.note_file_in("before.csv")
    assert await world.hibernation.hibernate(session, Outcome.IDLE)
    assert (await world.run(await world.acquire("a"))).warnings == ()


@pytest.mark.parametrize(("reason", "warns"), [("oom", True), ("idle", True), ("end_session", False), ("mine", False)])
async def test_a_loss_is_known_to_the_next_process(tmp_path: Path, world: World, reason: str, warns: bool) -> None:
    """What was ended on purpose is no loss."""
    earlier = World(tmp_path, name="earlier")
    await earlier.registry.end(await earlier.acquire("a"), reason)
    await earlier.close()
    session = await world.acquire("a")
    assert bool((await world.run(session)).warnings) is warns
    assert session.previous_end == (reason if warns else None)
    await world.acquiring.end("a", "end_session")
    assert (await world.run(await world.acquire("a"))).warnings == ()


async def test_a_start_that_fails_does_not_use_up_the_warning(world: World) -> None:
    session = await world.acquire("a")
    session.note_file_in("x.csv")
    await world.die(session)
    world.store.refuses = (History.add_session,)
    with pytest.raises(StoreError):
        await world.acquire("a")
    world.store.refuses = ()
    (warning,) = (await world.run(await world.acquire("a"))).warnings
    assert "x.csv" in warning


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.ends_session])
def test_every_end_is_a_loss_or_wanted(outcome: Outcome) -> None:
    wanted = {"shutdown", "end_session", "never_started", "asleep", "hibernate", "restart", "taken_over"}
    assert is_loss(outcome) is (outcome not in wanted)
    assert is_loss(str(outcome)) is is_loss(outcome)


async def test_a_real_kernel_that_dies_is_not_silent(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        await manager.put_file(session, b"1", "handed-in.csv")
        died = await manager.execute(session, "import os; os._exit(1)")
        assert died.outcome == "kernel_died"
        async with manager.acquire_kernel("agent", timeout=60) as (_, again):
            result = await manager.execute(again, "1")
            assert any("handed-in.csv" in warning for warning in result.warnings)
            assert (await manager.execute(again, "1")).warnings == ()
