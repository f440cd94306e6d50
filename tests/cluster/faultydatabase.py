"""A PostgreSQL server that a test restarts and pauses."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.postgres import programs, wait_until_ready


class FaultyDatabase:
    """One server on a unix socket. Made by ``faulty_database``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = programs()
        owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid} if os.geteuid() == 0 else {}
        self._options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "start_new_session": True, **user}
        command: list[str | Path] = [
            self._programs / "initdb",
            "-D",
            folder / "data",
            "-U",
            "tests",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "-N",
        ]
        subprocess.run(command, check=True, **self._options)
        self.url = f"postgresql+psycopg://tests@/postgres?host={folder}"
        self._server = self._start()

    def restart(self) -> None:
        """End every connection and the server, and start it again."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)
        self._server = self._start()

    def pause(self) -> None:
        """Stop all its processes until ``go_on``."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue all its processes."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End."""
        self.go_on()
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(60)

    def _start(self) -> subprocess.Popen[bytes]:
        command: list[str | Path] = [
            self._programs / "postgres",
            "-D",
            self._folder / "data",
            "-k",
            self._folder,
            "-c",
            "listen_addresses=",
            "-F",
        ]
        with (self._folder / "log").open("ab") as log:
            server: subprocess.Popen[bytes] = subprocess.Popen(command, stderr=log, **self._options)
        wait_until_ready(self._programs, self._folder, server)
        return server

    def _signal(self, number: signal.Signals) -> None:
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):  # the server first: it starts no more
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)


@contextlib.contextmanager
def faulty_database() -> Iterator[FaultyDatabase]:
    """Run a server with an empty database until the block ends."""
    with tempfile.TemporaryDirectory(prefix="cellblock-pg-") as name:
        database = FaultyDatabase(Path(name))
        try:
            yield database
        finally:
            database.close()
