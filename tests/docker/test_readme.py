"""The README's example keeps its promise: run twice, it finds the first run's variables and files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docker.snippets import environment, programs


def test_the_example_of_the_readme_keeps_its_promise_when_it_is_run_twice(
    repository: Path, tmp_path: Path, state: Path
) -> None:
    """As a user would: in two processes, one after the other, with folders of their own."""
    example, synchronous = programs(repository / "README.md")
    said = []
    for source in (example, example, synchronous):
        done = subprocess.run(
            [sys.executable, "-c", source],
            cwd=tmp_path,
            env=environment(tmp_path / "data", state),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said == [["ok", "1", "x"], ["ok", "2", "xx"], ["42"]]
