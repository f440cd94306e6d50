"""The Debian release that a sandbox image is made of, the Python that comes with it, and the wheels that run there."""

from __future__ import annotations

import platform
from dataclasses import dataclass

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_WHEEL_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_OLDEST_GLIBC = 17  # minor version


@dataclass(frozen=True, slots=True)
class Suite:
    """A Debian release.

    Attributes:
        codename: its name in apt's sources.
        python: the version of its Python, without the patch level.
        glibc: the minor version of its C library. It runs wheels that were built for an older one.
    """

    codename: str
    python: str
    glibc: int

    @property
    def slim_image(self) -> str:
        """The registry's slim Python image of this release."""
        return f"python:{self.python}-slim-{self.codename}"


@dataclass(frozen=True, slots=True)
class Target:
    """What wheels must run on.

    Attributes:
        suite: the Debian release of the image, with its Python.
        architecture: the engine's architecture in Docker's words.
    """

    suite: Suite
    architecture: str

    @property
    def machine(self) -> str:
        """The architecture in Python's words, or Docker's if there are no wheels for it."""
        return _WHEEL_ARCHITECTURES.get(self.architecture, self.architecture)

    @property
    def is_known(self) -> bool:
        """Whether there are wheels for this architecture."""
        return self.architecture in _WHEEL_ARCHITECTURES

    def environment(self) -> dict[str, str]:
        """Return the values of environment markers there."""
        return {
            "python_version": self.suite.python, "python_full_version": f"{self.suite.python}.0", "os_name": "posix",
            "sys_platform": "linux", "platform_system": "Linux", "platform_machine": self.machine, "extra": "",
            "implementation_name": "cpython", "platform_python_implementation": "CPython",
        }  # fmt: skip

    def platforms(self) -> list[str]:
        """Return the platform tags of wheels that run there, newest first."""
        newest_first = range(self.suite.glibc, _OLDEST_GLIBC - 1, -1)
        return [*(f"manylinux_2_{minor}_{self.machine}" for minor in newest_first), f"manylinux2014_{self.machine}"]

    def options(self) -> list[str]:
        """Return pip's options for such wheels."""
        tags = [f"--platform={tag}" for tag in self.platforms()]
        abis = [f"--abi={abi}" for abi in (f"cp{self.suite.python.replace('.', '')}", "abi3", "none")]
        return [f"--python-version={self.suite.python}", "--implementation=cp", *abis, *tags]


BOOKWORM = Suite("bookworm", "3.11", 36)
TRIXIE = Suite("trixie", "3.13", 41)
SUITES = {suite.codename: suite for suite in (BOOKWORM, TRIXIE)}


def host_codename() -> str:
    """Return the code name of this host's Debian release, or ""."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def host_architecture() -> str:
    """Return this host's architecture in Docker's words."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def choose(base_image: str = "", codename: str | None = None, python: str = "") -> Suite:
    """Return the suite to make the image of: the host's own, or Debian 12 on every other host.

    An image that the operator names must have the Python of Debian 12, whatever the host, unless ``python`` says which.

    Args:
        base_image: the image that the operator names, or "".
        codename: the release of the host; None: this host's.
        python: the version of Python to have; "": the suite's. Debian 12 stands for a version that no suite has.
    """
    suite = BOOKWORM if base_image else SUITES.get(host_codename() if codename is None else codename, BOOKWORM)
    if python in ("", suite.python):
        return suite
    having = [] if base_image else [each for each in SUITES.values() if each.python == python]
    return having[0] if having else Suite(BOOKWORM.codename, python, BOOKWORM.glibc)
