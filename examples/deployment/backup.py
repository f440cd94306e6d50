#!/usr/bin/env python3
"""Write the data folder to an archive that only its owner can read: backup.py DATA_DIR ARCHIVE.tar.gz

The service may run meanwhile. The history is copied by SQLite's own backup. Files are written whole and never changed,
so links to them are a copy of them. They are linked before the history is copied, so that no file that it names is
missing, and again afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

_LEFT_OUT = ("history.db", "owner-", ".")  # how names of entries begin that are not linked


def link(data: Path, copy: Path) -> None:
    """Link every file of the data folder into ``copy``, as far as it is not there yet."""
    for file in data.rglob("*"):
        relative = file.relative_to(data)
        if relative.parts[0].startswith(_LEFT_OUT) or file.name.startswith(".") or not file.is_file():
            continue
        target = copy / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # it was deleted, or is there already
            os.link(file, target)


def copy_history(data: Path, copy: Path) -> None:
    """Copy the history as it is at one moment. With CELLBLOCK_STORE_URL there is none here."""
    if (data / "history.db").exists():
        with (
            contextlib.closing(sqlite3.connect(data / "history.db", timeout=60)) as live,
            contextlib.closing(sqlite3.connect(copy / "history.db")) as still,
        ):
            live.backup(still)


def main() -> None:
    """Write the archive, or leave an earlier one as it is."""
    data, archive = Path(sys.argv[1]), Path(sys.argv[2])
    os.umask(0o077)
    copy = Path(tempfile.mkdtemp(prefix=".backup-", dir=data))  # on the same file system, as links must be
    try:
        link(data, copy)
        copy_history(data, copy)
        link(data, copy)
        part = archive.with_name(f"{archive.name}.part")
        with tarfile.open(part, "w:gz") as tar:
            tar.add(copy, arcname=".")
        part.replace(archive)
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()
