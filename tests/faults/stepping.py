"""The checks of ``test_clock.py`` with a stepping clock: ``python -m tests.faults.stepping NAME RUNTIME``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from orchestrator import (
    AgentKernelManager,
    KernelPoolExhaustedError,
    KernelResourceLimits,
    KernelSession,
    KernelTimeoutError,
)
from orchestrator.container.engine import Engine
from orchestrator.errors import EngineUnavailableError
from orchestrator.sessions.retention import Retention
from orchestrator.settings import Settings
from orchestrator.store import auditreading
from orchestrator.store.blobs import FolderBlobs
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from orchestrator.store.payloads import Payloads
from tests.conftest import make_manager
from tests.faults.fakeclock import HOUR, step_to

LIMIT = 3.0  # seconds of each wait during which the clock steps
SLACK = 6.0  # seconds that a busy machine may need after a deadline
STEPS = (HOUR, 0.0)  # an hour forward, and an hour back
LARGE = "print('x' * 100_000)"  # its output gets its own file


@contextlib.asynccontextmanager
async def lasts(seconds: float, offset: float) -> AsyncIterator[None]:
    """Check that the block takes ``seconds`` on the monotonic clock while the wall clock steps."""
    begun = time.monotonic()
    setting = asyncio.get_running_loop().call_later(seconds / 3, step_to, offset)
    yield
    took = time.monotonic() - begun
    assert setting.when() <= asyncio.get_running_loop().time()
    assert seconds - 0.1 <= took <= seconds + SLACK, f"it took {took:.1f} s, where {seconds:g} s were due"


async def evaluate(manager: AgentKernelManager, session: KernelSession, code: str) -> str:
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result
    return str(result["result"])


async def deadlines(runtime: str) -> None:
    """Check the deadlines of cells, of a caller at a full pool, and of calls to an engine that does not answer."""
    limits = KernelResourceLimits(max_execution_time=LIMIT)
    async with (
        make_manager(runtime, limits=limits) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
        manager.acquire_kernel("brief", timeout=60) as (_other, brief),
        contextlib.AsyncExitStack() as stack,
    ):
        engines = [stack.enter_context(silent_engine(*timeouts)) for timeouts in ((LIMIT, 600), (600, LIMIT))]

        async def endless(offset: float) -> None:
            async with lasts(LIMIT, offset):
                with pytest.raises(KernelTimeoutError) as caught:
                    await manager.execute_code(session, "while True: pass")
            assert caught.value.result.kernel_state == "idle"

        async def crowded(offset: float) -> None:
            async with lasts(LIMIT, offset):
                with pytest.raises(KernelPoolExhaustedError):
                    async with manager.acquire_kernel("third", timeout=LIMIT):
                        pass

        async def unanswered(engine: Engine, offset: float) -> None:
            async with lasts(int(LIMIT), offset):  # docker-py accepts whole seconds
                with pytest.raises(EngineUnavailableError):
                    await engine.call(engine.client.api.info)

        for offset in STEPS:
            async with asyncio.TaskGroup() as group:
                for work in (endless(offset), crowded(offset), *(unanswered(engine, offset) for engine in engines)):
                    group.create_task(work)
                assert await evaluate(manager, brief, f"import time; time.sleep({LIMIT / 2}); 6 * 7") == "42"
            assert await evaluate(manager, session, "1 + 1") == "2"


@contextlib.contextmanager
def silent_engine(own: float, outer: float) -> Iterator[Engine]:
    """Check that calls to an engine that never answers end at docker-py's timeout or at ours."""
    path = Path(Settings.load().data_path, f"silent-{own:g}.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(100)
        client = docker.DockerClient(f"unix://{path}", timeout=int(own), version="1.41")
        engine = Engine(client, outer)
        yield engine
        engine.close()


async def idleness(runtime: str) -> None:
    """Check that an idle session hibernates at its time, not earlier."""
    limits = KernelResourceLimits(idle_timeout_seconds=LIMIT)
    async with make_manager(runtime, limits=limits) as manager:
        for number, offset in enumerate(STEPS):
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                assert (session.restored is None) == (number == 0)
                await evaluate(manager, session, f"number = {number}")
            async with lasts(LIMIT, offset), asyncio.timeout(60):
                while not session.asleep:
                    await asyncio.sleep(0.02)


async def order(runtime: str) -> None:
    """Check that checkpoints, cells and audit entries keep their order, and that retention deletes nothing new."""
    settings = Settings.load()
    steps = (HOUR, 0.0, -HOUR, HOUR, -HOUR)
    async with make_manager(runtime) as manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        for number, offset in enumerate(steps):
            step_to(offset)
            await evaluate(manager, session, f"number = {number}")
            await manager.checkpoint(session)
            await evaluate(manager, session, LARGE)
        async with make_manager(runtime) as other:  # a step makes no live process look dead and frees no user id
            assert other.sessions == {}
            async with other.acquire_kernel("another", timeout=60) as (_kernel, another):
                assert await evaluate(other, another, "import os; os.getuid()") != await evaluate(
                    manager, session, "import os; os.getuid()"
                )
        assert (await manager.execute_code(session, "import os; os._exit(1)"))["outcome"] == "kernel_died"
        assert await evaluate(manager, session, "number") == str(len(steps) - 1)
        await asyncio.to_thread(sweep_after_a_step, settings, session.session_id)
        numbers = [entry["code"] for entry in session.execution_history if "=" in entry["code"]]
        assert numbers == [f"number = {number}" for number in range(len(steps))]
    assert settings.audit_path is not None
    verdict = auditreading.verify(settings.audit_path)
    assert verdict.fault is None
    assert not verdict.notes


def sweep_after_a_step(settings: Settings, session_id: str) -> None:
    """Check that retention keeps files whose rows are not yet written."""
    history = History.open(settings.history_url, settings.data_path)
    files = CheckpointFiles(settings.data_path)
    step_to(0.0)
    result: dict[str, Any] = {"stdout": "y" * 100_000}
    payloads = Payloads(FolderBlobs(settings.data_path / "payloads"))
    kept = payloads.keep(result)
    with files.writing("f" * 32, {}, 1000) as writer:
        writer.write(b"state")
        writer.finish({})
    before = len(files.ids())
    for offset in (HOUR, -HOUR):
        step_to(offset)
        assert Retention(history, files, settings).sweep() == 0
    assert payloads.restore(kept.text, [(where, digest) for where, digest, _ in kept.places]) == result
    assert len(files.ids()) == before
    assert [len(cell.result["stdout"]) for cell in history.cells(session_id) if cell.code == LARGE] == [100_001] * 5
    history.close()


async def memory(runtime: str) -> None:
    """Check that an out-of-memory kill is reported although the engine's clock differs from this process's."""
    limits = KernelResourceLimits(max_memory_mb=256)
    async with make_manager(runtime, limits=limits, max_kernels=1) as manager:
        for offset in (HOUR, -HOUR):
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                step_to(offset)
                begun = time.monotonic()
                result = await manager.execute_code(session, "x = bytearray(600 * 2**20)")
                assert (result["outcome"], result["kernel_state"]) == ("oom", "dead"), result
                assert time.monotonic() - begun < 2 * SLACK


SCENARIOS: dict[str, Callable[[str], Awaitable[None]]] = {
    scenario.__name__: scenario for scenario in (deadlines, idleness, order, memory)
}


async def main(name: str, runtime: str) -> None:
    await SCENARIOS[name](runtime)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
