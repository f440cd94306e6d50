"""Install Debian packages with apt, also after an earlier attempt was interrupted."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import EngineSetupError
from orchestrator.host import aptsources, hostcommand

_BACKPORTS = Path("/etc/apt/sources.list.d/cellblock-backports.sources")
_LOCK_SECONDS = 300.0
_SECONDS = 1200.0
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "LC_ALL": "C"}
_OPTIONS = (f"DPkg::Lock::Timeout={_LOCK_SECONDS:.0f}", "Acquire::Retries=3", "Dpkg::Use-Pty=0", "APT::Color=0")
_PROGRESS = ("Get:", "Unpacking ", "Setting up ")

Report = Callable[[str], None]


def update(report: Report) -> None:
    """Update apt's package lists. Ignores sources that fail: ``install`` fails if a package cannot be found."""
    report("updating the package lists")
    _run(["apt-get", *_flags(), "update"], report)


def install(packages: Sequence[str], report: Report) -> None:
    """Install packages, after repairing what an interrupted installation left.

    Raises:
        EngineSetupError: apt could not install them.
    """
    repair(report)
    names = ", ".join(package for package in packages if not package.startswith("-"))
    report(f"installing {names}")
    finished = _run(["apt-get", *_flags(), "install", "--yes", "--no-install-recommends", *packages], report)
    if finished.code != 0:
        raise EngineSetupError(
            f"apt-get could not install {names} (exit status {finished.code}):\n{finished.tail}\n",
            remedy="Packages installed so far are kept. Check that `apt-get update` works, then run the command again.",
        )


def install_runsc(report: Report) -> bool:
    """Install gVisor if possible, and return whether it is installed.

    Prefers the distribution's backports: that version executes 2.5 times faster.
    """
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    suite = f"{release}-backports"
    added = _add_backports(release)
    if added:
        _run(["apt-get", *_flags(), "update"], report)
    try:
        if any(suite in source.suites for source in aptsources.read()):
            install([f"--target-release={suite}", "runsc"], report)
            return True
    except EngineSetupError:
        if added:
            _BACKPORTS.unlink(missing_ok=True)
    try:
        install(["runsc"], report)
    except EngineSetupError as error:
        report(f"gVisor could not be installed, so kernels will run under runc: {error.message}")
        return False
    return True


def repair(report: Report) -> None:
    """Finish an interrupted installation. Waits while another package manager runs.

    Raises:
        EngineSetupError: dpkg failed, or the other package manager did not end within 300 s.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        finished = _run(["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"], report)
        if finished.code == 0:
            break
        if "lock" not in finished.tail or time.monotonic() > deadline:
            raise EngineSetupError(
                f"no package was installed: dpkg could not finish an earlier installation:\n{finished.tail}\n",
                remedy="Run `dpkg --configure -a` and fix what it reports.",
            )
        report("waiting for another package manager")
        time.sleep(1.0)
    if _run(["apt-get", *_flags(), "check"], report).code != 0:
        _run(["apt-get", *_flags(), "install", "--yes", "--fix-broken"], report)


def _add_backports(release: str) -> bool:
    source = aptsources.backports(aptsources.read(), release)
    if source is None:
        return False
    _BACKPORTS.write_text(f"# Written by cellblock, for a newer runsc.\n{source.render()}")
    return True


def _flags() -> list[str]:
    return ["-q", *(part for option in _OPTIONS for part in ("-o", option))]


def _run(command: Sequence[str], report: Report) -> hostcommand.Finished:
    def follow(line: str) -> None:
        if line.startswith(_PROGRESS):
            report(_short(line))

    return hostcommand.run(command, seconds=_SECONDS, on_line=follow, environment=_ENVIRONMENT)


def _short(line: str) -> str:
    """Shorten apt's ``Get:3 http://… bookworm/main amd64 runc amd64 1.1.5 [2,710 kB]`` to the package."""
    if not line.startswith("Get:"):
        return line.removesuffix(" ...").lower()
    words = line.split()
    # for a list, the size is in the place of the package name
    return f"fetching {words[4]}" if len(words) > 4 and not words[4].startswith("[") else "fetching the lists"
