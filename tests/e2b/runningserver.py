"""A real server process of the test's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

_ENTRY = [sys.executable, "-m", "orchestrator.cli.entry"]


@dataclass(frozen=True)
class RunningServer:
    """A server that runs.

    Attributes:
        environment: the settings that it has.
    """

    url: str
    environment: dict[str, str]

    def token(self, name: str, group: str) -> str:
        """Make a token, with the command that operators use."""
        made = subprocess.run(
            [*_ENTRY, "token", "create", name, "--group", group],
            env=self.environment, cwd=REPOSITORY, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return next(word for word in made.stdout.split() if word.startswith("cb_"))

    def command(self, *arguments: str) -> None:
        """Run another command of Cellblock with the server's settings."""
        subprocess.run([*_ENTRY, *arguments], env=self.environment, cwd=REPOSITORY, check=True, capture_output=True)


@contextlib.contextmanager
def running_server(runtime: str) -> Iterator[RunningServer]:
    """Start a server on a free port, and end it at the end."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        data, state = Path(folder, "d"), Path(folder, "s")
        for each in (data, state):
            each.mkdir(mode=0o700)
        environment = {
            **os.environ,
            "CELLBLOCK_DATA_DIR": str(data),
            "CELLBLOCK_STATE_DIR": str(state),
            "CELLBLOCK_AUDIT_LOG": "off",
            "CELLBLOCK_RUNTIME": runtime,
        }
        process = subprocess.Popen(
            [*_ENTRY, "serve", "--port", "0"], env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        reading: threading.Thread | None = None
        try:
            assert process.stdout is not None
            lines: list[str] = []
            url = ""
            for line in process.stdout:
                lines.append(line)
                if line.startswith("serving on "):
                    url = line.split()[2]
                    break
            assert url, "".join(lines)
            reading = threading.Thread(target=process.stdout.read)
            reading.start()
            yield RunningServer(url, environment)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
            assert process.stdout is not None
            if reading is not None:
                reading.join()
            process.stdout.close()
