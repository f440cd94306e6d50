"""Files of the sandbox: write, read and remove them for the host, a bounded piece at a time.

Every function raises OSError when the system refuses.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import O_CREAT, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY, close, pread, pwrite, replace, unlink
from os import open as open_file
from pathlib import Path
from typing import Any

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS


def write_file(request: Mapping[str, Any], buffers: Sequence[Any]) -> None:
    """Write one piece of a file.

    Args:
        request: "path", the "offset" of the piece in bytes, whether it is the "last" one, and the path to "rename" the
            complete file to, or "".
        buffers: the piece, or nothing for an empty one.
    """
    path = Path(request["path"])
    if request["offset"] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    flags = O_WRONLY | (
        O_CREAT | O_TRUNC if request["offset"] == 0 else 0
    )  # a file that was moved away is not begun anew
    handle = open_file(path, flags, 0o644)
    try:
        data = memoryview(buffers[0]) if buffers else memoryview(b"")
        written = 0
        while written < len(data):
            written += pwrite(handle, data[written:], request["offset"] + written)
    finally:
        close(handle)
    if request["last"] and request["rename"]:
        replace(path, request["rename"])


def read_file(request: Mapping[str, Any]) -> bytes:
    """Return one piece of a file. A piece shorter than requested is the last one.

    Args:
        request: "path", "offset" and "length" in bytes.
    """
    handle = open_file(request["path"], O_RDONLY | O_NONBLOCK)
    try:
        data = bytearray()
        while piece := pread(handle, request["length"] - len(data), request["offset"] + len(data)):
            data += piece  # one call may return less than the file has
        return bytes(data)
    finally:
        close(handle)


def remove_file(request: Mapping[str, Any]) -> None:
    """Remove a file. A missing file is no error.

    Args:
        request: "path".
    """
    with suppress(FileNotFoundError):
        unlink(request["path"])
