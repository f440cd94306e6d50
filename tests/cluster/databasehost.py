"""The database of the test bed: PostgreSQL on a simulated machine of its own."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.machine import Machine
from tests.postgres import programs

_START = 60.0  # seconds
_DISK = 2048  # MiB


class DatabaseHost(Machine):
    """A machine with a PostgreSQL server. ``freeze`` pauses the server, ``kill`` takes the machine away.

    Args:
        network: from which everybody may connect, such as "10.100.1.0/24".
    """

    def __init__(self, folder: Path, cgroup: str, network: str) -> None:
        super().__init__("database", folder, cgroup, disk_mb=_DISK)
        self._network = network
        self._programs = programs()

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        if not self.path("/run/data/pg").exists():
            self.run("chown", "postgres", "/run/data")
            self._as_owner("initdb", "-D", "/run/data/pg", "-U", "tests", "-A", "trust", "-E", "UTF8", "-N")
            with self.path("/run/data/pg/pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {self._network} trust\n")
        options = "-c listen_addresses=* -c unix_socket_directories= -c max_connections=200 -F"
        self._as_owner("pg_ctl", "start", "-w", "-D", "/run/data/pg", "-l", "/run/data/pg.log", "-o", options)

    def restart(self) -> None:
        """Restart the server as an upgrade does: every connection is closed."""
        self._as_owner("pg_ctl", "restart", "-w", "-m", "fast", "-D", "/run/data/pg", "-l", "/run/data/pg.log")

    def _as_owner(self, program: str, *arguments: str) -> None:
        self.run("runuser", "-u", "postgres", "--", self._programs / program, *arguments, seconds=_START)
