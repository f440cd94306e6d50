"""Lock files of Python packages: requirements with exact versions and SHA-256 hashes, as pip and uv write them."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.settings import data_folder

SHIPPED = "full"  # the lock file that comes with Cellblock: sandbox_image/full.txt
_LARGEST = 4 * 1024 * 1024  # bytes of a file
_HASH = re.compile(r"\s--hash=sha256:([0-9a-f]{64})(?=\s|\Z)")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a requirements file.

    Attributes:
        hashes: the SHA-256 of each wheel that may be used, in hex; empty: any.
    """

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def version(self) -> str | None:
        """The exact version, or None if the requirement leaves a choice."""
        found = [part.version for part in self.requirement.specifier]
        operators = [part.operator for part in self.requirement.specifier]
        if operators not in (["=="], ["==="]):
            return None
        try:
            Version(found[0])
        except InvalidVersion:  # such as 2.*
            return None
        return found[0]


@dataclass(frozen=True, slots=True)
class Pin:
    """An exact version of a package.

    Attributes:
        name: in its normal form.
        hashes: the SHA-256 of each wheel that may be used, in hex, sorted.
    """

    name: str
    version: str
    hashes: tuple[str, ...]

    def is_same(self, other: Pin) -> bool:
        """Return whether a wheel may be meant by both."""
        same = self.name == other.name and Version(self.version) == Version(other.version)
        return same and not set(self.hashes).isdisjoint(other.hashes)

    def __str__(self) -> str:
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{each}" for each in self.hashes)])


@dataclass(frozen=True)
class Lock:
    """The packages of a lock file for one Python, sorted by name."""

    pins: tuple[Pin, ...]

    @classmethod
    def read(cls, path: Path, environment: Mapping[str, str]) -> Self:
        """Return the pins of a lock file that apply in an environment.

        Args:
            environment: the values of environment markers, such as "python_version".

        Raises:
            ValueError: the file cannot be read, has another form, or pins a package twice.
        """
        pins: dict[str, Pin] = {}
        for each in entries(path):
            marker, name = each.requirement.marker, canonicalize_name(each.requirement.name)
            if marker is not None and not marker.evaluate(dict(environment)):
                continue
            if each.version is None or not each.hashes:
                raise ValueError(f"{path}: {name} has no exact version with a hash")
            if name in pins:
                raise ValueError(f"{path}: {name} is pinned twice")
            pins[name] = Pin(name, each.version, tuple(sorted(each.hashes)))
        return cls(tuple(pins[name] for name in sorted(pins)))

    @cached_property
    def text(self) -> str:
        """The lock in the form that pip reads."""
        return "".join(f"{pin}\n" for pin in self.pins)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the packages. Comments, order and line breaks of the file do not count."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """The version of each package, by its normal name."""
        return {pin.name: pin.version for pin in self.pins}

    def without(self, other: Lock) -> Lock:
        """Return the packages that the other lock has not: not at all, in another version, or with other hashes."""
        return Lock(tuple(pin for pin in self.pins if not any(pin.is_same(each) for each in other.pins)))


def shipped() -> Path:
    """Return the lock file of the full image."""
    return data_folder("sandbox_image") / f"{SHIPPED}.txt"


def find(name: str, folder: Path) -> Path:
    """Return the path of a lock file: of the shipped one for "full", else ``name``, relative to ``folder``."""
    return shipped() if name == SHIPPED else folder / name


def check(path: Path) -> None:
    """Refuse a file that is no lock file.

    Raises:
        ValueError: it cannot be read, or a package has no exact version with a hash.
    """
    for entry in entries(path):
        if entry.version is None or not entry.hashes:
            raise ValueError(
                f"{path} is not locked: {entry.requirement.name} has no exact version with a SHA-256 hash; "
                f"`cellblock image build --requirements {path}` writes a lock file"
            )


def entries(path: Path) -> list[Entry]:
    """Return what a requirements file lists.

    Raises:
        ValueError: it cannot be read, names no package, or has a URL, a path or an option other than a hash.
    """
    lines = _read(path).replace("\\\n", " ").splitlines()
    texts = [text for line in lines if (text := re.sub(r"(^|\s)#.*", "", line).strip())]
    try:
        found = [entry(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path} names no package")
    return found


def entry(text: str) -> Entry:
    """Return what one line of a requirements file lists, without its comment.

    Raises:
        ValueError: it is no requirement, or has a URL, a path or an option other than a hash.
    """
    hashes = frozenset(_HASH.findall(text))
    bare = _HASH.sub("", text).strip()
    shown = repr(bare[:100])
    if bare.startswith("-") or " --" in bare:
        raise ValueError(f"{shown} has an option; only --hash=sha256: is supported, and pip's setting names the index")
    try:
        requirement = Requirement(bare)
    except InvalidRequirement:
        raise ValueError(f"{shown} is no requirement, such as emoji==2.14") from None
    if requirement.url is not None:
        raise ValueError(f"{shown} names a URL; packages come from the index alone")
    return Entry(requirement, hashes)


def _read(path: Path) -> str:
    """Return the text of a small regular file. Anything else could block when it is opened, or never end."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if info.st_size > _LARGEST:
            raise ValueError(f"{path} has {info.st_size} bytes, more than the {_LARGEST} allowed")
        return path.read_bytes()[:_LARGEST].decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}; `cellblock image build --requirements NAMES` writes lock files"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
