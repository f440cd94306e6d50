"""Build the sandbox image, and find out whether the engine has the one that matches its sources. Every call blocks.

The image carries a digest of its inputs as a label and, unless the operator names the image, in its tag. The engine
sets the tag when the image is complete, so an interrupted build leaves no image with that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import EngineError, ImageBuildError
from orchestrator.image import suite, wheels
from orchestrator.image.baseimage import ensure_base_image, host_architecture
from orchestrator.image.packages import PackageSource
from orchestrator.image.suite import Suite
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings, data_folder

LABEL = "org.cellblock.inputs"
REPOSITORY = "cellblock-sandbox"
_SOURCES = "sandbox_image"
_STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)")


@dataclass(frozen=True)
class BuildStep:
    """Progress of a build.

    Attributes:
        name: "base image", "packages" or "image".
        done: how much of ``total`` is done; both are 0 if that is unknown.
        detail: the current work, one line.
    """

    name: str
    done: int
    total: int
    detail: str


@dataclass(frozen=True)
class BuiltImage:
    """A sandbox image in the engine.

    Attributes:
        name: its tag.
        image_id: the engine's identifier.
        inputs: the digest of its inputs, from its label; "" if it has no such label.
        size: bytes, uncompressed.
        built: this call built the image.
    """

    name: str
    image_id: str
    inputs: str
    size: int
    built: bool = False


Report = Callable[[BuildStep], None]


def input_files(folder: Path) -> list[Path]:
    """Return the files that an image is made from, sorted. Leaves out what editors and interpreters create."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        and path.suffix not in (".pyc", ".swp", ".orig")
        and not path.name.endswith("~")
    )


def input_digest(folder: Path, base_image: str = "", of: Suite | None = None) -> str:
    """Return the SHA-256 of the names and contents of all input files, the operator's base image and the Python.

    Args:
        folder: the folder of the input files.
        base_image: the image that the operator names, or "".
        of: the Debian release of the image; None: the one that this host makes its image of.
    """
    made_of = of or suite.choose(base_image)
    total = hashlib.sha256(f"{base_image}\n{made_of.codename} {made_of.python}\n".encode())
    for path in input_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def image_name(settings: Settings) -> str:
    """Return the name of the sandbox image: the operator's, or one whose tag is the digest of its inputs."""
    return settings.image or f"{REPOSITORY}:{input_digest(data_folder(_SOURCES), settings.base_image)[:12]}"


def package_source(settings: Settings, policy: Policy) -> PackageSource:
    """Return where the packages of running sessions come from, for the sandbox image of these settings."""
    pinned = data_folder(_SOURCES) / "requirements.txt"
    made_of = suite.choose(settings.base_image)
    return PackageSource(policy.packages, made_of, host_architecture(), pinned, wheels.cache_folder())


def find_image(images: EngineImages, name: str) -> BuiltImage | None:
    """Return the image with this name, whatever its inputs were, or None if the engine has none.

    Raises:
        EngineError: the engine failed.
    """
    image = images.find(name)
    return None if image is None else BuiltImage(name, image.image_id, image.labels.get(LABEL, ""), image.size)


def find_current_image(images: EngineImages, settings: Settings) -> BuiltImage | None:
    """Return the sandbox image if the engine has it and it matches its sources, else None.

    Raises:
        EngineError: the engine failed.
    """
    image = find_image(images, image_name(settings))
    return image if image and image.inputs == input_digest(data_folder(_SOURCES), settings.base_image) else None


def build_image(images: EngineImages, settings: Settings, report: Report, force: bool = False) -> BuiltImage:
    """Return the sandbox image that matches its sources, after building it if the engine does not have it.

    An image with the same name and other inputs loses the name. Containers that run from it continue.

    Args:
        report: called in this thread with each step.
        force: build the image, and a base image of Debian packages, even if they exist.

    Raises:
        ImageBuildError: the build failed. An earlier image with this name is unchanged.
        EngineError: the engine failed.
    """
    present = None if force else find_current_image(images, settings)
    if present is not None:
        return present
    try:
        cache = wheels.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache / "build.lock", report):
            present = None if force else find_current_image(images, settings)
            return present or _build(images, settings, cache, report, force)
    except EngineError:
        raise
    except OSError as error:
        raise ImageBuildError(
            f"the sandbox image could not be built: {error}.",
            remedy="XDG_CACHE_HOME and TMPDIR set the folders of wheels and temporary files.",
        ) from error


def _build(images: EngineImages, settings: Settings, cache: Path, report: Report, force: bool) -> BuiltImage:
    folder = data_folder(_SOURCES)
    inputs = input_digest(folder, settings.base_image)
    name = image_name(settings)
    architecture, made_of = images.architecture(), suite.choose(settings.base_image)
    packages = wheels.fetch(
        folder / "requirements.txt",
        made_of,
        architecture,
        cache,
        lambda *progress: report(BuildStep("packages", *progress)),
    )
    base = ensure_base_image(
        images,
        settings.base_image,
        made_of,
        folder / "packages.txt",
        architecture,
        lambda line: report(BuildStep("base image", 0, 0, line)),
        force,
    )
    arguments = {"BASE_IMAGE": base, "PYTHON": made_of.python}
    with (
        _context(folder, packages) as context,
        images.build(context, name=name, arguments=arguments, labels={LABEL: inputs}) as events,
    ):
        _follow(events, report)
    image = find_image(images, name)
    if image is None or image.inputs != inputs:
        raise ImageBuildError(
            "the engine built the sandbox image and no longer has it.",
            remedy="Check whether something on this host prunes images.",
        )
    return BuiltImage(image.name, image.image_id, image.inputs, image.size, built=True)


@contextlib.contextmanager
def _context(folder: Path, packages: list[Path]) -> Iterator[IO[bytes]]:
    """Yield the build context as a tar file. Same inputs, same bytes: owners and times are left out."""
    members = {path.relative_to(folder).as_posix(): path for path in input_files(folder)}
    members |= {f"wheels/{wheel.name}": wheel for wheel in packages}
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, path in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(entry, content)
        file.seek(0, io.SEEK_SET)
        yield file


def _follow(events: Iterator[dict[str, Any]], report: Report) -> None:
    done = total = 0
    printed: list[str] = []
    for event in events:
        if "error" in event:
            log = "\n".join(printed[-15:])
            raise ImageBuildError(
                f"the engine could not build the sandbox image: {event['error']}\n{log}\n",
                remedy="Run `cellblock image build --force`, which also makes the base image again.",
            )
        for line in str(event.get("stream", "")).splitlines():
            step = _STEP.match(line)
            if step:
                done, total = int(step[1]) - 1, int(step[2])
            elif not line.strip() or line.startswith((" --->", "Removing intermediate")):
                continue
            else:
                printed.append(line)
            report(BuildStep("image", done, total, step[3] if step else line.strip()))


@contextlib.contextmanager
def _exclusive(lock: Path, report: Report) -> Iterator[None]:
    """Hold this user's build lock, so that two builds at the same time do the work once.

    The lock is released when its process ends, however it ends.
    """
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(BuildStep("image", 0, 0, "waiting for another build"))
                time.sleep(0.5)
        yield
