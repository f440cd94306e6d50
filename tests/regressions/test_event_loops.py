"""A manager belongs to one event loop, and to one life: every other use is refused at once, with the reason."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import docker
import pytest

from cellblock.sync import Manager
from orchestrator import AgentKernelManager, KernelSession, ManagerClosedError, WrongEventLoopError
from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.settings import Settings
from tests.conftest import REPOSITORY, make_manager, one_session
from tests.unit.sessionworld import World

AT_ONCE = 0.5  # seconds for all refusals together


def arguments(session: KernelSession, folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return arguments for every public call of a manager that works in its event loop."""
    return {
        "start": (),
        "acquire_kernel": ("another",),
        "execute": (session, "1"),
        "execute_code": (session, "1"),
        "stream_code": (session, "1"),
        "execute_code_for_notebook": (session, "1"),
        "put_file": (session, b"1", "a"),
        "get_file": (session, "a", folder / "a"),
        "end_session": (session.agent_id,),
        "checkpoint": (session,),
        "restore": (session, "0" * 32),
        "fork": (session, 2),
        "hibernate": (session.agent_id,),
        "drain": (0.0,),
        "export_history": (session,),
        "import_history": (session, {}),
        "export_notebook": (session, folder / "a.ipynb"),
        "get_kernel_resource_usage": (session.kernel_id,),
        "sweep_everywhere": (),
        "apply_retention": (),
        "shutdown": (),
        "interrupt": (session,),
        "list_commands": (session,),
        "run_command": (session, "true"),
        "stream_command": (session, "true"),
        "start_command": (session, "true"),
        "read_file": (session, "a"),
        "write_file": (session, "a", b"1"),
        "read_folder": (session,),
        "write_folder": (session, "a", b""),
        "stat_file": (session, "a"),
        "exists": (session, "a"),
        "list_files": (session,),
        "make_dir": (session, "a"),
        "move": (session, "a", "b"),
        "remove": (session, "a"),
        "list_variables": (session,),
        "list_sessions": (),
        "install": (session, ["numpy"]),
        "start_code": (session, "1"),
        "find_cell": ("0",),
        "restart_kernel": (session,),
    }


def works_in_a_loop(method: Any) -> bool:
    made = inspect.unwrap(method)
    return inspect.iscoroutinefunction(made) or inspect.isasyncgenfunction(made)


async def use(made: Any) -> None:
    """Await a coroutine, enter a context, or take the first item of a stream."""
    if isinstance(made, AbstractAsyncContextManager):
        async with made:
            pass
    elif inspect.isasyncgen(made):
        await anext(made)
    elif inspect.isawaitable(made):
        await made


async def refusals(
    manager: AgentKernelManager,
    session: KernelSession,
    folder: Path,
    leave_out: set[str] = frozenset(),  # type: ignore[assignment]
) -> dict[str, BaseException | None]:
    """Make every public call, and return what each raised."""
    found: dict[str, BaseException | None] = {}
    for name, given in arguments(session, folder).items():
        if name in leave_out:
            continue
        try:
            async with asyncio.timeout(5):
                await use(getattr(manager, name)(*given))
            found[name] = None
        except Exception as error:  # noqa: BLE001
            found[name] = error
    return found


def test_every_call_of_a_manager_is_tried() -> None:
    """A new public method that works in the event loop belongs into the table of these tests."""
    public = {name: getattr(AgentKernelManager, name) for name in dir(AgentKernelManager) if not name.startswith("_")}
    expected = {name for name, method in public.items() if works_in_a_loop(method)}
    expected |= {"interrupt", "list_commands", "find_cell"}
    assert expected == set(arguments(KernelSession("s", "k", "a"), Path()))


@pytest.mark.one_runtime
async def test_another_threads_loop_is_refused_and_changes_nothing(runtime: str, tmp_path: Path) -> None:
    """Every call, the kernel, the session and the pool refuse it at once; here all goes on."""
    async with one_session(runtime) as (manager, session):
        await manager.execute(session, "x = 1")
        kernel, before = session.live_kernel(), (session.cell_count, manager.pool.counts())

        async def elsewhere() -> tuple[dict[str, BaseException | None], float]:
            begun = time.monotonic()
            found = await refusals(manager, session, tmp_path)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "session.run": lambda: anext(session.run("1", manager.resource_limits)),
                "session.history": session.history,
                "kernel.request": lambda: kernel.request("shell", "kernel_info_request", {}, timeout=5),
                "kernel.stop": kernel.stop,
                "kernel.exit": kernel.exit,
                "kernel.measure": kernel.measure,
                "pool.acquire": lambda: manager.pool.acquire(5),
                "monitor.sample": lambda: manager.monitor.sample(kernel),
            }
            for name, call in calls.items():
                try:
                    await call()
                    found[name] = None
                except Exception as error:  # noqa: BLE001
                    found[name] = error
            return found, time.monotonic() - begun

        found, seconds = await asyncio.to_thread(asyncio.run, elsewhere())
        assert {name: type(error) for name, error in found.items()} == dict.fromkeys(found, WrongEventLoopError)
        assert "cellblock.sync.Manager" in str(found["execute"])
        assert seconds < AT_ONCE
        with pytest.raises(WrongEventLoopError):
            await asyncio.to_thread(manager.interrupt, session)  # a thread without an event loop
        assert (session.cell_count, manager.pool.counts()) == before
        assert (await manager.execute(session, "x")).result == "1"


CLOSED = """
import asyncio, time
from orchestrator import AgentKernelManager, WrongEventLoopError

async def first():
    async with manager.acquire_kernel("a") as (_, session):
        await manager.execute(session, "x = 1")
        return session

async def second(call):
    begun = time.monotonic()
    try:
        await call()
        print("accepted")
    except WrongEventLoopError as error:
        print(time.monotonic() - begun < 0.5, "closed" in error.message, "asyncio.run" in error.remedy)

manager = AgentKernelManager(max_kernels=2)
session = asyncio.run(first())
for call in (lambda: manager.execute(session, "x"), first, manager.start, manager.shutdown, session.history):
    asyncio.run(second(call))
"""


@pytest.mark.one_runtime
def test_a_closed_loop_is_refused_and_its_kernels_end_with_the_process(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second ``asyncio.run`` gets the reason at once, and nothing is left behind."""
    monkeypatch.setenv("CELLBLOCK_RUNTIME", runtime)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == ["True True True"] * 5, done.stderr
    client = docker.from_env()
    try:
        left = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
    finally:
        client.close()
    mine = str(Settings.load().state_path)
    assert not [each for each in left if any(mount["Source"].startswith(f"{mine}/") for mount in each["Mounts"])]


@pytest.fixture(autouse=True)
def own_state(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))


def test_a_start_that_failed_binds_to_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may try again in a second ``asyncio.run``."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    manager = make_manager("runc")

    async def twice() -> list[str]:
        found = await asyncio.gather(manager.start(), manager.start(), return_exceptions=True)
        return [type(error).__name__ for error in found]

    assert asyncio.run(twice()) == asyncio.run(twice()) == ["EngineUnavailableError"] * 2
    asyncio.run(manager.shutdown())


@pytest.mark.one_runtime
async def test_after_a_shutdown_every_call_says_so(runtime: str, tmp_path: Path) -> None:
    """In this event loop and in another; a shutdown may be repeated in both."""
    async with one_session(runtime) as (manager, session):
        await manager.checkpoint(session)
    left_out = {"shutdown", "export_history", "import_history", "export_notebook"}
    here = await refusals(manager, session, tmp_path, left_out)
    there = await asyncio.to_thread(asyncio.run, refusals(manager, session, tmp_path, left_out))
    for found in (here, there):
        assert {name: type(error) for name, error in found.items()} == dict.fromkeys(found, ManagerClosedError)
        assert all("shut down" in str(error) and "new manager" in str(error) for error in found.values())
    with pytest.raises(ManagerClosedError):
        await anext(session.run("1", manager.resource_limits))
    await manager.shutdown()
    await asyncio.to_thread(asyncio.run, manager.shutdown())


@pytest.mark.one_runtime
async def test_during_a_shutdown_calls_say_so(runtime: str) -> None:
    """A cell that runs holds the shutdown up; callers that wait, and new ones, are refused at once."""
    manager = make_manager(runtime, max_kernels=1)
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        running = asyncio.create_task(manager.execute(session, "import time; time.sleep(60)"))
        waits = asyncio.create_task(manager.execute(session, "1"))
        queues = asyncio.create_task(use(manager.acquire_kernel("other")))
        async with asyncio.timeout(30):
            while session.running_cell is None:
                await asyncio.sleep(0.01)
        closing = asyncio.create_task(manager.shutdown(keep_sessions=True))
        await asyncio.sleep(0)
        for call in (manager.execute(session, "1"), manager.put_file(session, b"1", "a"), manager.end_session("agent")):
            with pytest.raises(ManagerClosedError, match="shut down"):
                await call
        with pytest.raises(ManagerClosedError, match="new manager"):
            await use(manager.acquire_kernel("third"))
        await closing
        for waiting in (waits, queues):
            with pytest.raises(ManagerClosedError, match="new manager"):
                await waiting
        assert (await running).outcome in ("interrupted", "kernel_died")


async def test_a_shutdown_before_the_start_is_remembered() -> None:
    """No engine is needed to say so."""
    manager = make_manager("runc")
    await manager.shutdown()
    for call in (manager.start(), use(manager.acquire_kernel("a")), manager.end_session("a"), manager.hibernate("a")):
        with pytest.raises(ManagerClosedError, match="new manager"):
            await call


@pytest.mark.one_runtime
def test_the_synchronous_manager_says_so_in_every_thread(runtime: str) -> None:
    """Several threads use it at once; its session refuses the caller's own event loop; after the end all is refused."""
    manager = Manager(max_kernels=2, settings=Settings.load().model_copy(update={"runtime": runtime}))
    with manager, manager.acquire_kernel("a") as (_kernel, session):

        async def many() -> list[str | None]:
            cells = (asyncio.to_thread(manager.execute, session, str(number)) for number in range(4))
            return [result.result for result in await asyncio.gather(*cells)]

        assert asyncio.run(many()) == ["0", "1", "2", "3"]
        with pytest.raises(WrongEventLoopError):
            asyncio.run(session.history())
    with pytest.raises(ManagerClosedError, match="new manager"):
        manager.execute(session, "1")


async def test_a_pool_belongs_to_the_loop_of_its_first_caller() -> None:
    """A caller elsewhere is refused, and does not wait in the queue."""
    pool = KernelPool(1)
    with pytest.raises(TimeoutError):
        await pool.acquire(0)
    with pytest.raises(WrongEventLoopError):
        await asyncio.to_thread(asyncio.run, pool.acquire(0))
    assert pool.counts()["waiting"] == 0


async def test_a_session_that_ended_with_its_manager_says_so(tmp_path: Path) -> None:
    """Also when it is used directly."""
    world = World(tmp_path)
    session = await world.acquire("a")
    await world.close()
    with pytest.raises(ManagerClosedError, match="new manager") as refused:
        session.live_kernel()
    assert refused.value.reason == "shutdown"
