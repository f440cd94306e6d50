"""What a sandbox image is made of: the sources, the base, the Python, and the lock file that a policy names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from orchestrator.errors import ImageBuildError
from orchestrator.image import suite
from orchestrator.image.suite import Suite, Target, host_architecture
from orchestrator.policy import packagelock
from orchestrator.policy.packagelock import Lock
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings, data_folder

REPOSITORY = "cellblock-sandbox"
_SOURCES = "sandbox_image"
_DIGITS = 12  # of a digest in a tag


@dataclass(frozen=True)
class Recipe:
    """What one image is made of.

    Attributes:
        named: the name that the operator gave the image without further packages; "": its tag is its digest.
        base_image: the image that the operator names as its base, or "".
        suite: the Debian release and its Python.
        requirements: the lock file of further packages; None: there are none.
    """

    named: str
    base_image: str
    suite: Suite
    requirements: Path | None = None

    @classmethod
    def of(cls, settings: Settings, image: Image) -> Self:
        """Return the recipe that settings and a policy ask for."""
        made_of = suite.choose(settings.base_image, python=image.python)
        lock = packagelock.find(image.requirements, Path.cwd()) if image.requirements else None
        return cls(settings.image, settings.base_image, made_of, lock)

    @property
    def sources(self) -> Path:
        """The folder of the image's input files."""
        return data_folder(_SOURCES)

    @property
    def target(self) -> Target:
        """What its wheels must run on, with an engine of this host's architecture."""
        return Target(self.suite, host_architecture())

    @property
    def plain(self) -> Recipe:
        """The recipe of the image without further packages, on which the others are built."""
        return Recipe(self.named, self.base_image, self.suite)

    @cached_property
    def plain_inputs(self) -> str:
        """The digest of the inputs without further packages."""
        return input_digest(self.sources, self.suite, self.base_image)

    @cached_property
    def inputs(self) -> str:
        """The digest of all inputs.

        Raises:
            ImageBuildError: the lock file cannot be used.
        """
        if self.lock is None:
            return self.plain_inputs
        return hashlib.sha256(f"{self.named}\n{self.plain_inputs}\n{self.lock.digest}".encode()).hexdigest()

    @cached_property
    def lock(self) -> Lock | None:
        """The further packages that this Python and architecture need.

        Raises:
            ImageBuildError: the lock file cannot be used.
        """
        return None if self.requirements is None else self._read(self.requirements)

    @cached_property
    def pinned(self) -> Lock:
        """The packages that every image has."""
        return self._read(self.sources / "requirements.txt")

    @property
    def versions(self) -> dict[str, str]:
        """The version of each package of the image, by its normal name."""
        return {**self.pinned.versions, **(self.lock.versions if self.lock else {})}

    @property
    def name(self) -> str:
        """The image's name: the operator's, or one whose tag is the digest of its inputs.

        Raises:
            ImageBuildError: the lock file cannot be used.
        """
        if self.lock is None:
            return self.named or self.layers
        return f"{self.layers}-{self.lock.digest[:_DIGITS]}"

    @property
    def layers(self) -> str:
        """How the names begin of the images with further packages."""
        below = hashlib.sha256(self.named.encode()).hexdigest() if self.named else self.plain_inputs
        return f"{REPOSITORY}:{below[:_DIGITS]}"

    def _read(self, path: Path) -> Lock:
        try:
            return Lock.read(path, self.target.environment())
        except ValueError as error:
            raise ImageBuildError(f"the lock file cannot be used: {error}.") from None


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


def input_digest(folder: Path, made_of: Suite, base_image: str = "") -> str:
    """Return the SHA-256 of the names and contents of all input files, the operator's base image and the Python."""
    total = hashlib.sha256(f"{base_image}\n{made_of.codename} {made_of.python}\n".encode())
    for path in input_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()
