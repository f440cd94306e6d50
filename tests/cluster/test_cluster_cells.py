"""The manager's own tests of cells, run over a cluster: the same calls, types and errors.

The tests are those of ``tests/docker/test_execution.py``; only the manager is another. Those that are missing need a
manager's insides, or settings of their own.
"""

from __future__ import annotations

import pytest

from tests.docker.test_execution import (
    test_a_cell_that_ends_its_kernel_is_told_so,
    test_a_consumer_that_stops_early_interrupts_the_cell,
    test_a_progress_bar_is_one_line,
    test_cancelling_twice_still_sees_the_cell_end,
    test_cells_of_one_session_take_turns,
    test_display_events_are_typed,
    test_display_updates_and_clear_output_act_as_in_a_notebook,
    test_events_come_while_the_cell_runs,
    test_input_fails_at_once_with_a_clear_error,
    test_kernel_features_that_agents_use,
    test_lone_surrogates_do_not_swallow_output,
    test_one_huge_output_does_not_cost_the_kernel,
    test_output_of_child_processes_belongs_to_their_cell,
    test_rich_outputs_arrive_whole,
    test_stdout_and_stderr_are_kept_apart_and_in_order,
    test_what_was_printed_before_an_error_is_there,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
