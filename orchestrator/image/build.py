"""Build the sandbox image, and find out whether the engine has the one that matches its sources. Every call blocks.

The image carries a digest of its inputs as a label and, unless the operator names the image, in its tag. The engine
sets the tag when the image is complete, so an interrupted build leaves no image with that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import re
import secrets
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import EngineError, ImageBuildError
from orchestrator.image import wheels
from orchestrator.image.baseimage import ensure_base_image
from orchestrator.image.packages import PackageSource
from orchestrator.image.recipe import Recipe, input_files
from orchestrator.image.suite import Target
from orchestrator.output.printable import printable_lines
from orchestrator.policy.packagelock import Lock
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings

LABEL = "org.cellblock.inputs"
PYTHON_LABEL = "org.cellblock.python"
BELOW_LABEL = "org.cellblock.below"
_REFUSAL = "refused: "  # see sandbox_image/layer.py
STAGE_LABEL = "org.cellblock.stage"  # in the Dockerfiles: of the first stage, which nothing needs after the build
PACKAGES_LABEL = "org.cellblock.packages"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of the engine's builder
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
        below: the identifier of the image that it is a layer on, from its label; "" if it is none.
        size: bytes, uncompressed.
        built: this call built the image.
    """

    name: str
    image_id: str
    inputs: str
    below: str
    size: int
    built: bool = False


Report = Callable[[BuildStep], None]


def package_source(settings: Settings, policy: Policy) -> PackageSource:
    """Return where the packages of running sessions come from, for the sandbox image of a policy.

    Raises:
        ImageBuildError: the policy's lock file cannot be used.
    """
    recipe = Recipe.of(settings, policy.image)
    return PackageSource(policy.packages, recipe.target, recipe.versions, wheels.cache_folder())


def find_image(images: EngineImages, name: str) -> BuiltImage | None:
    """Return the image with this name, whatever its inputs were, or None if the engine has none.

    Raises:
        EngineError: the engine failed.
    """
    image = images.find(name)
    if image is None:
        return None
    labels = image.labels
    return BuiltImage(name, image.image_id, labels.get(LABEL, ""), labels.get(BELOW_LABEL, ""), image.size)


def find_current_image(images: EngineImages, recipe: Recipe) -> BuiltImage | None:
    """Return the image of a recipe if the engine has it and it matches its inputs, else None.

    Raises:
        EngineError: the engine failed.
        ImageBuildError: the recipe's lock file cannot be used.
    """
    image = find_image(images, recipe.name)
    if image is None or image.inputs != recipe.inputs:
        return None
    if recipe.lock is not None:
        below = find_image(images, recipe.plain.name)
        return image if below is not None and image.below == below.image_id else None
    return image


def build_image(images: EngineImages, recipe: Recipe, report: Report, force: bool = False) -> BuiltImage:
    """Return the image of a recipe, after building it if the engine does not have it.

    An image with the same name and other inputs loses the name. Containers that run from it continue.

    Args:
        report: called in this thread with each step.
        force: build the image, what it is a layer on, and a base of Debian packages, even if they exist.

    Raises:
        ImageBuildError: the build failed. An earlier image with this name is unchanged.
        EngineError: the engine failed.
    """
    present = None if force else find_current_image(images, recipe)
    if present is not None:
        return present
    try:
        cache = wheels.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache / "build.lock", report):
            present = None if force else find_current_image(images, recipe)
            return present or _Build(images, cache, report).image(recipe, force)
    except EngineError:
        raise
    except OSError as error:
        raise ImageBuildError(
            f"the sandbox image could not be built: {error}.",
            remedy="XDG_CACHE_HOME and TMPDIR set the folders of wheels and temporary files.",
        ) from error


class _Build:
    """One build, of one or two images."""

    def __init__(self, images: EngineImages, cache: Path, report: Report) -> None:
        self._images = images
        self._cache = cache
        self._report = report

    def image(self, recipe: Recipe, force: bool) -> BuiltImage:
        if recipe.lock is None:
            return self._plain(recipe, force)
        return self._layer(recipe, recipe.lock, self._below(recipe.plain, force))

    def _plain(self, recipe: Recipe, force: bool) -> BuiltImage:
        packages = self._fetch(recipe, recipe.pinned)
        base = ensure_base_image(
            self._images,
            recipe.base_image,
            recipe.suite,
            recipe.sources / "packages.txt",
            self._images.architecture(),
            lambda line: self._report(BuildStep("base image", 0, 0, line)),
            force,
        )
        files = {path.relative_to(recipe.sources).as_posix(): path for path in input_files(recipe.sources)}
        return self._make(recipe, files, packages, {"BASE_IMAGE": base, "PYTHON": recipe.suite.python})

    def _below(self, plain: Recipe, force: bool) -> BuiltImage:
        """Return the image to build a layer on. One that the operator named stays, whatever it was made of."""
        present = find_image(self._images, plain.name) if plain.named else find_current_image(self._images, plain)
        return self._plain(plain, force) if present is None or (force and not plain.named) else present

    def _layer(self, recipe: Recipe, lock: Lock, below: BuiltImage) -> BuiltImage:
        packages = self._fetch(recipe, lock.without(recipe.pinned))
        files = {name: recipe.sources / name for name in ("assemble.py", "layer.py")}
        files["Dockerfile"] = recipe.sources / "layer.Dockerfile"
        return self._make(recipe, files, packages, {"SANDBOX": below.name}, below.image_id)

    def _fetch(self, recipe: Recipe, lock: Lock) -> list[Path]:
        target = Target(recipe.suite, self._images.architecture())
        return wheels.fetch(lock, target, self._cache, lambda *progress: self._report(BuildStep("packages", *progress)))

    def _make(
        self,
        recipe: Recipe,
        files: Mapping[str, Path],
        packages: list[Path],
        arguments: Mapping[str, str],
        below: str = "",
    ) -> BuiltImage:
        members = {**files, **{f"wheels/{wheel.name}": wheel for wheel in packages}}
        labels = {
            LABEL: recipe.inputs,
            BELOW_LABEL: below,
            PYTHON_LABEL: recipe.suite.python,
            PACKAGES_LABEL: str(len(recipe.versions)),
        }
        build = secrets.token_hex(8)
        try:
            with (
                _context(members) as context,
                self._images.build(
                    context, name=recipe.name, arguments={**arguments, "BUILD": build}, labels=labels
                ) as events,
            ):
                _follow(events, self._report)
        finally:
            self._images.remove_untagged(f"{STAGE_LABEL}={build}")
        image = find_image(self._images, recipe.name)
        if image is None or image.inputs != recipe.inputs:
            raise ImageBuildError(
                "the engine built the sandbox image and no longer has it.",
                remedy="Check whether something on this host prunes images.",
            )
        return replace(image, built=True)


@contextlib.contextmanager
def _context(members: Mapping[str, Path]) -> Iterator[IO[bytes]]:
    """Yield the build context as a tar file. Same inputs, same bytes: owners and times are left out."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            wheels_folder = tarfile.TarInfo("wheels")  # it may stay empty
            wheels_folder.type = tarfile.DIRTYPE
            archive.addfile(wheels_folder)
            for name, path in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(entry, content)
        file.seek(0, io.SEEK_SET)
        yield file


def _follow(events: Iterator[dict[str, Any]], report: Report) -> None:
    """Report the steps of a build.

    Raises:
        ImageBuildError: it failed.
    """
    done = total = 0
    printed: list[str] = []
    for event in events:
        if "error" in event:
            raise _failed(event["error"], printed)
        for line in printable_lines(_COLOURS.sub("", str(event.get("stream", "")))).splitlines():
            step = _STEP.match(line)
            if step:
                done, total = int(step[1]) - 1, int(step[2])
            elif not line.strip() or line.startswith((" --->", "Removing intermediate")):
                continue
            else:
                printed.append(line)
            report(BuildStep("image", done, total, step[3] if step else line.strip()))


def _failed(error: object, printed: list[str]) -> ImageBuildError:
    """Return the error for a failed build, with the program's own reason if the last line has one."""
    if printed and printed[-1].startswith(_REFUSAL):
        return ImageBuildError(
            f"the packages do not fit the sandbox image: {printed[-1].removeprefix(_REFUSAL)}.",
            remedy="Lock names with `cellblock image build --requirements NAMES`, which keeps the image's versions, "
            "or add the packages that are missing.",
        )
    log = "\n".join(printed[-15:])
    return ImageBuildError(
        f"the engine could not build the sandbox image: {error}\n{log}\n",
        remedy="`cellblock image build --force` makes the base image again too.",
    )


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
