"""The Debian release that a sandbox image is made of, and the Python that comes with it."""

from __future__ import annotations

import platform
from dataclasses import dataclass


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


BOOKWORM = Suite("bookworm", "3.11", 36)
TRIXIE = Suite("trixie", "3.13", 41)
SUITES = {suite.codename: suite for suite in (BOOKWORM, TRIXIE)}


def host_codename() -> str:
    """Return the code name of this host's Debian release, or ""."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def choose(base_image: str = "", codename: str | None = None) -> Suite:
    """Return the suite to make the image of: the host's own, or Debian 12 on every other host.

    An image that the operator names must have the Python of Debian 12, whatever the host.

    Args:
        base_image: the image that the operator names, or "".
        codename: the release of the host; None: this host's.
    """
    if base_image:
        return BOOKWORM
    return SUITES.get(host_codename() if codename is None else codename, BOOKWORM)
