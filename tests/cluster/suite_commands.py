"""The manager's own tests of commands, run over a cluster: the same calls, types and errors.

The tests are those of ``tests/docker/test_commands.py``; only the manager is another. Those that are missing need a
manager's insides, or settings of their own.
"""

from __future__ import annotations

import pytest

from tests.docker.test_commands import (
    test_a_background_command_is_watched_fed_and_killed,
    test_a_cancelled_call_kills_its_command,
    test_a_cell_that_takes_exit_statuses_is_named,
    test_a_cells_interrupt_and_its_end_leave_commands_alone,
    test_a_command_has_exactly_this_result,
    test_a_command_sees_the_files_of_cells_and_cells_see_its_files,
    test_a_result_survives_its_dict,
    test_a_terminal_is_one,
    test_bad_arguments_are_refused,
    test_closing_the_stream_kills_the_command,
    test_commands_run_while_a_cell_runs_and_several_at_once,
    test_control_c_reaches_a_program_on_a_terminal,
    test_history_and_numbers,
    test_only_one_consumer_reads_a_command,
    test_output_that_nobody_reads_is_bounded,
    test_sigkill_reaches_everything_that_a_command_has_started,
    test_stdin_that_was_not_kept_is_refused,
    test_streaming_yields_output_as_it_comes,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
