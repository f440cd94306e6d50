"""Locks the names of packages: their versions, those of what they need, and the hash of each wheel, in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import ImageBuildError, PackageError
from orchestrator.image import suite
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
    wanted = [each for each in found if _applies(each.requirement, recipe)]
    if not wanted:
        raise ImageBuildError(f"no requirement of {listed} applies to Python {recipe.suite.python}.")
    path = listed.with_name(_name(listed, recipe))
    maker, inputs = _heading(listed, wanted, recipe)
    present = _text_of(path)
    if present is not None and not present.startswith(maker):
        raise ImageBuildError(
            f"{path} was not made of {listed.name} for this Python, and stays as it is.",
            remedy=f"Build with that lock file, or move it, or give {listed.name} another name.",
        )
    if upgrade or present is None or not present.startswith(maker + inputs):
        save_whole(path, maker + inputs + _form(_pins(wanted, recipe)))
    return path


def _name(listed: Path, recipe: Recipe) -> str:
    usual = recipe.suite == suite.choose(recipe.base_image)
    return f"{listed.stem}.lock.txt" if usual else f"{listed.stem}.py{recipe.suite.python}.lock.txt"


def _heading(listed: Path, wanted: Sequence[Entry], recipe: Recipe) -> tuple[str, str]:
    """Return the first lines of a lock file: of what list it is, and a digest that changes with all it depends on."""
    lines = sorted(f"{each.requirement} {' '.join(sorted(each.hashes))}" for each in wanted)
    digest = hashlib.sha256("\n".join([*lines, recipe.pinned.digest]).encode()).hexdigest()
    python, machine = recipe.suite.python, recipe.target.machine
    maker = f"# Made by `cellblock image build --requirements {listed.name}`, for Python {python} on {machine}.\n"
    return maker, f"# Of {digest}\n"


def _text_of(path: Path) -> str | None:
    """Return the text of a file; "" if it is not text; None if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return ""


def _pins(found: Sequence[Entry], recipe: Recipe) -> Lock:
    """Return the packages that pip chooses, and those asked for that the image has."""
    wanted = [each.requirement for each in found]
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
