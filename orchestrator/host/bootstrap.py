"""Start a Docker engine on a bare Debian machine, and stop an engine that Cellblock started. Every call blocks.

An engine that answers is used and not changed. An engine that somebody else set up and that does not run is started
with its own configuration. Only a machine without an engine gets one installed and configured.

Every step can be interrupted and repeated. The package docker.io is installed last: while it is missing, a repeated run
checks all other steps again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.container import engine
from orchestrator.container.enginekind import unsupported
from orchestrator.errors import EngineError, EnginePermissionError, EngineSetupError, EngineUnavailableError
from orchestrator.host import aptpackages, enginedaemon
from orchestrator.host.engineconfig import EnginePaths, EngineRecord, configure, gvisor_offer, may_configure

_TIMEOUT = 10.0  # seconds for one call to the engine
_LOCK_SECONDS = 1800.0

Report = Callable[[str], None]
_PATHS = EnginePaths()


@dataclass(frozen=True)
class EngineStatus:
    """An engine that answers.

    Attributes:
        version: the engine's version.
        runtimes: its container runtimes, sorted.
        ours: Cellblock started the daemon.
        offer: how to add gVisor, if it is missing and somebody else set the engine up; else "".
    """

    version: str
    runtimes: tuple[str, ...]
    ours: bool
    offer: str


def status(paths: EnginePaths = _PATHS) -> EngineStatus:
    """Return the state of the engine.

    Raises:
        EngineUnavailableError: no engine answers.
        EnginePermissionError: this user may not use it.
        EngineUnsupportedError: Cellblock does not use this kind of engine.
    """
    client = engine.connect(_TIMEOUT)
    try:
        information, version = client.info(), client.version()
    except engine.FAILURES as error:
        raise engine.translate(error) from error
    finally:
        client.close()
    if (refusal := unsupported(information, version)) is not None:
        raise refusal
    fault = engine.gvisor_fault(information["Runtimes"])
    record = EngineRecord.load(paths.record)
    return EngineStatus(
        version=str(information["ServerVersion"]),
        runtimes=tuple(sorted(name for name in information["Runtimes"] if not name.startswith("io.containerd"))),
        ours=record.systemd or enginedaemon.is_ours(record),
        offer=gvisor_offer(paths, enginedaemon.find_program("runsc")) if fault and not record.ours else "",
    )


def start_engine(report: Report, paths: EnginePaths = _PATHS) -> EngineStatus:
    """Install, configure and start an engine as far as necessary, and return its state. Idempotent.

    Args:
        report: called in this thread with one line for each step.

    Raises:
        EngineUnavailableError: no engine answers, and this process may not set one up.
        EnginePermissionError: an engine answers, and this user may not use it.
        EngineUnsupportedError: an engine answers, and Cellblock does not use this kind.
        EngineSetupError: setting up failed. A repeated call continues where it failed.
    """
    if _ready(paths):
        return status(paths)
    with _exclusive(paths, report):
        if not enginedaemon.answers() or _unfinished(paths):
            _bring_up(report, paths)
        return status(paths)


def stop_engine(report: Report, paths: EnginePaths = _PATHS) -> bool:
    """Stop the engine if Cellblock started it, and return whether it did.

    Raises:
        EnginePermissionError: root started the engine, and this user is not root.
        EngineSetupError: the engine did not stop in time.
    """
    record = EngineRecord.load(paths.record)
    if os.geteuid() != 0 and (record.systemd or enginedaemon.is_ours(record)):
        raise EnginePermissionError("the engine was not stopped: root started it.", remedy="Run the command as root.")
    return enginedaemon.stop(paths, report)


def _ready(paths: EnginePaths) -> bool:
    """Return whether there is nothing to do.

    Raises:
        EnginePermissionError, EngineUnavailableError: there is something to do, and this process may not do it.
    """
    try:
        engine.connect(_TIMEOUT).close()
    except EnginePermissionError:
        raise
    except EngineError as error:
        _refuse_if_impossible(error)
        return False
    return os.geteuid() != 0 or not _unfinished(paths)


def _refuse_if_impossible(error: EngineError) -> None:
    address = os.environ.get("DOCKER_HOST", "")
    if address and address.removeprefix("unix://") not in ("/var/run/docker.sock", "/run/docker.sock"):
        raise EngineUnavailableError(
            f"no Docker engine answers at DOCKER_HOST={address}.", remedy="Start that engine, or unset DOCKER_HOST."
        ) from error
    if os.geteuid() != 0:
        raise EngineUnavailableError(
            "no Docker engine answers, and only root can set one up.",
            remedy="Start Docker, or run this command as root on Debian.",
        ) from error
    if enginedaemon.find_program("dockerd") is None and not shutil.which("apt-get"):
        raise EngineUnavailableError(
            "no Docker engine is installed, and Cellblock can install one on Debian only.",
            remedy="Install Docker, then run this command again.",
        ) from error


def _unfinished(paths: EnginePaths) -> bool:
    """Return whether an interrupted setup of our engine left something to do."""
    record = EngineRecord.load(paths.record)
    return record.ours and may_configure(paths) and (not paths.config.exists() or bool(_missing()))


def _missing() -> list[str]:
    programs = {"iptables": "iptables", "mmdebstrap": "mmdebstrap", "dockerd": "docker.io"}
    return [package for program, package in programs.items() if enginedaemon.find_program(program) is None]


def _bring_up(report: Report, paths: EnginePaths) -> None:
    try:
        if may_configure(paths):
            _set_up(report, paths)
        if not enginedaemon.answers():
            enginedaemon.start(paths, report)
        elif may_configure(paths):
            enginedaemon.reload(paths)
            if enginedaemon.systemd_runs(paths):  # which started it when the package was installed
                enginedaemon.start_unit(paths)
    except OSError as error:
        if isinstance(error, EngineError):
            raise
        raise EngineSetupError(
            f"the engine could not be set up: {error}.", remedy="Run the command again as root."
        ) from error


def _set_up(report: Report, paths: EnginePaths) -> None:
    """Install missing packages and write our daemon.json."""
    replace(EngineRecord.load(paths.record), ours=True).save(paths.record)
    missing = _missing()
    if shutil.which("apt-get") and (missing or enginedaemon.find_program("runsc") is None):
        aptpackages.repair(report)
        aptpackages.update(report)
        beside = [package for package in missing if package != "docker.io"]
        if beside:
            aptpackages.install(beside, report)
        if enginedaemon.find_program("runsc") is None:
            aptpackages.install_runsc(report)
    # Before docker.io, because with systemd its installation starts the daemon with this configuration.
    configure(paths, enginedaemon.find_program("runsc"))
    if "docker.io" in missing:
        aptpackages.install(["docker.io"], report)


@contextlib.contextmanager
def _exclusive(paths: EnginePaths, report: Report) -> Iterator[None]:
    """Hold this host's setup lock. It is released when its process ends, however it ends."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with Path(paths.lock).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineSetupError(
                        f"another process has been setting up the engine for {_LOCK_SECONDS / 60:.0f} minutes.",
                        remedy="Wait until it ends, then run the command again.",
                    ) from None
                report("waiting for another process that sets up the engine")
                time.sleep(0.5)
        yield
