"""A small file system in a file, which a test can fill to its last block or inode."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tests.debian import of_package

BLOCK = 4096  # bytes
Kind = Literal["bytes", "inodes"]


class SmallDisk:
    """A file system mounted on ``folder``. The files that fill it are in ``folder / "filler"``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._filler.mkdir()
        (self._filler / "content").touch()

    def fill(self, kind: Kind) -> None:
        """Use all free blocks or inodes."""
        if kind == "inodes":
            with _until_full():
                for number in itertools.count():
                    (self._filler / str(number)).touch()
            return
        with _until_full(), (self._filler / "content").open("ab", buffering=0) as content:
            for size in (256 * BLOCK, BLOCK):
                with _until_full():
                    while content.write(bytes(size)) == size:
                        pass

    def give(self, kind: Kind, amount: int) -> None:
        """Free a number of blocks or inodes."""
        if kind == "bytes":
            content = self._filler / "content"
            os.truncate(content, content.stat().st_size - amount * BLOCK)
            return
        for file in sorted(self._filler.glob("[0-9]*"))[:amount]:
            file.unlink()

    def make_room(self) -> None:
        """Free everything that fills the file system."""
        for file in self._filler.iterdir():
            file.unlink()
        (self._filler / "content").touch()

    def files(self) -> set[str]:
        """Return the names of its files, without the filler."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return {str(path) for path in found if path.parts[0] not in ("filler", "lost+found")}


@contextlib.contextmanager
def small_disk(*, megabytes: int = 24, inodes: int = 256) -> Iterator[SmallDisk]:
    """Create a file system and mount it on a short path, because it may hold sockets."""
    program = of_package("e2fsprogs", _mkfs)
    with tempfile.TemporaryDirectory(prefix="cb-disk-") as name:
        image, folder = Path(name, "image"), Path(name, "d")
        folder.mkdir()
        with image.open("wb") as handle:
            handle.truncate(megabytes * 1024 * 1024)
        subprocess.run([program, "-q", "-m", "0", "-b", str(BLOCK), "-N", str(inodes), image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            yield SmallDisk(folder)
        finally:
            # Lazily, so that files left open by a failed test do not keep it mounted.
            subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _mkfs() -> Path | None:
    found = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return None if found is None else Path(found)
