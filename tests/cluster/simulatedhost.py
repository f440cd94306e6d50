"""One host of the test bed: a simulated machine with a Docker engine, and with Cellblock's settings for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import psutil

from orchestrator.container.engine import connect
from orchestrator.host.enginedaemon import find_program
from tests.cluster.machine import Machine
from tests.cluster.sharedimage import LAYERS, SharedImage
from tests.conftest import REPOSITORY
from tests.debian import of_package
from tests.faults.smalldisk import SmallDisk

_START = 60.0  # seconds until an engine or a server must answer
_USER_IDS = 20_000  # of each host
PORT = 8730


class SimulatedHost(Machine):
    """A machine with an engine of its own. Its settings are those of a host: everything is in /run and on its disk.

    Args:
        number: from 1 on.
        python: the Python that runs Cellblock.
    """

    def __init__(self, number: int, folder: Path, cgroup: str, *, disk_mb: int, python: Path | None = None) -> None:
        super().__init__(f"h{number}", folder, cgroup, disk_mb=disk_mb)
        self._number = number
        self._python = python or Path(sys.executable)
        self._clock: Path | None = None
        self._root = folder / "docker"

    @property
    def url(self) -> str:
        """Where a server that listens on its address answers."""
        return f"http://{self.address}:{PORT}"

    def start(self) -> None:
        """Boot it, without its engine."""
        super().start()
        self.path("/run/docker").mkdir()

    def start_engine(self, image: str) -> None:
        """Start its Docker daemon, with an image of this machine's engine."""
        shared = SharedImage.find(image)
        if shared is not None and not self._root.exists():
            shared.describe(self._root)
        if shared is not None:
            self._mount(shared)
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._daemon_config()))
        program = find_program("dockerd")
        assert program, "no dockerd is installed: make engine"
        daemon = self.spawn(
            program, "--config-file", config, "--host", "unix:///run/docker.sock", "--pidfile", "/run/docker.pid",
            "--data-root", self._root, "--exec-root", "/run/docker", log=self.folder / "docker.log",
        )  # fmt: skip
        self._await_engine(daemon)
        if shared is None:
            self._copy_image(image)

    def engine(self) -> docker.DockerClient:
        """Return a client of its engine, to be closed."""
        return docker.DockerClient(f"unix://{self.path('/run/docker.sock')}", timeout=60, version="auto")

    def engine_answers(self, seconds: float = 5) -> bool:
        """Return whether its engine answers within this time."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(seconds)
            try:
                probe.connect(str(self.path("/run/docker.sock")))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(4096)
            except OSError:
                return False

    def containers(self) -> dict[str, str]:
        """Return the state of every container, by name."""
        with contextlib.closing(self.engine()) as client:
            return {found["Names"][0].lstrip("/"): found["State"] for found in client.api.containers(all=True)}

    @property
    def disk(self) -> SmallDisk:
        """Its disk, to be filled."""
        return SmallDisk(self.path("/run/data"))

    def set_clock(self, offset: float) -> None:
        """Set the wall clock of its Cellblock processes this many seconds off, from now on.

        Processes that were started before the first call keep the true time.
        """
        self._clock = self.folder / "clock"
        whole = self._clock.with_suffix(".new")
        whole.write_text(f"{offset:+.0f}s")
        whole.replace(self._clock)

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of its Cellblock processes, with more settings, such as CELLBLOCK_STORE_URL."""
        left_out = ("CELLBLOCK_", "DOCKER_", "RAY_", "PYTHONDONTWRITEBYTECODE")
        own = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        own |= {
            "CELLBLOCK_DATA_DIR": "/run/data",
            "CELLBLOCK_STATE_DIR": "/run/cellblock",
            "CELLBLOCK_AUDIT_LOG": "/run/data/audit.jsonl",
            "CELLBLOCK_UID_BASE": str(200_000 + self._number * _USER_IDS),
            "CELLBLOCK_UID_COUNT": str(_USER_IDS),
            "DOCKER_HOST": "unix:///run/docker.sock",
            "PYTHONPATH": str(REPOSITORY),
        }
        if self._clock is not None:
            own |= {
                "LD_PRELOAD": str(of_package("libfaketime", _faketime)),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        return own | settings

    def cellblock(
        self, *arguments: str, settings: Mapping[str, str] | None = None, seconds: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `cellblock` in this host to its end."""
        entry = [str(self._python), "-m", "orchestrator.cli.entry"]
        return self.run(
            *entry, *arguments, environment=self.environment(**settings or {}), seconds=seconds, check=check
        )

    def json(self, *arguments: str, settings: Mapping[str, str] | None = None, seconds: float = 120) -> Any:
        """Return what a command prints with --json."""
        return json.loads(self.cellblock(*arguments, "--json", settings=settings, seconds=seconds).stdout)

    def serve(self, *arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start `cellblock serve` on its address, and wait until it serves. The store must have a token.

        With a database of the cluster's in ``settings`` it is a node.

        The server's log is ``folder / "serve.log"``. End it with ``end``.
        """
        log = self.folder / "serve.log"
        log.write_bytes(b"")
        server = self.spawn(
            self._python, "-m", "orchestrator.cli.entry", "serve", "--host", self.address, "--port", str(PORT),
            *arguments, environment=self.environment(**self._as_node(settings or {})), log=log,
        )  # fmt: skip
        deadline = time.monotonic() + _START
        while "serving on " not in log.read_text():
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.05)
        return server

    def _as_node(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {**({"CELLBLOCK_NODE_URL": self.url} if "CELLBLOCK_STORE_URL" in settings else {}), **settings}

    @staticmethod
    def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> None:
        """Send a signal to a process of ``serve`` or ``spawn``, and wait for its end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for own in psutil.Process(process.pid).children():  # its parent is nsenter, which ends after it
                own.send_signal(number)
        process.wait(seconds)

    def _daemon_config(self) -> dict[str, Any]:
        machine = Path("/etc/docker/daemon.json")
        return {
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "cgroup-parent": f"/{self._cgroup}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": json.loads(machine.read_text()).get("runtimes", {}) if machine.exists() else {},
            "shutdown-timeout": 5,
        }

    def _mount(self, image: SharedImage) -> None:
        for folder in (self._root, self._root / LAYERS):
            self.run("mount", "--bind", folder, folder)
            self.run("mount", "--make-shared", folder)
        for source, target in image.mounts(self._root):
            self.run("mount", "--bind", "-o", "ro", source, target)

    def _copy_image(self, name: str) -> None:
        with (
            contextlib.closing(connect(300)) as source,
            contextlib.closing(self.engine()) as own,
            tempfile.TemporaryFile() as archive,
        ):
            if not own.images.list(name):
                archive.writelines(source.images.get(name).save(named=True))
                archive.seek(0)
                own.images.load(archive)

    def _await_engine(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START
        while not self.engine_answers():
            log = (self.folder / "docker.log").read_text()[-3000:]
            assert daemon.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)


def _faketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
