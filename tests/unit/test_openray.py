"""Ray's ports that others reach without a token are found; those on loopback, and those that ask for one, are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.host.openray import open_ray

_LISTEN = (
    "import socket, sys; s = socket.create_server((sys.argv[2], 0)); print(s.getsockname()[1], flush=True); input()"
)


@pytest.mark.parametrize("program", ["ray/dashboard/dashboard.py", "ray.util.client.server", "gcs_server"])
@pytest.mark.parametrize(
    ("address", "mode", "is_found"),
    [("0.0.0.0", "", True), ("0.0.0.0", "disabled", True), ("0.0.0.0", "token", False), ("127.0.0.1", "", False)],  # noqa: S104
)
def test_only_a_port_that_others_reach_without_a_token_is_found(
    tmp_path: Path, program: str, address: str, mode: str, is_found: bool
) -> None:
    """A process that is named as Ray's is, with a port of its own."""
    script = tmp_path / program
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(_LISTEN)
    environment = {**os.environ, "RAY_AUTH_MODE": mode}
    command = [sys.executable, str(script), program, address]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        found = [each for each in open_ray() if each.endswith(f":{port}")]
        process.kill()
    assert bool(found) == is_found
