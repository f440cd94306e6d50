"""Which engine is ours: the daemon.json that Cellblock may write, and a record of what it set up and started.

An engine that somebody else set up always keeps its configuration.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import EngineSetupError
from orchestrator.store.wholefile import write_whole

# Without host-uds a sandbox cannot see the kernel's sockets. Without network=none runsc does not start on some hosts.
RUNSC_ARGUMENTS = ("--host-uds=open", "--network=none")


@dataclass(frozen=True)
class EnginePaths:
    """The files and folders of the engine on this host. Tests use other ones."""

    config: Path = Path("/etc/docker/daemon.json")
    data: Path = Path("/var/lib/docker")
    run: Path = Path("/run/docker")
    pid_file: Path = Path("/run/docker.pid")
    record: Path = Path("/var/lib/cellblock/engine.json")
    log: Path = Path("/var/log/cellblock-engine.log")
    lock: Path = Path("/run/cellblock-engine.lock")
    systemd: Path = Path("/run/systemd/system")  # exists where systemd runs


@dataclass(frozen=True)
class EngineRecord:
    """What Cellblock did to the engine of this host.

    Attributes:
        ours: Cellblock set the engine up, so it may configure it.
        config: SHA-256 of the daemon.json that Cellblock wrote, or "".
        pid: the process id of the daemon that Cellblock started, or 0. Valid only together with ``started``.
        started: the start of that process, in clock ticks since the host booted.
        boot: the id of the boot in which it started.
        systemd: Cellblock started the daemon with systemd.
    """

    ours: bool = False
    config: str = ""
    pid: int = 0
    started: int = 0
    boot: str = ""
    systemd: bool = False

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the record in a file. A missing or unreadable one means that nothing is ours."""
        try:
            fields: Any = json.loads(path.read_text())
            return cls(**fields)
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=2) + "\n")


def may_configure(paths: EnginePaths) -> bool:
    """Return whether Cellblock may write the engine's configuration.

    It may if daemon.json is unchanged since Cellblock wrote it. Without a daemon.json, it may if it set up the engine
    or if the engine has never run.
    """
    record = EngineRecord.load(paths.record)
    if paths.config.exists():
        return bool(record.config) and record.config == _sha256(paths.config.read_text())
    return record.ours or not paths.data.exists()


def daemon_config(runsc: str | None) -> dict[str, Any]:
    """Return the daemon.json of our engine. It has no bridge and no firewall rules, because kernels need no network.

    Args:
        runsc: the path of gVisor's program, or None.
    """
    config: dict[str, Any] = {
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "log-driver": "local",
        "log-opts": {"max-size": "1m", "max-file": "2"},
        "shutdown-timeout": 5,
    }
    if runsc:
        config["runtimes"] = {"runsc": {"path": runsc, "runtimeArgs": list(RUNSC_ARGUMENTS)}}
    return config


def configure(paths: EnginePaths, runsc: str | None) -> bool:
    """Write our daemon.json, record the engine as ours, and return whether the file changed.

    Raises:
        EngineSetupError: somebody else wrote daemon.json or set the engine up.
    """
    if not may_configure(paths):
        raise EngineSetupError(
            f"{paths.config} was not changed, because somebody else configures this engine.",
            remedy="Add the runtime `runsc` to it by hand; `cellblock doctor` shows how.",
        )
    text = json.dumps(daemon_config(runsc), indent=2) + "\n"
    changed = not paths.config.exists() or paths.config.read_text() != text
    record = replace(EngineRecord.load(paths.record), ours=True, config=_sha256(text))
    record.save(paths.record)  # first, so an interruption leaves a record of a missing file, which is harmless
    if changed:
        paths.config.parent.mkdir(parents=True, exist_ok=True)
        write_whole(paths.config, text)
    return changed


def gvisor_offer(paths: EnginePaths, runsc: str | None) -> str:
    """Return how the owner of an engine that is not ours can add gVisor."""
    runtime = daemon_config(runsc or "/usr/bin/runsc")["runtimes"]
    install = "" if runsc else "install runsc, "
    return (
        f"For gVisor, {install}add to {paths.config}: "
        f'"runtimes": {json.dumps(runtime)}, and reload the daemon (`kill -HUP`, or `systemctl reload docker`).'
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
