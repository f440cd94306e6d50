"""Ray's own autoscaler, asked as a node's supervisor asks it, on a machine whose processes are its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.machine import Machine
from tests.conformance.__main__ import environment

_SAID = ("three nodes have come", "one is kept", "it is let go")


@pytest.mark.parametrize("version", ["1", "2"])
def test_nodes_come_while_callers_wait_and_go_when_they_are_idle(version: str, tmp_path: Path) -> None:
    """Not more than the most; and a node with sessions stays, although Ray runs nothing on it."""
    python = environment("ray")
    machine = Machine("autoscaled", tmp_path / "machine", f"cellblock-autoscaled-{os.getpid()}")
    machine.start()
    try:
        own = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "RAY_TMPDIR": "/run/ray",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = (python, "-m", "tests.cluster.autoscaled", str(tmp_path), version)
        done = machine.run(*command, seconds=600, check=False, environment={**os.environ, **own})
        said = tuple(line for line in done.stdout.splitlines() if line in _SAID)
        assert said == _SAID, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    finally:
        machine.kill()
