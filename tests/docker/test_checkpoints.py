"""Checkpoints with state: what an agent finds again in a fresh kernel, and what it is told of the rest."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.errors import (
    CheckpointDamagedError,
    CheckpointForeignError,
    CheckpointMissingError,
    CheckpointStateError,
    CheckpointTooLargeError,
    InvalidInputError,
)
from orchestrator.store.checkpointfiles import CheckpointFiles
from tests.conftest import make_manager, one_session

STATE = """
import os, random, math, pandas as pd
rows = pd.DataFrame({'n': range(3)})
def double(x): return x * factor
factor = 2
class Base:
    def who(self): return 'base'
class Child(Base):
    def who(self): return super().who() + ' and child'
child = Child()
alias = rows
os.makedirs('deep/er', exist_ok=True)
open('deep/er/notes.txt', 'w').write('kept')
os.chdir('deep')
os.environ['TOKEN'] = 'abc'
math.tau_again = 6.28
random.seed(7); random.random()
"""
CHECK = """
factor = 5
print(rows['n'].sum(), rows is alias, double(2), child.who(), isinstance(child, Base), open('er/notes.txt').read(),
      os.getcwd(), os.environ['TOKEN'], math.tau_again, random.random())
"""
FOUND = "3 True 10 base and child True kept /work/deep abc 6.28 0.15084917392450192\n"


async def run(manager: AgentKernelManager, session: KernelSession, code: str) -> dict[str, Any]:
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result["error"]
    return result


async def test_state_is_found_again_in_a_fresh_kernel(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        await run(manager, session, STATE)
        made = await manager.checkpoint(session)
        assert (made.complete, made.cell, made.agent_id) == (True, 1, "agent")
        await run(manager, session, "rows = None; del child")
        before = session.kernel_id
        restored = await manager.restore(session, made)
        assert (restored.cell, restored.lost) == (1, ())
        assert session.kernel_id != before
        assert (await run(manager, session, CHECK))["stdout"] == FOUND
        assert await run(manager, session, "2")
        assert len(manager.pool.kernels) == 1


async def test_what_is_lost_is_reported_and_says_so_when_it_is_used(runtime: str) -> None:
    code = "import threading\nheld = {'gen': (i for i in 'ab'), 'n': 1}\nfile = open('x', 'w')\nlock = threading.Lock()"
    async with one_session(runtime) as (manager, session):
        await run(manager, session, code)
        made = await manager.checkpoint(session)
        assert {(loss.name, loss.kind) for loss in made.lost} == {
            ("held", "generator"),
            ("file", "TextIOWrapper"),
            ("lock", "lock"),
        }
        restored = await manager.restore(session, made)
        assert restored.lost == made.lost
        assert (await run(manager, session, "held['n']"))["result"] == "1"
        for use in (
            "next(held['gen'])",
            "file.write('x')",
            "lock",
            "held",
            "print(lock)",
            "with lock: pass",
            "file + 1",
        ):
            result = await manager.execute_code(session, use)
            assert (result["status"], result["error"]["ename"]) == ("error", "NotRestoredError"), use
            assert "was not restored" in result["error"]["evalue"]
        again = await manager.checkpoint(session)
        assert {loss.name for loss in again.lost} == {"held", "file", "lock"}


@pytest.mark.one_runtime
async def test_session_with_a_checkpoint_outlives_its_manager(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        await run(manager, session, STATE)
        await manager.checkpoint(session)
        await run(manager, session, "later = 1")
    async with one_session(runtime) as (manager, again):
        assert again.session_id == session.session_id
        assert again.previous_end is None
        assert [entry["code"] for entry in again.execution_history] == [STATE, "later = 1"]
        assert (await run(manager, again, CHECK))["stdout"] == FOUND
        assert (await run(manager, again, "later"))["result"] == "1"
        assert await manager.end_session("agent")
    async with one_session(runtime) as (manager, fresh):
        assert fresh.session_id != session.session_id
        assert (await manager.execute_code(fresh, "later"))["error"]["ename"] == "NameError"


async def test_session_goes_on_from_its_checkpoint_when_its_kernel_dies(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        await run(manager, session, "x = 1")
        await manager.checkpoint(session)
        await run(manager, session, "x = 2")
        assert (await manager.execute_code(session, "import os; os._exit(3)"))["outcome"] == "kernel_died"
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, again):
            assert again.previous_end == "kernel_died"
            result = await run(manager, again, "x")
            assert result["result"] == "1"
            assert any("after cell 1" in warning and "2 cells" in warning for warning in result["warnings"])


@pytest.mark.one_runtime
async def test_forks_are_independent_and_may_outnumber_the_kernels(runtime: str) -> None:
    async with one_session(runtime, max_kernels=2) as (manager, session):
        await run(manager, session, "import os\npath = ['root']\nopen('f', 'w').write('f')")
        forks = await manager.fork(session, 3)
        assert [fork.agent_id for fork in forks] == ["agent~1", "agent~2", "agent~3"]
        for number, fork in enumerate(forks):
            await run(manager, fork, f"path.append({number})")
        for number, fork in enumerate(forks):
            assert (await run(manager, fork, "path, open('f').read()"))["result"] == f"(['root', {number}], 'f')"
        assert (await run(manager, session, "path"))["result"] == "['root']"
        assert forks[0].parent_id == session.session_id
        with pytest.raises(InvalidInputError, match="session already"):
            await manager.fork(session, 1, agent_ids=["agent~1"])


@pytest.mark.one_runtime
async def test_checkpoint_that_cannot_be_used_leaves_the_session_unharmed(runtime: str, tmp_path: Path) -> None:
    async with one_session(runtime, max_kernels=3) as (manager, session):
        await run(manager, session, "x = 'mine'")
        made = await manager.checkpoint(session)
        kernel = session.kernel_id
        content = made.path.read_bytes()
        flipped = tmp_path / "flipped"
        flipped.write_bytes(content[:-60] + bytes([content[-60] ^ 1]) + content[-59:])
        cut = tmp_path / "cut"
        cut.write_bytes(content[:-1])
        for path in (flipped, cut):
            with pytest.raises(CheckpointDamagedError):
                await manager.restore(session, path)
        with pytest.raises(CheckpointMissingError):
            await manager.restore(session, tmp_path / "none")
        async with manager.acquire_kernel("thief", timeout=60) as (_kernel, thief):
            stolen = tmp_path / "stolen"
            shutil.copy(made.path, stolen)
            for loot in (made, stolen, made.checkpoint_id):
                with pytest.raises(CheckpointForeignError):
                    await manager.restore(thief, loot)
            assert (await manager.execute_code(thief, "x"))["error"]["ename"] == "NameError"
        assert session.kernel_id == kernel
        assert (await run(manager, session, "x"))["result"] == "'mine'"


@pytest.mark.one_runtime
async def test_state_past_the_policys_size_is_refused_and_the_session_goes_on(runtime: str, tmp_path: Path) -> None:
    policy = tmp_path / "small.toml"
    policy.write_text("[sessions]\ncheckpoint_mb = 2\n")
    async with one_session(runtime, policy=str(policy)) as (manager, session):
        await run(manager, session, "big = b'x' * 3_000_000")
        with pytest.raises(CheckpointTooLargeError) as caught:
            await manager.checkpoint(session)
        assert caught.value.limit_mb == 2
        assert (await run(manager, session, "len(big)"))["result"] == "3000000"
        await run(manager, session, "big = 1")
        assert (await manager.checkpoint(session)).complete


@pytest.mark.parametrize(
    ("hook", "error"),
    [("while True: pass", CheckpointStateError), ("import os; os._exit(1)", Exception), ("1 / 0", None)],
)
async def test_hostile_reduce_ends_in_time_and_with_a_typed_error(
    runtime: str, tmp_path: Path, hook: str, error: type[Exception] | None
) -> None:
    policy = tmp_path / "quick.toml"
    policy.write_text("[sessions]\ncheckpoint_time_s = 3\n")
    async with one_session(runtime, policy=str(policy)) as (manager, session):
        await run(manager, session, f"class Bad:\n    def __reduce__(self):\n        {hook}\nbad = Bad(); x = 1")
        async with asyncio.timeout(30):
            if error is None:
                assert [loss.name for loss in (await manager.checkpoint(session)).lost] == ["bad"]
            else:
                with pytest.raises(error):
                    await manager.checkpoint(session)
        if "True" in hook or error is None:
            assert (await run(manager, session, "x"))["result"] == "1"


@pytest.mark.one_runtime
async def test_more_agents_than_kernels_each_find_their_own(runtime: str) -> None:
    async with make_manager(runtime, max_kernels=2, warm=1) as manager:
        for turn in range(2):
            for number in range(5):
                async with manager.acquire_kernel(f"agent-{number}", timeout=60) as (_kernel, session):
                    if turn == 0:
                        await run(manager, session, f"mine = {number}")
                    else:
                        assert (await run(manager, session, "mine"))["result"] == str(number)
        assert len(manager.pool.kernels) <= 2


@pytest.mark.one_runtime
async def test_checkpoint_after_every_so_many_cells(runtime: str, tmp_path: Path) -> None:
    policy = tmp_path / "often.toml"
    policy.write_text("[sessions]\ncheckpoint_every = 2\n")
    async with one_session(runtime, policy=str(policy)) as (manager, session):
        for number in range(1, 6):
            await run(manager, session, f"x = {number}")
        await manager.execute_code(session, "import os; os._exit(1)")
        result = await run(manager, session, "x")
        assert result["result"] == "4"
        assert session.restored is not None
        assert session.restored.cell == 4


@pytest.mark.one_runtime
async def test_agents_that_hold_no_kernel_are_not_shut_out_by_those_that_do_nothing(runtime: str) -> None:
    """Four agents at once over two kernels, through their session objects alone, each with cells in turn."""
    async with make_manager(runtime, max_kernels=2) as manager:
        sessions = []
        for number in range(4):
            async with manager.acquire_kernel(f"agent-{number}", timeout=60) as (_kernel, session):
                await run(manager, session, f"mine = [{number}]")
                sessions.append(session)

        async def work(session: KernelSession) -> None:
            for _ in range(3):
                await run(manager, session, "mine.append(mine[0])")

        async with asyncio.timeout(120):
            await asyncio.gather(*map(work, sessions))
        for number, session in enumerate(sessions):
            assert (await run(manager, session, "mine"))["result"] == str([number] * 4)


@pytest.mark.one_runtime
async def test_a_restored_session_goes_on_from_what_it_was_restored_to(runtime: str) -> None:
    """And not from its newer checkpoint, whose state its agent had just left."""
    async with one_session(runtime) as (manager, session):
        await run(manager, session, "x = 'old'")
        old = await manager.checkpoint(session)
        await run(manager, session, "x = 'new'")
        await manager.checkpoint(session)
        await manager.restore(session, old)
        await manager.execute_code(session, "import os; os._exit(1)")
        assert (await run(manager, session, "x"))["result"] == "'old'"


async def test_a_state_that_came_before_it_was_asked_for_is_loaded(runtime: str) -> None:
    """Its pieces and its end travel on another channel than the request, and may all be there first."""
    async with one_session(runtime) as (manager, session):
        await run(manager, session, "x = 'here'")
        made = await manager.checkpoint(session)
        with CheckpointFiles(made.path.parent.parent).reading(made.path) as reader:
            pieces = (reader.piece(0),)
            assert len(pieces[0]) == reader.size
        async with manager.acquire_kernel("fresh", timeout=60) as (_kernel, fresh):
            kernel = fresh.live_kernel()
            for last, buffers in ((False, pieces), (True, ())):
                given = await kernel.request(
                    "control", "state_give_request", {"transfer": "t", "last": last}, timeout=10, buffers=buffers
                )
                assert given.content["taken"] is True
            content = {"transfer": "t", "options": {"tolerant": False}}
            loaded = await kernel.request("shell", "state_load_request", content, timeout=10)
            assert loaded.content["status"] == "ok"
            assert (await run(manager, fresh, "x"))["result"] == "'here'"
