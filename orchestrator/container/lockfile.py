"""LockFile: a file that one process holds while it lives.

The lock is an open file description lock. Linux frees it when the process ends, however it ends, and shows it to every
process that can open the file, in any network, process or mount namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import Self

_WHOLE = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length (0: to the end), process id


class LockFile:
    """A lock file that this process holds until ``release`` or until it ends."""

    def __init__(self, path: Path, holder: int) -> None:
        self._path = path
        self._holder = holder

    @classmethod
    def take(cls, path: Path, text: str = "") -> Self | None:
        """Create and lock a file that contains ``text``. Return None if a process holds it.

        Raises:
            OSError: the file cannot be created or locked.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        holder = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, _WHOLE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            if not _is_file(holder, path):  # its last holder has just removed it
                os.close(holder)
                return None
            os.ftruncate(holder, 0)
            with contextlib.suppress(OSError):  # on a full disk: the text is for people, the lock is what counts
                os.write(holder, text.encode())
        except (BlockingIOError, PermissionError):
            os.close(holder)
            return None
        except BaseException:
            os.close(holder)
            raise
        return cls(path, holder)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Return whether a process holds the file. A file that cannot be opened counts as held, a missing one not."""
        try:
            probe = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            found = fcntl.fcntl(probe, fcntl.F_OFD_GETLK, _WHOLE.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(probe)
        return bool(_WHOLE.unpack(found)[0] != fcntl.F_UNLCK)

    @classmethod
    def remove_free(cls, path: Path) -> None:
        """Remove a file that no process holds."""
        if (held := cls.take(path)) is not None:
            held.release()

    @property
    def descriptor(self) -> int:
        """The open file whose copies, in processes that inherit it, hold the lock too."""
        return self._holder

    def leave(self) -> None:
        """Close this process's copy. The file stays, and is held while a process has another copy."""
        os.close(self._holder)

    def release(self) -> None:
        """Remove the file and let go of it."""
        self._path.unlink(missing_ok=True)
        os.close(self._holder)


def _is_file(holder: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(holder), path.stat())
    except FileNotFoundError:
        return False
