"""E2B's SDKs and programs on them, unmodified, each in an environment of its own, against a server of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY
from tests.e2b.environments import environment
from tests.e2b.runningserver import RunningServer, running_server

_A_FEW = "prints_and_returns or contexts or in_the_background or test_files or killed_while"  # on the slower runtime


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("runc") as running:
        yield running


def run_suite(server: RunningServer, name: str, suite: str, *options: str, key: str = "e2b_00") -> None:
    """Run a suite in an environment, and fail with what it printed."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("E2B_", "PYTEST_", "CELLBLOCK_"))}
    theirs = {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url, "E2B_API_KEY": key, "SUITE_SDK": name}
    command = [str(environment(name)), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--noconftest",
               "-c", "/dev/null", "-o", "asyncio_mode=auto", f"--rootdir={REPOSITORY}", *options,
               str(REPOSITORY / "tests" / "e2b" / suite)]  # fmt: skip
    done = subprocess.run(command, env={**ours, **theirs}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", ["e2b-new", "e2b-old"])
def test_the_sdk(server: RunningServer, name: str) -> None:
    run_suite(server, name, "suite_sdk.py")


def test_programs_on_the_sdk(server: RunningServer) -> None:
    run_suite(server, "e2b-users", "suite_users.py")


def test_the_sdk_under_gvisor() -> None:
    with running_server("runsc") as server:
        run_suite(server, "e2b-new", "suite_sdk.py", "-k", _A_FEW)
