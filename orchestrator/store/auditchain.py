"""The file format of the audit log, and writing it: JSON lines, each with a hash that covers the line before it.

A line is ``{"seq":N, … ,"prev":"<hash of line N-1>","hash":"<SHA-256 of the line up to here>"}``. If a bit of a line
changes, or a line is removed, added or moved, the next line no longer matches. The last line has no next line: the
*head*, a file beside the log, has its number and hash. An attacker who can write to both files can write a new log.
To detect that, copy a head elsewhere (`cellblock audit verify` prints it) and pass it to `verify --head` later.

Every process of this host appends to the same file, under a lock on the head. A full file is renamed to
``NAME.<number of its last line>``, and the next file continues the chain. Its first line names the files that were
deleted because there were too many.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENESIS = "0" * 64  # the ``prev`` of the first line
RECOVERED, ROTATED = "audit.recovered", "audit.rotated"
LINE = re.compile(rb'(\{"seq":(\d{1,18}),.*,"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}', re.DOTALL)
_HEAD = re.compile(rb"(\d{1,18}) ([0-9a-f]{64})\n")
_TAIL = 64 * 1024  # bytes read at once when looking for the last line
_ALL = 2**31  # files


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the chain: a line's number and hash."""

    seq: int
    hash: str

    @classmethod
    def of(cls, text: str) -> Mark:
        """Return the mark of ``str``.

        Raises:
            ValueError: it is none.
        """
        number, _, digest = text.partition(":")
        if not re.fullmatch(r"[0-9]{1,18}", number) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError("not NUMBER:HASH")
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def append(path: Path, entries: Sequence[dict[str, Any]], *, fsync: bool, rotate_at: int, keep: int = _ALL) -> None:
    """Append entries, all or none. Blocks.

    If a killed writer left an incomplete line, it is removed first, and an entry of its own records that.

    Args:
        fsync: whether to sync the file to the disk.
        rotate_at: bytes; a larger file is renamed first, and a new one begun.
        keep: how many renamed files to keep; older ones are deleted when a new file is begun.

    Raises:
        OSError: the log cannot be written; it is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _opened(head_path(path)) as head_file:
        fcntl.flock(head_file, fcntl.LOCK_EX)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_opened(path))
            last, repair = _recover(path, log, _read_head(head_file))
            if os.fstat(log).st_size >= rotate_at:
                segment = path.with_name(f"{path.name}.{last.seq:012d}")
                path.rename(segment)
                log = stack.enter_context(_opened(path))
                deleted = _delete_old(path, keep)
                repair = [{"event": ROTATED, "previous": segment.name, "deleted": deleted}, *repair]
            time = entries[0].get("time", "")
            lines = bytearray()
            for entry in (*({"time": time} | said for said in repair), *entries):
                line, last = _seal(entry, last)
                lines += line
            head = f"{last.seq} {last.hash}\n".encode()
            with _all_or_nothing(log):
                _write(log, lines)
                if fsync:
                    os.fsync(log)
                os.pwrite(head_file, head, 0)
        os.ftruncate(head_file, len(head))


def segments(path: Path) -> list[Path]:
    """Return the existing files of a log, the oldest first."""
    named = [each for each in path.parent.glob(f"{path.name}.*") if re.fullmatch(r"\d{12}", each.suffix[1:])]
    return [*sorted(named), *([path] if path.exists() else [])]


def _delete_old(path: Path, keep: int) -> list[str]:
    """Delete all but the newest ``keep`` renamed files. Returns the names of those that are gone."""
    renamed = [each for each in segments(path) if each != path]
    deleted = []
    for segment in renamed[: max(0, len(renamed) - keep)]:
        with contextlib.suppress(OSError):  # the log goes on; the next rotation tries again
            segment.unlink()
            deleted.append(segment.name)
    return deleted


def _seal(entry: dict[str, Any], last: Mark) -> tuple[bytes, Mark]:
    seq = last.seq + 1
    body = json.dumps({"seq": seq, **entry, "prev": last.hash}, separators=(",", ":"), default=str)[:-1].encode()
    mark = Mark(seq, hashlib.sha256(body).hexdigest())
    return body + f',"hash":"{mark.hash}"}}\n'.encode(), mark


def _recover(path: Path, log: int, head: Mark | None) -> tuple[Mark, list[dict[str, Any]]]:
    """Remove an incomplete last line. Return the last complete line, and an entry that records what was found."""
    size = os.fstat(log).st_size
    end, line = _last_line(log, size)
    if end < size:
        os.ftruncate(log, end)
    if not end and (older := [each for each in segments(path) if each != path]):  # killed between two files
        with _opened(older[-1]) as segment:
            _, line = _last_line(segment, os.fstat(segment).st_size)
    match = LINE.fullmatch(line)
    last = head or Mark(0, GENESIS) if match is None else Mark(int(match[2]), match[4].decode())
    lost = max(0, head.seq - last.seq) if head is not None else 0
    differs = head is not None and head.seq == last.seq and head != last
    emptied = match is None and head is not None and bool(head.seq)
    missing = match is not None and head is None
    if end == size and not (lost or differs or emptied or missing):
        return last, []
    said = {"event": RECOVERED, "torn_bytes": size - end, "lost_entries": lost, "head_differs": differs or emptied}
    return last, [said | ({"head_missing": True} if missing else {})]


def _last_line(log: int, size: int) -> tuple[int, bytes]:
    """Return where the last complete line ends, and the line without its line feed; b"" if there is none."""
    start, data = size, b""
    while start > 0:
        step = min(_TAIL, start)
        start -= step
        data = os.pread(log, step, start) + data
        end = data.rfind(b"\n")
        begin = data.rfind(b"\n", 0, end) if end >= 0 else -1
        if begin >= 0:
            return start + end + 1, data[begin + 1 : end]
    end = data.rfind(b"\n")
    return end + 1, data[:end] if end >= 0 else b""


@contextlib.contextmanager
def _all_or_nothing(log: int) -> Iterator[None]:
    """Undo a partial append when the block fails: a disk that becomes full takes only a part."""
    size = os.fstat(log).st_size
    try:
        yield
    except BaseException:
        os.ftruncate(log, size)
        raise


def _write(log: int, lines: bytes | bytearray) -> None:
    written = 0
    while written < len(lines):
        more = os.write(log, lines[written:])
        if not more:
            raise OSError(errno.ENOSPC, "the disk took only a part of the lines")
        written += more


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # O_NOFOLLOW: another user with write access to the folder must not redirect the log.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    append_only = 0 if path.suffix == ".head" else os.O_APPEND
    descriptor = os.open(path, flags | append_only, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def head_path(path: Path) -> Path:
    """Return the path of a log's head."""
    return path.with_name(f"{path.name}.head")


def _read_head(descriptor: int) -> Mark | None:
    return parse_head(os.pread(descriptor, 200, 0))


def parse_head(content: bytes) -> Mark | None:
    """Return the last line as the head has it; None if the head is damaged."""
    match = _HEAD.fullmatch(content)
    return None if match is None else Mark(int(match[1]), match[2].decode())
