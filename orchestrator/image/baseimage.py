"""What the sandbox image is built on: the operator's choice, this host's own Debian packages, or the slim Python."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from orchestrator.container.engine import FAILURES, translate
from orchestrator.errors import ImageBuildError
from orchestrator.host import aptsources, hostcommand

SLIM_PYTHON = "python:3.11-slim-bookworm"
_CODENAME = "bookworm"  # the Debian whose Python is 3.11, for which the wheels are pinned
_REPOSITORY = "cellblock-base"
_SECONDS = 1200.0
# What mmdebstrap copies from this host, and what only a reader of the image's files would want.
_LEFT_OUT = ("/etc/hostname", "/etc/resolv.conf", "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_REMEDY = (
    "Set CELLBLOCK_BASE_IMAGE to an image with Python 3.11 that this engine has or can pull; or, on Debian 12, install "
    "mmdebstrap and run this as root, and the base is made of Debian packages."
)

Report = Callable[[str], None]


def ensure(client: docker.DockerClient, wanted: str, packages: Path, machine: str, report: Report, force: bool) -> str:
    """Return the name of an image in the engine to build on, making or pulling it where it is not there.

    Args:
        wanted: the operator's choice, or "".
        packages: the list of Debian packages.
        machine: the engine's architecture in Docker's words.
        force: make it anew even if it is there.

    Raises:
        ImageBuildError: it could be neither made nor pulled.
        EngineError: the engine failed.
    """
    if wanted or not can_make(machine):
        return _pull(client, wanted or SLIM_PYTHON, report)
    name = f"{_REPOSITORY}:{_fingerprint(packages)}"
    if force or not _has(client, name):
        _make(client, name, packages, report)
    return name


def can_make(machine: str) -> bool:
    """Return whether this host can make the base: root on the right Debian, with mmdebstrap, for this architecture."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return (
        os.geteuid() == 0
        and shutil.which("mmdebstrap") is not None
        and release.get("VERSION_CODENAME") == _CODENAME
        and _MACHINES.get(platform.machine()) == machine
    )


def package_names(packages: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in packages.read_text().splitlines())
    return [line for line in lines if line]


def _fingerprint(packages: Path) -> str:
    inputs = (_CODENAME, *package_names(packages), *_LEFT_OUT)
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]


def _make(client: docker.DockerClient, name: str, packages: Path, report: Report) -> None:
    sources = aptsources.of_debian(aptsources.read(), _CODENAME)
    if not sources:
        raise ImageBuildError(
            "this host's apt sources name no Debian mirror to make the base image from.", remedy=_REMEDY
        )
    with tempfile.TemporaryDirectory(prefix="cellblock-base-") as folder:
        mirror = Path(folder, "debian.sources")
        mirror.write_text("\n".join(source.render() for source in sources))
        full, slim = Path(folder, "full.tar"), Path(folder, "slim.tar")
        finished = hostcommand.run(
            _mmdebstrap(package_names(packages), full, mirror),
            seconds=_SECONDS,
            on_line=lambda line: report(line.removeprefix("I: ")) if line.startswith("I: ") else None,
        )
        if finished.code != 0:
            raise ImageBuildError(
                f"mmdebstrap could not make the base image (it ended with {finished.code}):\n{finished.tail}\n",
                remedy=_REMEDY,
            )
        _filter(full, slim)
        report("importing it into the engine")
        _import(client, slim, name)


def _mmdebstrap(packages: list[str], target: Path, mirror: Path) -> list[str]:
    merged_usr = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    # extract: no maintainer script runs, so neither apt, dpkg nor perl is needed inside.
    options = ["--variant=extract", "--mode=root", "--format=tar", merged_usr, f"--include={','.join(packages)}"]
    return ["mmdebstrap", *options, _CODENAME, str(target), str(mirror)]


def _filter(full: Path, slim: Path) -> None:
    options = [f"--path-exclude={path}" for path in _LEFT_OUT]
    with full.open("rb") as source, slim.open("wb") as target:
        code = subprocess.run(["mmtarfilter", *options], stdin=source, stdout=target, check=False).returncode
    if code != 0:
        raise ImageBuildError(f"mmtarfilter could not trim the base image (it ended with {code}).", remedy=_REMEDY)
    full.unlink()


def _import(client: docker.DockerClient, archive: Path, name: str) -> None:
    repository, _, tag = name.partition(":")
    changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "LABEL org.cellblock.role=base"]
    try:
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=changes)
        present = _has(client, name)
    except FAILURES as error:
        raise translate(error) from error
    if not present:
        raise ImageBuildError("the engine did not take the base image.", remedy="Its log says why.")


def _pull(client: docker.DockerClient, name: str, report: Report) -> str:
    if _has(client, name):
        return name
    report(f"pulling {name}")
    try:
        client.images.pull(name if ":" in name.rpartition("/")[2] else f"{name}:latest")
    except FAILURES as error:
        raise ImageBuildError(f"the base image {name!r} could not be pulled: {error}.", remedy=_REMEDY) from error
    return name


def _has(client: docker.DockerClient, name: str) -> bool:
    try:
        client.api.inspect_image(name)
    except ImageNotFound:
        return False
    except FAILURES as error:
        raise translate(error) from error
    return True
