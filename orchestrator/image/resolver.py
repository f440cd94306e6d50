"""Resolves packages to wheels with the pip of this host, for the Python of a sandbox image.

Nothing of a package runs on the host: pip takes wheels alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import PackageError
from orchestrator.host import hostcommand
from orchestrator.image.suite import Target
from orchestrator.output.fields import Fields

_RESOLVE_SECONDS = 120.0
_DOWNLOAD_SECONDS = 600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9._+!-]{1,200}\.whl")
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")  # these three in pip's words
_CONFLICT = re.compile(r"^ {4}(\S.*(?:depends on|requested).*)$", re.MULTILINE)
_UNREACHABLE = re.compile(r"Retrying \(|ConnectionError|Timeout|ProxyError|SSLError")
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


class Resolver:
    """Asks pip for wheels. Every method blocks: call them in a thread.

    Args:
        target: the Python and the architecture of the image.
        index: the URL of the package index; "": pip's own setting.
    """

    def __init__(self, target: Target, index: str = "") -> None:
        self._target = target
        self._index = [f"--index-url={index}"] if index else []

    def choose(self, wanted: Sequence[Requirement], versions: Mapping[str, str], more: Iterable[str]) -> list[Wheel]:
        """Return the wheels that pip chooses for ``wanted`` and what they need, without those of ``versions``.

        Args:
            versions: of packages that are there already. No other version of these is chosen.
            more: further constraints.

        Raises:
            PackageError: no wheels fit, or the index does not answer, or its answer cannot be used.
        """
        with tempfile.TemporaryDirectory(prefix="cellblock-resolve-") as folder:
            report, listed, pinned = (Path(folder, name) for name in ("report.json", "wanted.txt", "image.txt"))
            listed.write_text("".join(f"{_without_marker(each)}\n" for each in wanted))
            fixed = [f"{name}=={version}" for name, version in versions.items()]
            pinned.write_text("".join(f"{line}\n" for line in [*fixed, *more]))
            command = [*_pip("install"), "--dry-run", "--ignore-installed", "--quiet", f"--report={report}"]
            command += [f"--target={folder}/none", *self._target.options(), *self._index, f"--requirement={listed}"]
            self._run([*command, f"--constraint={pinned}"], _RESOLVE_SECONDS, wanted)
            try:
                found = json.loads(report.read_bytes())["install"]
                return [wheel for item in found if (wheel := _wheel_of(item, versions)) is not None]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise PackageError(f"pip's report cannot be read: {error}.", reason="index") from error

    def download(self, wheels: Sequence[Wheel], folder: Path) -> dict[str, Path]:
        """Download wheels into a folder, and return their files by their SHA-256.

        Raises:
            PackageError: pip could not get one of them with this hash.
        """
        listed = folder / "wheels.txt"
        listed.write_text("".join(f"{each.name}=={each.version} --hash=sha256:{each.sha256}\n" for each in wheels))
        command = [*_pip("download"), "--no-deps", "--require-hashes", "--quiet", f"--dest={folder / 'wheels'}"]
        command += [*self._target.options(), *self._index, f"--requirement={listed}"]
        self._run(command, _DOWNLOAD_SECONDS, [Requirement(each.name) for each in wheels])
        return {sha256_of(path): path for path in (folder / "wheels").glob("*.whl")}

    def _run(self, command: Sequence[str], seconds: float, wanted: Sequence[Requirement]) -> None:
        finished = hostcommand.run(command, seconds=seconds)
        if finished.code == 0:
            return
        names = ", ".join(each.name for each in wanted)
        if not _UNREACHABLE.search(finished.tail):
            if missing := _NO_WHEEL.search(finished.tail):
                raise PackageError(
                    f"the index has no wheel for {missing[1]} and Python {self._target.suite.python}. "
                    "Source distributions are never built.",
                    reason="no_wheel",
                )
            if "ResolutionImpossible" in finished.tail:
                cause = "; ".join(line.strip() for line in _CONFLICT.findall(finished.tail))
                raise PackageError(
                    f"{names} do not fit each other and the image's packages: {cause}.", reason="no_wheel"
                )
        last = finished.tail.strip().splitlines()[-1:] or ["pip printed nothing"]
        raise PackageError(
            f"{names} could not be fetched: {last[0][:300]}",
            reason="unreachable",
            remedy="Check that `pip download` reaches the package index from the host.",
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel_of(item: dict[str, Any], versions: Mapping[str, str]) -> Wheel | None:
    """Return the wheel of an item of pip's report; None for a package that is there already.

    Raises:
        PackageError: it is no wheel with a SHA-256.
    """
    name, version = canonicalize_name(item["metadata"]["name"]), str(item["metadata"]["version"])
    if versions.get(name) == version:
        return None
    about = item["download_info"]
    file = str(about["url"]).partition("#")[0].rpartition("/")[2]
    digest = (about.get("archive_info") or {}).get("hashes", {}).get("sha256", "")
    try:
        return Wheel.from_dict({"name": name, "version": version, "file": file, "sha256": digest})
    except ValueError:
        raise PackageError(f"the index offers no wheel with a SHA-256 for {name!r}.", reason="index") from None


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _pip(verb: str) -> list[str]:
    return [sys.executable, "-m", "pip", verb, *_QUIET]
