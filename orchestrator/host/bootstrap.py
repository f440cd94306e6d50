"""Bring up a Docker engine on a bare Debian machine, and end the one that was brought up.

An engine that answers is used and left as it is. One that somebody else set up and that does not run is started, with
its own configuration. Only where there was none is one installed and configured. Blocks: for the command line.

Each step can be interrupted and repeated: docker.io comes last, so that as long as it is missing the rest is seen to.
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
from orchestrator.errors import EngineError, EnginePermissionError, EngineSetupError, EngineUnavailableError
from orchestrator.host import aptpackages, enginedaemon
from orchestrator.host.engineconfig import EnginePaths, EngineRecord, configure, gvisor_offer, may_configure

_TIMEOUT = 10.0  # seconds for one call to an engine that has just answered
_LOCK_SECONDS = 1800.0

Report = Callable[[str], None]
HOST = EnginePaths()


@dataclass(frozen=True)
class EngineStatus:
    """An engine that answers.

    Attributes:
        version: its own.
        runtimes: the container runtimes that it has, sorted.
        ours: the daemon was started by us.
        offer: how gVisor can be added, where it is missing and the engine is not ours; else "".
    """

    version: str
    runtimes: tuple[str, ...]
    ours: bool
    offer: str


def status(paths: EnginePaths = HOST) -> EngineStatus:
    """Look at the engine.

    Raises:
        EngineUnavailableError: none answers.
        EnginePermissionError: this user may not talk to it.
    """
    client = engine.connect(_TIMEOUT)
    try:
        information = client.info()
    except engine.FAILURES as error:
        raise engine.translate(error) from error
    finally:
        client.close()
    fault = engine.gvisor_fault(information["Runtimes"])
    record = EngineRecord.load(paths.record)
    return EngineStatus(
        version=str(information["ServerVersion"]),
        runtimes=tuple(sorted(name for name in information["Runtimes"] if not name.startswith("io.containerd"))),
        ours=record.systemd or enginedaemon.is_ours(record),
        offer=gvisor_offer(paths, enginedaemon.find_program("runsc")) if fault and not record.ours else "",
    )


def start_engine(report: Report, paths: EnginePaths = HOST) -> EngineStatus:
    """Return an engine that answers, having done whatever that takes; at once, where one does.

    Args:
        report: called in this thread with each step, one line.

    Raises:
        EngineUnavailableError: there is none, and this process may not set one up.
        EnginePermissionError: there is one, and this user may not use it.
        EngineSetupError: setting it up failed; running this again goes on where it failed.
    """
    if _ready(paths):
        return status(paths)
    with _alone(paths, report):
        if not enginedaemon.answers() or _unfinished(paths):
            _bring_up(report, paths)
        return status(paths)


def stop_engine(report: Report, paths: EnginePaths = HOST) -> bool:
    """End the engine if we started it; return whether we had.

    Raises:
        EnginePermissionError: it is ours, and this user may not end it.
        EngineSetupError: it did not end in time.
    """
    record = EngineRecord.load(paths.record)
    if os.geteuid() != 0 and (record.systemd or enginedaemon.is_ours(record)):
        raise EnginePermissionError("the engine was started by root.", remedy="Stop it as root.")
    return enginedaemon.stop(paths, report)


def _ready(paths: EnginePaths) -> bool:
    """Return whether nothing is to do.

    Raises:
        EnginePermissionError, EngineUnavailableError: there is something to do, and not by this process.
    """
    try:
        engine.connect(_TIMEOUT).close()
    except EnginePermissionError:
        raise
    except EngineError as error:
        _refuse_where_hopeless(error)
        return False
    return os.geteuid() != 0 or not _unfinished(paths)


def _refuse_where_hopeless(error: EngineError) -> None:
    address = os.environ.get("DOCKER_HOST", "")
    if address and address.removeprefix("unix://") not in ("/var/run/docker.sock", "/run/docker.sock"):
        raise EngineUnavailableError(
            f"no Docker engine answers at DOCKER_HOST={address}.", remedy="Start it, or unset DOCKER_HOST."
        ) from error
    if os.geteuid() != 0:
        raise EngineUnavailableError(
            "no Docker engine answers, and only root can set one up.",
            remedy="Start Docker, or run this as root on Debian; rootless Docker works too (set DOCKER_HOST).",
        ) from error
    if enginedaemon.find_program("dockerd") is None and not shutil.which("apt-get"):
        raise EngineUnavailableError(
            "no Docker engine is installed, and this is no Debian, where it could be set up by itself.",
            remedy="Install Docker, and run this again.",
        ) from error


def _unfinished(paths: EnginePaths) -> bool:
    """Return whether an engine of ours still lacks something, because setting it up was interrupted."""
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
    except OSError as error:
        if isinstance(error, EngineError):
            raise
        raise EngineSetupError(f"the engine could not be set up: {error}.", remedy="Run this again as root.") from error


def _set_up(report: Report, paths: EnginePaths) -> None:
    """Install what is missing and write our daemon.json."""
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
    # Before docker.io: where systemd runs, installing that starts the daemon, with this configuration.
    configure(paths, enginedaemon.find_program("runsc"))
    if "docker.io" in missing:
        aptpackages.install(["docker.io"], report)


@contextlib.contextmanager
def _alone(paths: EnginePaths, report: Report) -> Iterator[None]:
    """Hold this host's lock, so that two set-ups at once do not meet. A dead holder's lock is free."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with Path(paths.lock).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineSetupError("another set-up of the engine is under way.", remedy="Try later.") from None
                report("another set-up of the engine is under way; waiting for it")
                time.sleep(0.5)
        yield
