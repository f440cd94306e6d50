"""The wheels of the sandbox image: downloaded on the host against their pinned hashes, and kept for the next build.

They are fetched here and not in the build, so that a build needs no network: this works behind a proxy that intercepts
TLS, offline once they are here, and with every builder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import ImageBuildError
from orchestrator.host import hostcommand

PYTHON = "3.11"
_DOWNLOAD_SECONDS = 1800.0
_GLIBC_OF_BASE = 36  # Debian 12 has 2.36: any wheel for an older one runs
_OLDEST_GLIBC = 17
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/cellblock``, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellblock"


def fetch(requirements: Path, machine: str, cache: Path, report: Callable[[int, int, str], None]) -> list[Path]:
    """Return the wheels that ``requirements`` pins, downloading them where the cache does not have them all.

    Args:
        requirements: a lock file with hashes.
        machine: the engine's architecture in Docker's words.
        cache: a folder that only this process writes to meanwhile.
        report: called with packages done, packages in all, and the one at hand.

    Raises:
        ImageBuildError: the download failed; the cache holds no half of it.
    """
    lock = requirements.read_bytes()
    folder = cache / "wheels" / f"{hashlib.sha256(lock).hexdigest()[:16]}-{machine}"
    total = len(_PIN.findall(lock.decode()))
    if not complete(folder, lock.decode()):
        _download(requirements, machine, folder, total, report)
    report(total, total, "all here")
    return sorted(folder.glob("*.whl"))


def complete(folder: Path, lock: str) -> bool:
    """Return whether a folder holds one wheel for each pin, and each with a pinned hash."""
    wheels = list(folder.glob("*.whl"))
    pinned = set(_HASH.findall(lock))
    return len(wheels) == len(_PIN.findall(lock)) and all(_sha256(wheel) in pinned for wheel in wheels)


def platforms(machine: str) -> list[str]:
    """Return the platform tags whose wheels run in the image, the newest first.

    Raises:
        ImageBuildError: no wheels are pinned for this architecture.
    """
    if machine not in _MACHINES:
        raise ImageBuildError(f"the engine runs on {machine!r}; the image is made for amd64 and arm64.")
    name = _MACHINES[machine]
    newest_first = [f"manylinux_2_{minor}_{name}" for minor in range(_GLIBC_OF_BASE, _OLDEST_GLIBC - 1, -1)]
    return [*newest_first, f"manylinux2014_{name}"]


def _download(
    requirements: Path, machine: str, folder: Path, total: int, report: Callable[[int, int, str], None]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".part-*"):  # of a download that was killed
        shutil.rmtree(leftover)
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith(("Collecting ", "Processing ")):
            report(done, total, line.split()[1].rpartition("/")[2])
            done += 1

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        wheels = Path(part, "wheels")
        command = _command(requirements, machine, wheels)
        finished = hostcommand.run(command, seconds=_DOWNLOAD_SECONDS, on_line=follow)
        if finished.code != 0 or not complete(wheels, requirements.read_text()):
            raise ImageBuildError(
                f"the Python packages of the sandbox image could not be downloaded (pip ended with {finished.code}):\n"
                f"{finished.tail}\n",
                remedy="See that `pip download` reaches your package index from here, then run this again.",
            )
        if folder.exists():
            shutil.rmtree(folder)
        wheels.rename(folder)


def _command(requirements: Path, machine: str, folder: Path) -> list[str]:
    tags = [f"--platform={tag}" for tag in platforms(machine)]
    target = [f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none", *tags]
    exact = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, *exact, *target, *quiet, f"--dest={folder}", f"--requirement={requirements}"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
