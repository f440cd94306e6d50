"""Locks the names of packages: their versions, those of what they need, and the hash of each wheel, in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import ImageBuildError, PackageError
from orchestrator.image.recipe import Recipe
from orchestrator.image.resolver import Resolver
from orchestrator.policy.packagelock import Entry, Lock, Pin, entries
from orchestrator.store.wholefile import save_whole


def locked(listed: Path, recipe: Recipe, upgrade: bool = False) -> Path:
    """Return a lock file for a requirements file: the file itself if it is one, else one that is written beside it.

    The versions of the image's own packages are constraints. A lock file of the same requirements is used again.

    Args:
        listed: the requirements.
        recipe: of the image without them.
        upgrade: choose the newest versions again.

    Raises:
        ImageBuildError: the file cannot be used, or no wheels fit.
        StoreError: the lock file cannot be written.
    """
    try:
        found = entries(listed)
    except ValueError as error:
        raise ImageBuildError(f"the requirements cannot be used: {error}.") from None
    if all(each.version is not None and each.hashes for each in found):
        return listed
    path = listed.with_name(f"{listed.stem}.lock.txt")
    heading = _heading(listed, found, recipe)
    if upgrade or not _is_of(path, heading):
        save_whole(path, heading + _form(_pins(found, recipe)))
    return path


def _heading(listed: Path, found: Sequence[Entry], recipe: Recipe) -> str:
    """Return the first lines of a lock file. They change with all that it depends on."""
    lines = sorted(f"{each.requirement} {' '.join(sorted(each.hashes))}" for each in found)
    inputs = "\n".join([*lines, recipe.pinned.digest])
    return (
        f"# Made by `cellblock image build --requirements {listed.name}`, for Python {recipe.suite.python} on "
        f"{recipe.target.machine}.\n# Of {hashlib.sha256(inputs.encode()).hexdigest()}\n"
    )


def _is_of(path: Path, heading: str) -> bool:
    try:
        return path.read_text().startswith(heading)
    except (OSError, UnicodeDecodeError):
        return False


def _pins(found: Sequence[Entry], recipe: Recipe) -> Lock:
    """Return the packages that pip chooses, and those asked for that the image has."""
    wanted = [each.requirement for each in found if _applies(each.requirement, recipe)]
    try:
        wheels = Resolver(recipe.target).choose(wanted, recipe.pinned.versions, ())
    except PackageError as error:
        raise ImageBuildError(f"the packages were not locked: {error.message}", remedy=error.remedy) from error
    chosen = {wheel.name: Pin(wheel.name, wheel.version, (wheel.sha256,)) for wheel in wheels}
    names = {canonicalize_name(each.name) for each in wanted}
    pins = {**{pin.name: pin for pin in recipe.pinned.pins if pin.name in names}, **chosen}
    for each in found:
        pin = pins.get(canonicalize_name(each.requirement.name))
        if each.hashes and pin is not None and not each.hashes.intersection(pin.hashes):
            raise ImageBuildError(f"the packages were not locked: the wheel of {pin.name} has another hash.")
    return Lock(tuple(pins[name] for name in sorted(pins)))


def _applies(requirement: Requirement, recipe: Recipe) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(recipe.target.environment())


def _form(lock: Lock) -> str:
    return "".join(
        " \\\n    ".join([f"{pin.name}=={pin.version}", *(f"--hash=sha256:{each}" for each in pin.hashes)]) + "\n"
        for pin in lock.pins
    )
