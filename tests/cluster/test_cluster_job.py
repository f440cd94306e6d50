"""The manager's own tests of the whole job, run over a cluster: the same calls, types and errors.

The tests are those of ``tests/docker/test_whole_job.py``; only the manager is another. Those that are missing need a
manager's insides, or settings of their own.
"""

from __future__ import annotations

import pytest

from tests.docker.test_whole_job import (
    test_a_cell_that_outlives_its_call,
    test_a_folder_in_and_out,
    test_a_large_folder_is_a_stream,
    test_changed_files,
    test_other_work_folders_lead_to_work,
    test_the_text_for_a_model,
    test_the_text_has_a_limit,
    test_the_text_of_a_command,
    test_variables,
    test_variables_of_one_call,
    test_variables_while_a_cell_runs,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
