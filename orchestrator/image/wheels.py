"""The wheels of the sandbox image: download them on the host, check their pinned hashes and cache them.

The host downloads them so that the build itself needs no network. That works behind a proxy that intercepts TLS, with
every builder, and offline once the wheels are cached.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import ImageBuildError
from orchestrator.host import hostcommand
from orchestrator.image.resolver import sha256_of
from orchestrator.image.suite import Target
from orchestrator.policy.packagelock import Lock

_DOWNLOAD_SECONDS = 1800.0


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/cellblock``, or the same folder in ``~/.cache``. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellblock"


def fetch(lock: Lock, target: Target, cache: Path, report: Callable[[int, int, str], None]) -> list[Path]:
    """Return the wheels that a lock pins, after downloading them if the cache does not have all of them.

    Args:
        cache: a folder that only this process writes to during the call.
        report: called with the number of packages done, their total number and the current package.

    Raises:
        ImageBuildError: there are no wheels for this architecture, or the download failed. The cache is unchanged.
    """
    if not target.is_known:
        raise ImageBuildError(
            f"the sandbox image cannot be built for this engine's architecture, {target.architecture!r}.",
            remedy="Use an engine on amd64 or arm64.",
        )
    suite, total = target.suite, len(lock.pins)
    folder = cache / "wheels" / f"{lock.digest[:16]}-{suite.codename}-{suite.python}-{target.architecture}"
    if not complete(folder, lock):
        _download(lock, target, folder, report)
    report(total, total, "all downloaded")
    return sorted(folder.glob("*.whl"))


def complete(folder: Path, lock: Lock) -> bool:
    """Return whether a folder has one wheel for each pinned package, all with pinned hashes."""
    wheels = list(folder.glob("*.whl"))
    hashes = {each for pin in lock.pins for each in pin.hashes}
    return len(wheels) == len(lock.pins) and all(sha256_of(wheel) in hashes for wheel in wheels)


def _download(lock: Lock, target: Target, folder: Path, report: Callable[[int, int, str], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".part-*"):  # a killed download leaves its folder
        shutil.rmtree(leftover)
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith(("Collecting ", "Processing ")):
            report(done, len(lock.pins), line.split()[1].rpartition("/")[2])
            done += 1

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        wheels, listed = Path(part, "wheels"), Path(part, "lock.txt")
        wheels.mkdir()
        listed.write_text(lock.text)
        finished = hostcommand.run(_command(listed, target, wheels), seconds=_DOWNLOAD_SECONDS, on_line=follow)
        if finished.code != 0 or not complete(wheels, lock):
            reached = "DO NOT MATCH THE HASHES" in finished.tail or "No matching distribution" in finished.tail
            raise ImageBuildError(
                "the Python packages of the sandbox image could not be downloaded (pip failed with exit status "
                f"{finished.code}):\n{finished.tail}\n",
                remedy="The index has no wheel with such a version and hash for this Python: correct the lock file."
                if reached
                else "Check that `pip download` reaches your package index from here, then run the command again.",
            )
        if folder.exists():
            shutil.rmtree(folder)
        wheels.rename(folder)


def _command(requirements: Path, target: Target, folder: Path) -> list[str]:
    exact = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, *exact, *target.options(), *quiet, f"--dest={folder}", f"--requirement={requirements}"]
