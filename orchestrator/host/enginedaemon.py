"""The daemon's process: clear away what a killed one left, start it, wait for it, end it. Knows systemd if it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.container import engine
from orchestrator.errors import EngineError, EngineSetupError
from orchestrator.host import hostcommand
from orchestrator.host.engineconfig import EnginePaths, EngineRecord

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_PROBE_SECONDS = 5.0
_ADMIN_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"

Report = Callable[[str], None]


def answers() -> bool:
    """Return whether an engine answers this user."""
    try:
        engine.connect(_PROBE_SECONDS).close()
    except EngineError:
        return False
    return True


def find_program(name: str) -> str | None:
    """Look for a program where administrators' programs are too."""
    return shutil.which(name, path=_ADMIN_PATH)


def start(paths: EnginePaths, report: Report) -> None:
    """Start the daemon in the background, in a session of its own, and wait until it answers.

    Raises:
        EngineSetupError: it did not; quotes its log.
    """
    if Path("/run/systemd/system").is_dir():
        _start_by_systemd(paths)
        return
    clear_stale(paths)
    running = pid_in(paths.pid_file)
    if running:
        report(f"waiting for the daemon that is there (process {running})")
        _wait(paths, None)
        return
    report("starting the daemon")
    process = _spawn(paths)
    record = replace(
        EngineRecord.load(paths.record), pid=process.pid, started=start_ticks(process.pid), boot=_boot(), systemd=False
    )
    record.save(paths.record)
    _wait(paths, process)


def stop(paths: EnginePaths, report: Report) -> bool:
    """End the daemon if it is one that we started; return whether it was.

    Raises:
        EngineSetupError: it did not end in time.
    """
    record = EngineRecord.load(paths.record)
    if record.systemd:
        report("stopping the daemon")
        hostcommand.run(["systemctl", "stop", "docker.service", "docker.socket"], seconds=_STOP_SECONDS)
    elif is_ours(record):
        report(f"stopping the daemon (process {record.pid})")
        os.kill(record.pid, signal.SIGTERM)
        _await_end(record)
    else:
        return False
    replace(record, pid=0, started=0, boot="", systemd=False).save(paths.record)
    return True


def is_ours(record: EngineRecord) -> bool:
    """Return whether the daemon that we started still runs; another process that got its number does not count."""
    return record.pid > 0 and record.boot == _boot() and record.started == start_ticks(record.pid)


def clear_stale(paths: EnginePaths) -> None:
    """Remove the pid files of a daemon and a containerd that are gone, whoever has their numbers now.

    dockerd takes a number in use for itself, and would not start. A containerd that outlived its dockerd is adopted by
    the next one, and with it the containers, which it then ends.
    """
    for file, program in ((paths.pid_file, "dockerd"), (paths.run / "containerd/containerd.pid", "containerd")):
        pid = pid_in(file)
        if file.exists() and _program(pid) != program:
            file.unlink(missing_ok=True)


def reload(paths: EnginePaths) -> None:
    """Have the daemon read the runtimes in daemon.json again."""
    pid = pid_in(paths.pid_file)
    if pid and _program(pid) == "dockerd":
        os.kill(pid, signal.SIGHUP)


def pid_in(file: Path) -> int:
    """Return the process number in a file, or 0."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() if pid else ""
    except OSError:
        return ""


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _spawn(paths: EnginePaths) -> subprocess.Popen[bytes]:
    program = find_program("dockerd")
    if program is None:
        raise EngineSetupError("no dockerd is installed.", remedy="Install Docker (on Debian: docker.io).")
    paths.log.parent.mkdir(parents=True, exist_ok=True)
    with paths.log.open("wb") as log:
        return subprocess.Popen(
            [program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PATH": _ADMIN_PATH},
            start_new_session=True,
        )


def _start_by_systemd(paths: EnginePaths) -> None:
    finished = hostcommand.run(["systemctl", "start", "docker.service"], seconds=_START_SECONDS)
    if finished.code != 0:
        journal = hostcommand.run(["journalctl", "-u", "docker", "-n", "15", "--no-pager"], seconds=10)
        raise EngineSetupError(
            f"systemd could not start the Docker engine:\n{finished.tail}\n{journal.tail}\n",
            remedy="`systemctl status docker` says more.",
        )
    replace(EngineRecord.load(paths.record), systemd=True).save(paths.record)
    _wait(paths, None)


def _wait(paths: EnginePaths, process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not answers():
        if process is not None and process.poll() is not None:
            raise EngineSetupError(
                f"the Docker daemon ended with {process.returncode} instead of starting:\n{_last_lines(paths.log)}\n",
                remedy=f"Its whole log is in {paths.log}.",
            )
        if time.monotonic() > deadline:
            raise EngineSetupError(
                f"the Docker daemon does not answer after {_START_SECONDS:.0f} s:\n{_last_lines(paths.log)}\n",
                remedy="End it (`kill` the process that /run/docker.pid names) and run this again.",
            )
        time.sleep(0.1)
    if process is not None:
        process.returncode = 0  # it is meant to outlive this object, which would warn of that


def _await_end(record: EngineRecord) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while is_ours(record):
        if time.monotonic() > deadline:
            raise EngineSetupError(
                f"the Docker daemon (process {record.pid}) did not end within {_STOP_SECONDS:.0f} s.",
                remedy="It waits for its containers; `kill` it again, or look into its log.",
            )
        time.sleep(0.05)


def _last_lines(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    except OSError:
        return ""
