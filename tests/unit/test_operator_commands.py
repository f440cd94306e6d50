"""The operator's commands and the monitor, on kernels in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.errors import InvalidInputError
from orchestrator.limits import MIB
from orchestrator.operator.monitor import Monitor
from orchestrator.operator.operations import Operations
from orchestrator.outcome import Outcome
from tests.unit.sessionworld import World


@dataclass
class Desk:
    """An operator's view of a world with one session, "ann"."""

    world: World
    monitor: Monitor
    operations: Operations

    async def command(self, name: str, kernel: str = "") -> dict[str, Any]:
        return await self.operations.commands()[name]({"do": name, "kernel": kernel})


@pytest_asyncio.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Start a session, with memory limits of 100 MiB and warnings from 80 % on."""
    world = World(tmp_path)
    await world.acquire("ann")
    monitor = Monitor(lambda: [kernel for kernel in world.kernels.values() if kernel.is_alive], 100, 80.0)
    operations = Operations(
        pool=world.pool,
        sessions=world.registry.sessions,
        monitor=monitor,
        limits=world.limits,
        instance=lambda: {"instance": "one"},
        end_session=world.acquiring.end,
        hibernate=lambda session: world.hibernation.hibernate(session, Outcome.HIBERNATE),
    )
    yield Desk(world, monitor, operations)
    await world.close()


async def test_the_overview_has_a_row_per_kernel_without_code(desk: Desk) -> None:
    """The overview shows the session's agent, state and cell count, and never its code."""
    session = desk.world.registry.sessions["ann"]
    await desk.world.run(session, "secret = 'hush'")
    found = await desk.command("overview")
    (row,) = found["kernels"]
    assert (found["instance"], found["pool"]["leased"]) == ("one", 1)
    assert (row["agent"], row["state"], row["cells"], row["cell"]) == ("ann", "idle", 1, None)
    assert row["kernel_id"] == session.kernel_id
    assert "hush" not in str(found)


async def test_a_kill_ends_the_session_and_is_recorded(desk: Desk) -> None:
    """An operator's kill ends the session as killed, and the audit log has the act."""
    session = desk.world.registry.sessions["ann"]
    kernel = desk.world.kernel_of(session)
    assert await desk.command("kill", kernel.kernel_id) == {"killed": True}
    await desk.world.quiet()
    assert session.ended == "killed"
    assert not kernel.is_alive
    assert "operator.kill" in [name for name, _ in kernel.notes]


async def test_an_interrupt_without_a_cell_does_nothing_and_is_recorded(desk: Desk) -> None:
    """An interrupt of an idle kernel reports False, and the audit log has the act."""
    kernel = desk.world.kernel_of(desk.world.registry.sessions["ann"])
    assert await desk.command("interrupt", kernel.kernel_id) == {"interrupted": False}
    assert "operator.interrupt" in [name for name, _ in kernel.notes]


async def test_a_hibernated_session_sleeps_and_it_is_recorded(desk: Desk) -> None:
    """The session has no kernel any longer, and the audit log has the act."""
    session = desk.world.registry.sessions["ann"]
    kernel = desk.world.kernel_of(session)
    assert await desk.command("hibernate", kernel.kernel_id) == {"hibernated": True}
    assert session.state == "asleep"
    assert "operator.hibernate" in [name for name, _ in kernel.notes]


async def test_a_kernel_without_a_session_is_refused(desk: Desk) -> None:
    """Each action refuses a kernel that no session has."""
    for name in ("interrupt", "hibernate", "kill"):
        with pytest.raises(InvalidInputError, match="no session has this kernel"):
            await desk.command(name, "another")


async def test_the_monitor_records_a_kernel_near_its_limit_once_per_approach(desk: Desk) -> None:
    """Above 80 % of its memory a kernel is recorded once, and again only after it was below."""
    kernel = desk.world.kernel_of(desk.world.registry.sessions["ann"])
    for used, times in ((79, 0), (81, 1), (90, 1), (10, 1), (85, 2)):
        kernel.use(at=asyncio.get_running_loop().time(), memory=used * MIB)
        await desk.monitor.sample(kernel)
        assert [name for name, _ in kernel.notes].count("kernel.near_memory_limit") == times, used
    assert kernel.notes[-1][1] == {"memory": 85 * MIB, "limit": 100 * MIB}
