"""Packages for running sessions: wheels that the policy allows, resolved by pip on the host and kept by their hash.

Nothing of a package runs on the host: pip takes wheels alone, and only the sandbox unpacks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import PackageError
from orchestrator.host import hostcommand
from orchestrator.image.suite import Suite
from orchestrator.image.wheels import target_options
from orchestrator.limits import MIB
from orchestrator.output.fields import Fields
from orchestrator.policy.policy import Packages
from orchestrator.store.wholefile import save_whole

MOST_REQUIREMENTS = 50
_AT_ONCE = 2  # requests of all sessions
_LONGEST = 2000  # characters of a requirement
_RESOLVE_SECONDS = 120.0
_DOWNLOAD_SECONDS = 600.0
_HASH = re.compile(r"\s--hash=sha256:([0-9a-f]{64})(?=\s|\Z)")
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s\\]+)", re.MULTILINE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9._+!-]{1,200}\.whl")
_UNREACHABLE = re.compile(r"Retrying \(|ConnectionError|Timeout|ProxyError|SSLError")  # in pip's words
_QUIET = ("--disable-pip-version-check", "--no-input", "--progress-bar=off", "--only-binary=:all:",
          "--retries=1", "--timeout=15")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of a package.

    Attributes:
        name: the package's normalised name.
        file: the wheel's file name.
        sha256: of its content, in hex.
    """

    name: str
    version: str
    file: str
    sha256: str

    @property
    def title(self) -> str:
        return f"{self.name}-{self.version}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, form: Any) -> Wheel:
        """Return the wheel that ``as_dict`` described.

        Raises:
            ValueError: it is none.
        """
        fields = Fields(form)
        name, version, file, digest = (fields.value(key, str) for key in ("name", "version", "file", "sha256"))
        if not _FILE.fullmatch(file) or not _SHA256.fullmatch(digest):
            raise ValueError("the wheel's file or hash is malformed")
        return cls(name, version, file, digest)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request for packages needs.

    Attributes:
        wheels: to hand in.
        satisfied: what the image has already, each with its version.
    """

    wheels: tuple[Wheel, ...]
    satisfied: tuple[str, ...]


class PackageSource:
    """Resolves, checks and keeps wheels. All methods but ``__init__`` block: call them in a thread.

    Attributes:
        turns: hold one to call ``resolve``: pip takes a second of a core.

    Args:
        policy: which packages sessions may have.
        suite: the release of the sandbox image.
        architecture: the engine's architecture in Docker's words.
        pinned: the requirements file of the image, whose packages are there already.
        cache: a folder of this user.
    """

    def __init__(self, policy: Packages, suite: Suite, architecture: str, pinned: Path, cache: Path) -> None:
        self._policy = policy
        self._suite = suite
        self._architecture = architecture
        self._image = {canonicalize_name(name): version for name, version in _PIN.findall(pinned.read_text())}
        self._cache = cache / "packages"
        self._allowed = [Requirement(text) for text in policy.allow]
        self.turns = asyncio.Semaphore(_AT_ONCE)

    def resolve(self, requirements: Sequence[str]) -> Resolved:
        """Return the wheels for requirements, all of them in the cache.

        Args:
            requirements: names with versions and hashes, such as "emoji==2.14 --hash=sha256:…".

        Raises:
            PackageError: one is malformed, not allowed, too large, has no wheel or another hash; or the index cannot be
                reached and the cache does not have it. Nothing is installed.
        """
        if not 0 < len(requirements) <= MOST_REQUIREMENTS:
            raise PackageError(f"1 to {MOST_REQUIREMENTS} requirements can be installed at once.", reason="malformed")
        wanted = [_parsed(text) for text in requirements]
        missing = [(each, hashes) for each, hashes in wanted if not self._is_satisfied(each)]
        satisfied = tuple(self._named(each) for each, _ in wanted if self._is_satisfied(each))
        for each, _ in missing:
            self._refuse_unless_allowed(each.name, None)
        if not missing:
            return Resolved((), satisfied)
        wheels = self._wheels([each for each, _ in missing], [hashes for _, hashes in missing])
        return Resolved(tuple(wheels), satisfied)

    def path(self, wheel: Wheel) -> Path | None:
        """Return a wheel's file in the cache, or None if it is not there, or was changed."""
        path = self._cache / "wheels" / wheel.sha256 / wheel.file
        return path if path.is_file() and _sha256(path) == wheel.sha256 else None

    def _is_satisfied(self, requirement: Requirement) -> bool:
        version = self._image.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    def _named(self, requirement: Requirement) -> str:
        return f"{requirement.name} ({self._image[canonicalize_name(requirement.name)]})"

    def _refuse_unless_allowed(self, name: str, version: str | None) -> None:
        """Refuse a package that the policy does not allow. Names are compared as a whole, in their normal form."""
        same = [each for each in self._allowed if canonicalize_name(each.name) == canonicalize_name(name)]
        if any(version is None or each.specifier.contains(version, prereleases=True) for each in same):
            return
        shown = name if version is None else f"{name}=={version}"
        raise PackageError(
            f"the policy does not allow to install {shown!r}.",
            reason="not_allowed",
            remedy=f'Add it to the policy: [packages] allow = ["{name}"].',
        )

    def _wheels(self, wanted: Sequence[Requirement], hashes: Sequence[frozenset[str]]) -> list[Wheel]:
        key = self._key(wanted)
        known = self._remembered(key)
        exact = all(any(part.operator == "==" for part in each.specifier) for each in wanted)
        wheels = known if known is not None and exact else None
        if wheels is None:
            try:
                wheels = self._asked(wanted)
            except PackageError as error:
                if known is None or error.reason != "unreachable":
                    raise
                wheels = known
        self._check(wheels, wanted, hashes)
        self._fetch(wheels)
        size = sum(path.stat().st_size for wheel in wheels if (path := self.path(wheel)) is not None)
        if size > self._policy.max_mb * MIB:
            raise PackageError(
                f"the packages have {size / MIB:.1f} MiB; the policy allows {self._policy.max_mb}.",
                reason="too_large",
                remedy="Raise [packages] max_mb in the policy.",
            )
        self._remember(key, wheels)
        return wheels

    def _check(self, wheels: Sequence[Wheel], wanted: Sequence[Requirement], hashes: Sequence[frozenset[str]]) -> None:
        by_name = {wheel.name: wheel for wheel in wheels}
        for wheel in wheels:
            self._refuse_unless_allowed(wheel.name, wheel.version)
        for each, expected in zip(wanted, hashes, strict=True):
            found = by_name.get(canonicalize_name(each.name))
            if expected and (found is None or found.sha256 not in expected):
                raise PackageError(
                    f"the wheel of {each.name!r} has another hash than was asked for.", reason="wrong_hash"
                )

    # What pip is asked

    def _asked(self, wanted: Sequence[Requirement]) -> list[Wheel]:
        """Return the wheels that pip chooses, without those of the image."""
        with tempfile.TemporaryDirectory(prefix="cellblock-resolve-") as folder:
            report, listed, pinned = (Path(folder, name) for name in ("report.json", "wanted.txt", "image.txt"))
            listed.write_text("".join(f"{_without_marker(each)}\n" for each in wanted))
            allowed = [f"{each.name}{each.specifier}\n" for each in self._allowed if each.specifier]
            pinned.write_text("".join([*(f"{name}=={version}\n" for name, version in self._image.items()), *allowed]))
            target = target_options(self._suite, self._architecture)
            command = [*_pip("install"), "--dry-run", "--ignore-installed", "--quiet", f"--report={report}"]
            command += [f"--target={folder}/none", *target, *self._index(), f"--requirement={listed}"]
            self._run([*command, f"--constraint={pinned}"], _RESOLVE_SECONDS, wanted)
            try:
                found = json.loads(report.read_bytes())["install"]
                return [wheel for item in found if (wheel := self._wheel_of(item)) is not None]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise PackageError(f"pip's report cannot be read: {error}.", reason="index") from error

    def _wheel_of(self, item: dict[str, Any]) -> Wheel | None:
        """Return the wheel of an item of pip's report; None for a package that the image has.

        Raises:
            PackageError: it is no wheel with a SHA-256.
        """
        name, version = canonicalize_name(item["metadata"]["name"]), str(item["metadata"]["version"])
        if self._image.get(name) == version:
            return None
        about = item["download_info"]
        file = str(about["url"]).partition("#")[0].rpartition("/")[2]
        digest = (about.get("archive_info") or {}).get("hashes", {}).get("sha256", "")
        try:
            return Wheel.from_dict({"name": name, "version": version, "file": file, "sha256": digest})
        except ValueError:
            raise PackageError(f"the index offers no wheel with a SHA-256 for {name!r}.", reason="index") from None

    def _fetch(self, wheels: Sequence[Wheel]) -> None:
        """Download what the cache does not have, and check it."""
        missing = [wheel for wheel in wheels if self.path(wheel) is None]
        if not missing:
            return
        store = self._cache / "wheels"
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".part-") as part:
            listed, folder = Path(part, "wheels.txt"), Path(part, "wheels")
            listed.write_text("".join(f"{each.name}=={each.version} --hash=sha256:{each.sha256}\n" for each in missing))
            command = [*_pip("download"), "--no-deps", "--require-hashes", "--quiet", f"--dest={folder}"]
            command += [*target_options(self._suite, self._architecture), *self._index(), f"--requirement={listed}"]
            self._run(command, _DOWNLOAD_SECONDS, [Requirement(each.name) for each in missing])
            found = {_sha256(path): path for path in folder.glob("*.whl")}
            for wheel in missing:
                if wheel.sha256 not in found:
                    raise PackageError(f"the wheel of {wheel.name!r} has another hash.", reason="wrong_hash")
                target = store / wheel.sha256
                target.mkdir(exist_ok=True)
                os.replace(found[wheel.sha256], target / wheel.file)

    def _index(self) -> list[str]:
        return [f"--index-url={self._policy.index}"] if self._policy.index else []

    def _run(self, command: Sequence[str], seconds: float, wanted: Sequence[Requirement]) -> None:
        finished = hostcommand.run(command, seconds=seconds)
        if finished.code == 0:
            return
        names = ", ".join(each.name for each in wanted)
        none = "No matching distribution" in finished.tail or "ResolutionImpossible" in finished.tail
        if none and not _UNREACHABLE.search(finished.tail):
            raise PackageError(
                f"the index has no wheels for {names} that fit each other, Python {self._suite.python} and the image's "
                "packages. Source distributions are never built.",
                reason="no_wheel",
            )
        last = finished.tail.strip().splitlines()[-1:] or ["pip printed nothing"]
        raise PackageError(
            f"{names} could not be fetched: {last[0][:300]}",
            reason="unreachable",
            remedy="Check that `pip download` reaches the package index from the host.",
        )

    # What is remembered

    def _key(self, wanted: Sequence[Requirement]) -> str:
        image = sorted(self._image.items())
        parts = [sorted(map(str, wanted)), self._suite.python, self._architecture, self._policy.index, image]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _remembered(self, key: str) -> list[Wheel] | None:
        """Return the wheels of an earlier request, if the cache has all of them."""
        try:
            found = [Wheel.from_dict(form) for form in json.loads((self._cache / "resolved" / key).read_text())]
        except (OSError, ValueError):
            return None
        return found if all(self.path(wheel) is not None for wheel in found) else None

    def _remember(self, key: str, wheels: Sequence[Wheel]) -> None:
        folder = self._cache / "resolved"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(OSError):
            save_whole(folder / key, json.dumps([wheel.as_dict() for wheel in wheels]))


def _parsed(text: object) -> tuple[Requirement, frozenset[str]]:
    """Return a requirement and the hashes that it names.

    Raises:
        PackageError: it is none, or names a URL.
    """
    shown = repr(str(text)[:100])
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise PackageError(f"{shown} is no requirement.", reason="malformed")
    hashes = frozenset(_HASH.findall(text))
    try:
        found = Requirement(_HASH.sub("", text).strip())
    except InvalidRequirement:
        raise PackageError(f"{shown} is no requirement, such as emoji==2.14.", reason="malformed") from None
    if found.url is not None:
        raise PackageError(f"{shown} names a URL; packages come from the index alone.", reason="malformed")
    return found, hashes


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _pip(verb: str) -> list[str]:
    return [sys.executable, "-m", "pip", verb, *_QUIET]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
