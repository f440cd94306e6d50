"""Start and stop the Docker daemon, and clean up after a killed daemon.

Where systemd runs, the daemon is its unit docker.service: it starts with the machine, and its log is the journal.
Elsewhere it is a process of its own, with a log file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.container import engine
from orchestrator.errors import EngineError, EngineSetupError
from orchestrator.host import hostcommand
from orchestrator.host.engineconfig import EnginePaths, EngineRecord

_START_SECONDS = 60.0
_UNIT_SECONDS = 180.0  # for systemctl, which waits for the unit; seen on a loaded virtual machine: over 60
_LONGEST_LINE = 300  # characters of a line of the journal in a message
_STOP_SECONDS = 60.0
_PROBE_SECONDS = 5.0
_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"

Report = Callable[[str], None]


def answers() -> bool:
    """Return whether an engine answers this user."""
    try:
        engine.connect(_PROBE_SECONDS).close()
    except EngineError:
        return False
    return True


def find_program(name: str) -> str | None:
    """Return the path of a program, also searching the folders of administrators' programs, or None."""
    return shutil.which(name, path=_path())


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_ADMIN_FOLDERS}"


def start(paths: EnginePaths, report: Report) -> None:
    """Start the daemon, as systemd's unit or else in a session of its own, and wait until it answers. Idempotent.

    Raises:
        EngineSetupError: it does not answer. The message quotes its log.
    """
    clear_stale(paths)
    running = pid_in(paths.pid_file)
    if running:
        report(f"waiting for the daemon that runs already (process {running})")
        _wait(paths, None)
    elif systemd_runs(paths):
        report("starting the unit docker.service")
        start_unit(paths)
    else:
        report("starting the daemon")
        _start_process(paths)


def systemd_runs(paths: EnginePaths) -> bool:
    """Return whether systemd manages this machine's daemons."""
    return paths.systemd.is_dir() and find_program("systemctl") is not None


def start_unit(paths: EnginePaths) -> None:
    """Start the unit docker.service, wait until the engine answers, and record it. Idempotent.

    The unit of an engine that Cellblock set up is enabled too, so that it starts with the machine. A unit that failed
    too often is tried again.

    Raises:
        EngineSetupError: systemd could not start it, or it does not answer. The message quotes its journal.
    """
    record = EngineRecord.load(paths.record)
    if record.ours:
        _systemctl(["enable", "docker.service"], _UNIT_SECONDS)
    hostcommand.run(["systemctl", "reset-failed", "docker.service", "docker.socket"], seconds=_PROBE_SECONDS)
    _systemctl(["start", "docker.service"], _UNIT_SECONDS)
    replace(record, pid=0, started=0, boot="", systemd=True).save(paths.record)
    _wait(paths, None)


def _start_process(paths: EnginePaths) -> None:
    process = _spawn(paths)
    record = replace(
        EngineRecord.load(paths.record), pid=process.pid, started=start_ticks(process.pid), boot=_boot(), systemd=False
    )
    record.save(paths.record)
    _wait(paths, process)


def stop(paths: EnginePaths, report: Report) -> bool:
    """Stop the daemon if Cellblock started it, and return whether it did.

    Raises:
        EngineSetupError: the daemon did not end in time.
    """
    record = EngineRecord.load(paths.record)
    if record.systemd and systemd_runs(paths):
        report("stopping the unit docker.service")
        _systemctl(["stop", "docker.service", "docker.socket"], _STOP_SECONDS)
    elif is_ours(record):
        report(f"stopping the daemon (process {record.pid})")
        os.kill(record.pid, signal.SIGTERM)
        _await_end(record)
    else:
        return False
    replace(record, pid=0, started=0, boot="", systemd=False).save(paths.record)
    return True


def is_ours(record: EngineRecord) -> bool:
    """Return whether the daemon that Cellblock started still runs. Another process with its pid does not count."""
    return record.pid > 0 and record.boot == _boot() and record.started == start_ticks(record.pid)


def clear_stale(paths: EnginePaths) -> None:
    """Remove the pid files of a dockerd and a containerd that are gone, even if other processes have their pids now.

    dockerd does not start while any process has the pid in its file. A containerd that outlived its dockerd keeps its
    file: the next dockerd takes it over together with its containers, and ends those.
    """
    for file, program in ((paths.pid_file, "dockerd"), (paths.run / "containerd/containerd.pid", "containerd")):
        pid = pid_in(file)
        if file.exists() and _program(pid) != program:
            file.unlink(missing_ok=True)


def reload(paths: EnginePaths) -> None:
    """Let the daemon read the runtimes in daemon.json again."""
    pid = pid_in(paths.pid_file)
    if pid and _program(pid) == "dockerd":
        os.kill(pid, signal.SIGHUP)


def pid_in(file: Path) -> int:
    """Return the process id in a file, or 0."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot, or 0 if it does not run or is a zombie."""
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
        raise EngineSetupError(
            "the Docker daemon was not started: dockerd is not installed.",
            remedy="Install Docker (on Debian: docker.io).",
        )
    paths.log.parent.mkdir(parents=True, exist_ok=True)
    paths.log.write_bytes(b"")
    with paths.log.open("ab") as log:  # appends, so that truncating it frees its blocks
        return subprocess.Popen(
            [program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PATH": _path()},
            start_new_session=True,
        )


def _systemctl(arguments: Sequence[str], seconds: float) -> None:
    finished = hostcommand.run(["systemctl", *arguments], seconds=seconds)
    if finished.code != 0:
        how = f"did not end within {seconds:.0f} s" if finished.expired else f"exit status {finished.code}"
        raise EngineSetupError(
            f"`systemctl {' '.join(arguments)}` failed ({how}):\n{finished.tail}\n{_journal()}\n",
            remedy="Run `systemctl status docker.service` for details. A masked unit needs `systemctl unmask`.",
        )


def _journal() -> str:
    """Return the last lines of the unit's journal, or "" where there is none."""
    try:
        journal = hostcommand.run(["journalctl", "-u", "docker.service", "-n", "15", "--no-pager"], seconds=10)
    except OSError:
        return ""
    return "\n".join(line[:_LONGEST_LINE] for line in journal.tail.splitlines())


def _wait(paths: EnginePaths, process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not answers():
        if process is not None and process.poll() is not None:
            raise EngineSetupError(
                f"the Docker daemon did not start (exit status {process.returncode}):\n{_last_lines(paths.log)}\n",
                remedy=f"Read its log in {paths.log}.",
            )
        if time.monotonic() > deadline:
            raise EngineSetupError(
                f"the Docker daemon runs and does not answer after {_START_SECONDS:.0f} s:\n{_log(paths)}\n",
                remedy=f"Kill the process whose id is in {paths.pid_file}, then run the command again.",
            )
        time.sleep(0.1)
    if process is not None:
        process.returncode = 0  # the daemon outlives this object, which would otherwise warn about it


def _await_end(record: EngineRecord) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while is_ours(record):
        if time.monotonic() > deadline:
            raise EngineSetupError(
                f"the Docker daemon (process {record.pid}) did not end within {_STOP_SECONDS:.0f} s.",
                remedy="It may wait for its containers. Kill it again, or read its log.",
            )
        time.sleep(0.05)


def _log(paths: EnginePaths) -> str:
    return _journal() if systemd_runs(paths) else _last_lines(paths.log)


def _last_lines(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    except OSError:
        return ""
