"""The wheels of the sandbox image: download them on the host, check their pinned hashes and cache them.

The host downloads them so that the build itself needs no network. That works behind a proxy that intercepts TLS, with
every builder, and offline once the wheels are cached.
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
from orchestrator.image.suite import Suite

_DOWNLOAD_SECONDS = 1800.0
_OLDEST_GLIBC = 17  # minor version
_WHEEL_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/cellblock``, or the same folder in ``~/.cache``. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellblock"


def fetch(
    requirements: Path, suite: Suite, architecture: str, cache: Path, report: Callable[[int, int, str], None]
) -> list[Path]:
    """Return the wheels that ``requirements`` pins, after downloading them if the cache does not have all of them.

    Args:
        requirements: a requirements file with hashes.
        suite: the Debian release that the wheels are for.
        architecture: the engine's architecture in Docker's words.
        cache: a folder that only this process writes to during the call.
        report: called with the number of packages done, their total number and the current package.

    Raises:
        ImageBuildError: the download failed. The cache is unchanged.
    """
    pinned = requirements.read_bytes()
    folder = cache / "wheels" / f"{hashlib.sha256(pinned).hexdigest()[:16]}-{suite.codename}-{architecture}"
    total = len(_PIN.findall(pinned.decode()))
    if not complete(folder, pinned.decode()):
        _download(requirements, target_options(suite, architecture), folder, total, report)
    report(total, total, "all downloaded")
    return sorted(folder.glob("*.whl"))


def complete(folder: Path, requirements: str) -> bool:
    """Return whether a folder has one wheel for each pinned package, all with pinned hashes."""
    wheels = list(folder.glob("*.whl"))
    hashes = set(_HASH.findall(requirements))
    return len(wheels) == len(_PIN.findall(requirements)) and all(_sha256(wheel) in hashes for wheel in wheels)


def platforms(architecture: str, suite: Suite) -> list[str]:
    """Return the platform tags of wheels that run in the image, newest first.

    Raises:
        ImageBuildError: there are no wheels for this architecture.
    """
    if architecture not in _WHEEL_ARCHITECTURES:
        raise ImageBuildError(
            f"the sandbox image cannot be built for this engine's architecture, {architecture!r}.",
            remedy="Use an engine on amd64 or arm64.",
        )
    name = _WHEEL_ARCHITECTURES[architecture]
    newest_first = [f"manylinux_2_{minor}_{name}" for minor in range(suite.glibc, _OLDEST_GLIBC - 1, -1)]
    return [*newest_first, f"manylinux2014_{name}"]


def _download(
    requirements: Path, target: list[str], folder: Path, total: int, report: Callable[[int, int, str], None]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".part-*"):  # a killed download leaves its folder
        shutil.rmtree(leftover)
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith(("Collecting ", "Processing ")):
            report(done, total, line.split()[1].rpartition("/")[2])
            done += 1

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        wheels = Path(part, "wheels")
        command = _command(requirements, target, wheels)
        finished = hostcommand.run(command, seconds=_DOWNLOAD_SECONDS, on_line=follow)
        if finished.code != 0 or not complete(wheels, requirements.read_text()):
            raise ImageBuildError(
                "the Python packages of the sandbox image could not be downloaded (pip failed with exit status "
                f"{finished.code}):\n{finished.tail}\n",
                remedy="Check that `pip download` reaches your package index from here, then run the command again.",
            )
        if folder.exists():
            shutil.rmtree(folder)
        wheels.rename(folder)


def target_options(suite: Suite, architecture: str) -> list[str]:
    """Return pip's options for wheels that run in the image.

    Raises:
        ImageBuildError: see ``platforms``.
    """
    tags = [f"--platform={tag}" for tag in platforms(architecture, suite)]
    abis = [f"--abi={abi}" for abi in (f"cp{suite.python.replace('.', '')}", "abi3", "none")]
    return [f"--python-version={suite.python}", "--implementation=cp", *abis, *tags]


def _command(requirements: Path, target: list[str], folder: Path) -> list[str]:
    exact = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, *exact, *target, *quiet, f"--dest={folder}", f"--requirement={requirements}"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
