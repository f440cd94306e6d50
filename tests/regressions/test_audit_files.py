"""The audit log's full files: only the newest are kept, and the chain says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.eventfeed import EventFeed
from orchestrator.settings import Settings
from orchestrator.store.audit import AuditLog
from orchestrator.store.auditchain import Mark, append, segments
from orchestrator.store.auditreading import read, verify
from tests.conftest import make_manager

KEPT = 3


def write(path: Path, entries: int, keep: int = KEPT) -> None:
    for number in range(entries):
        append(path, [{"event": "cell.ended", "number": number}], fsync=False, rotate_at=2000, keep=keep)


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    """What is left verifies, and the log names what was deleted."""
    path = tmp_path / "audit.jsonl"
    (tmp_path / "audit.jsonl.note").write_text("another's")
    write(path, 200)
    assert len(segments(path)) == KEPT + 1
    assert sum(file.stat().st_size for file in segments(path)) < (KEPT + 1) * 3000
    verdict = verify(path)
    assert verdict.fault is None
    assert verdict.last > 200
    assert "no longer exist" in verdict.notes[0]
    named = [name for entry in read(path) for name in entry.get("deleted", [])]
    assert named
    assert not any((tmp_path / name).exists() for name in named)
    assert (tmp_path / "audit.jsonl.note").exists()


def test_a_smaller_number_deletes_more_at_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 200, keep=10)
    assert len(segments(path)) == 11
    write(path, 20, keep=1)
    assert len(segments(path)) == 2
    assert verify(path).fault is None


def test_a_file_that_was_not_deleted_for_its_age_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 200)
    segments(path)[1].unlink()
    fault = verify(path).fault
    assert fault is not None
    assert fault.kind == "removed"


def test_a_head_of_a_deleted_file_is_reported_precisely(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 2)
    early = verify(path).head
    write(path, 200)
    fault = verify(path, early).fault
    assert fault is not None
    assert (fault.kind, "no longer exists" in fault.said) == ("removed", True)
    late = verify(path).head
    assert verify(path, late).fault is None
    forged = verify(path, Mark(late.seq, "0" * 64)).fault
    assert forged is not None
    assert forged.kind == "altered"


def test_a_reader_goes_on_while_files_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 100)
    entries = read(path)
    next(entries)
    write(path, 100)
    numbers = [entry["seq"] for entry in entries]
    assert numbers == sorted(numbers)


def test_a_writer_that_is_killed_leaves_a_log_that_verifies(tmp_path: Path) -> None:
    """Also between the rename of a full file and the deletion of an old one."""
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys; from pathlib import Path; from orchestrator.store.auditchain import append\n"
        "while True: append(Path(sys.argv[1]), [{'event': 'x' * 900}] * 3, fsync=False, rotate_at=2000, keep=2)\n"
    )
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)], env=os.environ)
        before = verify(path).last if path.exists() else 0
        end = time.monotonic() + 10
        while (not path.exists() or verify(path).last < before + 20) and time.monotonic() < end:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        write(path, 1, keep=2)
        fault = verify(path).fault
        assert fault is None, fault
        assert len(segments(path)) <= 4


def test_the_log_of_a_process_keeps_as_many_as_its_setting_says(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, rotate_at=2000, keep=2)
    feed = EventFeed(log.receive)
    for number in range(200):
        feed.publish("cell.ended", number=number)
        if number % 10 == 0:
            log.close()
    log.close()
    assert len(segments(path)) == 3
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 199


@pytest.mark.one_runtime
async def test_a_manager_bounds_its_audit_log(runtime: str, tmp_path: Path) -> None:
    """With the smallest files that a setting allows, and one kept: never more than 2 MiB and a few entries."""
    path = tmp_path / "audit.jsonl"
    write_large(path, 5)
    manager = make_manager(runtime, audit_log=str(path), audit_rotate_mb=1, audit_files=1)
    async with manager, manager.acquire_kernel("a", timeout=60) as (_, session):
        await manager.execute(session, "1")
    assert len(segments(path)) == 2
    assert verify(path).fault is None
    assert Settings().audit_files == 20


def write_large(path: Path, files: int) -> None:
    """Write a log of an earlier version, which kept all files."""
    for _ in range(files + 1):
        append(path, [{"event": "x" * 1_100_000}], fsync=False, rotate_at=2**20)
