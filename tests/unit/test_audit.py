"""The audit log: every line parses, whatever its fields contain; a disk that fails blocks and ends nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.eventfeed import EventFeed
from orchestrator.store.audit import AuditLog


def feed_of(log: AuditLog) -> EventFeed:
    return EventFeed(log.receive)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_entries_are_appended_in_order_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.jsonl"
    for number in range(2):
        log = AuditLog(path)
        feed_of(log).publish("kernel.started", kernel=f"k{number}", uid=200000 + number)
        feed_of(log).publish("kernel.ended", kernel=f"k{number}")
        log.close()
    found = lines(path)
    assert [(entry["event"], entry["kernel"]) for entry in found] == [
        ("kernel.started", "k0"), ("kernel.ended", "k0"), ("kernel.started", "k1"), ("kernel.ended", "k1"),
    ]  # fmt: skip
    assert all(str(entry["time"]).endswith("+00:00") for entry in found)


def test_hostile_text_stays_one_line_of_bounded_length(tmp_path: Path) -> None:
    """A text from a kernel can neither forge an entry nor fill the disk."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    feed_of(log).publish("kernel.cut", reason='\n{"event": "kernel.ended"}\n\x1b[2J\u2028\ud800' + "x" * 10_000_000)
    log.close()
    (entry,) = lines(path)
    assert len(path.read_bytes()) < 5000
    assert str(entry["reason"]).startswith('\n{"event"')


def test_code_is_kept_whole(tmp_path: Path) -> None:
    """Unlike any other text: a policy may ask for it, and an investigation needs all of it."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    feed_of(log).publish("cell.started", cell=1, code="x" * 5000)
    log.close()
    (entry,) = lines(path)
    assert (entry["cell"], entry["code"]) == (1, "x" * 5000)


def test_many_writers_never_tear_a_line(tmp_path: Path) -> None:
    """Each line is one write: threads here, and processes, share the file."""
    path = tmp_path / "audit.jsonl"
    logs = [AuditLog(path) for _ in range(4)]

    def write(log: AuditLog) -> None:
        for number in range(500):
            feed_of(log).publish("event", number=number, text="y" * 300)

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    assert len(lines(path)) == 2000


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Publishing goes on, the other subscribers get the events, and the program's log has one error."""
    (tmp_path / "file").write_text("")
    log, seen = AuditLog(tmp_path / "file" / "audit.jsonl"), []
    feed = EventFeed(log.receive, lambda event: seen.append(event.name))
    feed.publish("first")
    log.close()
    feed.publish("second")
    log.close()
    assert seen == ["first", "second"]
    errors = [record.getMessage() for record in caplog.records]
    assert len(errors) == 2, "one for each thread that could not write"
    assert all("cannot be written" in error and "audit.jsonl" in error for error in errors)


def test_what_could_not_be_written_is_counted_in_the_next_line_that_can(tmp_path: Path) -> None:
    """The log is a link, which is not followed: it stands for a disk that takes nothing."""
    path = tmp_path / "audit.jsonl"
    path.symlink_to(tmp_path / "elsewhere")
    log = AuditLog(path)
    for number in range(5):
        feed_of(log).publish("event", number=number)
    log.close()
    path.unlink()
    feed_of(log).publish("event", number=-1)
    log.close()
    (entry,) = lines(path)
    assert (entry["number"], entry["dropped_before"]) == (-1, 5)
    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_fills_up_takes_whole_lines_or_nothing(tmp_path: Path) -> None:
    """The file may have 1000 bytes: the write that exceeds them is short, and leaves no partial line."""
    path = tmp_path / "audit.jsonl"
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.eventfeed import EventFeed\n"
        "from orchestrator.store.audit import AuditLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "feed = EventFeed(log.receive)\n"
        "for number in range(50): feed.publish('event', number=number, text='z' * 70)\n"
        "log.close()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60, capture_output=True)
    numbers = [entry["number"] for entry in lines(path)]
    assert 3 <= len(numbers) < 10
    assert numbers == list(range(len(numbers)))


def test_nothing_is_kept_when_it_is_off(tmp_path: Path) -> None:
    """Neither a file nor a thread; a log that is on has both."""
    for path in (None, tmp_path / "audit.jsonl"):
        log = AuditLog(path)
        feed_of(log).publish("event")
        working = [thread.name for thread in threading.enumerate() if thread.name == "cellblock-audit"]
        assert working == ([] if path is None else ["cellblock-audit"])
        log.close()
        assert list(tmp_path.glob("*.jsonl")) == ([] if path is None else [path])
