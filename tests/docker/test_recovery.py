"""A process dies, and the next one goes on with its sessions: in their kernels, or from their checkpoints."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.container.hostconfig import INSTANCE_LABEL, KERNEL_LABEL
from orchestrator.container.lease import InstanceLease, instance_lease
from orchestrator.errors import SettingsError
from orchestrator.settings import Settings
from orchestrator.store.history import History
from tests.conftest import REPOSITORY, make_manager
from tests.docker.recovering import DEAF, program
from tests.faults.engineproxy import EngineProxy, engine_proxy

BEGUN = 1.0  # seconds in which the program's last cell has begun


@pytest.fixture(autouse=True)
def own_state(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever is in this state folder is this test's. Its cells may run for long: a slow machine must not end them."""
    policy = tmp_path / "patient.toml"
    policy.write_text("[limits]\nexecution_time_s = 600\n")
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))
    monkeypatch.setenv("CELLBLOCK_POLICY", str(policy))
    return state


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[EngineProxy]:
    """A proxy before the engine. A start that goes through it says so with DOCKER_HOST."""
    with engine_proxy(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), tmp_path) as proxy:
        yield proxy


async def value(manager: AgentKernelManager, session: KernelSession, code: str) -> str:
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result
    return str(result["result"])


def kernels(state: Path, *, running: bool = False) -> set[str]:
    """Return the ids of all kernels whose wire lies in the state folder, or of those whose container runs already."""
    client = docker.from_env()
    try:
        found = client.api.containers(all=not running, filters={"label": INSTANCE_LABEL})
        return {
            container["Labels"][KERNEL_LABEL]
            for container in found
            if any(mount["Source"].startswith(f"{state}/") for mount in container["Mounts"])
        }
    finally:
        client.close()


async def test_kernels_outlive_their_process(runtime: str, own_state: Path) -> None:
    """What no checkpoint could hold is there, the running cell was interrupted, and the warm kernel is gone."""
    with program(runtime) as process:
        await asyncio.sleep(BEGUN)
        process.kill()
    before = kernels(own_state)
    async with asyncio.timeout(60), make_manager(runtime, max_kernels=4, warm=0) as manager:
        assert set(manager.sessions) == {"idle", "kept", "busy"}
        assert kernels(own_state) == {session.kernel_id for session in manager.sessions.values()} <= before
        async with manager.acquire_kernel("kept") as (_kernel, session):
            assert session.restored is None
            assert await value(manager, session, "name, next(numbers), open('file').read()") == "('kept', 1, 'kept')"
            assert [entry["code"][:4] for entry in session.execution_history] == ["name", "numb", "name"]
        async with manager.acquire_kernel("busy") as (_kernel, session):
            assert session.execution_history[1]["result"]["outcome"] == "interrupted"
            result = await manager.execute_code(session, "turns > 10")
            assert result["result"] == "True"
            assert any("cell 2" in warning and "interrupted" in warning for warning in result["warnings"])
            assert await value(manager, session, "before = turns; import time; time.sleep(0.3); turns - before") == "0"
            result = await manager.execute_code(session, "import os; os._exit(1)")
            assert result["outcome"] == "kernel_died"  # an adopted kernel's end is seen too
    assert kernels(own_state) == set()
    assert not list(own_state.rglob("*"))


async def test_a_kernel_that_does_not_heed_gives_way_to_its_checkpoint(runtime: str, own_state: Path) -> None:
    with program(runtime, busy=DEAF) as process:
        await asyncio.sleep(BEGUN)
        process.kill()
    async with asyncio.timeout(60), make_manager(runtime, max_kernels=4) as manager:
        assert set(manager.sessions) == {"idle", "kept"}
        async with manager.acquire_kernel("busy") as (_kernel, session):
            assert session.previous_end == "orchestrator_lost"
            assert session.execution_history == []
    store = History.open(Settings.load().history_url, Settings.load().data_path)
    (ended,) = [found for found in store.sessions("busy") if found.state == "ended" and found.cells == 2]
    assert [cell.outcome for cell in store.cells(ended.session_id)] == ["ok", "interrupted"]
    store.close()
    assert kernels(own_state) == set()


async def test_a_new_policy_moves_the_state_to_a_new_kernel(runtime: str, own_state: Path) -> None:
    """A container whose locks are not today's is not adopted, but what its session held goes on."""
    with program(runtime) as process:
        process.kill()
    before = kernels(own_state)
    policy = own_state.parent / f"{own_state.name}.toml"
    policy.write_text("[limits]\nmemory_mb = 700\n")
    async with asyncio.timeout(90), make_manager(runtime, max_kernels=4, warm=0, policy=str(policy)) as manager:
        assert manager.sessions == {}
        assert kernels(own_state) == set()
        for agent in ("idle", "kept"):
            async with manager.acquire_kernel(agent) as (kernel, session):
                assert kernel.kernel_id not in before
                assert await value(manager, session, "name, open('file').read()") == f"('{agent}', '{agent}')"
                assert session.previous_end == "reconfigured"


@pytest.mark.one_runtime
async def test_more_kernels_than_the_new_process_may_have(runtime: str, own_state: Path) -> None:
    with program(runtime) as process:
        process.kill()
    async with asyncio.timeout(90), make_manager(runtime, max_kernels=1, warm=0) as manager:
        assert len(kernels(own_state)) <= 1
        for agent in ("idle", "kept", "busy"):
            async with manager.acquire_kernel(agent) as (_kernel, session):
                assert await value(manager, session, "name") == repr(agent)
        assert len(kernels(own_state)) == 1


@pytest.mark.one_runtime
async def test_an_adopted_session_that_nobody_asked_for_outlives_the_next_process_too(runtime: str) -> None:
    """A short-lived program that happens to start first does not end what it only found."""
    with program(runtime) as process:
        process.kill()
    async with make_manager(runtime, max_kernels=4) as manager:
        assert "idle" in manager.sessions
    async with make_manager(runtime, max_kernels=4) as manager, manager.acquire_kernel("idle") as (_kernel, session):
        assert session.restored is not None
        assert await value(manager, session, "name") == "'idle'"


@pytest.mark.one_runtime
async def test_a_live_process_keeps_its_own(runtime: str, own_state: Path) -> None:
    with program(runtime) as process:
        before = kernels(own_state)
        async with make_manager(runtime, max_kernels=4, warm=0) as manager:
            assert manager.sessions == {}
            assert kernels(own_state) >= before
        assert process.poll() is None
        assert kernels(own_state) >= before
        process.kill()
        process.wait()
    async with make_manager(runtime, max_kernels=4) as manager:
        assert set(manager.sessions) == {"idle", "kept", "busy"}


@pytest.mark.one_runtime
async def test_two_starts_at_once_lose_nothing(runtime: str, own_state: Path) -> None:
    """Whichever has the dead process's kernels goes on with all of its sessions; the other leaves them alone."""
    with program(runtime) as process:
        process.kill()
    managers = [make_manager(runtime, max_kernels=4) for _ in range(2)]
    await asyncio.gather(*(manager.start() for manager in managers))
    try:
        assert sorted(agent for manager in managers for agent in manager.sessions) == ["busy", "idle", "kept"]
        assert len(kernels(own_state)) == 3
    finally:
        await asyncio.gather(*(manager.shutdown() for manager in managers))


@pytest.mark.one_runtime
async def test_a_start_leaves_alone_what_another_has_just_taken(
    runtime: str, own_state: Path, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read whose sessions they were when another start takes a dead process's lease: it claims none of them."""
    with program(runtime) as process:
        process.kill()
    (folder,) = own_state.glob("i-*")
    taken: list[InstanceLease | None] = []

    def take(_number: int, request: str) -> None:
        if request == "GET /containers/json" and not taken:  # it looks for the kernels of the sessions that it read
            taken.append(instance_lease(folder.name.removeprefix("i-"), (own_state, Settings.load().data_path)))

    proxy.before = take
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", proxy.url)
        async with make_manager(runtime, max_kernels=4) as manager:
            assert manager.sessions == {}
    (lease,) = taken
    assert lease is not None
    lease.release()
    async with make_manager(runtime, max_kernels=4) as manager:
        assert set(manager.sessions) == {"idle", "kept", "busy"}
        async with manager.acquire_kernel("kept") as (_kernel, session):
            assert await value(manager, session, "name, next(numbers)") == "('kept', 1)"


@pytest.mark.one_runtime
async def test_a_start_that_is_called_off_leaves_what_it_had_adopted(
    runtime: str, own_state: Path, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kernels are adopted, the third is just being, when the caller is cancelled: the next start has all three."""
    monkeypatch.setenv("CELLBLOCK_WARM_KERNELS", "0")  # none that is just being made when its process dies
    with program(runtime) as process:
        process.kill()
    before = kernels(own_state)
    held, released = threading.Event(), threading.Event()

    def hold_third(_number: int, request: str) -> None:
        if request == "GET /containers//json" and proxy.seen.count(request) == 3:
            held.set()
            released.wait(30)

    proxy.before = hold_third
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", proxy.url)
        manager = make_manager(runtime, max_kernels=4)
        starting = asyncio.create_task(manager.start())
        assert await asyncio.to_thread(held.wait, 30)
        async with asyncio.timeout(30):
            while len(manager.sessions) < 2:
                await asyncio.sleep(0.05)
        starting.cancel()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not manager.sessions
    assert not manager.pool.kernels
    assert kernels(own_state) == before
    async with manager:
        assert {session.kernel_id for session in manager.sessions.values()} == before
        async with manager.acquire_kernel("kept") as (_kernel, session):
            assert await value(manager, session, "name, next(numbers)") == "('kept', 1)"
    assert kernels(own_state) == set()
    assert not list(own_state.rglob("*"))


async def test_what_cannot_be_removed_costs_no_session(
    runtime: str, own_state: Path, proxy: EngineProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine does not remove the warm kernel while a process starts: it goes on, and removes that one later."""
    with program(runtime) as process:
        async with asyncio.timeout(30):
            while len(kernels(own_state, running=True)) < 4:
                await asyncio.sleep(0.1)
        process.kill()
    before = kernels(own_state)

    def refuse(_number: int, request: str) -> None:
        if request == "DELETE /containers/":
            raise ConnectionResetError

    proxy.before = refuse
    monkeypatch.setenv("DOCKER_HOST", proxy.url)
    async with make_manager(runtime, max_kernels=4) as manager:
        assert kernels(own_state) == before
        proxy.before = lambda _number, _request: None
        async with manager.acquire_kernel("kept") as (_kernel, session):
            assert await value(manager, session, "name, next(numbers)") == "('kept', 1)"
    assert kernels(own_state) == set()


@pytest.mark.one_runtime
async def test_a_start_that_fails_and_one_with_other_folders_leave_all_to_the_next(
    runtime: str, own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics address is another host's; or its data folder is another: neither touches kernels that run."""
    monkeypatch.setenv("CELLBLOCK_WARM_KERNELS", "0")  # none that is just being made when its process dies
    with program(runtime) as process:
        process.kill()
    before = kernels(own_state)
    with pytest.raises(SettingsError, match="metrics"):
        await make_manager(runtime, metrics_address="192.0.2.1", metrics_port=9464).start()
    async with make_manager(runtime, data_dir=str(tmp_path)) as other:
        assert other.sessions == {}
        assert kernels(own_state) >= before
    async with make_manager(runtime, max_kernels=4) as manager:
        assert set(manager.sessions) == {"idle", "kept", "busy"}


async def test_prune_removes_what_is_left_and_keeps_what_it_held(
    runtime: str, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live process's kernels stay; a dead one's are counted, told and removed, and their sessions sleep."""
    monkeypatch.setenv("CELLBLOCK_WARM_KERNELS", "0")  # none that is just being made when its process dies
    with program(runtime, prefix="living-") as living, program(runtime) as dead:
        await asyncio.sleep(BEGUN)
        every = kernels(own_state)
        dead.kill()
        dead.wait()
        said = await asyncio.to_thread(cellblock, "prune", "--dry-run")
        assert kernels(own_state) == every
        assert said.count("lost its process") == 3
        told = re.search(r"containers of dead processes: (\d+); folders: 1", said)
        assert told is not None
        said = await asyncio.to_thread(cellblock, "prune")
        assert f"removed: {told[1]} containers and 1 folders of dead processes, 0 old sessions" in said
        assert said.count("asleep") == 3
        assert len(kernels(own_state)) == len(every) - int(told[1]) > 0
        assert living.poll() is None
        living.kill()
        living.wait()
        assert "asleep" in await asyncio.to_thread(cellblock, "prune")
    assert kernels(own_state) == set()
    assert not list(own_state.rglob("*"))
    async with make_manager(runtime, max_kernels=4) as manager, manager.acquire_kernel("busy") as (_kernel, session):
        assert await value(manager, session, "name, turns > 10") == "('busy', True)"


def cellblock(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.app", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_sigterm_keeps_every_session(runtime: str, own_state: Path) -> None:
    """The running cell is interrupted after its grace period, and nothing is left but what is on disk."""
    with program(runtime) as process:
        await asyncio.sleep(BEGUN)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
    assert kernels(own_state) == set()
    assert not list(own_state.rglob("*"))
    async with make_manager(runtime, max_kernels=4) as manager:
        assert manager.sessions == {}
        for agent in ("idle", "kept", "busy"):
            async with manager.acquire_kernel(agent) as (_kernel, session):
                assert await value(manager, session, "name, open('file').read()") == f"('{agent}', '{agent}')"
        assert session.execution_history[1]["result"]["outcome"] == "interrupted"
        assert await value(manager, session, "turns > 10") == "True"


@pytest.mark.one_runtime
async def test_sigterm_that_a_program_handles_itself_is_its_own_affair(runtime: str) -> None:
    def handler(*_: object) -> None:
        """Ours."""

    before = signal.signal(signal.SIGTERM, handler)
    try:
        async with make_manager(runtime, max_kernels=1):
            assert signal.getsignal(signal.SIGTERM) is handler
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    async with make_manager(runtime, max_kernels=1):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
