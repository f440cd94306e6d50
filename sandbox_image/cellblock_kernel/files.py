"""Files of the sandbox, for the host: pieces of bounded size, lists, and changes.

Every function raises OSError when the system refuses. Paths are bytes. In JSON, each byte is one character (Latin-1).
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import translate
from itertools import islice
from os import O_CREAT, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY, close, pread, pwrite, replace, unlink
from os import open as open_file
from typing import Any

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

KINDS = {stat.S_IFREG: b"file", stat.S_IFDIR: b"dir", stat.S_IFLNK: b"link"}


def decoded(text: str) -> bytes:
    """Return the bytes that a text of the host stands for."""
    return text.encode("latin-1")


def write_file(request: Mapping[str, Any], buffers: Sequence[Any]) -> None:
    """Write one piece of a file.

    Args:
        request: "path", the "offset" of the piece in bytes, whether it is the "last" one, and the path to "rename" the
            complete file to, or "".
        buffers: the piece, or nothing for an empty one.
    """
    path = decoded(request["path"])
    if request["offset"] == 0:
        _make_parents(path)
        target = decoded(request["rename"])
        if target and os.path.exists(target):
            _refuse_unwritable(target)
    begins = O_CREAT | O_TRUNC if request["offset"] == 0 else 0  # a file that was moved away is not begun anew
    handle = open_file(path, O_WRONLY | begins, 0o644)
    try:
        data = memoryview(buffers[0]) if buffers else memoryview(b"")
        written = 0
        while written < len(data):
            written += pwrite(handle, data[written:], request["offset"] + written)
    finally:
        close(handle)
    if request["last"] and request["rename"]:
        _put_in_place(path, decoded(request["rename"]))


def _make_parents(path: bytes) -> None:
    """Make the folders above a path."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError:
        raise _error(errno.ENOTDIR) from None


def _refuse_unwritable(target: bytes) -> None:
    """Refuse to replace what could not be written in place: a folder, or a file whose mode forbids it."""
    if os.path.isdir(target):
        raise _error(errno.EISDIR)
    if not os.access(target, os.W_OK):
        raise _error(errno.EACCES)


def _put_in_place(path: bytes, target: bytes) -> None:
    """Replace a file by a new one, which gets its mode. A link stays, and what it leads to is replaced."""
    with suppress(FileNotFoundError):
        if stat.S_ISLNK(os.lstat(target).st_mode):
            target = os.path.realpath(target)
        os.chmod(path, stat.S_IMODE(os.stat(target).st_mode))
    replace(path, target)


def read_file(request: Mapping[str, Any]) -> bytes:
    """Return one piece of a file. A piece shorter than requested is the last one.

    Args:
        request: "path", "offset" and "length" in bytes.
    """
    handle = open_file(decoded(request["path"]), O_RDONLY | O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode) and not stat.S_ISCHR(os.fstat(handle).st_mode):
            raise _error(errno.EISDIR if stat.S_ISDIR(os.fstat(handle).st_mode) else errno.ESPIPE)
        data = bytearray()
        while piece := pread(handle, request["length"] - len(data), request["offset"] + len(data)):
            data += piece  # one call may return less than the file has
        return bytes(data)
    finally:
        close(handle)


def discard_file(request: Mapping[str, Any]) -> None:
    """Remove a file that the host did not finish. A missing file is no error.

    Args:
        request: "path".
    """
    with suppress(FileNotFoundError):
        unlink(decoded(request["path"]))


def stat_file(request: Mapping[str, Any]) -> bytes:
    """Return what ``describe`` says of a file.

    Args:
        request: "path"; "follow", whether to follow a link.
    """
    path = decoded(request["path"])
    return describe(os.path.realpath(path, strict=True) if request["follow"] else path, b"")


def list_files(request: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Return what ``describe`` says of the files in a folder, in the order of their names, and whether there are more.

    Args:
        request: "path"; "recursive"; "pattern", or ""; "most", how many files.
    """
    top = decoded(request["path"])
    chosen = matcher(decoded(request["pattern"])) if request["pattern"] else None
    os.listdir(top)  # raises what ``_walk`` does not
    found = (path for path in _walk(top, b"", recursive=request["recursive"]) if chosen is None or chosen(path))
    entries = []
    for path in islice(found, request["most"] + 1):
        with suppress(FileNotFoundError):  # removed meanwhile
            entries.append(describe(os.path.join(top, path), path))
    return b"".join(entries[: request["most"]]), len(entries) > request["most"]


def describe(path: bytes, name: bytes) -> bytes:
    """Return six fields, each ended by NUL: name, kind, size in bytes, time of change in ns, mode, and a link's target.

    The kind is "file", "dir", "link" or "other".
    """
    found = os.lstat(path)
    kind = KINDS.get(stat.S_IFMT(found.st_mode), b"other")
    target = os.readlink(path) if kind == b"link" else b""
    mode = stat.S_IMODE(found.st_mode)
    return b"%s\0%s\0%d\0%d\0%d\0%s\0" % (name, kind, found.st_size, found.st_mtime_ns, mode, target)


def _walk(folder: bytes, below: bytes, *, recursive: bool) -> Iterator[bytes]:
    """Yield the paths in a folder, relative to the first one, sorted. Links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # removed meanwhile, or closed to this user
        return
    for entry in found:
        path = os.path.join(below, entry.name)
        yield path
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, path, recursive=True)


def matcher(pattern: bytes) -> Callable[[bytes], bool]:
    """Return a function that tells whether a relative path matches a pattern.

    A pattern without a slash is for the name alone. In one with a slash, ``*`` matches no slash, and ``**`` any number
    of folders.
    """
    if b"/" not in pattern:
        name = re.compile(translate(os.fsdecode(pattern)))
        return lambda path: name.match(os.fsdecode(os.path.basename(path))) is not None
    parts = [".*" if part == "**" else _part(part) for part in os.fsdecode(pattern).strip("/").split("/")]
    whole = re.compile("/".join(parts).replace(".*/", "(?:.*/)?"), re.DOTALL)
    return lambda path: whole.fullmatch(os.fsdecode(path)) is not None


def _part(part: str) -> str:
    """Return the expression of one part of a pattern, whose ``*`` and ``?`` match no slash."""
    inner = translate(part).removeprefix("(?s:").removesuffix(r")\Z")
    return re.sub(r"(?<!\\)\.", "[^/]", inner)


def make_folder(request: Mapping[str, Any]) -> bool:
    """Make a folder, and those above it. Return whether it is new.

    Args:
        request: "path"; "parents", whether to make those above it.
    """
    path = decoded(request["path"])
    if os.path.isdir(path):
        return False
    (os.makedirs if request["parents"] else os.mkdir)(path)
    return True


def move_file(request: Mapping[str, Any]) -> None:
    """Move a file or a folder. A file replaces a file.

    Args:
        request: "path", and "to".
    """
    source, target = decoded(request["path"]), decoded(request["to"])
    os.lstat(source)
    _make_parents(target)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if os.path.isdir(target):  # shutil would move it into the folder
            raise _error(errno.EEXIST) from None
        shutil.move(os.fsdecode(source), os.fsdecode(target))


def remove_file(request: Mapping[str, Any]) -> None:
    """Remove a file, a link or a folder.

    Args:
        request: "path"; "recursive", whether to remove a folder with all that it has.
    """
    path = decoded(request["path"])
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        unlink(path)
    elif request["recursive"]:
        shutil.rmtree(path, onerror=_open_and_try_again)
    else:
        os.rmdir(path)


def _open_and_try_again(function: Callable[..., Any], path: Any, failure: Any) -> None:
    """Remove what is in a folder whose mode forbids that. Called by ``shutil.rmtree``."""
    if not isinstance(failure[1], PermissionError):
        raise failure[1]
    for folder in (os.path.dirname(path), path):
        if not os.path.islink(folder):
            os.chmod(folder, 0o700)
    if os.path.islink(path) or not os.path.isdir(path):
        unlink(path)
    else:
        shutil.rmtree(path)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
