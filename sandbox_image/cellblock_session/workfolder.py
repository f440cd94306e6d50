"""Save the files of the working folder into a checkpoint, and load them again."""

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from cellblock_session.notrestored import Lost
from cellblock_session.stream import PIECE, Sink, Source, reading, writing

WORK = "/work"


def save_files(sink: Sink) -> list[Lost]:
    """Write the files as a section with a tar, and return those that could not be read."""
    lost: list[Lost] = []
    with (
        writing(sink) as section,
        tarfile.open(fileobj=section, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE) as archive,
    ):
        closed: list[tuple[str, int]] = []  # folders that are opened for the walk, with their modes
        try:
            _open_folder(WORK, closed)
            for folder, folders, files in os.walk(WORK, onerror=lambda error: lost.append(_unread(error))):
                for name in sorted(folders + files):
                    path = os.path.join(folder, name)
                    if os.path.islink(path) or name in files or not os.path.ismount(path):
                        reason = _add_file(archive, path)
                        if reason:
                            lost.append((os.path.relpath(path, WORK), "file", reason))
                        elif name in folders and not os.path.islink(path):
                            _open_folder(path, closed)
        finally:
            for path, mode in reversed(closed):
                os.chmod(path, mode)
    return lost


def _open_folder(path: str, closed: list[tuple[str, int]]) -> None:
    """Let the walk enter a folder whose mode forbids that, and note its mode."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o500 != 0o500:
        with contextlib.suppress(OSError):  # the walk reports it
            os.chmod(path, mode | 0o700)
            closed.append((path, mode))


def _unread(error: OSError) -> Lost:
    return os.path.relpath(str(error.filename), WORK), "folder", f"it cannot be read: {error.strerror}"


@contextlib.contextmanager
def _readable(path: str, mode: int) -> Iterator[IO[bytes]]:
    """Open a file, also if its mode forbids that to its owner."""
    if not mode & 0o400:
        os.chmod(path, mode | 0o400)
    try:
        with open(path, "rb") as file:
            yield file
    finally:
        if not mode & 0o400:
            os.chmod(path, mode)


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
        with _readable(path, stat.S_IMODE(info.mode)) as file:
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
