"""The test bed of a cluster: hosts with an engine each, and a database, on a network of their own.

    with simulated_hosts(3) as bed:
        token = bed.token("test")
        for host in bed.hosts:
            host.serve(settings=bed.store)
        bed.hosts[0].freeze()
        bed.cut(bed.hosts[1], bed.database, one_way=True)

All processes of the bed end with this process, however it ends. What a killed process leaves on the disk and in the
cgroups is removed when the next bed is made.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from orchestrator.container.lockfile import LockFile
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings, private_folder
from tests.cluster.databasehost import DatabaseHost
from tests.cluster.machine import Machine, end_processes, remove_cgroups
from tests.cluster.simulatedhost import SimulatedHost

BEDS = Path("/var/tmp/cellblock-beds")  # on a disk: an engine's data folder cannot be in a tmpfs's place
_NOWHERE = "02:00:00:00:00:01"  # a hardware address that nobody has


class ThisMachine:
    """The machine that the tests run on, as a peer of the hosts."""

    def __init__(self, address: str, device: str) -> None:
        self.address = address
        self.device = device

    @staticmethod
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


Peer = Machine | ThisMachine


class SimulatedHosts:
    """A bed that runs.

    Attributes:
        name: six digits, which the names of its folder, cgroups and network have.
        hosts: h1, h2 … at the addresses .11, .12 …
        database: a PostgreSQL server on a machine of its own.
        here: this machine, which reaches all of them, and they it. They reach nothing else.
    """

    def __init__(self, folder: Path, name: str, count: int, disk_mb: int, python: Path | None) -> None:
        self.name = name
        self._network = _free_network()
        self._image = Recipe.of(Settings.load(), Image()).name
        self._cgroup = cgroup = f"cellblock-bed-{name}"
        self._switch = Machine("switch", folder / "switch", f"{cgroup}/switch")
        self.here = ThisMachine(f"{self._network}.1", f"cb{name}")
        self.database = DatabaseHost(folder / "database", f"{cgroup}/database", f"{self._network}.0/24")
        self.hosts = [
            SimulatedHost(number, folder / f"h{number}", f"{cgroup}/h{number}", disk_mb=disk_mb, python=python)
            for number in range(1, count + 1)
        ]
        self.database.address = f"{self._network}.2"
        for number, host in enumerate(self.hosts, start=11):
            host.address = f"{self._network}.{number}"

    @property
    def store_url(self) -> str:
        """The database's URL, for hosts and for this machine."""
        return f"postgresql+psycopg://tests@{self.database.address}/postgres"

    @property
    def store(self) -> dict[str, str]:
        """The settings of a host that uses the database."""
        return {"CELLBLOCK_STORE_URL": self.store_url}

    def start(self) -> None:
        """Start everything."""
        self._switch.start()
        self._switch.ip("link", "add", "switch", "type", "bridge", "forward_delay", "0")
        self._switch.ip("link", "set", "switch", "up")
        self._plug(self.here)
        self.start_machine(self.database)
        for host in self.hosts:
            self.start_machine(host)

    def start_machine(self, machine: SimulatedHost | DatabaseHost) -> None:
        """Boot a machine, also one that was killed: its network, and its engine or the database."""
        machine.start()
        self._plug(machine)
        if isinstance(machine, SimulatedHost):
            machine.start_engine(self._image)
        else:
            machine.start_server()

    def cut(self, source: Peer, target: Peer, *, one_way: bool = False) -> None:
        """Lose what the first sends to the second, without a word; and the other way round, unless ``one_way``."""
        source.ip("neigh", "replace", target.address, "lladdr", _NOWHERE, "dev", source.device, "nud", "permanent")
        if not one_way:
            self.cut(target, source, one_way=True)

    def mend(self, source: Peer, target: Peer) -> None:
        """End what ``cut`` did, both ways."""
        for one, other in ((source, target), (target, source)):
            with contextlib.suppress(subprocess.CalledProcessError, AssertionError):  # it was not cut
                one.ip("neigh", "del", other.address, "dev", one.device)

    def token(self, name: str, *options: str) -> str:
        """Make a token in the database, which all servers take from then on, and return it."""
        made: dict[str, Any] = self.hosts[0].json("token", "create", name, *options, settings=self.store)
        return str(made["token"])

    def remove(self) -> None:
        """End everything."""
        with ThreadPoolExecutor() as together:  # Linux takes a second to take each network away
            list(together.map(Machine.kill, (*self.hosts, self.database, self._switch)))
        remove_cgroups(self._cgroup)

    def _plug(self, peer: Peer) -> None:
        """Connect a machine with the switch. The connection ends with either of them."""
        name = peer.name if isinstance(peer, Machine) else "here"
        end = ["netns", str(peer.pid)] if isinstance(peer, Machine) else []
        with contextlib.suppress(AssertionError):  # that of a machine which was killed
            self._switch.ip("link", "del", f"to-{name}")
        # A hardware address that stays when the machine is started again: the others have it in their tables.
        own = f"02:00:{bytes(map(int, peer.address.split('.'))).hex(':')}"
        added = ["ip", "link", "add", peer.device, *end, "address", own, "type", "veth", "peer", "name", f"to-{name}"]
        subprocess.run([*added, "netns", str(self._switch.pid)], check=True)
        self._switch.ip("link", "set", f"to-{name}", "master", "switch", "up")
        peer.ip("address", "add", f"{peer.address}/24", "dev", peer.device)
        peer.ip("link", "set", peer.device, "up")


@contextlib.contextmanager
def simulated_hosts(count: int = 3, *, disk_mb: int = 256, python: Path | None = None) -> Iterator[SimulatedHosts]:
    """Make a bed, and remove it at the end.

    Args:
        disk_mb: the size of each host's disk.
        python: the Python that runs Cellblock on the hosts; None: this one.
    """
    beds = private_folder(BEDS)
    remove_leftovers(beds)
    name = secrets.token_hex(3)
    lock = LockFile.take(beds / f"{name}.lock")
    assert lock is not None
    folder = beds / name
    bed = SimulatedHosts(folder, name, count, disk_mb, python)
    try:
        bed.start()
        yield bed
    finally:
        bed.remove()
        _remove_files(folder)
        lock.release()


def remove_leftovers(beds: Path) -> None:
    """Remove what beds of killed processes left."""
    for file in beds.glob("*.lock"):
        if (lock := LockFile.take(file)) is not None:
            end_processes(f"cellblock-bed-{file.stem}")
            _remove_files(beds / file.stem)
            lock.release()


def _remove_files(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _free_network() -> str:
    """Return the first three numbers of a network that this machine does not use."""
    taken = {
        found.address.rpartition(".")[0]
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family == socket.AF_INET
    }
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True).stdout or "[]")
    taken |= {str(route.get("dst", "")).rpartition(".")[0] for route in routes}
    while (network := f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(256)}") in taken:
        pass
    return network
