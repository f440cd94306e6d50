"""The synchronous manager's own tests, run over a server: the same calls, types and errors.

The tests are those of ``tests/docker/test_sync.py``; only the manager is another.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cellblock import ManagerClosedError, ServerUnavailableError
from cellblock.servermanager import ServerManager
from cellblock.sync import Manager
from tests.docker.test_sync import (
    test_a_stream_comes_piece_by_piece_and_closing_it_interrupts_its_cell,
    test_an_error_inside_the_context_reaches_the_caller_and_leaves_the_session,
    test_another_thread_interrupts_a_cell,
    test_cells_and_commands_are_started_followed_and_stopped,
    test_ctrl_c_interrupts_the_running_cell_and_the_kernel_keeps_its_variables,
    test_errors_are_those_of_the_manager,
    test_the_notebooks_of_a_session,
    test_threads_share_a_manager,
)
from tests.server.conftest import Server


@pytest.fixture(scope="module")
def manager(server: Server) -> Iterator[ServerManager]:
    with Manager.connect(server.url) as manager:
        yield manager


def test_the_tools_of_a_script_run_in_its_process(manager: ServerManager) -> None:
    """A plain function blocks a thread of its own, and no other call."""
    threads: list[str] = []

    def double(number: int) -> int:
        """Return twice the number."""
        threads.append(str(manager.list_sessions()[0]["agent_id"]))
        return 2 * number

    with manager.acquire_kernel("tools", timeout=60, tools=[double]) as (_kernel, session):
        assert manager.execute(session, "import tools; tools.double(4)").result == "8"
    assert threads == ["tools"]
    assert manager.end_session("tools")


def test_a_manager_that_is_shut_down_refuses_calls_and_keeps_the_sessions(server: Server) -> None:
    with Manager.connect(server.url) as first, first.acquire_kernel("kept", timeout=60) as (_kernel, session):
        first.execute(session, "x = 3")
    first.shutdown()
    with pytest.raises(ManagerClosedError):
        first.execute(session, "x")
    with Manager.connect(server.url) as second, second.acquire_kernel("kept", timeout=60) as (_kernel, again):
        assert second.execute(again, "x").result == "3"
        second.end_session("kept")


def test_a_server_that_does_not_answer_is_told() -> None:
    with Manager.connect("http://127.0.0.1:9") as nowhere, pytest.raises(ServerUnavailableError):
        nowhere.list_sessions()
