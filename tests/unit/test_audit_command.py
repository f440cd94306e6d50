"""`cellblock audit`, as people type it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.auditchain import append

COMMAND = str(Path(sys.executable).with_name("cellblock"))
NEVER = 2**40


def audit(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CELLBLOCK_AUDIT_LOG": str(path), "COLUMNS": "200"}
    return subprocess.run(
        [COMMAND, "audit", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def add(path: Path, *entries: dict[str, Any]) -> None:
    append(path, entries, fsync=False, rotate_at=NEVER)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    add(
        path,
        {"time": "2026-01-01T10:00:00.000+00:00", "event": "cell.started", "agent": "ann", "code_sha256": "c" * 64},
        {"time": "2026-01-01T10:00:01.000+00:00", "event": "cell.ended", "agent": "ann", "outcome": "oom"},
        {"time": "2026-01-02T10:00:00.000+00:00", "event": "cell.ended", "agent": "bob", "outcome": "ok"},
        {"time": "2026-01-03T10:00:00.000+00:00", "event": "file.in", "agent": "bob", "path": "\x1b[2J[red]x"},
    )
    return path


def test_verify_says_that_it_is_whole_and_names_its_head(log: Path) -> None:
    """Status 0; the head that it prints is one to look for later, when the log has grown."""
    done = audit(log, "verify")
    assert done.returncode == 0, done.stderr
    assert "whole: 4 entries, 1 to 4." in done.stdout
    head = done.stdout.split("head: ")[1].strip()
    add(log, {"event": "cell.ended"})
    assert audit(log, "verify", "--head", head).returncode == 0


def test_verify_names_the_first_line_that_is_not_as_it_was(log: Path) -> None:
    """Status 1, the kind, the file and the line."""
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], lines[1].replace(b"oom", b"ok!"), *lines[2:]]))
    done = audit(log, "verify")
    assert done.returncode == 1
    assert "altered:" in done.stdout
    assert "audit.jsonl, line 2:" in "".join(done.stdout.splitlines())
    log.write_bytes(b"".join(lines[:3]))
    assert "cut:" in audit(log, "verify").stdout


def test_a_log_that_was_written_anew_lacks_the_head_of_before(log: Path, tmp_path: Path) -> None:
    """Sound in itself, and found out by a head that was noted down."""
    head = audit(log, "verify").stdout.split("head: ")[1].strip()
    forged = tmp_path / "forged.jsonl"
    add(forged, *({"event": "cell.ended", "outcome": "ok"} for _ in range(4)))
    assert audit(forged, "verify").returncode == 0
    done = audit(forged, "verify", "--head", head)
    assert done.returncode == 1
    assert "expected" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--agent", "ann"], [1, 2]),
        (["--event", "cell."], [1, 2, 3]),
        (["--outcome", "oom"], [2]),
        (["--code", "c" * 64], [1]),
        (["--since", "2026-01-02"], [3, 4]),
        (["--until", "2026-01-02"], [1, 2, 3]),
        (["--agent", "bob", "--event", "cell.ended"], [3]),
        (["--text", "file.in"], [4]),
        (["--agent", "nobody"], []),
    ],
)
def test_search_finds_what_matches_all_that_is_asked(log: Path, arguments: list[str], found: list[int]) -> None:
    """Status 0 with entries, 1 without."""
    done = audit(log, "search", "--json", *arguments)
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == found
    assert done.returncode == (0 if found else 1)


def test_what_is_hostile_in_an_entry_reaches_no_terminal(log: Path) -> None:
    """Neither control characters nor markup of a file's name are obeyed in the table."""
    done = audit(log, "tail", "-n", "1")
    assert "\x1b" not in done.stdout
    assert "[red]x" in done.stdout


async def test_tail_follows(log: Path) -> None:
    """New entries appear as they are written, once each."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "audit", "tail", "-n", "1", "-f", "--json", "--log", str(log), stdout=asyncio.subprocess.PIPE
    )

    async def entry() -> dict[str, Any]:
        assert process.stdout is not None
        shown: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        return shown

    try:
        assert (await entry())["seq"] == 4
        add(log, {"event": "first"}, {"event": "second"})
        assert [(await entry())["seq"], (await entry())["seq"]] == [5, 6]
        await asyncio.sleep(1.2)
        add(log, {"event": "third"})
        assert (await entry())["event"] == "third"
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--log", "nowhere.jsonl"], "there is no audit log"),
        (["verify", "--head", "5"], "NUMBER:HASH"),
        (["tail", "--log", "."], "cannot be read"),
    ],
)
def test_mistakes_get_one_clear_message(log: Path, arguments: list[str], said: str) -> None:
    done = audit(log, *arguments)
    assert done.returncode == (2 if "--head" in arguments else 1)
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
