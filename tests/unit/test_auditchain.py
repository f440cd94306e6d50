"""The chain of the audit log: whatever is done to a file, the first line that it was done to is named."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from orchestrator.store.auditchain import Mark, append, segments
from orchestrator.store.auditreading import Kind, read, verify

NEVER = 2**40
LINES = 100_000


def write(path: Path, count: int, *, rotate_at: int = NEVER, at_once: int = 1) -> None:
    for start in range(0, count, at_once):
        entries = [{"event": "cell.ended", "number": number} for number in range(start, start + at_once)]
        append(path, entries, fsync=False, rotate_at=rotate_at)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    write(path, 10)
    return path


def edit(path: Path, *lines: int) -> None:
    """Make a file of these of its lines, counted from 1."""
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[number - 1] for number in lines))


def test_a_log_as_it_was_written_is_sound(log: Path) -> None:
    verdict = verify(log)
    assert (verdict.fault, verdict.entries, verdict.first, verdict.last, verdict.notes) == (None, 10, 1, 10, ())


def test_every_single_bit_counts(tmp_path: Path) -> None:
    """Each bit of a log of four lines is flipped in turn, and of its head: none goes unnoticed, each names its line."""
    path = tmp_path / "audit.jsonl"
    write(path, 4)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            fault = verify(path).fault
            assert fault is not None, (position, bit)
            assert fault.line == whole[:position].count(b"\n") + 1
    path.write_bytes(whole)
    head = tmp_path / "audit.jsonl.head"
    kept = head.read_bytes()
    for position in range(len(kept)):
        damaged = bytearray(kept)
        damaged[position] ^= 1
        head.write_bytes(damaged)
        assert verify(path).fault is not None


def test_any_bit_of_a_hundred_thousand_lines_counts(tmp_path: Path) -> None:
    """Twenty random bits of a long log, one at a time."""
    path = tmp_path / "audit.jsonl"
    write(path, LINES, at_once=1000)
    assert verify(path).entries == LINES
    chance = random.Random(3)  # noqa: S311 - a repeatable test
    size = path.stat().st_size
    with path.open("r+b") as handle:
        for _ in range(20):
            position, bit = chance.randrange(size), chance.randrange(8)
            handle.seek(position)
            (byte,) = handle.read(1)
            handle.seek(position)
            handle.write(bytes([byte ^ 1 << bit]))
            handle.flush()
            assert verify(path).fault is not None, (position, bit)
            handle.seek(position)
            handle.write(bytes([byte]))
            handle.flush()
    assert verify(path).fault is None


@pytest.mark.parametrize(
    ("kept", "kind", "line"),
    [
        ((1, 2, 3, 5, 6, 7, 8, 9, 10), "removed", 4),
        ((2, 3, 4, 5, 6, 7, 8, 9, 10), "removed", 1),
        ((1, 2, 4, 3, 5, 6, 7, 8, 9, 10), "reordered", 3),
        ((1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10), "reordered", 4),
        ((1, 2, 3, 4, 5, 6, 7, 8, 9), "cut", 9),
        ((1,), "cut", 1),
        ((), "cut", 0),
    ],
)
def test_lines_that_go_or_move_are_named(log: Path, kept: tuple[int, ...], kind: Kind, line: int) -> None:
    """Removed, out of order, twice, or cut off at the end: each is told from the others."""
    edit(log, *kept)
    fault = verify(log).fault
    assert fault is not None
    assert (fault.kind, fault.line) == (kind, line)


def test_a_line_that_was_sealed_anew_breaks_the_chain(log: Path, tmp_path: Path) -> None:
    """A forger who seals a changed line correctly is found out by the next one."""
    other = tmp_path / "other.jsonl"
    append(other, [{"event": "cell.ended", "number": 99}], fsync=False, rotate_at=NEVER)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(other.read_bytes() + b"".join(lines[1:]))
    fault = verify(log).fault
    assert fault is not None
    assert (fault.kind, fault.line) == ("altered", 2)


def test_rotation_keeps_the_chain(tmp_path: Path) -> None:
    """Several files verify as one log; a file that is missing between others is missed, the oldest one is not."""
    path = tmp_path / "audit.jsonl"
    write(path, 100, rotate_at=4000)
    files = segments(path)
    assert len(files) > 3
    verdict = verify(path)
    assert (verdict.fault, verdict.first) == (None, 1)
    assert verdict.entries == 100 + len(files) - 1  # each new file begins by saying so
    files[0].unlink()
    verdict = verify(path)
    assert verdict.fault is None
    assert "no longer exist" in verdict.notes[0]
    files[2].unlink()
    fault = verify(path).fault
    assert fault is not None
    assert (fault.kind, fault.path) == ("removed", files[3])


def test_a_head_of_earlier_must_be_in_the_chain(log: Path) -> None:
    """What an auditor noted down is found again, and missed in a log that was written anew."""
    noted = verify(log).head
    write(log, 5)
    assert verify(log, noted).fault is None
    assert verify(log, Mark(noted.seq, "f" * 64)).fault is not None


def test_a_torn_last_line_is_repaired_and_reported(log: Path) -> None:
    """Half a line of a killed writer is told as such; the next writer cuts it away, and says so."""
    with log.open("ab") as handle:
        handle.write(b'{"seq":11,"event":"cell.en')
    fault = verify(log).fault
    assert fault is not None
    assert (fault.kind, fault.line) == ("torn", 11)
    write(log, 1)
    verdict = verify(log)
    assert (verdict.fault, verdict.entries) == (None, 12)
    assert "26 bytes" in verdict.notes[0]


def test_what_is_cut_off_before_the_next_entry_stays_missed(log: Path) -> None:
    """Lines cut off at the end do not heal because the log goes on."""
    edit(log, *range(1, 8))
    write(log, 3)
    fault = verify(log).fault
    assert fault is not None
    assert (fault.kind, fault.line) == ("cut", 8)
    assert "3 entries" in fault.said


def test_a_head_that_went_is_told_of(log: Path) -> None:
    """Who cuts lines off, and takes the head away with them, leaves a trace: the next writer says that it was gone."""
    edit(log, *range(1, 8))
    log.with_name("audit.jsonl.head").unlink()
    write(log, 2)
    verdict = verify(log)
    assert (verdict.fault, verdict.entries) == (None, 10)
    assert verdict.notes == ("entry 8: the head was missing: lines removed before it cannot be detected",)


def test_nobody_is_accused_because_a_line_is_just_being_written(log: Path) -> None:
    """verify takes the log as it is between two writes: it waits for the one that is under way."""
    with log.with_name("audit.jsonl.head").open("rb+") as head:
        fcntl.flock(head, fcntl.LOCK_EX)
        size = log.stat().st_size
        with log.open("ab") as handle:
            handle.write(b'{"seq":11,"event":"cell.en')
        with ThreadPoolExecutor() as pool:
            verdict = pool.submit(verify, log)
            assert not wait([verdict], 0.3).done
            os.truncate(log, size)
            fcntl.flock(head, fcntl.LOCK_UN)
            assert verdict.result(10).fault is None


def test_a_file_that_is_set_aside_is_read_to_its_end(tmp_path: Path) -> None:
    """A rotation in the midst of reading neither hides entries nor brings others in."""
    path = tmp_path / "audit.jsonl"
    write(path, 30, rotate_at=4000)
    entries = read(path)
    numbers = [next(entries)["seq"]]
    last = verify(path).last
    write(path, 1, rotate_at=1)
    numbers += [entry["seq"] for entry in entries]
    assert numbers == list(range(1, last + 1))


def test_an_emptied_log_is_missed_when_it_goes_on(log: Path) -> None:
    log.write_bytes(b"")
    write(log, 1)
    assert verify(log).fault is not None


def test_a_writer_that_is_killed_leaves_a_log_that_can_be_repaired(tmp_path: Path) -> None:
    """SIGKILL at ten random moments of a writing process: what was whole stays, and the chain goes on."""
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.store.auditchain import append\n"
        "while True: append(Path(sys.argv[1]), [{'event': 'x' * 5000}] * 20, fsync=False, rotate_at=2**20)\n"
    )
    chance = random.Random(5)  # noqa: S311 - a repeatable test
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)])
        time.sleep(0.3 + chance.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        before = verify(path)
        assert before.fault is None or before.fault.kind == "torn"
        write(path, 1)
        after = verify(path)
        assert after.fault is None
        assert after.entries > before.entries
