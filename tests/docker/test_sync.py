"""The synchronous manager, and what both managers do with sessions at their end. On real kernels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cellblock import (
    CellFinished,
    CommandFinished,
    CommandOutput,
    Event,
    FileTransferError,
    InvalidPositionError,
    KernelDiedError,
    KernelResourceLimits,
    KernelTimeoutError,
    ManagerClosedError,
    SessionEndedError,
    Settings,
    StreamOutput,
)
from cellblock.sync import Dispatcher, Manager, Notebooks, answered_by
from tests.conftest import REPOSITORY, make_manager

ENDLESS = "import time\nkept = 'here'\nwhile True: time.sleep(0.01)"


def make_sync(runtime: str, *, keep_sessions: bool = False, limit_s: float = 20) -> Manager:
    settings = Settings.load().model_copy(update={"runtime": runtime, "warm_kernels": 0})
    limits = KernelResourceLimits(max_execution_time=limit_s)
    return Manager(2, resource_limits=limits, settings=settings, keep_sessions=keep_sessions)


def outcomes(manager: Manager, session: Any) -> list[str]:
    """Return how the session's cells ended, once they have: a server is told that its client has gone."""
    end = time.monotonic() + 30
    while True:
        results = [cell["result"] for cell in manager.export_history(session)["execution_history"]]
        if all("outcome" in result for result in results) or time.monotonic() > end:
            return [result["outcome"] for result in results]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def manager(runtime: str) -> Iterator[Manager]:
    with make_sync(runtime) as manager:
        yield manager


def test_cells_run_and_results_come_through_as_they_are(manager: Manager) -> None:
    with manager.acquire_kernel("cells", timeout=60) as (kernel, session):
        assert manager.execute(session, "x = 20; x + 1").result == "21"
        assert manager.execute_code(session, "x")["result"] == "20"
        assert manager.sessions["cells"] is session
        assert session.kernel_id == kernel.kernel_id
        assert [entry["code"] for entry in session.execution_history] == ["x = 20; x + 1", "x"]
        assert manager.put_file(session, b"data", "in.txt") == 4
        assert manager.execute(session, "open('in.txt').read()").result == "'data'"
    assert manager.end_session("cells")


def test_a_stream_comes_piece_by_piece_and_closing_it_interrupts_its_cell(manager: Manager) -> None:
    with manager.acquire_kernel("stream", timeout=60) as (_kernel, session):
        with closing(manager.stream_code(session, "print('first', flush=True)\nimport time; time.sleep(15)")) as events:
            assert next(events) == StreamOutput("stdout", "first\n")
        begun = time.monotonic()
        *_, last = manager.stream_code(session, "print(2)")
        assert time.monotonic() - begun < 5
        assert isinstance(last, CellFinished)
        assert outcomes(manager, session)[0] in ("cancelled", "interrupted")  # a server interrupts it
    manager.end_session("stream")


def test_ctrl_c_interrupts_the_running_cell_and_the_kernel_keeps_its_variables(manager: Manager) -> None:
    with manager.acquire_kernel("ctrl-c", timeout=60) as (_kernel, session):
        timer = threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            manager.execute(session, ENDLESS)
        timer.join()
        assert outcomes(manager, session)[0] in ("cancelled", "interrupted")  # a server interrupts it
        assert manager.execute(session, "kept").result == "'here'"
    manager.end_session("ctrl-c")


def test_cells_and_commands_are_started_followed_and_stopped(manager: Manager) -> None:
    """Their methods wait, also those that a server is asked for."""
    with manager.acquire_kernel("started", timeout=60) as (_kernel, session):
        assert manager.start_code(session, "kept = 'here'").wait(30).outcome == "ok"
        cell = manager.start_code(session, ENDLESS)
        while manager.find_cell(cell.id).is_running and not manager.interrupt(session):
            time.sleep(0.05)
        assert cell.wait(30).outcome == "interrupted"
        assert (cell.is_running, manager.start_code(session, "kept").wait(30).result) == (False, "'here'")
        command = manager.start_command(session, "cat; exec sleep 60", keep_stdin=True)
        assert [each.number for each in manager.list_commands(session)] == [command.number]
        assert command.write(b"said\n")
        events = command.events()
        assert next(events) == CommandOutput("stdout", b"said\n")
        command.close_stdin()
        assert command.kill() is True
        assert [event.result.exit_code for event in events if isinstance(event, CommandFinished)] == [137]
        assert (command.wait(30).exit_code, command.kill()) == (137, False)
        assert b"".join(manager.read_folder(session))[:1] != b""
    assert manager.end_session("started")


def test_the_notebooks_of_a_session(manager: Manager, tmp_path: Path) -> None:
    """Cells run, one is edited and what is stale runs again; the file is written, and errors come through."""
    with manager.acquire_kernel("notebooks", timeout=60) as (_kernel, session):
        notebooks, seen = Notebooks(manager, session), list[Event]()
        name = notebooks.create_notebook()
        first = notebooks.execute_cell(name, "price = 20")
        assert notebooks.execute_cell(name, "print(price)", listen=seen.append).success
        assert StreamOutput("stdout", "20\n") in seen
        notebooks.update_cell(name, first.cell_id, "price = 30")
        assert notebooks.execute_cells(name, stale=True)[-1].outputs[0]["text"] == "30\n"
        saved = Path(notebooks.save_notebook(name, str(tmp_path / "prices.ipynb")))
        assert "price = 30" in saved.read_text()
        assert notebooks.list_notebooks() == [name]
        with pytest.raises(InvalidPositionError):
            notebooks.add_cell(name, "1", position=9)
        answer = Dispatcher(notebooks).dispatch({"op": "add_cell", "source": "price + 1"})
        assert (answer["status"], answer["outputs"][0]["text"]) == ("ok", "31")
    manager.end_session("notebooks")


def test_errors_are_those_of_the_manager(manager: Manager) -> None:
    """A refusal is the typed error with its fields, also where a server sent it."""
    with manager.acquire_kernel("errors", timeout=60) as (_kernel, session):
        with pytest.raises(KernelTimeoutError) as late:
            manager.execute_code(session, "while True: pass", timeout=0.5)
        assert late.value.result.outcome == "timeout"
        with pytest.raises(FileTransferError) as missing:
            manager.read_file(session, "nothing")
        assert (missing.value.fault, missing.value.path) == ("missing", "nothing")
        manager.end_session("errors")
        with pytest.raises(SessionEndedError):
            manager.execute(session, "1")


def test_another_thread_interrupts_a_cell(manager: Manager) -> None:
    with manager.acquire_kernel("interrupt", timeout=60) as (_kernel, session):
        timer = threading.Timer(1, manager.interrupt, [session])
        timer.start()
        assert manager.execute(session, ENDLESS).outcome == "interrupted"
        timer.join()
    manager.end_session("interrupt")


def test_threads_share_a_manager(manager: Manager) -> None:
    """Eight threads, two agents, two kernels: each agent's cells take turns, and none is lost."""

    def work(number: int) -> None:
        with manager.acquire_kernel(f"thread-{number % 2}", timeout=60) as (_kernel, session):
            for _ in range(5):
                assert manager.execute(session, "n = globals().get('n', 0) + 1").status == "ok"

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    for number in range(2):
        with manager.acquire_kernel(f"thread-{number}", timeout=60) as (_kernel, session):
            assert manager.execute(session, "n").result == "20"
        manager.end_session(f"thread-{number}")


def test_an_error_inside_the_context_reaches_the_caller_and_leaves_the_session(manager: Manager) -> None:
    with pytest.raises(ZeroDivisionError), manager.acquire_kernel("error", timeout=60) as (_kernel, session):
        manager.execute(session, "x = 1")
        raise ZeroDivisionError
    with manager.acquire_kernel("error", timeout=60) as (_kernel, again):
        assert again.session_id == session.session_id
        assert manager.execute(again, "x").result == "1"
    manager.end_session("error")


@pytest.mark.one_runtime
def test_a_handler_may_block_and_may_not_call_the_manager(runtime: str, tmp_path: Path) -> None:
    """``answered_by`` runs it in a thread of its own; in the event loop's own thread a call would never return."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[channels]\nstdin = true\n")
    settings = Settings.load().model_copy(update={"runtime": runtime, "policy": str(policy), "warm_kernels": 0})
    with Manager(1, settings=settings) as manager, manager.acquire_kernel("asks", timeout=60) as (_kernel, session):
        answer = answered_by(lambda request: request.prompt.upper() + str(len(manager.sessions)))
        assert manager.execute(session, "input('name? ')", answer=answer).result == "'NAME? 1'"

        async def calls_back(_request: object) -> str:
            with pytest.raises(RuntimeError, match="own thread"):
                manager.execute(session, "1")
            return "refused"

        assert manager.execute(session, "input()", answer=calls_back).result == "'refused'"


@pytest.mark.one_runtime
def test_shutdown_ends_calls_in_other_threads(runtime: str) -> None:
    """A cell ends with its kernel, and a caller that waits for a kernel is refused; nobody waits for ever."""
    manager = make_sync(runtime)
    with ThreadPoolExecutor(2) as threads, manager.acquire_kernel("a", timeout=60) as (_kernel, session):
        running = threads.submit(manager.execute, session, ENDLESS)
        while session.running_cell is None:
            time.sleep(0.01)
        stopping = threads.submit(manager.shutdown)
        outcome = running.exception(30) or running.result(0).outcome
        assert outcome == "kernel_died" or isinstance(outcome, KernelDiedError | ManagerClosedError)
        stopping.result(30)
    manager.shutdown()
    with pytest.raises(ManagerClosedError):
        manager.execute(session, "1")


def test_a_script_that_is_interrupted_leaves_no_container(runtime: str, tmp_path: Path) -> None:
    """Ctrl-C in a whole program: it ends with KeyboardInterrupt, after its manager was shut down."""
    script = tmp_path / "script.py"
    script.write_text(
        "from cellblock.sync import Manager\n"
        "with Manager(1) as manager, manager.acquire_kernel('agent', timeout=60) as (kernel, session):\n"
        "    print(manager.instance_id, flush=True)\n"
        f"    manager.execute(session, {ENDLESS!r})\n"
    )
    program = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "CELLBLOCK_RUNTIME": runtime},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    instance = program.stdout.readline().strip()
    time.sleep(1)
    program.send_signal(signal.SIGINT)
    _, error = program.communicate(timeout=60)
    assert error.strip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT
    left = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=org.cellblock.instance={instance}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert left.stdout == ""


async def test_execute_returns_a_result_for_every_end_of_a_cell(runtime: str) -> None:
    """A timeout, an error and a dead kernel are results; only a call without a kernel raises."""
    limits = KernelResourceLimits(max_execution_time=1)
    async with make_manager(runtime, limits=limits) as manager, manager.acquire_kernel("a") as (_kernel, session):
        assert (await manager.execute(session, "40 + 2")).result == "42"
        assert (await manager.execute(session, "1 / 0")).outcome == "error"
        late = await manager.execute(session, f"print('begun', flush=True)\n{ENDLESS}")
        assert (late.outcome, late.kernel_state, late.stdout) == ("timeout", "idle", "begun\n")
        assert (await manager.execute(session, "kept")).result == "'here'"
        died = await manager.execute(session, "import os; os._exit(3)")
        assert (died.outcome, died.kernel_state) == ("kernel_died", "dead")
        with pytest.raises(KernelDiedError):
            await manager.execute(session, "1")


@pytest.mark.parametrize("keep_sessions", [True, False])
@pytest.mark.one_runtime
def test_the_manager_says_whether_leaving_it_keeps_sessions(runtime: str, keep_sessions: bool) -> None:
    """With ``keep_sessions`` the next manager goes on with the variables; without, it starts with none."""
    with (
        make_sync(runtime, keep_sessions=keep_sessions) as first,
        first.acquire_kernel("a", timeout=60) as (_, session),
    ):
        first.execute(session, "x = 7")
    with make_sync(runtime) as second, second.acquire_kernel("a", timeout=60) as (_, again):
        assert (again.session_id == session.session_id) is keep_sessions
        assert second.execute(again, "globals().get('x')").result == ("7" if keep_sessions else None)
    with make_sync(runtime, keep_sessions=True) as third, third.acquire_kernel("b", timeout=60) as (_, other):
        third.execute(other, "x = 1")
        third.shutdown(keep_sessions=False)
    with make_sync(runtime) as fourth, fourth.acquire_kernel("b", timeout=60) as (_, fresh):
        assert fresh.session_id != other.session_id
