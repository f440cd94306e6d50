"""Two processes share the suite by files: pytest-xdist's own groups have failed silently before."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import REPOSITORY

FILES = ["tests/unit/test_limits.py", "tests/unit/test_outputs.py"]


def test_the_tests_of_a_file_run_in_one_process() -> None:
    """Each of two files is run by a worker of its own."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup", *FILES]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    found = set(re.findall(r"^\[(gw\d)\].* (tests/\S+\.py)::", done.stdout, re.MULTILINE))
    assert sorted(file for _, file in found) == FILES
    assert len({worker for worker, _ in found}) == 2
