"""Which engine is ours: the daemon.json that we may write, and the record of what we set up and started.

An engine that somebody else set up keeps its configuration, whatever we could offer it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import EngineSetupError
from orchestrator.store.wholefile import write_whole

# runsc without host-uds hides the kernel's sockets; without network=none it does not start on every host.
RUNSC_ARGUMENTS = ("--host-uds=open", "--network=none")


@dataclass(frozen=True)
class EnginePaths:
    """Where an engine on this host keeps what, so that tests can have it elsewhere."""

    config: Path = Path("/etc/docker/daemon.json")
    data: Path = Path("/var/lib/docker")
    run: Path = Path("/run/docker")
    pid_file: Path = Path("/run/docker.pid")
    record: Path = Path("/var/lib/cellblock/engine.json")
    log: Path = Path("/var/log/cellblock-engine.log")
    lock: Path = Path("/run/cellblock-engine.lock")


@dataclass(frozen=True)
class EngineRecord:
    """What we did to the engine of this host.

    Attributes:
        ours: we set it up, so we may configure it.
        config: SHA-256 of the daemon.json that we wrote, or "".
        pid: the daemon that we started, or 0; meaningful together with ``started``.
        started: that process's start, in clock ticks since the host booted.
        boot: the boot in which it was started.
        systemd: we had systemd start it.
    """

    ours: bool = False
    config: str = ""
    pid: int = 0
    started: int = 0
    boot: str = ""
    systemd: bool = False

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it; where it is missing or unreadable, nothing is ours."""
        try:
            fields: Any = json.loads(path.read_text())
            return cls(**fields)
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=2) + "\n")


def may_configure(paths: EnginePaths) -> bool:
    """Return whether the engine's configuration is ours to write.

    It is where a daemon.json is still the one that we wrote; and, where there is none, on an engine that we set up or
    that has never run.
    """
    record = EngineRecord.load(paths.record)
    if paths.config.exists():
        return bool(record.config) and record.config == _sha256(paths.config.read_text())
    return record.ours or not paths.data.exists()


def daemon_config(runsc: str | None) -> dict[str, Any]:
    """Return the daemon.json of an engine of ours. Kernels need no network, so it has no bridge and no firewall rules.

    Args:
        runsc: the path of gVisor's binary, or None.
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
    """Write our daemon.json and take the engine as ours; return whether it changed.

    Raises:
        EngineSetupError: it is somebody else's.
    """
    if not may_configure(paths):
        raise EngineSetupError(f"{paths.config} is not ours to write.", remedy="Add the runtime to it by hand.")
    text = json.dumps(daemon_config(runsc), indent=2) + "\n"
    changed = not paths.config.exists() or paths.config.read_text() != text
    record = replace(EngineRecord.load(paths.record), ours=True, config=_sha256(text))
    record.save(paths.record)  # first: an interruption in between leaves a record of a file that is not there
    if changed:
        paths.config.parent.mkdir(parents=True, exist_ok=True)
        write_whole(paths.config, text)
    return changed


def gvisor_offer(paths: EnginePaths, runsc: str | None) -> str:
    """Say how the owner of an engine that is not ours can add gVisor to it."""
    runtime = daemon_config(runsc or "/usr/bin/runsc")["runtimes"]
    install = "" if runsc else "install runsc, "
    return (
        f"For gVisor, {install}add to {paths.config}: "
        f'"runtimes": {json.dumps(runtime)}, and reload the daemon (`kill -HUP`, or `systemctl reload docker`).'
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
