"""Build the sandbox image, and tell whether the engine has the one that matches its sources. All of it blocks.

The image carries the digest of what it was made from as a label, and, unless the operator names it, as its tag. Its
tag is set when it is whole, so that an interrupted build leaves nothing that could be taken for an image.
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

import docker
from docker.errors import ImageNotFound

from orchestrator.container.engine import FAILURES, translate
from orchestrator.errors import EngineError, ImageBuildError
from orchestrator.image import baseimage, wheels
from orchestrator.settings import Settings, data_folder

LABEL = "org.cellblock.inputs"
REPOSITORY = "cellblock-sandbox"
_SOURCES = "sandbox_image"
_BUILD_SECONDS = 1800  # between two lines of the engine's
_STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)")


@dataclass(frozen=True)
class BuildStep:
    """Progress, for a display.

    Attributes:
        name: "base image", "packages" or "image".
        done: how much of ``total``; both 0 where it is not known.
        detail: what is at hand, one line.
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
        image_id: the engine's id of it.
        inputs: the digest of what it was made from, as its label says; "" where it has none.
        size: bytes, uncompressed.
        built: it was made by this call, not found.
    """

    name: str
    image_id: str
    inputs: str
    size: int
    built: bool = False


Report = Callable[[BuildStep], None]


def input_files(folder: Path) -> list[Path]:
    """Return what an image is made from, in a fixed order: each file but what editors and interpreters leave."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        and path.suffix not in (".pyc", ".swp", ".orig")
        and not path.name.endswith("~")
    )


def digest(folder: Path, base_image: str = "") -> str:
    """Return the SHA-256 over the names and contents of all input files, and the operator's choice of a base."""
    total = hashlib.sha256(f"{base_image}\n".encode())
    for path in input_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def image_name(settings: Settings) -> str:
    """Return the operator's name for the image, or the one that says what it was made from."""
    return settings.image or f"{REPOSITORY}:{digest(data_folder(_SOURCES), settings.base_image)[:12]}"


def find(client: docker.DockerClient, name: str) -> BuiltImage | None:
    """Return the image of this name, whatever it was made from, or None.

    Raises:
        EngineError: the engine failed.
    """
    try:
        details: dict[str, Any] = client.api.inspect_image(name)
    except ImageNotFound:
        return None
    except FAILURES as error:
        raise translate(error) from error
    labels = (details.get("Config") or {}).get("Labels") or {}
    return BuiltImage(name, str(details["Id"]), str(labels.get(LABEL, "")), int(details["Size"]))


def find_current(client: docker.DockerClient, settings: Settings) -> BuiltImage | None:
    """Return the image if it is there and matches its sources, else None."""
    image = find(client, image_name(settings))
    return image if image and image.inputs == digest(data_folder(_SOURCES), settings.base_image) else None


def build(client: docker.DockerClient, settings: Settings, report: Report, force: bool = False) -> BuiltImage:
    """Return the image that matches its sources, building it where it is not there.

    An image of the same name that does not match loses its name to the new one; what runs on it goes on.

    Args:
        report: called in this thread as the work proceeds.
        force: build it, and a base made of Debian packages, even if it is there.

    Raises:
        ImageBuildError: it could not be built; an earlier image of this name is untouched.
        EngineError: the engine failed.
    """
    present = None if force else find_current(client, settings)
    if present is not None:
        return present
    try:
        cache = wheels.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "build.lock", report):
            present = None if force else find_current(client, settings)
            return present or _build(client, settings, cache, report, force)
    except EngineError:
        raise
    except OSError as error:
        raise ImageBuildError(
            f"the sandbox image could not be built: {error}.",
            remedy="XDG_CACHE_HOME and TMPDIR say where wheels and scratch files go.",
        ) from error


def _build(client: docker.DockerClient, settings: Settings, cache: Path, report: Report, force: bool) -> BuiltImage:
    folder = data_folder(_SOURCES)
    inputs = digest(folder, settings.base_image)
    name = image_name(settings)
    try:
        machine = str(client.version()["Arch"])
    except FAILURES as error:
        raise translate(error) from error
    packages = wheels.fetch(
        folder / "requirements.txt", machine, cache, lambda *progress: report(BuildStep("packages", *progress))
    )
    base = baseimage.ensure(
        client,
        settings.base_image,
        folder / "packages.txt",
        machine,
        lambda line: report(BuildStep("base image", 0, 0, line)),
        force,
    )
    with _context(folder, packages) as context:
        _run(client, context, {"BASE_IMAGE": base}, {LABEL: inputs}, name, report)
    image = find(client, name)
    if image is None or image.inputs != inputs:
        raise ImageBuildError("the engine built the image and does not have it.", remedy="Is something pruning images?")
    return BuiltImage(image.name, image.image_id, image.inputs, image.size, built=True)


@contextlib.contextmanager
def _context(folder: Path, packages: list[Path]) -> Iterator[IO[bytes]]:
    """Give the build context as a tar file. Same inputs, same bytes: owners and times are left out."""
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


def _run(
    client: docker.DockerClient,
    context: IO[bytes],
    arguments: dict[str, str],
    labels: dict[str, str],
    name: str,
    report: Report,
) -> None:
    try:
        events = client.api.build(
            fileobj=context,
            custom_context=True,
            buildargs=arguments,
            labels=labels,
            tag=name,
            network_mode="none",
            rm=True,
            forcerm=True,
            decode=True,
            timeout=_BUILD_SECONDS,
        )
        # Closing it hangs up on the engine, which then ends an unfinished build and removes its container.
        with contextlib.closing(events):
            _follow(events, report)
    except FAILURES as error:
        raise translate(error) from error


def _follow(events: Iterator[dict[str, Any]], report: Report) -> None:
    done = total = 0
    printed: list[str] = []
    for event in events:
        if "error" in event:
            log = "\n".join(printed[-15:])
            raise ImageBuildError(
                f"the engine could not build the sandbox image: {event['error']}\n{log}\n",
                remedy="`cellblock image build --force` starts from a fresh base.",
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
def _alone(lock: Path, report: Report) -> Iterator[None]:
    """Hold a lock of this user's, so that two builds at once do the work once. A dead holder's lock is free."""
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(BuildStep("image", 0, 0, "another build is under way; waiting for it"))
                time.sleep(0.5)
        yield
