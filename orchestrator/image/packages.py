"""Packages for running sessions: wheels that the policy allows, resolved by pip on the host and kept by their hash.

Nothing of a package runs on the host: pip takes wheels alone, and only the sandbox unpacks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import PackageError
from orchestrator.image.resolver import Resolver, Wheel, sha256_of
from orchestrator.image.suite import Target
from orchestrator.limits import MIB
from orchestrator.policy.packagelock import Entry, entry
from orchestrator.policy.sections import Packages
from orchestrator.store.wholefile import save_whole

MOST_REQUIREMENTS = 50
_AT_ONCE = 2  # requests of all sessions
_LONGEST = 2000  # characters of a requirement


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
        target: the Python and the architecture of the sandbox image.
        versions: the packages of the image, which are there already.
        cache: a folder of this user.
    """

    def __init__(self, policy: Packages, target: Target, versions: Mapping[str, str], cache: Path) -> None:
        self._policy = policy
        self._target = target
        self._image = versions
        self._resolver = Resolver(target, policy.index)
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
        missing = [each for each in wanted if not self._is_satisfied(each.requirement)]
        satisfied = tuple(self._named(each.requirement) for each in wanted if each not in missing)
        for each in missing:
            self._refuse_unless_allowed(each.requirement.name, None)
        return Resolved(tuple(self._wheels(missing)) if missing else (), satisfied)

    def path(self, wheel: Wheel) -> Path | None:
        """Return a wheel's file in the cache, or None if it is not there, or was changed."""
        path = self._cache / "wheels" / wheel.sha256 / wheel.file
        return path if path.is_file() and sha256_of(path) == wheel.sha256 else None

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

    def _wheels(self, entries: Sequence[Entry]) -> list[Wheel]:
        wanted = [each.requirement for each in entries]
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
        self._check(wheels, entries)
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

    def _check(self, wheels: Sequence[Wheel], entries: Sequence[Entry]) -> None:
        by_name = {wheel.name: wheel for wheel in wheels}
        for wheel in wheels:
            self._refuse_unless_allowed(wheel.name, wheel.version)
        for each in entries:
            found = by_name.get(canonicalize_name(each.requirement.name))
            if each.hashes and (found is None or found.sha256 not in each.hashes):
                raise PackageError(
                    f"the wheel of {each.requirement.name!r} has another hash than was asked for.", reason="wrong_hash"
                )

    def _asked(self, wanted: Sequence[Requirement]) -> list[Wheel]:
        allowed = [f"{each.name}{each.specifier}" for each in self._allowed if each.specifier]
        return self._resolver.choose(wanted, self._image, allowed)

    def _fetch(self, wheels: Sequence[Wheel]) -> None:
        """Download what the cache does not have, and check it."""
        missing = [wheel for wheel in wheels if self.path(wheel) is None]
        if not missing:
            return
        store = self._cache / "wheels"
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".part-") as part:
            found = self._resolver.download(missing, Path(part))
            for wheel in missing:
                if wheel.sha256 not in found:
                    raise PackageError(f"the wheel of {wheel.name!r} has another hash.", reason="wrong_hash")
                target = store / wheel.sha256
                target.mkdir(exist_ok=True)
                os.replace(found[wheel.sha256], target / wheel.file)

    # What is remembered

    def _key(self, wanted: Sequence[Requirement]) -> str:
        image = sorted(self._image.items())
        parts = [
            sorted(map(str, wanted)),
            self._target.suite.python,
            self._target.architecture,
            self._policy.index,
            image,
        ]
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


def _parsed(text: object) -> Entry:
    """Return a requirement and the hashes that it names.

    Raises:
        PackageError: it is none, or names a URL.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise PackageError(f"{str(text)[:100]!r} is no requirement.", reason="malformed")
    try:
        return entry(text)
    except ValueError as error:
        raise PackageError(f"{error}.", reason="malformed") from None
