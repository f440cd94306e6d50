"""A private Docker engine that tests may kill, freeze and restart without affecting the machine's engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator.container.engine import connect
from orchestrator.host.enginedaemon import find_program, pid_in
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings

_START = 60.0  # seconds until the engine must answer


class PrivateEngine:
    """One dockerd and its containerd, with all files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exec_root = folder / "run"
        self._process: subprocess.Popen[bytes] | None = None
        self._live_restore = False
        self.url = f"unix://{folder}/docker.sock"

    def start(self, *, live_restore: bool = False) -> None:
        """Start the daemon, and wait until it answers.

        Args:
            live_restore: whether containers keep running while the daemon is down.
        """
        self._live_restore = live_restore
        program = find_program("dockerd")
        assert program, "no dockerd is installed: make engine"
        config = self._folder / "daemon.json"
        config.write_text(json.dumps(self._settings()))
        (self._folder / "docker.pid").unlink(missing_ok=True)
        self._end_containerd()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    "--config-file",
                    str(config),
                    "--host",
                    self.url,
                    "--pidfile",
                    f"{self._folder}/docker.pid",
                    "--data-root",
                    f"{self._folder}/data",
                    "--exec-root",
                    str(self._exec_root),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _START
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
            assert time.monotonic() < end, (self._folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def ensure_running(self) -> None:
        """Start the daemon if a test has killed it."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        elif self._live_restore:
            self.restart()

    def restart(self, *, live_restore: bool = False) -> None:
        """Stop the daemon gracefully, as an upgrade does, and start it again."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self.start(live_restore=live_restore)

    def containers(self) -> dict[str, str]:
        """Return the state of every container, by name."""
        with contextlib.closing(self._client(30)) as client:
            return {found["Names"][0].lstrip("/"): found["State"] for found in client.api.containers(all=True)}

    def processes(self) -> list[int]:
        """Return the running shims, gofers and sandboxes of this engine."""
        return [process for process in self._left_behind() if process not in self._daemons()]

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal: SIGKILL, SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)

    def take_image(self, name: str) -> None:
        """Copy an image from the engine that the environment selects."""
        with (
            contextlib.closing(connect(300)) as source,
            contextlib.closing(self._client(300)) as own,
            tempfile.TemporaryFile() as archive,
        ):
            archive.writelines(source.images.get(name).save(named=True))
            archive.seek(0)
            own.images.load(archive)

    def remove(self) -> None:
        """End the daemon, and everything that it left running or mounted."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
        for process in self._left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self._folder}/")]):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self) -> dict[str, object]:
        """Write the configuration: the machine's runtimes, and no network."""
        machine = Path("/etc/docker/daemon.json")
        runtimes = json.loads(machine.read_text()).get("runtimes", {}) if machine.exists() else {}
        return {
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "runtimes": runtimes,
            "shutdown-timeout": 5,
            "live-restore": self._live_restore,
        }

    def _client(self, timeout: int) -> docker.DockerClient:
        return docker.DockerClient(self.url, timeout=timeout, version="auto")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(self.url.removeprefix("unix://"))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(4096)
            except OSError:
                return False

    def _end_containerd(self) -> None:
        """Wait for the old containerd to end: a new dockerd would wait for it, then give up when it ends."""
        file = self._exec_root / "containerd" / "containerd.pid"
        with contextlib.suppress(OSError):  # the process has ended
            if f"{self._folder}/" in Path(f"/proc/{pid_in(file)}/cmdline").read_text(errors="replace"):
                os.kill(pid_in(file), signal.SIGKILL)
        file.unlink(missing_ok=True)

    def _daemons(self) -> set[int]:
        containerd = pid_in(self._exec_root / "containerd" / "containerd.pid")
        return {containerd, 0 if self._process is None else self._process.pid}

    def _left_behind(self) -> list[int]:
        """Return containerd and every shim, gofer and sandbox that uses this engine's folder."""
        found = {pid_in(self._exec_root / "containerd" / "containerd.pid")} - {0}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self._exec_root).encode() in path.read_bytes():
                    found.add(int(path.parent.name))
        return sorted(found - {os.getpid()})


@contextlib.contextmanager
def private_engine(folder: Path) -> Iterator[PrivateEngine]:
    """Start an engine with the sandbox image, and make this process use it."""
    engine = PrivateEngine(folder)
    try:
        engine.start()
        engine.take_image(Recipe.of(Settings.load(), Image()).name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", engine.url)
            yield engine
    finally:
        engine.remove()
