"""A session's cells, their history, and what a store that fails or blocks does to both. No engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import nbformat
import pytest

from orchestrator.errors import InvalidInputError, KernelDiedError, SessionEndedError, StoreError
from orchestrator.kernel.fakecell import FakeCell, Wait, printed
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Audit
from orchestrator.sessions.checkpoint import export_history, import_history
from orchestrator.sessions.notebook import export_notebook
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History
from tests.unit.sessionworld import World

RESTORED = Restored("c", 0, (), 0.1)


async def loaded() -> Restored:
    return RESTORED


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def blocked(world: World) -> threading.Event:
    """Keep the store's thread busy until the event is set."""
    event, begun = threading.Event(), threading.Event()

    def wait(_store: History) -> None:
        begun.set()
        event.wait(10)

    world.store.submit(wait)
    await asyncio.to_thread(begun.wait)
    return event


async def woken(world: World, cells: int = 2) -> KernelSession:
    session = await world.acquire("a")
    for number in range(cells):
        await world.run(session, f"x = {number}")
    assert await world.hibernation.hibernate(session, Outcome.HIBERNATE)
    return await world.acquire("a")


async def test_the_history_of_a_woken_session_comes_from_the_store(world: World) -> None:
    """Both forms of reading it give the same entries, and a cell that runs meanwhile is in it."""
    session = await woken(world)
    event = await blocked(world)
    reading = asyncio.create_task(session.history())
    running = asyncio.create_task(world.run(session, "y"))
    await asyncio.sleep(0.01)
    assert not reading.done()
    event.set()
    await running
    assert [entry["code"] for entry in await reading] == ["x = 0", "x = 1", "y"]
    assert [entry["result"]["status"] for entry in session.execution_history] == ["ok"] * 3
    assert await session.history() is session.execution_history
    again = await woken(world, 0)
    assert [entry["code"] for entry in again.execution_history] == ["x = 0", "x = 1", "y"]


async def test_reading_the_history_does_not_block_the_loop(world: World) -> None:
    """While the store's thread is busy, other tasks run."""
    session = await woken(world)
    event = await blocked(world)
    reading = asyncio.create_task(session.history())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    event.set()
    assert len(await reading) == 2


async def test_export_and_import_of_a_history(world: World, tmp_path: Path) -> None:
    """The asynchronous forms write and read the same files as the reference's."""
    session = await woken(world)
    saved = await export_history(session, tmp_path / "history.json")
    fresh = KernelSession("n", "k", "a")
    await import_history(fresh, file_path=tmp_path / "history.json")
    assert fresh.execution_history == saved["execution_history"]
    assert await export_history(fresh) == fresh.checkpoint_data
    with pytest.raises(InvalidInputError):
        await import_history(fresh, saved | {"execution_history": [1]})
    await export_notebook(session, tmp_path / "s.ipynb", "A title")
    notebook = nbformat.read(tmp_path / "s.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == ["# A title", "x = 0", "x = 1"]


async def test_a_session_without_a_store_keeps_its_history_in_memory() -> None:
    """It sleeps, ends and runs cells as others do."""
    kernel = FakeKernel()
    session = KernelSession.of("a", kernel, Policy())
    async for _ in session.run("1", KernelResourceLimits()):
        pass
    assert [entry["result"]["outcome"] for entry in await session.history()] == ["ok"]
    assert await session.take_over(None)
    assert not await session.end_running_cells({})
    (fork,) = await session.fork(["b"], lambda _fork: asyncio.sleep(0))  # type: ignore[arg-type, return-value]
    assert (fork.state, fork.parent_id) == ("asleep", session.session_id)
    await session.move(FakeKernel("other"), RESTORED)
    await session.sleep("idle")
    assert (session.state, len(session.execution_history)) == ("asleep", 1)
    await session.wake(kernel, loaded, cells=1)
    session.clear_history()
    assert session.execution_history == []
    await session.end("done")
    assert await session.drop_checkpoints() == []
    new = KernelSession("n", "", "a")
    assert new.state == "new"
    await new.begin(kernel)
    new_again = KernelSession("m", "k", "a")
    vars(new_again).pop("execution_history")
    assert await new_again.history() == []
    with pytest.raises(AttributeError, match="nonsense"):
        new_again.nonsense  # noqa: B018 - the access is the test


async def test_a_session_says_why_it_has_no_kernel(world: World) -> None:
    """New, asleep, ended by itself and ended by its kernel each have their error."""
    session = world.registry.make("a")
    with pytest.raises(SessionEndedError, match="never_started"):
        session.live_kernel()
    session = await world.acquire("a")
    await world.checkpoint(session)
    await world.hibernation.hibernate(session, Outcome.IDLE)
    with pytest.raises(SessionEndedError, match="is asleep") as asleep:
        session.live_kernel()
    assert asleep.value.reason == "asleep"
    session = await world.acquire("b")
    await world.die(session)
    with pytest.raises(KernelDiedError) as died:
        session.live_kernel()
    assert died.value.reason == "kernel_died"


async def test_a_session_that_closes_refuses_cells(world: World) -> None:
    """A cell that has not begun is refused, and leaves no row."""
    session = await world.acquire("a")
    session.refuse_cells()
    with pytest.raises(SessionEndedError, match="shuts down"):
        await world.run(session)
    assert (session.cell_count, session.is_busy) == (0, False)


async def test_a_cell_cancelled_before_it_begins_is_recorded_as_cancelled(world: World) -> None:
    """Its row is written by then: it says that the cell never ran, and the next cell has the next number."""
    session = await world.acquire("a")
    event = await blocked(world)
    task = asyncio.create_task(world.run(session, "never"))
    await asyncio.sleep(0.01)
    task.cancel()
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.run(session, "next")
    cells = await world.store.run(History.cells, session.session_id)
    assert [(cell.number, cell.outcome) for cell in cells] == [(1, "cancelled"), (2, "ok")]
    assert [entry["result"]["outcome"] for entry in session.execution_history] == ["cancelled", "ok"]
    assert world.kernel_of(session).executed == ["next"]


async def test_a_result_that_cannot_be_kept_is_in_the_error(world: World) -> None:
    """The session continues."""
    session = await world.acquire("a")
    world.store.refuses = (History.end_cell,)
    with pytest.raises(StoreError, match="the cell has run") as refused:
        await world.run(session)
    assert refused.value.result is not None
    assert refused.value.result.outcome == "ok"
    world.store.refuses = ()
    assert (await world.run(session)).outcome == "ok"


async def test_a_cell_that_cannot_be_recorded_does_not_run(world: World) -> None:
    """The error is the store's, and the number is free for the next cell."""
    session = await world.acquire("a")
    world.store.refuses = (History.begin_cell,)
    with pytest.raises(StoreError):
        await world.run(session)
    assert (session.cell_count, world.kernel_of(session).executed) == (0, [])
    assert not session.is_busy


async def test_a_cancelled_cell_is_interrupted_and_recorded(world: World) -> None:
    """What it had printed is in the history; a store that refuses that is logged only."""
    session = await world.acquire("a")
    world.kernel_of(session).cells["loop"] = FakeCell([printed("out"), Wait(None)])
    for refuses in ((), (History.end_cell,)):
        world.store.refuses = refuses
        task = asyncio.create_task(world.run(session, "loop"))
        while session.running_cell is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.execution_history[-1]["result"]["outcome"] == "cancelled"
        assert session.execution_history[-1]["result"]["stdout"] == "out"
    assert session.running_cell is None


async def test_a_cell_that_ignores_its_interrupt_holds_the_next_one_back(world: World) -> None:
    """Its consumer has gone after 0.4 s; the session is busy until the cell has ended."""
    session = await world.acquire("a")
    kernel = world.kernel_of(session)
    kernel.cells["deaf"] = FakeCell([Wait(None)], obeys="nothing")
    task = asyncio.create_task(world.run(session, "deaf"))
    while session.running_cell is None:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert session.is_busy
    kernel.die()
    await session.settled()
    assert not session.is_busy
    assert session.execution_history[-1]["result"]["outcome"] == "cancelled"


async def test_an_operator_interrupts_a_cell(world: World) -> None:
    """Its number and age are known while it runs; an interrupt between cells does nothing."""
    session = await world.acquire("a")
    assert not session.interrupt()
    world.kernel_of(session).cells["loop"] = FakeCell([Wait(None)])
    task = asyncio.create_task(world.run(session, "loop"))
    while session.running_cell is None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert session.running_cell[0] == 1
    session.note_operator("interrupt")
    assert session.interrupt()
    assert (await task).outcome == "interrupted"
    assert "operator.interrupt" in [event for event, _ in world.kernel_of(session).notes]
    await world.checkpoint(session)
    await world.hibernation.hibernate(session, Outcome.IDLE)
    session.note_operator("interrupt")


async def test_notices_come_with_the_next_result_once(world: World) -> None:
    """The same notice twice is one."""
    session = await world.acquire("a")
    session.notify("something was lost")
    session.notify("something was lost")
    assert (await world.run(session)).warnings == ("something was lost",)
    assert (await world.run(session)).warnings == ()


@pytest.mark.parametrize("kind", ["digest", "full"])
def test_the_audit_log_has_the_code_as_the_policy_says(kind: Literal["digest", "full"]) -> None:
    """``audit.code`` decides whether the code itself is written."""

    async def events() -> dict[str, Any]:
        kernel = FakeKernel()
        session = KernelSession.of("a", kernel, Policy(audit=Audit(code=kind)))
        async for _ in session.run("secret", KernelResourceLimits()):
            pass
        return dict(kernel.notes)

    notes = asyncio.run(events())
    assert notes["cell.started"]["code_bytes"] == 6
    assert (notes["cell.started"].get("code") == "secret") == (kind == "full")
    assert notes["cell.ended"]["outcome"] == "ok"
