"""Files of Debian packages that tests need. Missing packages are installed."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.host import aptpackages


def of_package(package: str, find: Callable[[], Path | None]) -> Path:
    """Return the path that ``find`` returns, after installing the package if it returns None."""
    with (Path(tempfile.gettempdir()) / "cellblock-test-packages").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find()
        if found is None:
            aptpackages.update(print)
            aptpackages.install([package], print)
            found = find()
    assert found is not None, f"{package} could not be installed; run `apt-get install {package}`"
    return found
