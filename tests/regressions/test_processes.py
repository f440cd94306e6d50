"""The processes that cells start: orphans are reaped, an interrupted cell leaves none running, and spawn works."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.errors import KernelTimeoutError
from orchestrator.limits import KernelResourceLimits
from tests.conftest import one_session

PROCESSES = """
import os
def processes(state=None):
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file: fields = file.read().rpartition(")")[2].split()
            with open(f"/proc/{name}/cmdline") as file: command = file.read()
        except OSError:
            continue
        if state is None or fields[0] in state:
            found.append(command.replace("\\0", " ").strip())
    return found
"""

# Each leaves two processes that use the CPU, and does not end itself.
SPINNING = {
    "bash": "%%bash\npython3 -c 'while True: pass' &\npython3 -c 'while True: pass'",
    "shell": "import subprocess; subprocess.run('while :; do :; done & while :; do :; done', shell=True)",
    "command": "!(trap '' INT; while :; do :; done) & while :; do :; done",
}


async def value(manager: AgentKernelManager, session: KernelSession, code: str) -> Any:
    """Return the value of a cell's last expression, as text."""
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result
    return result["result"]


async def test_orphans_are_reaped_while_a_cell_runs_and_between_cells(runtime: str) -> None:
    """Hundreds of processes of dead parents leave no zombie, and no exit status of the cell's own is taken."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, PROCESSES)
        spawn = "import subprocess, threading\nfor i in range(300): subprocess.run('true &', shell=True)"
        assert (await manager.execute_code(session, spawn))["status"] == "ok"
        bash = "%%bash\nfor i in $(seq 80); do (true &); done"
        assert (await manager.execute_code(session, bash))["status"] == "ok"
        await asyncio.sleep(1.5)
        assert await value(manager, session, "len(processes('Z'))") == "0"
        assert await value(manager, session, "t = threading.Thread(target=int); t.start(); t.join(); 1") == "1"


async def test_exit_statuses_belong_to_the_cell(runtime: str) -> None:
    """A child that ended long ago still has its exit status for the cell that started it."""
    code = (
        "import os, subprocess, multiprocessing\n"
        "p = subprocess.Popen('exit 7', shell=True)\n"
        "f = os.fork()\nif f == 0: os._exit(8)\n"
        "m = multiprocessing.get_context('fork').Process(target=os._exit, args=(9,)); m.start()\n"
        "s = os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 10'], {})"
    )
    ask = "p.wait(), os.waitstatus_to_exitcode(os.waitpid(f, 0)[1]), m.join(), m.exitcode, os.waitpid(s, 0)[1] >> 8"
    async with one_session(runtime) as (manager, session):
        await value(manager, session, code)
        await asyncio.sleep(1.5)
        assert await value(manager, session, ask) == "(7, 8, None, 9, 10)"


@pytest.mark.parametrize("how", ["interrupt", "timeout"])
async def test_an_interrupted_cell_leaves_no_process_running(runtime: str, how: str) -> None:
    """What its commands started is killed; the kernel and a server of an earlier cell live."""
    limits = KernelResourceLimits(max_execution_time=2.5 if how == "timeout" else 60)
    async with one_session(runtime, limits=limits) as (manager, session):
        await manager.execute_code(
            session, PROCESSES + "import subprocess\nserver = subprocess.Popen(['sleep', '99'], start_new_session=True)"
        )
        for name, code in SPINNING.items():
            if how == "timeout":
                with pytest.raises(KernelTimeoutError):
                    await manager.execute_code(session, code)
            else:
                running = asyncio.create_task(manager.execute_code(session, code))
                await asyncio.sleep(1.5)
                assert manager.interrupt(session)
                await running
            left = await value(manager, session, "[c for c in processes('RS') if 'while' in c], server.poll()")
            assert left == "([], None)", (name, left)


async def test_a_spawned_process_does_not_start_another_kernel(runtime: str) -> None:
    """multiprocessing's "spawn" runs a library's function."""
    code = (
        "import multiprocessing, math\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool: r = pool.map(math.sqrt, [4, 9])\nr"
    )
    async with one_session(runtime) as (manager, session):
        async with asyncio.timeout(40):
            assert await value(manager, session, code) == "[2.0, 3.0]"


async def test_functions_and_classes_of_cells_work_in_spawned_processes(runtime: str) -> None:
    """A pool of spawned workers runs a cell's function on a cell's object, as a pool of forked ones does."""
    code = (
        "import multiprocessing\n"
        "class Point:\n    def __init__(self, x): self.x = x\n"
        "def double(point): return 2 * point.x\n"
        "def run(how):\n"
        "    with multiprocessing.get_context(how).Pool(1) as pool: return pool.map(double, [Point(1), Point(2)])\n"
        "[run(how) for how in ('spawn', 'fork')]"
    )
    async with one_session(runtime) as (manager, session):
        async with asyncio.timeout(40):
            assert await value(manager, session, code) == "[[2, 4], [2, 4]]"
