"""The test bed itself: each of its hosts fails as a host would, alone, and nothing of it remains."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from orchestrator import AgentKernelManager
from tests.cluster.databasehost import DatabaseHost
from tests.cluster.simulatedhosts import BEDS, SimulatedHosts, remove_leftovers
from tests.conftest import REPOSITORY

_LISTEN = "import socket, time; s = socket.create_server(('', 9000)); print('listens', flush=True); time.sleep(600)"
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9000), 2)"
_BED_OF_A_PROCESS = """
import signal
from tests.cluster.simulatedhosts import simulated_hosts
with simulated_hosts(1) as bed:
    bed.hosts[0].freeze()
    print(bed.name, flush=True)
    signal.pause()
"""


def reaches(bed: SimulatedHosts, source: int, target: int) -> bool:
    """Return whether a host can connect to a port of another one, on which it listens."""
    address = bed.hosts[target].address
    return bed.hosts[source].run(sys.executable, "-c", _CONNECT, address, check=False).returncode == 0


def answers(bed: SimulatedHosts) -> bool:
    """Return whether the database answers within two seconds."""
    engine = create_engine(bed.store_url, connect_args={"connect_timeout": 2})
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT 1")).scalar() == 1
    except OperationalError:
        return False
    finally:
        engine.dispose()


async def test_each_host_serves_cells_on_an_engine_of_its_own(bed: SimulatedHosts) -> None:
    """Three servers share a database; each runs a cell, in a container of its own engine."""
    token = bed.token("test")
    servers = [host.serve(settings=bed.store) for host in bed.hosts]
    try:
        for host in bed.hosts:
            async with (
                AgentKernelManager.connect(host.url, token=token) as manager,
                manager.acquire_kernel(f"agent-{host.name}", timeout=60) as (_kernel, session),
            ):
                assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"
            assert "running" in host.containers().values()
            assert host.run("hostname").stdout == f"{host.name}\n"
    finally:
        for host, server in zip(bed.hosts, servers, strict=True):
            host.end(server)
    assert [host.containers() for host in bed.hosts] == [{}, {}, {}]


def test_a_killed_host_is_gone_with_all_its_processes_and_comes_back_with_its_disk(bed: SimulatedHosts) -> None:
    host = bed.hosts[2]
    host.path("/run/data/kept").write_text("kept")
    host.path("/run/lost").write_text("lost")
    boot = host.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    running = host.processes()
    assert {"dockerd", "containerd"} <= {process.name() for process in running}
    host.kill()
    assert not [process for process in running if process.is_running()]
    assert "switch" not in bed.hosts[0].run("ip", "link").stdout
    bed.start_machine(host)
    assert host.path("/run/data/kept").read_text() == "kept"
    assert not host.path("/run/lost").exists()
    assert host.run("cat", "/proc/sys/kernel/random/boot_id").stdout != boot
    assert host.containers() == {}


def test_a_frozen_host_stands_still_and_goes_on_when_it_is_thawed(bed: SimulatedHosts, tmp_path: Path) -> None:
    host = bed.hosts[1]
    ticks = tmp_path / "ticks"
    process = host.spawn("sh", "-c", "while :; do echo; sleep 0.05; done", log=ticks)
    try:
        host.freeze()
        before = ticks.stat().st_size
        time.sleep(0.5)
        assert ticks.stat().st_size == before
        assert not host.engine_answers(seconds=1)
        host.thaw()
        assert host.engine_answers(seconds=30)
        end = time.monotonic() + 30
        while ticks.stat().st_size == before:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        host.thaw()
        host.end(process, signal.SIGKILL)


def test_what_is_cut_is_lost_one_way_or_both_and_nobody_else_notices(bed: SimulatedHosts, tmp_path: Path) -> None:
    listening = [host.spawn(sys.executable, "-c", _LISTEN, log=tmp_path / host.name) for host in bed.hosts]
    first, second, _ = bed.hosts
    try:
        for host in bed.hosts:
            while "listens" not in (tmp_path / host.name).read_text():
                time.sleep(0.05)
        assert reaches(bed, 0, 1)
        bed.cut(first, second)
        assert not reaches(bed, 0, 1)
        assert not reaches(bed, 1, 0)
        assert reaches(bed, 0, 2)
        assert reaches(bed, 2, 1)
        bed.mend(first, second)
        assert reaches(bed, 0, 1)
        assert reaches(bed, 1, 0)
        with socket.create_connection((first.address, 9000), 5):
            bed.cut(first, bed.here, one_way=True)
            with pytest.raises(TimeoutError):  # its answers are lost
                socket.create_connection((first.address, 9000), 1)
    finally:
        bed.mend(first, second)
        bed.mend(first, bed.here)
        for host, process in zip(bed.hosts, listening, strict=True):
            host.end(process, signal.SIGKILL)


def test_a_host_reaches_nothing_but_the_bed(bed: SimulatedHosts) -> None:
    """It has one route, that of its own network."""
    routes = bed.hosts[0].run("ip", "route").stdout.splitlines()
    assert len(routes) == 1
    assert routes[0].startswith(f"{bed.here.address.rpartition('.')[0]}.0/24 dev eth0")


def test_a_hosts_clock_is_off_for_its_own_processes(bed: SimulatedHosts) -> None:
    host = bed.hosts[0]
    asked = [sys.executable, "-c", "import time; print(time.time())"]
    host.set_clock(3600)
    ahead = float(host.run(*asked, environment=host.environment()).stdout) - time.time()
    host.set_clock(-3600)
    behind = float(host.run(*asked, environment=host.environment()).stdout) - time.time()
    host.set_clock(0)
    assert (round(ahead / 60), round(behind / 60)) == (60, -60)


def test_a_hosts_disk_is_full_and_has_room_again(bed: SimulatedHosts) -> None:
    host = bed.hosts[0]
    write = ["dd", "if=/dev/zero", "of=/run/data/file", "bs=64k", "count=1"]
    disk = host.disk
    disk.fill("bytes")
    assert "No space left" in host.run(*write, check=False).stderr
    disk.make_room()
    host.run(*write)
    host.run("rm", "-r", "/run/data/file", "/run/data/filler")


def test_the_database_pauses_restarts_and_comes_back(bed: SimulatedHosts) -> None:
    database: DatabaseHost = bed.database
    assert answers(bed)
    database.freeze()
    assert not answers(bed)
    database.thaw()
    assert answers(bed)
    database.restart()
    assert answers(bed)
    database.kill()
    assert not answers(bed)
    bed.start_machine(database)
    assert answers(bed)


def test_nothing_remains_of_a_bed_whose_process_was_killed() -> None:
    """The bed of a killed process, with a frozen host: the next bed removes processes, cgroups, files and network."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BED_OF_A_PROCESS], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name
    device = f"cb{name}"
    assert device in psutil.net_if_addrs()
    process.kill()
    process.wait()
    process.stdout.close()
    remove_leftovers(BEDS)
    assert not list(BEDS.glob(f"{name}*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/*{name}*"))
    end = time.monotonic() + 30
    while device in psutil.net_if_addrs():  # Linux takes it away a moment after its last process has ended
        assert time.monotonic() < end
        time.sleep(0.1)
    while left := [_words(found) for found in psutil.process_iter() if name in " ".join(_words(found))]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
