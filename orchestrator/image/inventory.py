"""The images of Cellblock in an engine: which there are, which are in use, and removing them. Every call blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.container.engineimages import EngineImage, EngineImages
from orchestrator.errors import ImageInUseError, ImageMissingError
from orchestrator.image.baseimage import BASE_REPOSITORY, base_name
from orchestrator.image.build import BELOW_LABEL, LABEL, PACKAGES_LABEL, PYTHON_LABEL
from orchestrator.image.recipe import REPOSITORY, Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image of Cellblock.

    Attributes:
        name: its tag.
        kind: "sandbox", "layer" (a sandbox with the packages of a lock file) or "base".
        python: its Python's version; "" if that is unknown.
        packages: the number of its Python packages; 0 if that is unknown.
        size: bytes, uncompressed, those of the image that it is built on included.
        created: seconds since the epoch.
        below: the engine's identifier of the image that it is a layer on, or "".
        containers: how many containers are made of it.
        is_current: this version of Cellblock would use it.
    """

    name: str
    image_id: str
    kind: str
    python: str
    packages: int
    size: int
    created: float
    below: str
    containers: int
    is_current: bool


def list_images(images: EngineImages, settings: Settings) -> list[ListedImage]:
    """Return all images of Cellblock, the newest first.

    Raises:
        EngineError: the engine failed.
    """
    used = images.used()
    recipes = [Recipe.of(settings, Image(python=python)) for python in ("", "3.11", "3.12", "3.13")]
    current = {each.name for each in recipes} | {each.layers for each in recipes}
    current |= {base_name(each.sources / "packages.txt", each.suite) for each in recipes}
    found = [
        _listed(image, used.get(image.image_id, 0), current)
        for image in images.listed()
        if _is_ours(image, settings.image)
    ]
    return sorted(found, key=lambda each: -each.created)


def remove_images(images: EngineImages, found: Iterable[ListedImage], names: Iterable[str]) -> list[ListedImage]:
    """Remove images by their names, tags or identifiers, and return what was removed.

    Raises:
        ImageMissingError: a name is of no image of Cellblock. Nothing is removed.
        ImageInUseError: a container, or another image, needs one. The others are removed.
        EngineError: the engine failed.
    """
    listed = list(found)
    chosen = list(dict.fromkeys(_named(listed, name) for name in names))
    kept = _remove(images, listed, chosen)
    if kept:
        raise ImageInUseError(
            f"{kept[0].name} was not removed: a kernel runs from it, or an image is built on it.",
            image=kept[0].name,
            remedy="End the kernels (`cellblock ps`), and remove the images built on it too.",
        )
    return chosen


def remove_unused(
    images: EngineImages, found: Iterable[ListedImage], chosen: Iterable[ListedImage]
) -> list[ListedImage]:
    """Remove the chosen images of all that were found. Return those that are still in use.

    Raises:
        EngineError: the engine failed.
    """
    return _remove(images, list(found), list(chosen))


def _remove(images: EngineImages, found: list[ListedImage], chosen: list[ListedImage]) -> list[ListedImage]:
    """Remove images, layers before what they are built on. Return those that a container or another image needs."""
    order = ("layer", "sandbox", "base")
    left, kept = list(found), []
    for image in sorted(chosen, key=lambda each: order.index(each.kind)):
        try:
            if any(each.below == image.image_id for each in left):
                raise ImageInUseError(f"an image is built on {image.name}.", image=image.name)
            images.remove(image.name)
            left.remove(image)
        except ImageInUseError:
            kept.append(image)
    return kept


def unused(found: Iterable[ListedImage], everything: bool = False) -> list[ListedImage]:
    """Return the images that a prune removes: those that no container uses and that are not current.

    Args:
        everything: also current ones with further packages.
    """
    free = [each for each in found if not each.containers]
    return [each for each in free if not each.is_current or (everything and each.kind == "layer")]


def _is_ours(image: EngineImage, named: str) -> bool:
    """Return whether Cellblock made an image. Its labels do not tell: images that users build on it inherit them."""
    return image.name == named or image.name.startswith((f"{REPOSITORY}:", f"{BASE_REPOSITORY}:"))


def _listed(image: EngineImage, containers: int, current: set[str]) -> ListedImage:
    repository, _, tag = image.name.rpartition(":")
    below = image.labels.get(BELOW_LABEL, "")
    kind = "base" if LABEL not in image.labels else "layer" if below else "sandbox"
    packages = image.labels.get(PACKAGES_LABEL, "")
    return ListedImage(
        image.name,
        image.image_id,
        kind,
        image.labels.get(PYTHON_LABEL, ""),
        int(packages) if packages.isdecimal() else 0,
        image.size,
        image.created,
        below,
        containers,
        image.name in current or (below != "" and f"{repository}:{tag.partition('-')[0]}" in current),
    )


def _named(found: list[ListedImage], name: str) -> ListedImage:
    digest = name.removeprefix("sha256:")
    for each in found:
        same = name in (each.name, each.name.rpartition(":")[2])
        if same or (len(digest) >= 6 and each.image_id.removeprefix("sha256:").startswith(digest)):
            return each
    raise ImageMissingError(
        f"Cellblock has no image {name!r} in this engine.", image=name, remedy="`cellblock image list` shows them."
    )
