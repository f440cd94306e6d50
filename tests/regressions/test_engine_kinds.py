"""Engines that are refused. `engines/` has the recorded answers of real ones, without the addresses of registries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AgentKernelManager
from orchestrator.container.enginekind import unsupported
from orchestrator.errors import EngineUnsupportedError
from tests.conftest import REPOSITORY

KINDS = ("rootless", "userns-remap", "podman")
COMMAND = str(Path(sys.executable).with_name("cellblock"))


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "engines" / f"{name}.json").read_text())
    return found


@contextlib.contextmanager
def answering(answers: dict[str, Any], folder: Path) -> Iterator[str]:
    """Serve the answers to GET /info and GET /version on a socket, as the engine does, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path.rpartition("/")[2], "OK")).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    path = str(folder / "engine.sock")
    with Server(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join(10)


def test_an_engine_of_roots_is_not_refused() -> None:
    """Docker 26 with systemd, cgroup v2 and AppArmor."""
    assert unsupported(**recorded("docker")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_manager_does_not_start_on_it(kind: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what the engine is, what it lacks, that nothing was started, and what to do."""
    with answering(recorded(kind), state) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state / "s"))
        with pytest.raises(EngineUnsupportedError) as caught:
            asyncio.run(AgentKernelManager(max_kernels=1).start())
    assert caught.value.kind == kind
    assert "Nothing was started." in caught.value.message
    assert "DOCKER_HOST" in caught.value.remedy
    assert not (state / "s").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [["doctor", "--json"], ["engine", "start"]], ids=" ".join)
def test_commands_say_why_it_is_refused(kind: str, command: list[str], state: Path) -> None:
    """`doctor` has a broken row, and `engine start` does not call such an engine usable."""
    with answering(recorded(kind), state) as address:
        done = subprocess.run(
            [COMMAND, *command],
            env=os.environ | {"DOCKER_HOST": address, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    refusal = unsupported(**recorded(kind))
    assert refusal is not None
    if command[0] == "doctor":
        found = json.loads(done.stdout)
        assert found["usable"] == []
        (row,) = [one for one in found["diagnoses"] if one["subject"] == "engine"]
        assert (row["condition"], row["found"], row["fix"]) == ("broken", refusal.message, refusal.remedy)
    else:
        assert refusal.message.split(". ")[0] in " ".join(done.stderr.split())
