"""The file format of the audit log: JSON lines, each with a hash that covers the line before it.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

GENESIS = "0" * 64  # the ``prev`` of the first line
RECOVERED, ROTATED = "audit.recovered", "audit.rotated"
_LINE = re.compile(rb'(\{"seq":(\d{1,18}),.*,"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}', re.DOTALL)
_HEAD = re.compile(rb"(\d{1,18}) ([0-9a-f]{64})\n")
_TAIL = 64 * 1024  # bytes read at once when looking for the last line
_ALL = 2**31  # files
_LONGEST_LINE = 64 * 1024 * 1024  # bytes

Kind = Literal["altered", "removed", "reordered", "cut", "torn"]


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


@dataclass(frozen=True, slots=True)
class Fault:
    """The first fault of a log.

    Attributes:
        kind: "altered" (the line was changed), "removed" (lines before this one are missing), "reordered" (the line was
            moved), "cut" (lines at the end are missing) or "torn" (the last line is incomplete because its writer was
            killed; the next writer repairs it and records that).
        path, line: the file, and the line's number in it from 1.
        said: the explanation.
    """

    kind: Kind
    path: Path
    line: int
    said: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of ``verify``.

    Attributes:
        entries: how many valid lines there are, up to the fault.
        first, last: the numbers of the first and the last valid line; 0 if there is none.
        head: the last valid line.
        notes: observations that are not faults.
    """

    entries: int
    first: int
    last: int
    head: Mark
    fault: Fault | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        fault = self.fault
        said = None if fault is None else {**asdict(fault), "path": str(fault.path)}
        return {"intact": fault is None, **asdict(self), "head": str(self.head), "fault": said}


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
    with _opened(_head_path(path)) as head_file:
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


def verify(path: Path, expected: Mark | None = None) -> Verdict:
    """Check a log, from its first file to its head. Blocks.

    Args:
        expected: an earlier head, which must be in the chain.

    Raises:
        OSError: the log cannot be read.
    """
    with _between_writes(path) as snapshot:
        check = _Check(path, expected, snapshot.head)
        for segment, number, line in snapshot.lines():
            check.line(segment, number, line)
            if check.fault is not None:
                return check.verdict()
    check.end()
    return check.verdict()


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


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log, the oldest first. Lines that are not JSON are skipped. Blocks.

    Raises:
        OSError: the log cannot be read.
    """
    with _between_writes(path) as snapshot:
        for _segment, _number, line in snapshot.lines():
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def newest(path: Path, count: int, most_bytes: int) -> list[dict[str, Any]]:
    """Return the newest entries of a log's current file, the oldest of them first. Blocks.

    Args:
        count: how many entries at most.
        most_bytes: how much of the file's end is read.

    Raises:
        OSError: the log cannot be read.
    """
    with _between_writes(path) as snapshot:
        if snapshot.current is None:
            return []
        handle, size = snapshot.current
        begin = max(0, size - most_bytes)
        handle.seek(begin)
        lines = handle.read(size - begin).split(b"\n")
    entries: list[dict[str, Any]] = []
    for line in reversed(lines if begin == 0 else lines[1:]):  # the first one may be a part of a line
        if len(entries) == count:
            break
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries[::-1]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A log between two writes. Later writes and renames do not affect it.

    Attributes:
        full: the files that were renamed; they no longer change.
        current: the file that is written to, and its size in bytes; None if there is none.
        head: the content of the head file; None if there is none.
    """

    path: Path
    full: Sequence[Path]
    current: tuple[BinaryIO, int] | None
    head: bytes | None

    def lines(self) -> Iterator[tuple[Path, int, bytes]]:
        """Yield every line with its file and its number in the file."""
        for segment in self.full:
            with contextlib.suppress(FileNotFoundError), segment.open("rb") as handle:  # deleted by now: too old
                yield from self._lines_of(segment, handle, os.fstat(handle.fileno()).st_size)
        if self.current is not None:
            yield from self._lines_of(self.path, *self.current)

    @staticmethod
    def _lines_of(path: Path, handle: BinaryIO, left: int) -> Iterator[tuple[Path, int, bytes]]:
        number = 0
        while line := handle.readline(min(left, _LONGEST_LINE)):
            number, left = number + 1, left - len(line)
            yield path, number, line


@contextlib.contextmanager
def _between_writes(path: Path) -> Iterator[_Snapshot]:
    with contextlib.ExitStack() as stack:
        head, current = None, None
        with contextlib.ExitStack() as lock:
            if _head_path(path).exists():
                head_file = lock.enter_context(_head_path(path).open("rb"))
                fcntl.flock(head_file, fcntl.LOCK_SH)
                head = head_file.read()
            full = [each for each in segments(path) if each != path]
            if path.exists():
                handle = stack.enter_context(path.open("rb"))
                current = handle, os.fstat(handle.fileno()).st_size
        yield _Snapshot(path, full, current, head)


class _Check:
    """Checks a chain line by line, up to its first fault."""

    def __init__(self, path: Path, expected: Mark | None, head: bytes | None) -> None:
        self._path = path
        self._expected = expected
        self._head = None if head is None else _parse_head(head)
        self._has_head = head is not None
        self._first = 0
        self._entries = 0
        self._last = Mark(0, GENESIS)
        self._where = (path, 0)
        self._notes: list[str] = []
        self._found = expected is None
        self.fault: Fault | None = None

    def line(self, path: Path, number: int, line: bytes) -> None:
        self._where = (path, number)
        if not line.endswith(b"\n"):
            self._fail("torn", "it is incomplete: its writer was killed, or its end was removed")
            return
        match = _LINE.fullmatch(line[:-1])
        if match is None or hashlib.sha256(match[1]).hexdigest().encode() != match[4]:
            self._fail("altered", "it was changed after it was written")
            return
        seq, prev, mark = int(match[2]), match[3].decode(), Mark(int(match[2]), match[4].decode())
        if not self._entries and seq != 1 and b'"event":"audit.rotated"' in line:
            self._notes.append(f"entries 1 to {seq - 1} are in files that no longer exist")
        elif seq != self._last.seq + 1:
            self._misplaced(seq)
            return
        elif prev != self._last.hash:
            self._fail("altered", f"it was written after another line {self._last.seq} than the one before it")
            return
        self._first = self._first or seq
        self._entries += 1
        self._last = mark
        self._found = self._found or mark == self._expected
        if b'"event":"audit.recovered"' in line:
            self._judge_recovery(json.loads(line))
        if self._head is not None and seq == self._head.seq and mark != self._head:
            self._fail("altered", "the head has another hash for it")

    def end(self) -> None:
        if self._head is None and self._has_head:
            self._fail("altered", f"the head {_head_path(self._path).name} is damaged")
        elif self._head is not None and self._head.seq > self._last.seq:
            self._fail("cut", f"the last {self._head.seq - self._last.seq} entries are missing after it")
        elif not self._found and self._expected is not None and self._expected.seq < self._first:
            self._fail("removed", f"the expected head {self._expected} was in a file that no longer exists")
        elif not self._found:
            self._fail("altered", f"no line matches the expected head {self._expected}")
        elif self._head is None and self._entries:
            self._notes.append("there is no head beside the log: lines removed at its end cannot be detected")

    def verdict(self) -> Verdict:
        return Verdict(self._entries, self._first, self._last.seq, self._last, self.fault, tuple(self._notes))

    def _judge_recovery(self, entry: dict[str, Any]) -> None:
        if entry.get("lost_entries") or entry.get("head_differs"):
            lost = entry.get("lost_entries") or "some"
            self._fail("cut", f"{lost} entries before it were removed")
            return
        if entry.get("head_missing"):
            self._notes.append(
                f"entry {entry['seq']}: the head was missing: lines removed before it cannot be detected"
            )
        if entry.get("torn_bytes"):
            self._notes.append(
                f"entry {entry['seq']}: a killed writer left {entry['torn_bytes']} bytes of an incomplete line"
            )

    def _misplaced(self, seq: int) -> None:
        wanted = self._last.seq + 1
        if seq < wanted or any(entry.get("seq") == wanted for entry in read(self._path)):
            self._fail("reordered", f"it is entry {seq}, where entry {wanted} should be")
        else:
            self._fail("removed", f"entries {wanted} to {seq - 1} are missing before it")

    def _fail(self, kind: Kind, said: str) -> None:
        self.fault = self.fault or Fault(kind, *self._where, said)


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
    match = _LINE.fullmatch(line)
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


def _head_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _read_head(descriptor: int) -> Mark | None:
    return _parse_head(os.pread(descriptor, 200, 0))


def _parse_head(content: bytes) -> Mark | None:
    match = _HEAD.fullmatch(content)
    return None if match is None else Mark(int(match[1]), match[2].decode())
