"""What is kept of cells and commands that have ended: as much as fits, and no group pays for another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import InvalidInputError
from orchestrator.limits import MIB
from orchestrator.outcome import Outcome
from orchestrator.output.eventlog import EventLog
from orchestrator.output.events import CellFinished, ExecutionResult, StreamOutput
from orchestrator.output.result import Evidence
from orchestrator.sessions.cellhandle import RunningCell
from orchestrator.sessions.kept import Kept
from orchestrator.sessions.session import KernelSession
from orchestrator.sessions.startedcells import StartedCells
from tests.unit.sessionworld import World


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[KernelSession]:
    world = World(tmp_path)
    yield await world.acquire("a")
    await world.close()


async def over(session: KernelSession, cells: StartedCells, *, output_bytes: int = 0, events: int = 0) -> RunningCell:
    """Add a cell, and return it once it is over."""
    evidence = Evidence(output_bytes=output_bytes)
    result = ExecutionResult("ok", Outcome.OK, (), None, "m", 1, 0.1, None, "idle", "runc", evidence=evidence)
    log = EventLog(MIB)
    for _ in range(events):
        log.add(StreamOutput("stdout", "x"))
    log.add(CellFinished(result))

    async def ended() -> ExecutionResult:
        return result

    cell = RunningCell(session, "1", asyncio.create_task(ended()), log)
    cells.add(cell)
    await cell.wait()
    await asyncio.sleep(0)
    return cell


async def test_a_started_cell_that_is_forgotten_is_forgotten_everywhere(session: KernelSession) -> None:
    """Beyond 1,000 cells, or 64 MiB of results, the oldest goes; a server that keeps something with it is told."""
    cells = StartedCells(MIB)
    first = await over(session, cells)
    told: list[str] = []
    first.when_forgotten(lambda: told.append(first.id))
    for _ in range(999):
        newest = await over(session, cells)
    assert cells.find(first.id) is first
    assert told == []
    await over(session, cells)
    assert told == [first.id]
    with pytest.raises(InvalidInputError, match="no started cell"):
        cells.find(first.id)
    first.when_forgotten(lambda: told.append("late"))
    assert told == [first.id, "late"]

    large = [await over(session, cells, output_bytes=MIB) for _ in range(65)]
    with pytest.raises(InvalidInputError, match="no started cell"):
        cells.find(newest.id)
    with pytest.raises(InvalidInputError, match="no started cell"):
        cells.find(large[0].id)
    assert cells.find(large[1].id) is large[1]


async def test_the_events_of_cells_that_ended_are_few(session: KernelSession) -> None:
    """Small ones are bounded in number, not in bytes alone; the last event, with the result, stays."""
    cells = StartedCells(MIB)
    ended = [await over(session, cells, events=1000) for _ in range(60)]
    assert 20_000 < sum(cell.log_events for cell in ended) < 40_000
    assert ended[0].log_events == 1
    assert ended[-1].log_events == 1001
    assert cells.find(ended[0].id) is ended[0]


def test_the_oldest_is_forgotten_beyond_the_number() -> None:
    """One for each that comes."""
    kept: Kept[str] = Kept(most=3, most_bytes=100)
    assert [kept.add(name, "a", 1) for name in "uvw"] == [[], [], []]
    assert kept.add("x", "a", 1) == ["u"]
    assert kept.add("y", "a", 1) == ["v"]


def test_as_many_are_forgotten_as_a_large_one_needs() -> None:
    """One that is larger than all that may be kept is not kept itself."""
    kept: Kept[str] = Kept(most=100, most_bytes=10)
    for name in "uvwx":
        kept.add(name, "a", 2)
    assert kept.add("large", "a", 8) == ["u", "v", "w"]
    assert kept.add("huge", "a", 11) == ["x", "large", "huge"]
    assert kept.add("y", "a", 10) == []


def test_a_group_that_floods_loses_its_own() -> None:
    """In number and in bytes: those of a group that keeps little stay, though they are older."""
    kept: Kept[str] = Kept(most=10, most_bytes=1000)
    kept.add("quiet", "a", 10)
    forgotten = [old for number in range(50) for old in kept.add(f"many {number}", "b", 1)]
    forgotten += [old for number in range(50) for old in kept.add(f"large {number}", "c", 500)]
    assert len(forgotten) > 80
    assert "quiet" not in forgotten
