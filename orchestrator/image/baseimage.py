"""The base of the sandbox image: an image that the operator names, one made of Debian packages, or slim Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import EngineError, ImageBuildError
from orchestrator.host import aptsources, hostcommand
from orchestrator.image.suite import SUITES, Suite, host_architecture, host_codename

BASE_REPOSITORY = "cellblock-base"
_SECONDS = 1200.0
# Files that mmdebstrap copies from this host, and documentation.
_EXCLUDED = ("/etc/hostname", "/etc/resolv.conf", "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_CHANGES = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "LABEL org.cellblock.role=base"]
_REMEDY = (
    "Set CELLBLOCK_BASE_IMAGE to an image that this engine has or can pull, with the Python that you want (3.11 unless "
    "you say --python). On Debian 12 and 13 you can instead install mmdebstrap and run this command as root; it then "
    "makes the base image from Debian packages, which have Python 3.11 and 3.13."
)

Report = Callable[[str], None]


def ensure_base_image(
    images: EngineImages, wanted: str, suite: Suite, packages: Path, architecture: str, report: Report, force: bool
) -> str:
    """Return the name of a base image in the engine, after making or pulling it if it is missing.

    Args:
        wanted: the image that the operator names, or "".
        suite: the Debian release to make it of.
        packages: the file that lists the Debian packages.
        architecture: the engine's architecture in Docker's words.
        force: make an image of Debian packages again even if it exists.

    Raises:
        ImageBuildError: the image can neither be made nor pulled.
        EngineError: the engine failed.
    """
    if wanted or not can_make(suite, architecture):
        return _pull(images, wanted or suite.slim_image, report)
    name = base_name(packages, suite)
    if force or images.find(name) is None:
        _make(images, name, package_names(packages, suite), suite, report)
    return name


def base_name(packages: Path, suite: Suite) -> str:
    """Return the name of a base image that is made of Debian packages."""
    inputs = (suite.codename, *package_names(packages, suite), *_EXCLUDED)
    return f"{BASE_REPOSITORY}:{hashlib.sha256(chr(10).join(inputs).encode()).hexdigest()[:12]}"


def can_make(suite: Suite, architecture: str) -> bool:
    """Return whether this host can make a base image of Debian packages for this architecture.

    That takes root, Debian 12 or 13, mmdebstrap, and a suite with the Python of the image. The suite may be another
    than the host's: its packages come from the same mirror.
    """
    return (
        os.geteuid() == 0
        and shutil.which("mmdebstrap") is not None
        and host_codename() in SUITES
        and SUITES.get(suite.codename) == suite
        and host_architecture() == architecture
    )


def package_names(packages: Path, suite: Suite) -> list[str]:
    """Return the names in a package list, without comments and empty lines, and the package of the suite's Python."""
    lines = (line.partition("#")[0].strip() for line in packages.read_text().splitlines())
    return [*(line for line in lines if line), f"python{suite.python}"]


def _make(images: EngineImages, name: str, packages: list[str], suite: Suite, report: Report) -> None:
    own = aptsources.of_debian(aptsources.read(), host_codename())
    sources = aptsources.of_release(own, host_codename(), suite.codename)
    if not sources:
        raise ImageBuildError(
            "the base image was not made: the apt sources of this host name no Debian mirror.", remedy=_REMEDY
        )
    with tempfile.TemporaryDirectory(prefix="cellblock-base-") as folder:
        mirror = Path(folder, "debian.sources")
        mirror.write_text("\n".join(source.render() for source in sources))
        full, slim = Path(folder, "full.tar"), Path(folder, "slim.tar")
        _bootstrap(_mmdebstrap(packages, suite, full, mirror), report)
        _filter(full, slim)
        report("importing the base image into the engine")
        images.import_archive(slim, name, _CHANGES)
    if images.find(name) is None:
        raise ImageBuildError(
            "the base image was not made: the engine imported it and does not list it.",
            remedy="Look into the engine's log.",
        )


def _bootstrap(command: list[str], report: Report) -> None:
    finished = hostcommand.run(
        command,
        seconds=_SECONDS,
        on_line=lambda line: report(line.removeprefix("I: ")) if line.startswith("I: ") else None,
    )
    if finished.code != 0:
        raise ImageBuildError(
            f"the base image was not made: mmdebstrap failed with exit status {finished.code}:\n{finished.tail}\n",
            remedy=_REMEDY,
        )


def _mmdebstrap(packages: list[str], suite: Suite, target: Path, mirror: Path) -> list[str]:
    merged_usr = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
    # The extract variant runs no maintainer script, so the image needs neither apt, dpkg nor perl.
    options = ["--variant=extract", "--mode=root", "--format=tar", merged_usr, f"--include={','.join(packages)}"]
    return ["mmdebstrap", *options, suite.codename, str(target), str(mirror)]


def _filter(full: Path, slim: Path) -> None:
    options = [f"--path-exclude={path}" for path in _EXCLUDED]
    with full.open("rb") as source, slim.open("wb") as target:
        code = subprocess.run(["mmtarfilter", *options], stdin=source, stdout=target, check=False).returncode
    if code != 0:
        raise ImageBuildError(
            f"the base image was not made: mmtarfilter failed with exit status {code}.", remedy=_REMEDY
        )
    full.unlink()


def _pull(images: EngineImages, name: str, report: Report) -> str:
    if images.find(name) is not None:
        return name
    report(f"pulling {name}")
    try:
        images.pull(name)
    except EngineError as error:
        cause = error.__cause__ or error
        raise ImageBuildError(f"the base image {name!r} could not be pulled: {cause}.", remedy=_REMEDY) from error
    return name
