"""A PostgreSQL server for the tests, from Debian's packages."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.debian import of_package

_START = 60.0  # seconds


@contextlib.contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[str]:
    """Start a server that listens only on a unix socket, and yield the URL of an empty database.

    Args:
        durable: whether it waits for the disk.
    """
    found = programs()
    with tempfile.TemporaryDirectory(prefix="cellblock-pg-") as name:
        folder = Path(name)
        owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner = {"user": owner.pw_uid, "group": owner.pw_gid} if os.geteuid() == 0 else {}
        subprocess.run(
            [found / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", "-N"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_owner,  # type: ignore[call-overload]
        )  # fmt: skip
        options = ["-c", "listen_addresses=", *([] if durable else ["-F"])]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [found / "postgres", "-D", folder / "data", "-k", folder, *options],
                stdout=log, stderr=log, cwd=folder, **as_owner,  # type: ignore[call-overload]
            )  # fmt: skip
        try:
            wait_until_ready(found, folder, server)
            yield f"postgresql+psycopg://tests@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)


def wait_until_ready(found: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + _START
    while subprocess.run([found / "pg_isready", "-q", "-h", folder], check=False).returncode != 0:
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)


def programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    return of_package("postgresql", _initdb).parent


def _initdb() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1]
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).resolve()
