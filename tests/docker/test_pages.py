"""Every program in the quickstart and in the task pages runs, and prints what its comments promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docker.snippets import environment, printed, programs

DOCS = REPOSITORY / "docs"
WEB = DOCS / "tasks" / "web-application.md"  # its program is a server, and needs a web framework
SERVER = DOCS / "tasks" / "server.md"  # its programs are clients: see tests/server/test_server_page.py
PAGES = [page for page in (DOCS / "quickstart.md", *sorted((DOCS / "tasks").glob("*.md"))) if programs(page)]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (WEB, SERVER)], ids=lambda page: page.stem)
def test_every_program_of_a_page_runs_and_prints_what_it_promises(page: Path, tmp_path: Path, state: Path) -> None:
    """In the order of the page, each in a process of its own, in one empty folder; none needs a second kernel ready."""
    variables = environment(tmp_path / "data", state) | {"CELLBLOCK_WARM_KERNELS": "0"}
    for source in programs(page):
        done = subprocess.run(
            [sys.executable, "-c", source],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rest = done.stdout
        for promise in printed(source):
            assert promise in rest, f"{promise!r} is not in {done.stdout!r}"
            rest = rest.partition(promise)[2]
