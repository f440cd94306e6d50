"""Reading the audit log: its entries, and whether its chain is whole. See ``auditchain`` for the format."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from orchestrator.store.auditchain import GENESIS, LINE, Mark, head_path, parse_head, segments

_LONGEST_LINE = 64 * 1024 * 1024  # bytes

Kind = Literal["altered", "removed", "reordered", "cut", "torn"]


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
            if head_path(path).exists():
                head_file = lock.enter_context(head_path(path).open("rb"))
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
        self._head = None if head is None else parse_head(head)
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
        match = LINE.fullmatch(line[:-1])
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
            self._fail("altered", f"the head {head_path(self._path).name} is damaged")
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
