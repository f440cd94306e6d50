"""The manager's own tests of files, run over a cluster: the same calls, types and errors.

The tests are those of ``tests/docker/test_file_calls.py``; only the manager is another. Those that are missing need a
manager's insides, or settings of their own.
"""

from __future__ import annotations

import pytest

from tests.docker.test_file_calls import (
    test_a_folder_without_permissions_is_removed,
    test_a_full_folder,
    test_a_long_listing_arrives_in_pieces,
    test_a_name_of_any_text_or_bytes,
    test_a_replaced_file_keeps_its_mode_and_a_link_its_place,
    test_a_source_that_fails_changes_nothing,
    test_every_kind_of_content,
    test_files_change_while_a_cell_runs,
    test_folders,
    test_links_are_what_they_are,
    test_listing,
    test_moving,
    test_ranges,
    test_times_and_modes,
    test_what_the_system_refuses,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
