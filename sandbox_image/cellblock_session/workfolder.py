"""Save the files of the working folder into a checkpoint, and load them again."""

import contextlib
import os
import tarfile
from typing import IO, Any

from cellblock_session.notrestored import Lost
from cellblock_session.stream import PIECE, Sink, Source, reading, writing

WORK = "/work"


def save_files(sink: Sink) -> list[Lost]:
    """Write the files as a section with a tar, and return those that could not be read."""
    lost = []
    with (
        writing(sink) as section,
        tarfile.open(fileobj=section, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE) as archive,
    ):
        for folder, folders, files in os.walk(WORK):
            for name in sorted(folders + files):
                path = os.path.join(folder, name)
                if os.path.islink(path) or name in files or not os.path.ismount(path):
                    reason = _add_file(archive, path)
                    if reason:
                        lost.append((os.path.relpath(path, WORK), "file", reason))
    return lost


def load_files(source: Source) -> list[Lost]:
    """Read a section with a tar into the working folder, and return the files that could not be written."""
    lost = []
    with reading(source) as section, tarfile.open(fileobj=section, mode="r|", bufsize=PIECE) as archive:
        folders = []
        for member in archive:
            path = os.path.join(WORK, member.name)
            try:
                if member.isdir():
                    folders.append((path, member))
                    os.makedirs(path, exist_ok=True)
                    os.chmod(path, 0o700)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)  # the first attempt left it
                    archive.extract(member, WORK)
            except (OSError, tarfile.TarError) as error:
                lost.append((member.name, "file", f"it could not be written: {error}"))
        # Only now: writing into a folder changes its time, and its mode may forbid writing.
        for path, folder in reversed(folders):
            with contextlib.suppress(OSError):
                os.utime(path, (folder.mtime, folder.mtime))
                os.chmod(path, folder.mode)
    return lost


def current_folder() -> str | None:
    """Return the current working directory, or None if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _add_file(archive: tarfile.TarFile, path: str) -> str | None:
    """Add a file, and return None or the reason why it cannot be added."""
    try:
        info = archive.gettarinfo(path, os.path.relpath(path, WORK))
        if info is None:
            return "it is no file, folder, link or fifo"
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        if not info.isreg():
            archive.addfile(info)
            return None
        with open(path, "rb") as file:
            exactly: Any = _Exactly(file, info.size)
            archive.addfile(info, exactly)
        return None
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


class _Exactly:
    """A file with exactly as many bytes as its tar header says, even if another process writes to it meanwhile."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        data += bytes(min(size, self._left) - len(data))
        self._left -= len(data)
        return data
