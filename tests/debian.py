"""What tests need of Debian's packages, installed where it is missing."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from orchestrator.host import aptpackages
from tests.turns import open_shared


def of_package(package: str, find: Callable[[], Path | None]) -> Path:
    """Return what ``find`` finds, at the latest once the package is installed."""
    with open_shared("packages") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find()
        if found is None:
            aptpackages.update(print)
            aptpackages.install([package], print)
            found = find()
    assert found is not None, f"it is not installed: apt-get install {package}"
    return found
